"""Optimizers: any of torch's by its name, which parameters are of which kind, and Muon for those that are matrices."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from microdit.build import build, locate
from microdit.checkpoints.reading import CheckpointError
from microdit.distributed.sharding import part_like, whole_tensor
from microdit.kinds import SettingsError, check_kind, check_names, kinds_of
from microdit.model.blocks import CrossAttention, SelfAttention
from microdit.model.feed_forward import ExpertChoice, GELUFeedForward, SwiGLU

KINDS = {
    "matrices": "of attention and feed-forward layers in all blocks, each expert's included",
    "modulation": "what the conditioning vector shifts, scales and gates with",
    "norms_and_biases": "all that is no matrix",
    "others": "embeddings, experts' gates, the output layer: rows that mean something one by one",
}
BLOCK_LAYERS = SelfAttention | CrossAttention | SwiGLU | GELUFeedForward | ExpertChoice


def parameter_kinds(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each of KINDS, in the network's order."""
    in_blocks = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, BLOCK_LAYERS)
        for name, parameter in module.named_parameters()
        if not name.startswith("gate")
    }
    found: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            found["norms_and_biases"].append(parameter)
        elif id(parameter) in in_blocks:
            found["matrices"].append(parameter)
        else:
            found["modulation" if "adaLN_modulation" in name else "others"].append(parameter)
    return found


def make_optimizer(network: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that `settings` name in `_target_`, with the other keys as its arguments.

    `kinds` in them says what is different for parameters of some of KINDS, which then are groups of their own; the rest
    is the first group, in the network's order.
    """
    return build(plain(settings), torch.optim.Optimizer, params=parameter_groups(network, settings))


def parameter_groups(network: nn.Module, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of an optimizer with these settings: each has its parameters, and what is different for them."""
    kinds = settings.get("kinds") or {}
    of_kind = parameter_kinds(network)
    taken = {id(parameter) for kind in kinds for parameter in of_kind[kind]}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    return [{"params": rest}, *({"params": of_kind[kind], **plain(changed)} for kind, changed in kinds.items())]


def check_optimizer(settings: Mapping[str, Any]) -> None:
    """Raises SettingsError for an optimizer that is none or cannot train a network's weights, an argument or value that
    it does not take, or a kind that is none: it makes a step with small weights, once with the arguments of each
    kind."""
    check_kind(settings.get("kinds"), Mapping[str, Mapping[str, Any]] | None, "optimizer.kinds")
    known = {*after_a_step(settings).param_groups[0]} - {"params"}
    for kind, changed in (settings.get("kinds") or {}).items():
        if kind not in KINDS:
            there = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
            raise SettingsError(f"optimizer.kinds has no kind '{kind}'. It knows: {there}")
        check_names(changed, known, where=f"optimizer.kinds.{kind}")
        kinds = kinds_of(locate(settings["_target_"], torch.optim.Optimizer))
        for name, value in changed.items():
            check_kind(value, kinds.get(name, (float | bool | None, False))[0], f"optimizer.kinds.{kind}.{name}")
        after_a_step(settings, (2,) if kind == "norms_and_biases" else (2, 2), **changed)


def after_a_step(settings: Mapping[str, Any], sides: Sequence[int] = (2, 2), **changed: Any) -> torch.optim.Optimizer:
    """The optimizer that `settings` name, after a step with one small weight. SettingsError where it makes none."""
    on_any_device = {**plain(settings), **({"capturable": False} if "capturable" in settings else {})}
    weight = nn.Parameter(torch.zeros(*sides))
    weight.grad = torch.ones_like(weight)
    try:
        groups = [{"params": [weight], **plain(changed)}]
        optimizer = build(on_any_device, torch.optim.Optimizer, "optimizer", params=groups)
        optimizer.step()
        return optimizer
    except SettingsError:
        raise
    except Exception as error:  # each of torch's optimizers complains in its own way
        given = plain({**settings, **changed})
        raise SettingsError(f"optimizer: {settings['_target_']} cannot train with {given}: {error}") from error


def check_states(saved: Mapping[str, Any], network: nn.Module, settings: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointError where what a checkpoint keeps of an optimizer is not what one with these settings leaves
    after a step: for so many parameters, by these names, of the shapes of theirs."""
    groups = parameter_groups(network, settings)
    counted, own = ([len(group["params"]) for group in each] for each in (saved["param_groups"], groups))
    if counted != own:
        raise CheckpointError(f"{source} keeps an optimizer of {counted} parameters, and this run's has {own}")
    for told, group in zip(saved["param_groups"], groups, strict=True):
        changed = {name: value for name, value in group.items() if name != "params"}
        of_matrices = {
            matrices: after_a_step(settings, (2, 2) if matrices else (2,), **changed).state
            for matrices in {parameter.ndim > 1 for parameter in group["params"]}
        }
        for number, parameter in zip(told["params"], group["params"], strict=True):
            ((small, expected),) = of_matrices[parameter.ndim > 1].items() or [(parameter, {})]
            state = saved["state"].get(number)
            for name, like in expected.items() if state else ():
                if not is_like(state.get(name), parameter, like, small):
                    raise CheckpointError(
                        f"{source}: what it keeps of the optimizer does not fit, {name} of parameter {number} (shape "
                        f"{list(parameter.shape)}); take another checkpoint, or start a new run from its weights: "
                        f"init_from={source}"
                    )


def is_like(value: Any, parameter: Tensor, like: Any, small: Tensor) -> bool:
    """Whether a value is to a parameter what `like` is to a small one: as large as it, or a single number."""
    if not isinstance(like, Tensor) or not isinstance(value, Tensor):
        return type(value) is type(like)
    if value.dtype.is_floating_point != like.dtype.is_floating_point:
        return False
    return value.shape == parameter.shape if like.shape == small.shape else like.numel() > 1 or value.numel() == 1


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an optimizer as torch has them: pairs of betas are tuples, kinds are not among them."""
    kept = {name: value for name, value in settings.items() if name != "kinds"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}


def scaled_rates(settings: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same settings with every learning rate times `factor`."""
    changed = {**settings, "lr": settings["lr"] * factor} if "lr" in settings else dict(settings)
    if settings.get("kinds"):
        changed["kinds"] = {kind: scaled_rates(of_kind, factor) for kind, of_kind in settings["kinds"].items()}
    return changed


def clips_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of torch's fused optimizers on a GPU, which scale gradients, or skip a step, as they are told
    by numbers that stay on the device."""
    if type(optimizer) not in (torch.optim.AdamW, torch.optim.Adam):
        return False
    if not all(group["fused"] for group in optimizer.param_groups):
        return False
    weights = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return all(weight.is_cuda and not isinstance(weight, DTensor) for weight in weights)


def clip_in_step(optimizer: torch.optim.Optimizer, norm: Float[Tensor, ""], largest_norm: float) -> Bool[Tensor, ""]:
    """Makes the next step of an optimizer that `clips_by_itself` one with clipped gradients, of this norm before: in
    the same pass over memory. Returns whether the norm is not finite; the step then changes nothing."""
    is_bad = ~torch.isfinite(norm)
    told: Any = optimizer
    told.grad_scale = (norm / largest_norm).clamp(min=1.0)  # gradients are divided by it
    told.found_inf = is_bad.float()
    return is_bad


# a s + b s^3 + c s^5 brings singular values s in (0, 1] quickly near 1, then keeps them in about 0.7 to 1.2 (Jordan et
# al. 2024). Their five iterations serve matrices of thousands of rows; three reach whatever is above a twentieth.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 3


def orthogonalised(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Nearly U V^T of a matrix U S V^T, by products alone: same directions, singular values near 1.

    In bfloat16 on a GPU, where that is enough and many times faster; the result has the matrix's type.
    """
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if is_tall else matrix
    # Singular values are at most the Frobenius norm; a little more than it, so that rounding never leaves [0, 1].
    x = x / (1.01 * torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


class MuonWithAdamW(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the groups of `params` that have a `momentum`, AdamW for the others.

    Muon's updates turn all directions of a weight matrix alike. Its `lr` is the length of a step in spectral norm for a
    square matrix; stacks [experts, m, n] are matrices each by itself. torch.optim.Muon takes single matrices only, and
    a LightningModule takes one optimizer only; hence this one. A part of a matrix cannot be orthogonalised: of sharded
    weights every rank gathers whole directions one after the other, and takes its part.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        fused: bool | None = None,
    ):
        groups = [{"momentum": None, **group} for group in params]
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Matrices lose their gradients in it, so that what remains is AdamW's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["momentum"] is None:
                continue
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            for alike in turned_together(matrices):
                self.step_matrices(alike, group["lr"], group["momentum"], group["weight_decay"])
        super().step()
        return loss

    def step_matrices(self, matrices: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """Moves matrices of one shape, whose directions are orthogonalised in one call."""
        ahead = [whole_tensor(self.nesterov(matrix, momentum)) for matrix in matrices]
        directions = [orthogonalised(ahead[0])] if len(ahead) == 1 else orthogonalised(torch.stack(ahead)).unbind()
        for matrix, direction in zip(matrices, directions, strict=True):
            # A step that changes outputs of any width by as much, entry by entry. Experts multiply from the right.
            outputs, inputs = matrix.shape[-2:] if matrix.ndim == 2 else matrix.shape[:-3:-1]
            matrix.mul_(1 - lr * weight_decay)
            matrix.add_(part_like(matrix, direction), alpha=-lr * max(1.0, outputs / inputs) ** 0.5)
            matrix.grad = None

    def nesterov(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        """Where the momentum leads, looked at from one step ahead."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
            state["momentum"] = torch.zeros_like(matrix)
        state["step"] += 1
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum"], momentum)


def turned_together(matrices: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Matrices of one shape together on a GPU, where few large products are faster than many small ones; on a CPU, and
    of sharded weights, each by itself, which keeps the memory of one."""
    by_shape = sorted(matrices, key=lambda matrix: tuple(matrix.shape))
    groups = [list(alike) for _, alike in groupby(by_shape, key=lambda matrix: tuple(matrix.shape))]
    return [
        part
        for group in groups
        for part in ([group] if group[0].is_cuda and not isinstance(group[0], DTensor) else [[one] for one in group])
    ]
