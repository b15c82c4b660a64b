"""Train a diffusion transformer: `python train.py +experiment=deferred_mask_75`. `--cfg job` shows what will happen."""

from microdit.commands.entry_points import train

if __name__ == "__main__":
    train()
