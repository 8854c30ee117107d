"""Networks over images whose first axis is time, made elsewhere and here made safe for padding. Layout (B, C, T, F).

Every layer that mixes time is replaced by one of the same weights and names that hides padded frames. Each knows the
rate of its input, the frames of the image to one of its own, and finds the mask of that rate where the network puts it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.mask import lengths_of, stride_mask
from seqformer.nn.norm import MaskedBatchNorm


class Masks:
    """The masks of one forward pass, by rate: all layers of a network share one of these."""

    def __init__(self):
        self.at: dict[int, Tensor] = {}

    def fill(self, mask: Tensor, rates: Iterable[int]) -> None:
        """mask (B, T) at rate 1 -> (B, ceil(T / rate)) at each of ``rates``."""
        self.at, last = {1: mask}, 1
        for rate in sorted(rates):
            # Stride by stride, as the network goes: export sees that lengths are equal.
            self.at[rate], last = stride_mask(self.at[last], rate // last), rate


class MaskedConv2d(nn.Module):
    """A Conv2d that sees zeros in padded frames."""

    def __init__(self, conv: nn.Conv2d, masks: Masks, rate: int):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.masks, self.rate = masks, rate

    def forward(self, x: Tensor) -> Tensor:
        x = filled(x, self.masks.at[self.rate], 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaskedMaxPool2d(nn.Module):
    """A MaxPool2d that passes padded frames over."""

    def __init__(self, pool: nn.MaxPool2d, masks: Masks, rate: int):
        super().__init__()
        self.pool, self.masks, self.rate = pool, masks, rate
        self.rate_out = rate * _pair(pool.stride)[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(filled(x, self.masks.at[self.rate], -torch.inf))
        return filled(y, self.masks.at[self.rate_out], 0)


class MaskedBatchNorm2d(nn.Module):
    """A BatchNorm2d over real frames, followed by what timm's has in it: dropout and activation."""

    def __init__(self, norm: nn.BatchNorm2d, masks: Masks, rate: int):
        super().__init__()
        found = MaskedBatchNorm(norm.num_features, norm.eps, 0.1 if norm.momentum is None else norm.momentum)
        found.load_state_dict({key: value for key, value in norm.state_dict().items() if key != "num_batches_tracked"})
        self.norm, self.masks, self.rate = found, masks, rate
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        # Applied to the layout the image has: a permuted one would leave export with lengths it cannot prove.
        shift, scale = self.norm.shift_and_scale(x.permute(0, 2, 3, 1), self.masks.at[self.rate])
        return self.act(self.drop(torch.addcmul(shift[:, None, None], x, scale[:, None, None])))


class MaskedSqueezeExcite(nn.Module):
    """A squeeze-excite of timm's, of either kind, with the mean over real frames."""

    def __init__(self, gate: nn.Module, masks: Masks, rate: int):
        super().__init__()
        for name, child in gate.named_children():
            self.add_module(name, child)
        order = ("conv_reduce", "fc1", "bn", "act1", "act", "conv_expand", "fc2")
        self.steps = [name for name in order if hasattr(gate, name)]
        self.masks, self.rate = masks, rate

    def forward(self, x: Tensor) -> Tensor:
        mask = self.masks.at[self.rate]
        count = (lengths_of(mask) * x.shape[3]).clamp(min=1)[:, None, None, None]
        total = filled(x, mask, 0).sum(dim=(2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        mean = (total / count).to(x.dtype)
        for name in self.steps:
            mean = self.get_submodule(name)(mean)
        return x * self.gate(mean)


def drop_unused(network: nn.Module, image: Tensor) -> None:
    """Put nn.Identity in the place of the parts that the last output of ``network(image)`` does not depend on."""

    def drop(module: nn.Module) -> None:
        for name, child in module.named_children():
            parameters, is_list = list(child.parameters()), isinstance(child, nn.Sequential | nn.ModuleList)
            if parameters and not is_list and all(parameter.grad is None for parameter in parameters):
                setattr(module, name, nn.Identity())
            else:
                drop(child)

    with torch.enable_grad():
        network(image)[-1].sum().backward()
    drop(network)
    network.zero_grad()


def mask_layers(network: nn.Module, image: Tensor, masks: Masks) -> tuple[int, set[int]]:
    """Replace the layers that mix time; gives the rate of the frames that the network ends with, and all rates in it.

    ``image`` (1, C, T, F), T a multiple of that rate, is one it can be tried on: its layers are taken to be used at
    the rates at which they are now. Raises ValueError for a layer whose output is not of ceil(frames / stride) frames
    around its own.
    """
    layers = _layers(network)
    rates, used = _rates(network, image, layers), set()
    for name, kind in layers.items():
        if name in rates:
            layer = network.get_submodule(name)
            if kind in (MaskedConv2d, MaskedMaxPool2d):
                _check(name, layer)
            parent, _, last = name.rpartition(".")
            masked = kind(layer, masks, rates[name])
            setattr(network.get_submodule(parent), last, masked)
            used |= {masked.rate, getattr(masked, "rate_out", masked.rate)}
    return rates[""], used | {rates[""]}


def _layers(network: nn.Module) -> dict[str, type]:
    """Path of each layer that mixes time -> what takes its place."""
    found = {name: kind for name, module in network.named_modules() if (kind := _kind(module)) is not None}
    gates = tuple(f"{name}." for name, kind in found.items() if kind is MaskedSqueezeExcite)
    return {name: kind for name, kind in found.items() if not name.startswith(gates)}


def _kind(module: nn.Module) -> type | None:
    children = {name for name, _ in module.named_children()}
    if ({"conv_reduce", "conv_expand", "gate"} <= children) or ({"fc1", "fc2", "gate"} <= children):
        return MaskedSqueezeExcite
    masked = {nn.Conv2d: MaskedConv2d, nn.MaxPool2d: MaskedMaxPool2d, nn.BatchNorm2d: MaskedBatchNorm2d}
    return next((new for old, new in masked.items() if isinstance(module, old)), None)


@torch.no_grad()
def _rates(network: nn.Module, image: Tensor, layers: Iterable[str]) -> dict[str, int]:
    """Path of each layer used -> frames of the image to one of its input; "" is the network's output."""
    frames, found, hooks = image.shape[2], {}, []

    def noting(name: str):
        def note(_, inputs: tuple) -> None:
            rate = frames // inputs[0].shape[2]
            if found.setdefault(name, rate) != rate:
                raise ValueError(f"its layer {name} is used at two frame rates")

        return note

    try:
        hooks = [network.get_submodule(name).register_forward_pre_hook(noting(name)) for name in layers]
        found[""] = frames // network(image)[-1].shape[2]
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _check(name: str, layer: nn.Conv2d | nn.MaxPool2d) -> None:
    """Raise ValueError for a layer that is not centred on frames 0, stride, 2 stride ..., whatever the length."""
    (kernel, _), (dilation, _), padding = map(_pair, (layer.kernel_size, layer.dilation, layer.padding))
    own = type(layer) not in (nn.Conv2d, nn.MaxPool2d)
    if own or getattr(layer, "ceil_mode", False) or 2 * padding[0] != dilation * (kernel - 1):
        what = f"{type(layer).__name__} of kernel {kernel}, padding {padding[0]}"
        raise ValueError(f"its layer {name}, {what}, is not centred on frames whatever their number")


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)


def filled(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """x (B, C, T, F) with ``value`` in padded frames."""
    return x.masked_fill(~mask[:, None, :, None], value)
