"""EDM (Karras et al. 2022, table 1): the network's input, output and error have unit variance at every noise level."""

from dataclasses import dataclass

from microdit.objectives.objective import Objective


@dataclass(frozen=True)
class EDM(Objective):
    """The paper's objective. With F = 0 the expected loss is 1 wherever the data has deviation `sigma_data`."""

    def c_skip(self, sigma):
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma):
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma):
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma):
        return sigma.log() / 4

    def weight(self, sigma):
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
