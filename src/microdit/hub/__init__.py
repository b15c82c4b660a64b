"""What others open a network with, without this package: `bundle.py` makes one file out of a module and all that it
takes from here, `diffusers_folder.py` writes a folder for diffusers, whose code are the modules beside it, bundled."""
