"""What test_kernels.py asks of the kernels, each case a function of a device that returns its errors.

On a CPU the kernels are interpreted, in a process of their own: Triton must be told before it is imported, and no
other test shall meet an interpreted one. An error is the largest difference from the plain path in float64, over the
largest value of that.
"""

import os
import re

import torch
from torch import Tensor
from torch.nn import functional as F

from seqformer import create_backbone, kernels
from seqformer.nn.conv import DepthwiseConv
from seqformer.nn.mask import mask_of, zero_padding
from seqformer.nn.positions import distances, relative_shift

Errors = dict[str, float]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def interpret() -> None:
    """Make this process one that interprets kernels, in tiles small enough for several of them in a short item."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from seqformer.kernels import attention, depthwise, layer_norm

    attention._tile = lambda keys: 16
    depthwise.SEGMENT = {"filter": 16, "taps": 24}
    layer_norm.FRAMES, layer_norm.NUMBERS = 8, 64


class Draws:
    """Normal numbers of a seed, rounded to a dtype: the kernel gets them, the plain path the same in float64."""

    def __init__(self, dtype: str, device: str):
        self.generator, self.dtype, self.device = torch.Generator().manual_seed(0), DTYPES[dtype], device

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, dtype or self.dtype)


def batch(frames: int, device: str) -> Tensor:
    """Masks (3, frames) of a full item, one of about half, and one without any real frame."""
    return mask_of(torch.tensor([frames, (frames + 1) // 2, 0], device=device), frames)


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Errors:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.isfinite().all(), name
    scale = {name: max(tensor.abs().max().item(), 0.1) for name, tensor in expected.items()}  # some are 0 throughout
    return {name: (found[name].double() - expected[name]).abs().max().item() / scale[name] for name in found}


def results(function, tensors: dict[str, Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
    """Outputs of a function of leaves, and their gradients."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    outputs = function(**leaves)
    found = torch.autograd.grad(
        outputs, list(leaves.values()), [g.to(y.dtype) for g, y in zip(grads, outputs, strict=True)]
    )
    named = {f"output {index}": y.detach() for index, y in enumerate(outputs)}
    return named | {f"gradient of {name}": grad for name, grad in zip(leaves, found, strict=True)}


def compare(fused, plain, tensors: dict[str, Tensor], mask: Tensor, in_time: tuple[str, ...], grads) -> Errors:
    """The kernel on tensors of which those ``in_time`` have NaN for padding, beside the plain path in float64."""
    poisoned = {k: v.masked_fill(~mask.reshape(*mask.shape, *(1,) * (v.dim() - 2)), torch.nan) if k in in_time else v
                for k, v in tensors.items()}  # fmt: skip
    clean = {k: zero_padding(v, mask) if k in in_time else v for k, v in tensors.items()}
    found = results(fused, poisoned, grads)
    again = results(fused, poisoned, grads) if mask.is_cuda else found
    assert all(torch.equal(found[name], again[name]) for name in found)  # no atomics
    return errors(found, results(plain, {k: v.double() for k, v in clean.items()}, grads))


def convolution(device: str, dtype: str, frames: int, channels: int, kernel: int, left: int) -> Errors:
    draw, mask = Draws(dtype, device), batch(frames, device)
    shapes = {"x": (3, frames, channels), "weight": (channels, 1, kernel), "bias": (channels,)}
    tensors = {name: draw(*shape) for name, shape in shapes.items()}
    module = DepthwiseConv(channels, kernel, left=left).double().to(device)

    def plain(**leaves):
        return [torch.func.functional_call(module, {k: leaves[k] for k in ("weight", "bias")}, (leaves["x"], mask))]

    def fused(x, weight, bias):
        return [kernels.depthwise_conv(x, mask, weight, bias, left)]

    return compare(fused, plain, tensors, mask, ("x",), [draw(3, frames, channels)])


def epilogue(device: str, dtype: str) -> Errors:
    """A convolution and SiLU, in one pass without gradients and apart with them, beside the module in float64."""
    draw, mask, convolution = Draws(dtype, device), batch(9, device), DepthwiseConv(6, 5).to(device)
    x = draw(3, 9, 6)
    given = (x, mask, convolution.weight, convolution.bias, convolution.left)
    with torch.no_grad():
        found = {"fused": kernels.depthwise_conv(*given, silu=True)}
    found["apart"] = kernels.depthwise_conv(*given, silu=True)
    assert not found["fused"].requires_grad and found["apart"].requires_grad
    expected = F.silu(convolution.double()(x.double(), mask))
    return errors(found, dict.fromkeys(found, expected))


def attention_plain(q_content, q_position, keys, values, positions, bias, mask, context) -> Tensor:
    """The definition; queries that are padding or see nothing give zeros."""
    positions = relative_shift(torch.einsum("bihk,rhk->bhir", q_position, positions))
    score = (torch.einsum("bihk,bjhk->bhij", q_content, keys) + positions) * keys.shape[-1] ** -0.5
    distance, (left, right) = distances(keys.shape[1], mask), context or (-1, -1)
    seen = mask[:, None, :, None] & mask[:, None, None, :]
    seen = seen & ((distance >= -left) | (left < 0)) & ((distance <= right) | (right < 0))
    score = (score if bias is None else score + bias).masked_fill(~seen, -1e30)
    return torch.einsum("bhij,bjhk->bihk", score.softmax(dim=-1).masked_fill(~seen, 0), values)


def attention(device: str, dtype: str, frames: int, heads: int, width: int, bias: str, context) -> Errors:
    draw, mask = Draws(dtype, device), batch(frames, device)
    names = ("q_content", "q_position", "keys", "values")
    tensors = {name: draw(3, frames, heads, width) for name in names}
    tensors["positions"] = draw(2 * frames - 1, heads, width)
    if bias:
        tensors["bias"] = draw(*{"each": (3, heads), "shared": (1, heads)}[bias], frames, frames)

    def fused(bias=None, **leaves):
        return [kernels.relative_attention(**leaves, mask=mask, bias=bias, context=context)]

    def plain(bias=None, **leaves):
        return [attention_plain(**leaves, bias=bias, mask=mask, context=context)]

    return compare(fused, plain, tensors, mask, names, [zero_padding(draw(3, frames, heads, width), mask)])


def layer_norm(device: str, dtype: str, frames: int, dim: int, factor: float, scaled: bool, mixed: bool) -> Errors:
    draw, mask = Draws(dtype, device), batch(frames, device)
    tensors = {"x": draw(3, frames, dim, dtype=torch.float32 if mixed else None), "y": draw(3, frames, dim)}
    tensors |= {name: draw(dim) for name in ("weight", "bias", *(("scale", "shift") if scaled else ()))}

    def fused(**leaves):
        return [y for y in kernels.add_layer_norm(**leaves, factor=factor) if y is not None]

    def plain(x, y, weight, bias, scale=None, shift=None):
        out = F.layer_norm(x + factor * y, (dim,), weight, bias)
        return [out] if scale is None else [out, out * scale + shift]

    grads = [draw(3, frames, dim) for _ in range(1 + scaled)]
    return compare(fused, plain, tensors, mask, (), grads)


def encoder(device: str, dtype: str, choice: dict, taken: list[str]) -> Errors:
    """A whole backbone that takes some kernels, output and gradients, beside the same in float64 that does not."""
    given = dict(name="squeezeformer", in_dim=5, dim=12, heads=2, depth=1, kernel=5, ff_factor=2, dropout=0.0)
    # Not in training, where BatchNorm, and without the bias of keys, as softmax: they leave its gradient to rounding.
    backbone = create_backbone(**given | dict(stem="linear", attention_bias=False) | choice).to(device).eval()
    draw, mask = Draws(dtype, device), batch(10, device)
    for parameter in backbone.parameters():  # biases and scales of 0 and 1 would hide a mistake
        parameter.data.add_(0.3 * draw(*parameter.shape))
    x, grad, found = draw(3, 10, 5), draw(3, 10, 12), []
    for kind, on in ((torch.float32, True), (torch.float64, False)):
        kernels.use(on)
        try:
            y, _ = backbone.to(kind)(x.to(kind), mask)
        finally:
            kernels.use(False)
        assert fused_of(y) == (taken if on else [])
        gradients = torch.autograd.grad(y, list(backbone.parameters()), grad.to(kind))
        names = (f"gradient of {name}" for name, _ in backbone.named_parameters())
        found.append({"output": y.detach()} | dict(zip(names, gradients, strict=True)))
    return errors(*found)


def fused_of(y: Tensor) -> list[str]:
    """Names of our operators among those that gave y."""
    seen, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    found = (re.search(r"seqformer_(\w+?)_default", node.name()) for node in seen)
    return sorted({match[1] for match in found if match})


def operators(device: str, dtype: str) -> Errors:
    """torch's own test of what torch.compile must know of an operator: schema, fake shapes and strides, gradients."""
    from seqformer.kernels.attention import relative_attention
    from seqformer.kernels.depthwise import depthwise_conv
    from seqformer.kernels.layer_norm import add_layer_norm

    draw, lengths = Draws(dtype, device), torch.tensor([5, 3], device=device)

    def leaf(*shape: int) -> Tensor:
        return draw(*shape).requires_grad_()

    pairs = [leaf(2, 5, 1, 3) for _ in range(4)]
    for operator, given in (
        (depthwise_conv, (leaf(2, 5, 3), leaf(4, 3), leaf(3), lengths, 1, False)),
        (relative_attention, (*pairs, leaf(9, 1, 3), leaf(2, 1, 5, 5), lengths, 5, 5)),
        (add_layer_norm, (leaf(2, 5, 3), leaf(2, 5, 3), *(leaf(3) for _ in range(4)), 0.5, 1e-5)),
    ):
        torch.library.opcheck(operator, given)
    return {"none": 0.0}


def compiled(device: str, dtype: str) -> Errors:
    """A backbone compiled whole, with any number of frames, beside itself."""
    backbone = create_backbone("squeezeformer", in_dim=5, dim=32, heads=2, depth=2, stem="linear", reduce_at=0)
    backbone = backbone.to(device).eval()
    faster = torch.compile(backbone, fullgraph=True, dynamic=True)
    found, expected = {}, {}
    kernels.use(True)
    try:
        for frames in (21, 34):
            x, mask = Draws(dtype, device)(3, frames, 5), batch(frames, device)
            found[f"{frames}"], expected[f"{frames}"] = faster(x, mask)[0].detach(), backbone(x, mask)[0].double()
    finally:
        kernels.use(False)
    return errors(found, expected)
