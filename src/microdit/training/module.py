"""One step of training as Lightning wants it: loss, optimizer, moving average, validation."""

import copy
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from microdit.diffusion.edm import Draws, LossTerms, NoiseDistribution, training_loss
from microdit.model.dit import DiT
from microdit.training.schedules import MaskRatio, learning_rate_factor
from microdit.training.settings import OptimizerSettings, StageSettings


class NonFiniteLossError(RuntimeError):
    """Training produced a loss or gradient that is not a number; the message names the step."""


class DenoisingTask(L.LightningModule):
    """Trains `network` to denoise latents under a mask ratio, and keeps a moving average of its weights.

    The checkpoint holds `network.*` and, where the stage has one, `ema.*`, both under the released key names.
    """

    def __init__(
        self,
        network: DiT,
        *,
        sigma_data: float,
        mask_ratio: MaskRatio,
        stage: StageSettings,
        optimizer: OptimizerSettings,
        max_steps: int,
    ):
        super().__init__()
        self.network = network
        self.ema = copy.deepcopy(network).requires_grad_(False) if stage.ema_decay is not None else None
        self.sigma_data, self.mask_ratio = sigma_data, mask_ratio
        self.stage, self.optimizer, self.max_steps = stage, optimizer, max_steps
        self.noise = NoiseDistribution(stage.noise_mean, stage.noise_std)

    @property
    def best_network(self) -> DiT:
        """What one would generate with: the moving average where there is one."""
        return self.network if self.ema is None else self.ema

    def current_mask_ratio(self) -> float:
        return self.mask_ratio.ratio(self.global_step / self.max_steps)

    def loss(self, network: DiT, batch: dict[str, Any], mask_ratio: float) -> LossTerms:
        captions = batch["captions"].float() * ~batch["drop_caption"][:, None, None]
        return training_loss(
            network,
            batch["latents"].float(),
            captions,
            Draws(*batch["draws"]),
            noise=self.noise,
            sigma_data=self.sigma_data,
            mask_ratio=mask_ratio,
            patch_size=network.patch_size,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        terms = self.loss(self.network, batch, self.current_mask_ratio())
        if not torch.isfinite(terms.loss):
            raise NonFiniteLossError(
                f"the loss is {terms.loss.item()} at step {self.global_step}. Checkpoints before it are intact; lower "
                f"resolution_stage.learning_rate (now {self.stage.learning_rate}) and resume, or try another seed"
            )
        self.log("train/loss", terms.loss.detach())
        return terms.loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The unmasked denoising loss of what one would generate with, at noise that never changes."""
        terms = self.loss(self.best_network, batch, mask_ratio=0.0)
        self.log("validation/loss", terms.loss, batch_size=len(terms.sigma), sync_dist=True, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        o = self.optimizer
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.stage.learning_rate,
            betas=(o.beta1, o.beta2),
            eps=o.eps,
            weight_decay=o.weight_decay,
            fused=True,
        )
        stage = self.stage

        def factor(step: int) -> float:
            return learning_rate_factor(step, self.max_steps, stage.warmup_steps, stage.schedule, stage.final_factor)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.stage.gradient_clip_norm)
        if not torch.isfinite(norm):
            raise NonFiniteLossError(f"the gradient is not finite at step {self.global_step}")
        self.log("train/gradient_norm", norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_ema()

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema += (1 - decay) (network - ema) after each optimizer step; a copy of the network until the average starts.

        A young average trusts new weights more: its decay is at most (1 + n) / (10 + n) after n updates.
        """
        if self.ema is None:
            return
        assert self.stage.ema_decay is not None
        updates = self.global_step - self.stage.ema_start_step
        decay = 0.0 if updates <= 0 else min(self.stage.ema_decay, (1 + updates) / (10 + updates))
        for average, current in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
