"""The network. Pure torch; read it in this order: dit.py (the whole), blocks.py (attention and blocks), feed_forward.py
(gated layers, mixture of experts), embeddings.py (what enters), operations.py (the formulas between linear layers),
initialisation.py, sizes.py (the paper's networks). Masking methods stand beside it, in microdit.masking."""
