"""The network as a model of diffusers; an exported folder has this module with all that it takes from this package."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from microdit.masking.deferred import Deferred
from microdit.masking.maskdit import MaskDiT
from microdit.masking.naive import Naive
from microdit.masking.none import Unmasked
from microdit.masking.sprint import Sprint
from microdit.masking.tread import Tread
from microdit.model.dit import DiT

TOKEN_PATHS = {path.__name__: path for path in (Deferred, MaskDiT, Naive, Sprint, Tread, Unmasked)}


class MicroDiTTransformer2DModel(ModelMixin, DiT, ConfigMixin):
    """The diffusion transformer F(x; noise, caption) of "Stretching Each Dollar", with its parameters' names.

    `network`: the arguments of `DiT`. `masking`: the masking method that it was trained with, its class's name as
    `name` and its arguments; at inference all patches are seen. `objective`: what the network learned, and with which
    preconditioning it is called, in the same form; the pipeline reads it.
    """

    _no_split_modules: ClassVar[list[str]] = ["DiTBlock"]
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(self, network: dict[str, Any], masking: dict[str, Any], objective: dict[str, Any]) -> None:
        path = TOKEN_PATHS[masking["name"]](**without_name(masking))
        DiT.__init__(self, **network, use_patch_mixer=path.uses_patch_mixer, token_path=path)
        self._gradient_checkpointing_func = None
        # Positions too: by the first tensor diffusers decides whether the weights become what was asked for.
        torch.nn.Module.to(self, torch.get_default_dtype())

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - as models of diffusers are called
        self,
        hidden_states: Float[Tensor, "n c h w"],
        timestep: Float[Tensor, " n"],
        encoder_hidden_states: Float[Tensor, "n l d"],
        without_middle: bool = False,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """F of scaled noisy latents, in float32; `timestep` is the noise label, ln(sigma) / 4 for EDM's objective.

        `without_middle`: the cheap pass that guidance by path drop leads away from (networks trained with SPRINT).
        Weights of fewer bits than float32 are used as under autocast.
        """
        kind, device = self.dtype, hidden_states.device
        kept = (
            self.token_path.weak_pass(len(hidden_states), self.grid(hidden_states), device) if without_middle else None
        )
        with nullcontext() if kind == torch.float32 else torch.autocast(device.type, kind):
            inputs = hidden_states.to(kind), timestep.float(), encoder_hidden_states.to(kind)
            sample = DiT.forward(self, *inputs, kept).float()
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)  # pyright: ignore[reportArgumentType]


def without_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "name"}
