"""What a backbone costs: parameters and FLOPs by part, receptive field, memory kept for backward, milliseconds.

Everything but the milliseconds is counted without running the backbone's arithmetic: parameters are replaced by tensors
that hold nothing, so a count takes no memory, is the same on every machine, and takes a backbone built on the meta
device as well as a trained one.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from seqformer.errors import InputError
from seqformer.model import create_backbone
from seqformer.nn.attention import Attention
from seqformer.nn.conv import ConvModule, DepthwiseConv, TimeRecovery, TimeReduction, TimeUpsample
from seqformer.nn.feedforward import FeedForward
from seqformer.nn.gate import EfficientChannelAttention, SqueezeExcite
from seqformer.nn.norm import LearnedScale, MaskedBatchNorm
from seqformer.nn.paths import plain_paths

PARTS = ("stem", "attention", "feed_forward", "conv_module", "norms_and_scales", "reduction", "recovery", "other")
OPERATORS = ("linear", "convolution", "attention", "other")
# A module belongs to the part of the outermost module around it that one of these knows.
_PART_OF_NAME = {"stem": "stem"}
_PART_OF_TYPE = {
    Attention: "attention",
    FeedForward: "feed_forward",
    ConvModule: "conv_module",
    TimeReduction: "reduction",
    (TimeRecovery, TimeUpsample): "recovery",
    (DepthwiseConv, nn.Conv1d, nn.Conv2d, SqueezeExcite, EfficientChannelAttention): "conv_module",
    (LearnedScale, MaskedBatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d): "norms_and_scales",
}
_OPERATOR = {"mm": "linear", "addmm": "linear", "bmm": "linear", "baddbmm": "linear", "convolution": "convolution"}
_LONGEST_FIELD = 32_768  # frames; whatever reaches further is taken to see the whole item


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass, a multiply-add being two, as torch's counter finds them on the real module (``a``).

    ``b`` is the convention that reproduces the Squeezeformer paper: T relative positions in place of 2T - 1, and no
    reduction and recovery layers. ``parts`` and ``operators`` split ``a``; operator ``attention`` is the products of
    two activations, ``linear`` those with weights.
    """

    a: int
    b: int
    parts: dict[str, int]
    operators: dict[str, int]


@dataclass(frozen=True)
class Profile:
    """The figures of a backbone at one length, units in the names.

    FLOPs are of one item, activations and milliseconds of a batch. ``receptive_frames`` counts input frames, of all
    but attention without a limit, which sees the whole item (``attends``); None: that part sees the whole item too.
    Milliseconds are None where nothing was timed.
    """

    name: str
    arguments: dict[str, Any]
    in_dim: int
    frames: int
    batch: int
    dim: int
    stride: int
    parameters: int
    parameters_by_part: dict[str, int]
    flops_a: int
    flops_b: int
    flops_a_by_part: dict[str, int]
    flops_a_by_operator: dict[str, int]
    receptive_frames: int | None
    attends: bool
    activation_bytes: int
    device: str | None = None
    threads: int | None = None
    forward_ms: float | None = None
    step_ms: float | None = None


def profile_backbone(
    name: str,
    frames: int,
    in_dim: int = 80,
    batch: int = 1,
    timed: bool = True,
    arguments: dict[str, Any] | None = None,
) -> Profile:
    """The profile of a registered backbone with some of its arguments changed; timed on the GPU where there is one.

    Raises InputError on an unknown name or argument, or a length or batch below 1.
    """
    arguments = arguments or {}
    in_dim = arguments.get("in_dim", in_dim)
    for what, value in (("frames", frames), ("in_dim", in_dim), ("batch", batch)):
        if value < 1:
            raise InputError(f"{what}: found {value}; expected 1 or more")
    with torch.device("meta"):
        backbone = create_backbone(name, **{"in_dim": in_dim} | arguments)
    parameters, flops = count_parameters(backbone), count_flops(backbone, frames, in_dim)
    found = Profile(
        name=name,
        arguments=arguments,
        in_dim=in_dim,
        frames=frames,
        batch=batch,
        dim=backbone.dim,
        stride=backbone.stride,
        parameters=sum(parameters.values()),
        parameters_by_part=parameters,
        flops_a=flops.a,
        flops_b=flops.b,
        flops_a_by_part=flops.parts,
        flops_a_by_operator=flops.operators,
        receptive_frames=receptive_frames(backbone, in_dim),
        attends=any(isinstance(module, Attention) and _context(module) is None for module in backbone.modules()),
        activation_bytes=count_activation_bytes(backbone, frames, in_dim, batch),
    )
    if not timed:
        return found
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        backbone = create_backbone(name, **{"in_dim": in_dim} | arguments)
    forward_ms, step_ms = measure_ms(backbone, frames, in_dim, batch)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return replace(found, device=place, threads=torch.get_num_threads(), forward_ms=forward_ms, step_ms=step_ms)


def count_parameters(backbone: nn.Module) -> dict[str, int]:
    """Parameters by part; each is counted once, so the sum is the total."""
    roots, found = _part_roots(backbone), dict.fromkeys(PARTS, 0)
    for path, parameter in backbone.named_parameters():
        pieces = path.split(".")
        prefixes = (".".join(pieces[:length]) for length in range(1, len(pieces)))
        found[next((roots[prefix] for prefix in prefixes if prefix in roots), "other")] += parameter.numel()
    return found


@torch.no_grad()
def count_flops(backbone: nn.Module, frames: int, in_dim: int = 80) -> Flops:
    """FLOPs of a forward pass over one item of T frames, on the meta device whatever the backbone's own is.

    There the plain attention kernel is counted: of the fused ones torch's counter knows some and not the CPU's. It
    counts what is computed: our recovery projects before it repeats frames, D^2 T / 2 multiply-adds less than the
    published code (at most 0.11 % of the six Squeezeformers).
    """
    excess, lengths = [0], {}

    def enter(attention: Attention, inputs: tuple) -> None:
        lengths[attention.position] = inputs[0].shape[1]

    def project(position: nn.Linear, inputs: tuple, output: Tensor) -> None:
        (rows, dim), frames = output.shape[-2:], lengths[position]
        excess[0] += 2 * (rows - frames) * dim * (position.in_features + frames)  # the table's rows, and their scores

    hooks = []
    for module in backbone.modules():
        if isinstance(module, Attention) and hasattr(module, "position"):
            hooks += [module.register_forward_pre_hook(enter), module.position.register_forward_hook(project)]
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), _mode(backbone, training=False):
            functional_call(backbone, _hollow(backbone, "meta"), _item(1, frames, in_dim, "meta"))
    finally:
        for hook in hooks:
            hook.remove()
    counts = {path: {str(key).split(".")[1]: value for key, value in found.items()}
              for path, found in counter.get_flop_counts().items()}  # fmt: skip
    total, parts, operators = counter.get_total_flops(), dict.fromkeys(PARTS, 0), dict.fromkeys(OPERATORS, 0)
    for operator, value in counts.get("Global", {}).items():
        operators[_OPERATOR.get(operator, "other")] += value
    for path, part in _part_roots(backbone).items():
        found = counts.get(f"{type(backbone).__name__}.{path}", {})
        parts[part] += sum(found.values())
        if part == "attention":  # torch multiplies by the weights of a linear layer as a batch now and then, not here
            products = found.get("bmm", 0) + found.get("baddbmm", 0)
            operators["attention"] += products
            operators["linear"] -= products
    parts["other"] += total - sum(parts.values())
    return Flops(total, total - excess[0] - parts["reduction"] - parts["recovery"], parts, operators)


def count_activation_bytes(backbone: nn.Module, frames: int, in_dim: int = 80, batch: int = 1) -> int:
    """Bytes that a float32 forward pass in train mode keeps for backward: each storage once, no parameters.

    Counted on the meta device with the plain attention kernel, so it costs no memory. A fused one keeps fewer scores,
    and so do the fast paths of a CPU, see ``seqformer.nn.paths``. Gradients in flight and the allocator's gaps come on
    top.
    """
    hollow, kept = _hollow(backbone, "meta"), {}
    own = {tensor.untyped_storage()._cdata for tensor in hollow.values()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held: the address of a freed one would be given out again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, sdpa_kernel(SDPBackend.MATH), _mode(backbone, training=True), torch.enable_grad():
        functional_call(backbone, hollow, _item(batch, frames, in_dim, "meta"))
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


class _Mixing(TorchFunctionMode):
    """Makes every linear layer the mean of its inputs: what depends on what stays the same, at the cost of a sum."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        x, weight = args[:2]
        return x.mean(dim=-1, keepdim=True).expand(*x.shape[:-1], weight.shape[0])


def receptive_frames(backbone: nn.Module, in_dim: int = 80) -> int | None:
    """Input frames from the first to the last that the middle output frame depends on, unlimited attention left out.

    Found by putting NaN into the input, which spreads along every path and vanishes on none: the field begins where
    NaN in all frames before it just does not reach the output, and ends likewise. A gradient would need weights under
    which no path cancels or underflows, and a formula would need to know every backbone. Attention of limited context
    is made to sum over it, any other to hand its input on. None when the field is beyond 32,768 frames or the whole
    item, as under a global pooling.
    """
    try:  # linear layers and 2-D convolutions take fewer features, for a fraction of the time
        return _field(backbone, min(in_dim, 8))
    except RuntimeError:  # a stem that wants its own number, such as one of 1-D convolutions
        return _field(backbone, in_dim)


@torch.no_grad()
def _field(backbone: nn.Module, features: int) -> int | None:
    hollow = _hollow(backbone, "cpu")

    def reaches(first: int, last: int, frames: int) -> bool:
        x, mask = _item(1, frames, features, "cpu")
        x[:, first:last] = torch.nan
        y, _ = functional_call(backbone, hollow, (x, mask))
        return bool(y[0, y.shape[1] // 2].isnan().any())

    with plain_paths(), _simple(backbone), _mode(backbone, training=False), _Mixing():
        frames = 64 * backbone.stride
        while reaches(0, 1, frames) or reaches(frames - 1, frames, frames):
            frames *= 2
            if frames > _LONGEST_FIELD:
                return None
        middle = frames // 2
        first = _boundary(lambda cut: reaches(0, cut, frames), 0, middle)
        last = _boundary(lambda cut: not reaches(cut, frames, frames), middle, frames)
    return last - first + 1


def _boundary(crossed: Callable[[int], bool], low: int, high: int) -> int:
    """The largest value not crossed, where ``low`` is not and ``high`` is."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if crossed(middle) else (middle, high)
    return low


def measure_ms(
    backbone: nn.Module, frames: int, in_dim: int = 80, batch: int = 1, repeats: int = 5, limit_seconds: float = 30.0
) -> tuple[float, float]:
    """Median milliseconds of a float32 forward pass and of a training step, AdamW included, on the backbone's device.

    Each after one pass to warm up; a slow one is repeated less often, for ``limit_seconds`` in all but at least once.
    """
    backbone = copy.deepcopy(backbone)  # a step changes weights and statistics
    device = next(backbone.parameters()).device
    x, mask = _item(batch, frames, in_dim, device)
    x.normal_(generator=torch.Generator(device).manual_seed(0))
    optimizer = torch.optim.AdamW(backbone.parameters())

    def step() -> None:
        optimizer.zero_grad()
        backbone(x, mask)[0].square().mean().backward()
        optimizer.step()

    with _mode(backbone, training=False), torch.no_grad():
        forward_ms = _median_ms(lambda: backbone(x, mask), device, repeats, limit_seconds)
    with _mode(backbone, training=True), torch.enable_grad():
        return forward_ms, _median_ms(step, device, repeats, limit_seconds)


def _median_ms(work: Callable[[], Any], device: torch.device, repeats: int, limit_seconds: float) -> float:
    found, begun = [], time.perf_counter()
    for turn in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(1000 * (time.perf_counter() - start))
        if turn and time.perf_counter() - begun > limit_seconds:
            break
    return statistics.median(found[1:])


def _part_roots(backbone: nn.Module) -> dict[str, str]:
    """Path -> part of the outermost modules whose part is known."""
    found = {}

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            here = f"{path}.{name}" if path else name
            part = next((part for kind, part in _PART_OF_TYPE.items() if isinstance(child, kind)), None)
            part = "conv_module" if name == "pointwise" else part  # a convolution of width 1, written as a linear layer
            part = part if path else _PART_OF_NAME.get(name, part)
            if part is None:
                walk(child, here)
            else:
                found[here] = part

    walk(backbone, "")
    return found


def _hollow(backbone: nn.Module, device: str) -> dict[str, Tensor]:
    """Zeros in place of every parameter and buffer, of one element each unless on meta; parameters want a gradient.

    Zeros, so that nothing can overflow: an infinity would make a NaN of its own.
    """
    found = {}
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        shape = tensor.shape if device == "meta" else ()
        hollow = torch.zeros(shape, dtype=tensor.dtype, device=device).expand(tensor.shape)
        found[name] = hollow.requires_grad_() if isinstance(tensor, nn.Parameter) else hollow
    return found


def _item(batch: int, frames: int, in_dim: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """x (B, T, in_dim) of zeros, mask (B, T) of real frames."""
    return torch.zeros(batch, frames, in_dim, device=device), torch.ones(batch, frames, dtype=torch.bool, device=device)


@contextmanager
def _mode(backbone: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode for a while; each module gets its own back."""
    before = {module: module.training for module in backbone.modules()}
    backbone.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _context(attention: Attention) -> tuple[int, int] | None:
    """Frames that a query sees before and after it, None where either side has no limit."""
    return None if attention.context is None or min(attention.context) < 0 else attention.context


@contextmanager
def _simple(backbone: nn.Module) -> Iterator[None]:
    """For a while, feed-forwards hand their input on and attention sums over its context, where it has one."""
    found = [module for module in backbone.modules() if isinstance(module, Attention | FeedForward)]
    for module in found:
        left, right = (isinstance(module, Attention) and _context(module)) or (0, 0)
        module.forward = lambda x, *_, left=left, right=right, **__: (
            F.pad(x, (0, 0, left, right)).unfold(1, left + right + 1, 1).sum(dim=-1) if left + right else x
        )
    try:
        yield
    finally:
        for module in found:
            del module.forward
