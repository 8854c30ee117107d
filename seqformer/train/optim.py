"""Optimiser, schedules and averaged weights."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from seqformer.config import Optim
from seqformer.errors import InputError, nearest
from seqformer.timm_import import import_timm

# timm optimisers, by class, that this loop cannot run.
UNFIT = {
    "Adahessian": "needs second derivatives, which the loop does not compute",
    "Kron": "draws random numbers of its own, which no checkpoint holds",
}
LOOKAHEAD = "lookahead_"


def make_optimizer(model: nn.Module, config: Optim, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW of torch, or a timm optimiser by name; no weight decay on norms, biases and scales (one-axis parameters).

    ``lookahead_`` before a name lets slow weights follow the fast ones (Zhang et al. 2019). ``betas`` go to every
    optimiser that has two. A group's ``lr_scale`` is the factor on the schedule's learning rate (see ``lr_scales``).
    ``fused`` has AdamW's arithmetic done in one pass over the weights, on a CPU in a third of the time; it does not go
    with the loss scaler of fp16, which wants to clip between. Raises InputError as ``check_optimizer`` does.
    """
    check_optimizer(config.name)
    scales, found = lr_scales(model), {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((scales[name], parameter.dim() <= 1), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": 0.0 if small else config.weight_decay, "lr_scale": scale}
        for (scale, small), parameters in sorted(found.items(), key=lambda pair: (-pair[0][0], pair[0][1]))
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-9, fused=fused)
    optim = import_timm().optim
    facts = optim.get_optimizer_info(config.name.removeprefix(LOOKAHEAD))
    given = {"betas": config.betas} if facts.has_betas and facts.num_betas == 2 else {}
    try:
        return optim.create_optimizer_v2(groups, config.name, config.lr, config.weight_decay, **given)
    except (AssertionError, ImportError, ValueError) as error:  # another library or a GPU is missing, or a bad value
        raise InputError(f"optim.name: {config.name} cannot be used here: {error}") from error


def lr_scales(model: nn.Module) -> dict[str, float]:
    """{parameter: factor on its learning rate}: ``layer_decay`` of the backbone, once per block below the top.

    The stem counts as a block below the first, what changes the frame rate as the block it stands before; heads and
    all that follows the blocks have factor 1. Source: layer-wise decay as in ELECTRA (Clark et al. 2020).
    """
    backbone = getattr(model, "backbone", None)
    decay, depth = getattr(backbone, "layer_decay", 1.0), len(getattr(backbone, "blocks", ()))
    scales = {}
    for name, _ in model.named_parameters():
        section, _, rest = name.removeprefix("backbone.").partition(".")
        layer = depth + 1
        if name.startswith("backbone."):
            number = int(rest.split(".")[0]) if rest.split(".")[0].isdigit() else 0
            places = {"stem": 0, "norm": 0, "blocks": number + 1}
            if section in ("reductions", "recoveries"):
                places[section] = getattr(backbone, {"reductions": "reduce_at"}.get(section, "recover_at"))[number] + 1
            layer = places.get(section, layer)
        scales[name] = decay ** (depth + 1 - layer)
    return scales


def check_optimizer(name: str) -> None:
    """Raise InputError on a name that neither torch's AdamW nor a timm optimiser fit for this loop has."""
    if name == "adamw":
        return
    optim, name = import_timm().optim, name.removeprefix(LOOKAHEAD)
    known = [known for known in optim.list_optimizers() if _class_name(optim, known) not in UNFIT]
    if name in optim.list_optimizers() and name not in known:
        raise InputError(f"optim.name: {name} {UNFIT[_class_name(optim, name)]}")
    if name not in known:
        raise InputError(f"optim.name: found {name!r}; {nearest(name, known)}")


def _class_name(optim, name: str) -> str:
    found = optim.get_optimizer_info(name).opt_class
    return found if isinstance(found, str) else found.__name__


def learning_rate(share: float, config: Optim) -> float:
    """Learning rate at a share (0, 1] of the training done: a pure function, so a schedule has no state to save.

    All kinds but ``one_cycle`` warm up linearly. ``hold_decay`` is the Squeezeformer recipe: the peak for a while, then
    peak * warmup / (share - hold), Noam's rule with exponent 1, continuous at the end of the hold. ``one_cycle`` rises
    from peak / 25 and falls along half cosines (Smith 2018, as in torch).
    """
    warmup, hold = config.warmup, config.hold
    if config.schedule == "one_cycle":
        if share <= warmup:
            return _half_cosine(config.lr / 25, config.lr, share / warmup)
        return _half_cosine(config.lr, config.min_lr, (share - warmup) / (1 - warmup))
    if share <= warmup:
        return config.lr * share / warmup
    if share <= warmup + hold or config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return _half_cosine(config.lr, config.min_lr, (share - warmup - hold) / (1 - warmup - hold))
    return max(config.min_lr, config.lr * warmup / (share - hold))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def averaged(model: nn.Module, decay: float | None) -> AveragedModel:
    """Average of weights and buffers, exponential, or of equal shares (Izmailov et al. 2018) where there is no decay.

    The decay rises as (1 + n) / (10 + n), or the start would linger.
    """

    @torch.no_grad()
    def update(average: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
        if not average[0].is_floating_point():  # a counter, such as BatchNorm1d's
            torch._foreach_copy_(average, current)
            return
        seen = int(count)
        pace = 1 / (1 + seen) if decay is None else 1 - min(decay, (1 + seen) / (10 + seen))
        torch._foreach_lerp_(average, current, pace)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
