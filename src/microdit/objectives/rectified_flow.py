"""Rectified flow (Liu et al. 2022; Esser et al. 2024, section 3): the network predicts the way from data to noise."""

from dataclasses import dataclass

import torch

from microdit.kinds import Positive
from microdit.objectives.objective import Objective


@dataclass(frozen=True)
class RectifiedFlow(Objective):
    """The straight path x_t = (1 - t) x0 + t eps in units of sigma = t / (1 - t): x_t = x / (1 + sigma) = (1 - t) x.

    The network predicts v = eps - x0, so D = x_t - t v, and the weight makes the loss |v - v_true|^2. A normal
    ln(sigma) is Esser et al.'s logit-normal t, and `time_shift` is theirs (section 5.3.2): above 1 for more noise where
    there are more tokens. `sigma_data` is not used: F learns the latents as they are.
    """

    time_shift: Positive = 1.0

    def time(self, sigma):
        """t in [0, 1): the share of noise in x_t."""
        return sigma / (1 + sigma)

    def c_skip(self, sigma):
        return 1 / (1 + sigma)

    def c_out(self, sigma):
        return -self.time(sigma)

    def c_in(self, sigma):
        return 1 / (1 + sigma)

    def c_noise(self, sigma):
        return self.time(sigma)

    def weight(self, sigma):
        return 1 / self.time(sigma) ** 2

    def draw(self, standard_normal):
        return self.time_shift * super().draw(standard_normal)

    def standard_level(self, sigma: torch.Tensor) -> torch.Tensor:
        return super().standard_level(sigma / self.time_shift)
