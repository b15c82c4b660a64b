"""Write a network for others: `python export.py runs/THE_RUN` makes a safetensors file with the released keys,
`--format diffusers` a folder that diffusers opens without this package."""

from microdit.commands.entry_points import export

if __name__ == "__main__":
    export()
