"""What each entry point does after Hydra; messages. The one place below the entry points that knows Hydra."""
