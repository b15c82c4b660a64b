"""Turn captioned pictures into latent shards: `python prepare.py source=folder source.path=$HOME/pictures`."""

from microdit.commands.entry_points import prepare

if __name__ == "__main__":
    prepare()
