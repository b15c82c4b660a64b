"""The cost of training before it runs: the paper's arithmetic, on FLOPs that are counted."""

from dataclasses import asdict

import pytest
from rich.console import Console

from microdit.commands.compose import name_of_stages
from microdit.commands.plan import (
    PlannedHardware,
    PlannedStage,
    memory_table,
    plan_table,
    planned_memory,
    planned_stage,
    tell_missing_start,
    told_basis,
    told_price,
    traffic_table,
)
from microdit.kinds import SettingsError, check_arguments
from microdit.pipeline import build_pipeline
from microdit.representation.alignment import make_alignment
from microdit.training.run import network_settings

H100S = PlannedHardware(devices=8, peak_tflops=989, mfu=0.185, dollars_per_device_hour=3.78)


def test_hours_and_dollars_follow_from_flops():
    hardware = PlannedHardware(devices=2, peak_tflops=100, mfu=0.5, dollars_per_device_hour=3.0)
    flops = 2 * 100e12 * 0.5 * 7200
    assert hardware.hours(flops) == pytest.approx(2.0)
    assert hardware.dollars(flops) == pytest.approx(12.0)


def test_the_papers_total_at_its_utilisation_is_its_days_and_dollars():
    total = 3.285e20  # the four stages, counted; tests/cli/test_plan.py counts them anew
    assert H100S.hours(total) / 24 == pytest.approx(2.6, rel=0.005)
    assert H100S.dollars(total) == pytest.approx(1890, rel=0.005)


@pytest.mark.parametrize("mfu", [0.0, -0.1, 1.01])
def test_a_utilisation_outside_zero_to_one_is_refused(mfu):
    with pytest.raises(SettingsError, match=r"hardware\.mfu must be a number from 0\.0001 to 1, got"):
        check_arguments(PlannedHardware, {**asdict(H100S), "mfu": mfu}, "hardware")


def test_a_falling_mask_ratio_is_planned_level_by_level(run_settings):
    falling, masked, unmasked = (
        planned_stage("x", run_settings(f"mask_ratio={ratio}", "trainer.max_steps=8"))
        for ratio in ("falling", "p75", "none")
    )
    assert masked.flops < falling.flops < unmasked.flops
    halfway = planned_stage("x", run_settings("mask_ratio.share=0.5", "trainer.max_steps=8"))
    quarter = planned_stage("x", run_settings("mask_ratio.share=0.25", "trainer.max_steps=8"))
    assert 4 * falling.flops == masked.flops + halfway.flops + quarter.flops + unmasked.flops


def test_a_budget_of_flops_shortens_the_plan(run_settings):
    whole = planned_stage("x", run_settings("trainer.max_steps=8"))
    half = planned_stage("x", run_settings("trainer.max_steps=8", f"trainer.max_flops={whole.flops / 2}"))
    assert (half.steps, half.images, half.flops) == (4, 16, whole.flops // 2)


def test_the_table_sums_what_it_lists():
    stages = [PlannedStage("a", 10, 5, 50, 2, 100), PlannedStage("b", 10, 7, 70, 4, 280)]
    console = Console(width=120)
    with console.capture() as shown:
        console.print(plan_table(stages, H100S))
    last = next(line for line in shown.get().splitlines() if "in all" in line)
    assert [cell.strip() for cell in last.split("│")[2:6]] == ["12", "0.00012", "3.167e-09", "380"]


def test_what_hybrid_sharding_and_kept_weights_cost_is_planned(run_settings):
    fsdp = ["trainer.strategy=fsdp", "trainer.devices=2", "trainer.nodes=2"]
    full, hybrid, kept = (
        planned_memory(run_settings(*fsdp, *more)).memory
        for more in ([], ["trainer.sharding=hybrid"], ["trainer.reshard_after_forward=false"])
    )
    assert full.parameters < hybrid.parameters < 2.1 * full.parameters
    assert kept.working > full.working
    assert kept.parameters == full.parameters
    console, stages = Console(width=120), [("a", run_settings(*fsdp, "trainer.sharding=hybrid"))]
    with console.capture() as shown:
        console.print(traffic_table(stages))
    told = " ".join(shown.get().split())
    assert "2 x 2 devices, fsdp, hybrid sharding, weights given back after forward" in told
    pipeline = build_pipeline(network_settings(stages[0][1]), device="meta")
    numbers = sum(p.numel() for p in pipeline.dit.parameters())
    row = next(line for line in shown.get().splitlines() if line.startswith("│a"))
    cells = [float(cell) for cell in row.split("│")[2:5]]
    assert cells == [1, pytest.approx(numbers * (6 + 2) / 1e9, rel=0.01), pytest.approx(numbers * 4 / 1e9, rel=0.01)]


def test_the_memory_of_each_device_is_planned(run_settings):
    alone = planned_memory(run_settings("trainer.device_batch_size=2")).memory
    sharded = planned_memory(run_settings("trainer.devices=2", "trainer.strategy=fsdp")).memory
    assert alone.optimizer == 2 * alone.parameters == 2 * alone.moving_average
    assert 0.5 * alone.parameters <= sharded.parameters < 0.6 * alone.parameters
    assert sharded.activations == alone.activations  # of two images each
    assert sharded.working > 0 == alone.working
    console = Console(width=200)
    with console.capture() as shown:
        console.print(memory_table([("the stage", run_settings("trainer.device_batch_size=2"))]))
    assert "│the stage │      2 │" in shown.get()


@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_micro_batch_of_a_gpu_is_the_most_that_fits_its_memory(run_settings, most):
    gpu = ["trainer.accelerator=gpu", "resolution_stage.global_batch_size=4"]
    gib = planned_memory(run_settings(*gpu, f"trainer.device_batch_size={most}")).memory.total / 0.89 / 2**30
    found = planned_memory(run_settings(*gpu), gib)
    assert (found.images, found.refused) == (most, None)
    assert found.memory.total <= 0.9 * gib * 2**30
    typed = planned_memory(run_settings(*gpu, "trainer.device_batch_size=4"), gib)
    assert (typed.refused is None) == (most == 4)
    assert typed.refused is None or f"the most is {most} " in typed.refused


def test_a_gpu_that_holds_not_one_image_is_told_what_helps(run_settings):
    found = planned_memory(run_settings("trainer.accelerator=gpu"), 1e-4)
    assert "not even one image fits" in found.refused
    assert "trainer.strategy=fsdp" in found.refused


def test_the_price_is_told_at_two_prices_and_what_it_rests_on():
    stages = [PlannedStage("a", 10, 5, 50, 2, 3 * 10**20), PlannedStage("b", 10, 7, 70, 4, 285 * 10**17)]
    both = PlannedHardware(devices=8, peak_tflops=989, mfu=0.185, dollars_per_device_hour=3.78, dollars_elsewhere=2.0)
    hours = 3.285e20 / (989e12 * 0.185) / 3600
    assert told_price(stages, both) == (
        f"{hours:.4g} device-hours in all: ${hours * 3.78:,.2f} at $3.78 an hour, ${hours * 2:,.2f} at $2.00 an hour."
    )
    assert told_price(stages, H100S).endswith(" at $3.78 an hour.")
    basis = told_basis({"mine": "And on hope."}, both, "mine")
    assert "18.5% of the peak, which is hardware.mfu and not measured" in basis
    assert "frozen network's features are computed once, is not in them" in basis
    assert basis.endswith("And on hope.")
    assert "hope" not in told_basis({"mine": "And on hope."}, both, None)


@pytest.mark.parametrize(
    ("scale", "recipe", "name"), [("xl", "modern", "xl_modern"), ("xl", "microdit", "xl"), (None, None, "laptop")]
)
def test_a_recipe_has_stages_of_its_own_where_there_are_some(scale, recipe, name):
    chosen = {"scale": scale, "recipe": recipe}
    known = {"laptop", "xl", "xl_modern"}
    assert name_of_stages(known, {key: value for key, value in chosen.items() if value is not None}) == name


@pytest.mark.parametrize("representation", ["repa", "irepa"])
def test_the_layers_of_an_alignment_are_in_memory_and_in_flops(run_settings, representation):
    plain, aligned = run_settings(), run_settings(f"representation={representation}")
    without, held = planned_memory(plain).memory, planned_memory(aligned).memory
    layers = make_alignment(aligned.representation, build_pipeline(network_settings(aligned), device="meta").dit)
    weights = 4 * sum(parameter.numel() for parameter in layers.parameters())
    assert held.parameters - without.parameters == held.gradients - without.gradients == weights > 0
    assert held.optimizer - without.optimizer == 2 * weights
    assert held.moving_average == without.moving_average
    assert held.activations > without.activations
    assert planned_stage("x", aligned).flops > planned_stage("x", plain).flops
    assert planned_memory(run_settings(f"representation={representation}", "representation.weight=0")).memory == without


def test_weights_to_start_from_that_are_not_there_are_told(tmp_path, capsys):
    (tmp_path / "first").mkdir()
    tell_missing_start({"init_from": str(tmp_path / "frist")})
    assert f"did you mean {tmp_path / 'first'}?" in capsys.readouterr().out.replace("\n", "")
    tell_missing_start({"init_from": None})
    assert capsys.readouterr().out == ""


def test_tables_are_readable_on_80_columns(run_settings):
    name = "shapes16_pretrain, deferred, p75"
    settings = run_settings("trainer.activation_checkpointing=true")
    stages = [PlannedStage(name, 1_165_000_000, 250_000, 512_000_000, 1, 144 * 10**18)] * 2
    console = Console(width=80)
    with console.capture() as shown:
        console.print(plan_table(stages, H100S))
        console.print(memory_table([(name, settings)]))
    assert "…" not in shown.get()
    for word in ("shapes16_pretrain,", "GFLOP an", "1.44e+20", "weights", "vations", "working", "EMA", "in all"):
        assert word in shown.get()
    assert "activations without activation_checkpointing" in " ".join(shown.get().split())
