"""The network: layers, attention, mixture of experts, token paths, DiT. Pure torch."""
