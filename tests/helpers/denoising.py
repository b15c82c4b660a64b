"""The loss that tests differentiate."""

from microdit.objectives.edm import EDM
from microdit.objectives.objective import LossTerms, training_loss


def loss_terms(network, latents, captions, draws, mask_ratio: float) -> LossTerms:
    """EDM's, with the network's own token path."""
    return training_loss(
        network,
        latents,
        captions,
        draws,
        token_path=network.token_path,
        objective=EDM(0.9),
        mask_ratio=mask_ratio,
        patch_size=network.patch_size,
    )
