"""The format of latent shards: tars, their index, their description, and checked reading, local or remote."""
