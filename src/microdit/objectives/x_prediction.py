"""Prediction of the clean latents, with the loss of rectified flow (Li & He 2025, arXiv 2511.13720)."""

from dataclasses import dataclass

from microdit.kinds import Positive
from microdit.objectives.rectified_flow import RectifiedFlow


@dataclass(frozen=True)
class XPrediction(RectifiedFlow):
    """D = F: the network gives the clean latents themselves, which lie on fewer dimensions than noise does.

    The loss is on the velocity, |x0 - D|^2 / t^2, with t cut off at `least_time`, below which the weight would have no
    bound.
    """

    least_time: Positive = 0.05

    def c_skip(self, sigma):
        return 0 * sigma

    def c_out(self, sigma):
        return 0 * sigma + 1

    def weight(self, sigma):
        return 1 / self.time(sigma).clamp(min=self.least_time) ** 2
