"""Latents by position: the order of a mix, what happens to broken samples, batches for every rank."""
