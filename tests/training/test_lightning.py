"""Two places reach into Lightning, which has no public way there: whether they still find what they rely on."""

from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from microdit.training.callbacks.stopping import StopWhenAsked
from microdit.training.module import count_micro_batches


class Steps(L.Callback):
    """`after`: the step after each micro-batch; `saved`: the checkpoint of the last one."""

    def __init__(self):
        self.after: list[int] = []

    def on_train_batch_end(self, trainer, *_):
        self.after.append(trainer.global_step)
        self.saved = trainer.default_root_dir + "/last.ckpt"
        trainer.save_checkpoint(self.saved)


def trainer_of(folder, *callbacks, **settings) -> L.Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "limit_val_batches")
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        callbacks=[*callbacks],
        **dict.fromkeys(off, False),
        **settings,
    )


@pytest.fixture
def ranks():
    """A group of ranks that is there, though of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_stop_when_asked_replaces_what_lightning_asks_all_ranks_before_every_batch(ranks, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_, **__: asked.append(1))

    def times_asked(*callbacks) -> int:
        asked.clear()
        trainer = trainer_of(tmp_path, *callbacks, max_steps=3)
        trainer.strategy.world_size = 2  # it only asks where there are several
        trainer.fit(BoringModel())
        return len(asked)

    assert times_asked() == 3, (
        "Lightning no longer broadcasts before every batch whether SIGTERM was received: remove the replacement of "
        "_broadcast_sigterm_tensor from StopWhenAsked, and this test"
    )
    assert times_asked(StopWhenAsked(None, timedelta(seconds=60))) == 0, (
        "Lightning asks all ranks about SIGTERM before every batch by another way than "
        "fit_loop.epoch_loop._broadcast_sigterm_tensor: let StopWhenAsked replace that"
    )


def test_a_checkpoint_of_lightning_goes_on_with_another_number_of_micro_batches(tmp_path):
    steps = Steps()
    trainer_of(tmp_path, steps, max_steps=3).fit(BoringModel())
    checkpoint = torch.load(steps.saved, weights_only=True)
    progress = checkpoint["loops"]["fit_loop"].get("epoch_loop.batch_progress")
    counted = {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    assert progress == {"total": counted, "current": counted, "is_last_batch": False}, (
        "Lightning keeps its count of batches elsewhere or counts otherwise: adapt count_micro_batches to that"
    )
    count_micro_batches(checkpoint, 2)
    torch.save(checkpoint, steps.saved)
    again = Steps()
    trainer_of(tmp_path, again, max_steps=5, accumulate_grad_batches=2).fit(
        BoringModel(), ckpt_path=steps.saved, weights_only=True
    )
    assert again.after == [3, 4, 4, 5], "count_micro_batches no longer makes Lightning go on at the start of a step"
