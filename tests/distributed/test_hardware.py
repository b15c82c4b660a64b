"""A global batch is divided among devices and micro-batches, or refused with what is possible."""

from types import SimpleNamespace

import pytest

from microdit.build import SettingsError
from microdit.distributed.hardware import divide_batch


def divide(images, devices, device_batch_size=None):
    return divide_batch(images, SimpleNamespace(world_size=devices, device_batch_size=device_batch_size))


def test_every_image_of_the_global_batch_is_computed_once():
    for images, devices, most in ((2048, 8, 128), (2048, 8, None), (16, 1, 128), (96, 4, 8)):
        size, micro_batches = divide(images, devices, most)
        assert size * micro_batches * devices == images
        assert size <= (most or images)


def test_devices_that_do_not_divide_are_refused_with_those_that_do():
    with pytest.raises(SettingsError, match=r"10 images .* 4 devices\. Possible: 1, 2, 5, 10 devices .* 8 or 12 "):
        divide(10, 4)


def test_more_devices_than_images_are_refused():
    with pytest.raises(SettingsError, match="Possible: 1, 2, 4 devices"):
        divide(4, 8)


def test_micro_batches_that_do_not_divide_are_refused_with_those_that_do():
    with pytest.raises(SettingsError, match=r"device's 12 images .*device_batch_size=1, 2, 3, 4, 6, 12$"):
        divide(24, 2, 5)


def test_the_network_is_divided_among_all_devices_or_those_of_a_machine(run_settings):
    fsdp, two = ["trainer.strategy=fsdp", "trainer.devices=4"], "trainer.nodes=2"
    assert run_settings("trainer.devices=4").trainer.parts == 1
    assert run_settings(*fsdp).trainer.parts == 4
    assert run_settings(*fsdp, two).trainer.parts == 8
    assert run_settings(*fsdp, two, "trainer.sharding=hybrid").trainer.parts == 4


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.sharding=hybrid"], "are of trainer.strategy=fsdp"),
        (["trainer.reshard_after_forward=false"], "are of trainer.strategy=fsdp"),
        (["trainer.sharding=hybrid", "trainer.strategy=fsdp", "trainer.devices=4"], "this is 1 x 4 .* two machines"),
        (["trainer.sharding=hybrid", "trainer.strategy=fsdp", "trainer.nodes=4"], "this is 4 x 1 .* two devices"),
        (["trainer.sharding=some", "trainer.strategy=fsdp"], "trainer.sharding must be full or hybrid"),
    ],
)
def test_a_sharding_that_changes_nothing_or_cannot_be_is_refused(run_settings, overrides, told):
    with pytest.raises(SettingsError, match=told):
        run_settings(*overrides)


def test_steps_are_launched_as_graphs_where_one_gpu_trains_alone(run_settings):
    def graphed(*overrides):
        return run_settings(*overrides).trainer.graphed

    gpu = "trainer.accelerator=gpu"
    assert graphed(gpu, "trainer.compile=null")
    assert not graphed(gpu, "trainer.compile=false")
    assert not graphed(gpu, "trainer.compile=null", "trainer.devices=2")
    assert not graphed(gpu, "trainer.compile=null", "trainer.cuda_graphs=false")
    assert not graphed()
    for overrides in (["trainer.cuda_graphs=true"], [gpu, "trainer.cuda_graphs=true", "trainer.devices=2"]):
        with pytest.raises(SettingsError, match="one GPU that trains alone"):
            graphed(*overrides)
