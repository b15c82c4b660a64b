"""MicroDiT: text-to-image diffusion transformers trained from scratch on a micro-budget (deferred patch masking)."""
