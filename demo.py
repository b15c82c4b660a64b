"""A page to draw with a trained model: `python demo.py checkpoint=runs/...`."""

from microdit.commands.entry_points import demo

if __name__ == "__main__":
    demo()
