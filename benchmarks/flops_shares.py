"""Which part of the network takes which share of the FLOPs at 75 % masking: `python benchmarks/flops_shares.py`.

Counted on the meta device, so every size takes seconds; docs/methods.md shows the table.
"""

from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from microdit.cost.flops import forward_on_meta
from microdit.model.dit import DiT
from microdit.pipeline import build_network

CONF = Path(__file__).parents[1] / "conf"
DEFERRED = {"_target_": "microdit.masking.deferred.Deferred"}


# Which modules belong to a part of the network, by the beginning of their names.
PARTS = {
    "patch_mixer": ("patch_mixer",),  # with the layers that lead to its width and back
    "backbone": ("blocks.",),
    "captions": ("y_embedder", "y_emb_preprocess", "pooled_y_emb_process"),
    "token_path": ("token_path.",),  # layers that a masking method has of its own
}


def flops_shares(network: DiT, mask_ratio: float, caption_length: int) -> dict[str, float]:
    """The share of the FLOPs that each of PARTS takes, and "rest"; they sum to 1.

    Counted in the forward pass: backward, every part costs twice as much again.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward_on_meta(network, mask_ratio, caption_length)
    total = counter.get_total_flops()
    root = f"{type(network).__name__}."
    counts = {name.removeprefix(root): sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    shares = {}
    for part, beginnings in PARTS.items():
        modules = [name for name in counts if name.startswith(beginnings)]
        outermost = [name for name in modules if not any(name.startswith(f"{other}.") for other in modules)]
        shares[part] = sum(counts[name] for name in outermost) / total
    return {**shares, "rest": 1 - sum(shares.values())}


def network_of(name: str) -> tuple[DiT, int]:
    """The network of `model=name` on the meta device at 256 px (the embedded: 32 px), and its captions' length."""
    model, experts = (yaml.safe_load((CONF / f).read_text()) for f in (f"model/{name}.yaml", "moe/expert_choice.yaml"))
    channels, length, width = (4, 77, 1024) if name in ("xl", "tiny") else (3, 24, 64)
    with torch.device("meta"):
        network = build_network(
            {**model, **experts, "input_size": 32, "pos_interp_scale": 1.0}, DEFERRED, channels, width
        )
    return network, length


def main() -> None:
    print("| `model=` | patch-mixer | backbone | captions |\n|---|---|---|---|")
    for name in ("xl", "tiny", "nano", "nano_deep"):
        network, caption_length = network_of(name)
        shares = flops_shares(network, 0.75, caption_length)
        cells = " | ".join(f"{100 * shares[part]:.0f}" for part in ("patch_mixer", "backbone", "captions"))
        print(f"| `{name}` | {cells} |")


if __name__ == "__main__":
    main()
