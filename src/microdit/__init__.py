"""MicroDiT: text-to-image diffusion transformers trained from scratch on a micro-budget (deferred patch masking)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microdit.pipeline import LatentDiffusion, create_latent_diffusion

__all__ = ["LatentDiffusion", "create_latent_diffusion"]


def __getattr__(name: str) -> Any:
    # Torch and the pipeline are imported when one of them is asked for, so that `import microdit` stays instant.
    if name in __all__:
        from microdit import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'microdit' has no attribute '{name}'")
