"""The same sequence from real processes: gloo, each rank with its own loader."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from rank_process import rank_environment
from warm_processes import Script

RANK = """
import sys
from itertools import islice
import torch
import torch.distributed as dist
from microdit.data.stream.batches import LatentLoader
from microdit.data.stream.opening import open_mix
from microdit.data.stream.batches import GlobalBatches

one, two, workers, start_step, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
sources = [{"name": "one", "folder": one, "weight": 2}, {"name": "two", "folder": two, "weight": 1}]
stream = open_mix(sources, resolution_px=32, seed=5, autoencoder="small", text_encoder="short")
positions = GlobalBatches(12, rank, world, 12 // world // 2, start_step)
for first, second in zip(*[islice(LatentLoader(stream, positions, workers), 2 * steps)] * 2):
    mine = torch.cat([torch.cat([b["source"][:, None].half(), b["latents"][:, :2, 0, 0]], 1) for b in (first, second)])
    gathered = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(gathered, mine)
    if rank == 0:
        print(torch.cat(gathered).int().tolist(), flush=True)
dist.destroy_process_group()
"""


def sequence(script: Path, folders: list[Path], world: int, workers: int, start_step: int, steps: int) -> list[str]:
    arguments = [*map(str, folders), str(workers), str(start_step), str(steps)]
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environments = [os.environ | rank_environment(rank, world, store.port) for rank in range(world)]
    ranks = [Script(str(script), arguments, script.parent, environment) for environment in environments]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, said
    return [line for line in said[0][0].splitlines() if line.startswith("[[")]


def test_ranks_workers_and_restarts_leave_the_sequence_as_it_is(
    tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    folders = [write_folder(tmp_path / "one", [5, 9, 4]), write_folder(tmp_path / "two", [7])]
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    whole = sequence(script, folders, world=1, workers=0, start_step=0, steps=6)
    assert len(whole) == 6
    assert sequence(script, folders, world=2, workers=1, start_step=0, steps=4) == whole[:4]
    assert sequence(script, folders, world=3, workers=2, start_step=3, steps=3) == whole[3:]
