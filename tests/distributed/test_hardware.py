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
