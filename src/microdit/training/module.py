"""One step of training as Lightning wants it: loss, optimizer, moving average."""

import copy
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from microdit.checkpoints.reading import check_fits
from microdit.checkpoints.starting import OptimizerStates
from microdit.cost.flops import on_meta
from microdit.distributed.sharded_strategy import ShardedStrategy
from microdit.distributed.sharding import gathered, is_sharded, local_part, optimizer_state, shard, whole_tensor
from microdit.kernels.gpu.graphs import GraphedGradients
from microdit.model.dit import DiT
from microdit.objectives.objective import Draws, LossTerms, Network, Objective, training_loss
from microdit.representation.alignment import Alignment, Seen
from microdit.training.float8 import in_float8
from microdit.training.optimizers import check_states, clip_in_step, clips_by_itself, make_optimizer
from microdit.training.settings import TrainingSettings


class NonFiniteLossError(RuntimeError):
    """Training produced a loss or gradient that is not a number; the message names the step."""


class Case(NamedTuple):
    """What a step depends on beside its batch: the share of patches dropped, and whether tokens are aligned."""

    mask_ratio: float
    aligns: bool


class DenoisingTask(L.LightningModule):
    """Trains `network` to denoise latents under a mask ratio, and keeps a moving average of its weights. With an
    `alignment` its tokens learn beside that to tell the features in a batch.

    The checkpoint holds `network.*` and, where the stage has one, `ema.*`, both under the released key names, and the
    layers of an alignment, `alignment.*`.
    """

    def __init__(
        self,
        network: DiT,
        objective: Objective,
        settings: TrainingSettings,
        max_steps: int,
        initial_optimizer: OptimizerStates | None = None,
        alignment: Alignment | None = None,
    ):
        super().__init__()
        stage, self.skeleton = settings.resolution_stage, [on_meta(network)]  # in a list, so that it is no submodule
        self.ema = copy.deepcopy(network).requires_grad_(False) if stage.ema_decay is not None else None
        self.network = in_float8(network) if settings.trainer.precision == "fp8" else network
        self.alignment = alignment
        self.objective, self.mask_ratio, self.schedule = objective, settings.mask_ratio, settings.schedule
        self.stage, self.optimizer, self.max_steps = stage, settings.optimizer, max_steps
        self.hardware, self.initial_optimizer = settings.trainer, initial_optimizer
        self.skipped_in_a_row: int | Tensor = 0
        self.skipped_steps: int | Tensor = 0
        self.graphed = GraphedGradients(self.learning, self.share_of_loss) if self.hardware.graphed else None
        self.gradient_norm, self.learning_rate = torch.tensor(float("nan")), 0.0

    def configure_model(self) -> None:
        """With FSDP each rank keeps its part of network and moving average."""
        if self.device_mesh is None or is_sharded(self.network):
            return
        strategy, bf16 = self.trainer.strategy, self.trainer.precision == "bf16-mixed"
        assert isinstance(strategy, ShardedStrategy)
        shard(self.network, strategy.sharding_mesh, bf16, self.hardware.reshard_after_forward)
        for layers in (self.ema, self.alignment):  # of which nothing waits for a backward pass
            if layers is not None:
                shard(layers, strategy.sharding_mesh, bf16)

    @property
    def learning(self) -> nn.Module:
        """All that is trained: the network, and the layers of an alignment."""
        return self.network if self.alignment is None else nn.ModuleList([self.network, self.alignment])

    @property
    def best_network(self) -> DiT:
        """What one would generate with: the moving average where there is one."""
        return self.network if self.ema is None else self.ema

    def whole_network(self) -> DiT:
        """The best network in one piece, on every rank, as it is drawn with; all must ask together."""
        in_eight_bits = self.ema is None and self.hardware.precision == "fp8"
        if not is_sharded(self.best_network) and not in_eight_bits:
            return self.best_network
        return gathered(self.best_network, self.skeleton[0], self.device)

    def current_case(self) -> Case:
        progress = self.global_step / self.max_steps
        return Case(self.mask_ratio.ratio(progress), self.alignment is not None and self.alignment.is_on(progress))

    def loss(self, network: DiT, batch: dict[str, Any], mask_ratio: float, called: Network | None = None) -> LossTerms:
        """The loss of denoising alone; `called`: what calls the network in its place."""
        captions = batch["captions"] * ~batch["drop_caption"][:, None, None]
        return training_loss(
            called or network,
            batch["latents"].float(),
            captions,
            Draws(*batch["draws"]),
            token_path=network.token_path,
            objective=self.objective,
            mask_ratio=mask_ratio,
            patch_size=network.patch_size,
            quality=batch.get("quality"),
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The loss to be lowered, and for callbacks, as `outputs`, the terms of this micro-batch."""
        if self.graphed is None:
            loss, terms = self.guarded_loss(batch, self.current_case())
            return {"loss": loss, "terms": terms}
        names = ("latents", "captions", "draws", "drop_caption", "quality", "features")
        computed = {name: batch[name] for name in names if name in batch}
        terms = LossTerms(*(term.clone() for term in self.graphed(computed, self.current_case())))
        return {"loss": terms.loss, "terms": terms}

    def whole_loss(self, batch: dict[str, Any], case: Case) -> LossTerms:
        """The loss with what is learned beside denoising."""
        if self.alignment is None:
            return self.loss(self.network, batch, case.mask_ratio)
        seen = Seen(self.network, self.alignment.block(len(self.network.blocks)))
        terms = self.loss(self.network, batch, case.mask_ratio, seen)
        beside = self.alignment(seen, batch["features"]) if case.aligns else self.alignment()
        return terms._replace(loss=terms.loss + beside.mean(), extra=terms.extra + beside.detach())

    def guarded_loss(self, batch: dict[str, Any], case: Case) -> tuple[Tensor, LossTerms]:
        """The loss to be differentiated, and the terms of this micro-batch without gradients."""
        terms = self.whole_loss(batch, case)
        detached = terms.loss.detach()
        # The factor is 1, or NaN where the loss is not finite: the gradients of all ranks then say so, when they meet.
        return terms.loss * (1 + 0 * detached), terms._replace(loss=detached)

    def share_of_loss(self, batch: dict[str, Any], case: Case) -> tuple[Tensor, LossTerms]:
        """The same, as part of a step of several micro-batches."""
        loss, terms = self.guarded_loss(batch, case)
        return loss / self.trainer.accumulate_grad_batches, terms

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """What a graph has left for gradients is taken as it is, or added up over a step's micro-batches."""
        if self.graphed is None:
            super().backward(loss, *args, **kwargs)
            return
        parameters, gradients = self.graphed.parameters, self.graphed.gradients
        if parameters[0].grad is not None:
            pairs = [(p.grad, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
            return
        last = self.trainer.accumulate_grad_batches == 1
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if last or gradient is None else gradient.clone()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = make_optimizer(self.learning, self.optimizer)
        if self.initial_optimizer is not None:
            for name, parameter in self.named_parameters():
                if name in self.initial_optimizer and name.startswith("network."):
                    optimizer.state[parameter] = optimizer_state(parameter, self.initial_optimizer[name])
            self.initial_optimizer = None
        # Before the schedule changes it: what a resumed run is told counts, not what its checkpoint was told.
        self.told = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        schedule = LambdaLR(optimizer, lambda step: self.schedule.factor(step, self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        (optimizer,), (schedule,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        schedule.scheduler.base_lrs = [told["lr"] for told in self.told]  # type: ignore[attr-defined]
        factor = self.schedule.factor(schedule.scheduler.last_epoch, self.max_steps)  # type: ignore[attr-defined]
        for group, told in zip(optimizer.param_groups, self.told, strict=True):
            group |= told | {"initial_lr": told["lr"], "lr": told["lr"] * factor}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips the norm over all ranks. A gradient that is not finite is dropped, so that the step changes nothing.

        Raises NonFiniteLossError after more than `max_skipped_steps` of these in a row; on a GPU, which nothing else
        makes wait, at the next step that is logged.
        """
        gradients = [p.grad for p in self.learning.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.gradient_norm, self.learning_rate = whole_tensor(norm), optimizer.param_groups[0]["lr"]
        if clips_by_itself(optimizer):
            is_bad = clip_in_step(optimizer, self.gradient_norm, self.stage.gradient_clip_norm)
            self.skipped_in_a_row = (self.skipped_in_a_row + is_bad.long()) * is_bad
            self.skipped_steps = self.skipped_steps + is_bad.long()
            if (self.global_step + 1) % self.hardware.log_every_n_steps:
                return  # the host looks where it waits for the loss anyway; until then nothing has been changed
            self.skipped_in_a_row, self.skipped_steps = int(self.skipped_in_a_row), int(self.skipped_steps)
        elif torch.isfinite(self.gradient_norm):
            torch.nn.utils.clip_grads_with_norm_(self.learning.parameters(), self.stage.gradient_clip_norm, norm)
            self.skipped_in_a_row = 0
        else:
            optimizer.zero_grad(set_to_none=True)
            self.skipped_in_a_row += 1
            self.skipped_steps += 1
        if self.skipped_in_a_row > self.hardware.max_skipped_steps:
            raise NonFiniteLossError(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row, the last at step "
                f"{self.global_step}; none of them changed the weights, and none was saved. Lower "
                f"resolution_stage.learning_rate (now {self.stage.learning_rate}) and resume from the newest "
                f"checkpoint or an earlier one (resume={self.trainer.default_root_dir}/checkpoints/step_....ckpt), or "
                f"try another seed"
            )

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
        averages, currents = ([local_part(p) for p in each.parameters()] for each in (self.ema, self.network))
        torch._foreach_lerp_(averages, currents, 1 - decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The optimizer knows its parameters by number: the checkpoint says which is which."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        groups = self.trainer.optimizers[0].param_groups
        checkpoint["parameter_names"] = [names[id(parameter)] for group in groups for parameter in group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of a sharded network every rank has taken its parts already. CheckpointError for what does not fit."""
        source = str(self.trainer.ckpt_path)
        if "state_dict" in checkpoint:
            check_fits(self.state_dict(), checkpoint["state_dict"], source)
        if "optimizer_states" in checkpoint:
            check_states(checkpoint["optimizer_states"][0], self.learning, self.optimizer, source)
        count_micro_batches(checkpoint, self.trainer.accumulate_grad_batches)
        # Torch makes whatever else is in there a part of the schedule, methods included.
        kept = ("last_epoch", "lr_lambdas")
        checkpoint["lr_schedulers"] = [{name: one[name] for name in kept} for one in checkpoint["lr_schedulers"]]


def count_micro_batches(checkpoint: dict[str, Any], micro_batches: int) -> None:
    """Makes Lightning's counters those of a run with this many micro-batches a step, whatever they were saved with."""
    done = checkpoint["global_step"] * micro_batches
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        # Checkpoints are written in the last hook of a step, which is not "completed" yet.
        counters |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
