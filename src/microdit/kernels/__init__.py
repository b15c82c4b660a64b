"""Faster ways to the same numbers, behind torch.library; the model does not know them."""
