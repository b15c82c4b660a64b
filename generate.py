"""Draw pictures with a trained model: `python generate.py checkpoint=runs/... prompts='["a red circle"]'`."""

from microdit.commands.entry_points import generate

if __name__ == "__main__":
    generate()
