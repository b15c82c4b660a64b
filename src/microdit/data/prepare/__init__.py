"""Captioned pictures to latent shards, by input shard, restartable anywhere."""
