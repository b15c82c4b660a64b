"""What travels in a step, counted by hand."""

import pytest

from microdit.cost.traffic import step_traffic

P = 1_000_000
EIGHT = {"machines": 1, "devices": 8, "bf16": True, "micro_batches": 1}
TWICE_EIGHT = {**EIGHT, "machines": 2}


def test_one_device_has_nothing_to_send():
    assert step_traffic(P, machines=1, devices=1, parts=1, bf16=True, micro_batches=4) == (0, 0)


@pytest.mark.parametrize(("compressed", "bytes_each"), [(False, 4), (True, 2)])
def test_ddp_sums_gradients_once_a_step(compressed, bytes_each):
    for micro_batches in (1, 4):
        given = {**EIGHT, "micro_batches": micro_batches}
        assert step_traffic(P, **given, parts=1, compressed=compressed) == (2 * bytes_each * P * 7 // 8, 0)


def test_fsdp_gathers_weights_twice_and_sums_gradients_each_micro_batch():
    once = P * 7 // 8
    assert step_traffic(P, **EIGHT, parts=8) == ((2 * 2 + 4) * once, 0)
    assert step_traffic(P, **{**EIGHT, "bf16": False}, parts=8) == ((2 * 4 + 4) * once, 0)
    assert step_traffic(P, **{**EIGHT, "micro_batches": 3}, parts=8) == (3 * 8 * once, 0)
    assert step_traffic(P, **EIGHT, parts=8, reshard_after_forward=False) == ((2 + 4) * once, 0)


def test_between_machines_hybrid_sharding_sends_sums_of_gradients_alone():
    full, hybrid = step_traffic(P, **TWICE_EIGHT, parts=16), step_traffic(P, **TWICE_EIGHT, parts=8)
    assert full.machine == full.device == 8 * P * 15 // 16
    assert hybrid.machine == 2 * 4 * P // 2
    assert hybrid.device == 8 * P * 7 // 8 + hybrid.machine // 8
    assert hybrid.machine < 0.55 * full.machine
