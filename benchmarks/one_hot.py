"""The baseline for experts: dispatch and combine as one-hot products, the way the formula reads."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.feed_forward import ExpertChoice

Network = TypeVar("Network", bound=nn.Module)


class OneHotExpertChoice(ExpertChoice):
    """The same layer, its patches moved by products with one-hot matrices."""

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        t = x.shape[1]
        k = min(t, int(self.capacity * t / self.w1.shape[0]))
        probabilities = self.gate(x).softmax(dim=-1)
        chosen, patches = probabilities.transpose(1, 2).topk(k, dim=-1)
        dispatch = F.one_hot(patches, t).to(x.dtype)  # [n, experts, k, t]
        gathered = torch.einsum("nekt,ntd->nekd", dispatch, x)
        hidden = F.gelu(torch.einsum("nekd,edh->nekh", gathered, self.w1))
        outputs = torch.einsum("nekh,ehd->nekd", hidden, self.w2)
        return torch.einsum("nekt,nek,nekd->ntd", dispatch, chosen.to(outputs.dtype), outputs)


def with_one_hot_experts(network: Network) -> Network:
    """The same network and weights, every mixture of experts computed with one-hot products."""
    for module in network.modules():
        if isinstance(module, ExpertChoice):
            module.__class__ = OneHotExpertChoice
    return network
