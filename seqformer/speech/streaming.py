"""Streaming: a causal model reads audio as it comes, and says what it says of the whole.

Nothing of the past is computed twice but a bounded left context. Frontend and stem, which have no memory, are run on
the last inputs that their next output sees (``Window``). Each depthwise convolution and each attention keeps its last
input frames, as many as its next output sees (``Remembering``): keys and values of the context are projected anew,
everything else of a block is computed once a frame. So the cost of a second of audio does not grow with its past.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqformer.backbones.encoder import Encoder
from seqformer.decode.align import Span
from seqformer.errors import InputError
from seqformer.model import SequenceModel
from seqformer.nn.attention import Attention
from seqformer.nn.conv import ConvModule, DepthwiseConv
from seqformer.nn.mask import strided
from seqformer.nn.positions import sinusoid_table
from seqformer.nn.subsample import NoStem

LONGEST_S = 2.0  # what is pushed at once is computed in pieces of at most this, so that memory is bounded as well


class Window:
    """``function(x (1, n, ...), mask)`` -> (frames, mask) run on a stream, its frame j being of input stride * j.

    ``reach`` (left, right): what a frame sees around that input. Inputs are dropped in multiples of ``grid``.
    """

    def __init__(self, function: Callable, stride: int, reach: tuple[int, int], grid: int | None = None):
        self.function, self.stride, self.reach, self.grid = function, stride, reach, grid or stride
        self.held: Tensor | None = None
        self.start = self.done = 0  # the number of the first input held, and of the next frame

    def push(self, x: Tensor | None, last: bool = False) -> Tensor | None:
        """The frames that x (1, n, ...), or the end of the stream, completes; None for none."""
        if x is not None:
            self.held = x if self.held is None else torch.cat([self.held, x], dim=1)
        if self.held is None or not self.held.shape[1]:
            return None
        left, right = self.reach
        ready = (self.start + self.held.shape[1] - 1 - right) // self.stride + 1
        if ready <= self.done and not last:
            return None
        y, mask = self.function(self.held, torch.ones(self.held.shape[:2], dtype=torch.bool, device=self.held.device))
        before = self.start // self.stride
        y = y[:, self.done - before : int(mask.sum()) if last else ready - before]
        self.done += y.shape[1]
        keep = max(0, (self.stride * self.done - left) // self.grid * self.grid)
        self.held, self.start = self.held[:, max(0, keep - self.start) :], max(keep, self.start)
        return y if y.shape[1] else None


class Remembering(nn.Module):
    """A convolution or an attention that sees ``left`` earlier frames, run on a stream piece by piece."""

    def __init__(self, inner: nn.Module, left: int, stride: int = 1):
        super().__init__()
        self.inner, self.stride = inner, stride
        self.keep = strided(left, stride) * stride if left else 0  # whole strides, so that frames stay on their grid
        self.held: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor, *given, **options) -> Tensor:
        full = x if self.held is None else torch.cat([self.held, x], dim=1)
        self.held = full[:, max(0, full.shape[1] - self.keep) :]
        mask = torch.ones(full.shape[:2], dtype=torch.bool, device=x.device)
        if isinstance(self.inner, Attention) and given[0] is not None:  # the table of distances, of as many frames
            given = sinusoid_table(full.shape[1], given[0].shape[1], full), *given[1:]
        y = self.inner(full, mask, *given, **options)
        return y[:, y.shape[1] - strided(x.shape[1], self.stride) :]


class Stream:
    """Reads samples piece by piece with a causal model; what it finds equals what the model finds in the whole.

        stream = seqformer.Stream(model)
        for samples in microphone:
            logits = stream.push(samples)   # (new frames, vocab); none for few samples
            print(stream.text)
        stream.finish()

    The model: ``logmel`` or ``gammatone`` with ``normalize: none``; an encoder with ``causal: true``, ``context:
    [left, 0]``, no gate and no ``upsample``; the first head ``ctc`` or ``transducer``. Weights are the model's own, not
    copies. Convolutions of a stem may look ahead, by little: ``delay`` is how many samples after its own first one a
    frame is there, ``spans`` are the units found so far with their frames, ``frame_s`` is the length of a frame in
    seconds.
    Raises InputError when the model cannot be run on a stream.
    """

    def __init__(self, model: SequenceModel):
        check_streams(model)
        # Modules of its own, which remember, around the same weights.
        shared = {id(value): value for value in [*model.parameters(), *model.buffers()]}
        frontend, self.backbone = copy.deepcopy((model.frontend, model.backbone), shared)
        self.head, self.tokenizer = next(iter(model.heads.values())), model.tokenizer
        stem, self.backbone.stem = self.backbone.stem, NoStem()
        frontend.eval(), self.backbone.eval()
        self.rate, self.device = frontend.rate, next(model.parameters()).device
        self.samples = Window(
            lambda x, mask: frontend({"x": x}, mask)[:2], frontend.hop, frontend.reach, getattr(frontend, "step", None)
        )
        self.frames = Window(stem, stem.stride, stem.reach)
        self.align = 2 ** len(self.backbone.reduce_at)  # frames come in whole groups of a reduction
        self.waiting: Tensor | None = None
        ahead = stem.stride * (self.align - 1) + stem.reach[1]
        self.delay = frontend.hop * ahead + frontend.reach[1] + 1
        self.frame_s = frontend.hop * self.backbone.stride / frontend.rate
        self.reader, self.ended = self.head.reader(), False
        remember(self.backbone)

    def push(self, samples) -> Tensor:
        """Samples (N,) in [-1, 1] at the model's rate -> what the head's ``forward`` gives of new frames (T, K)."""
        if self.ended:
            raise InputError("the stream has ended; make another for more audio")
        samples = torch.as_tensor(samples, device=self.device)
        if samples.dim() != 1:
            raise InputError(f"samples have shape {tuple(samples.shape)}; expected one axis, one channel")
        if not samples.is_floating_point():
            raise InputError(f"samples are {str(samples.dtype).removeprefix('torch.')}; expected floats in [-1, 1]")
        pieces = samples.float()[None].split(round(LONGEST_S * self.rate), dim=1)
        return torch.cat([self._advance(piece, last=False) for piece in pieces])

    def finish(self) -> Tensor:
        """The frames that the end of the audio completes (T, K)."""
        self.ended = True
        return self._advance(None, last=True)

    @property
    def spans(self) -> list[Span]:
        return self.reader.found

    @property
    def heard(self) -> int:
        """How many frames there have been."""
        return self.reader.frames

    @property
    def text(self) -> str:
        """What was read so far. Raises InputError where the model has no tokenizer."""
        if self.tokenizer is None:
            raise InputError("the model has no tokenizer to make text of units")
        return self.tokenizer.decode([span.unit for span in self.spans])

    @torch.no_grad()
    def _advance(self, samples: Tensor | None, last: bool) -> Tensor:
        x = self.frames.push(self.samples.push(samples, last), last)
        parts = [part for part in (self.waiting, x) if part is not None]
        count = sum(part.shape[1] for part in parts)
        count = count if last else count // self.align * self.align
        if not count:
            self.waiting = torch.cat(parts, dim=1) if parts else None
            nothing = torch.zeros(1, 0, self.backbone.dim, device=self.device)
            return self.head(nothing, nothing[..., 0].bool())[0]
        x = torch.cat(parts, dim=1)
        x, self.waiting = x[:, :count], x[:, count:]
        x, mask = self.backbone(x, torch.ones(x.shape[:2], dtype=torch.bool, device=self.device))
        y = self.head(x, mask)[0]
        self.reader.push(y)
        return y


def remember(backbone: nn.Module) -> None:
    """Give every convolution and every attention of an encoder a memory."""
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DepthwiseConv):
                setattr(module, name, Remembering(child, child.left, child.stride))
            elif isinstance(child, Attention):
                setattr(module, name, Remembering(child, child.context[0]))


def check_streams(model: SequenceModel) -> None:
    """Raise InputError that says why a model cannot be run on a stream."""
    frontend, backbone, head = model.frontend, model.backbone, next(iter(model.heads.values()))
    wrong = None
    if not hasattr(frontend, "reach") or not hasattr(frontend, "hop"):
        wrong = "its frontend is not of audio frames; expected logmel or gammatone"
    elif frontend.normalize != "none":
        wrong = f"normalize is {frontend.normalize!r}, which needs the whole recording; expected 'none'"
    elif getattr(frontend, "top_db", None) is not None:
        wrong = f"top_db is {frontend.top_db}, which needs the whole recording; expected null"
    elif not isinstance(backbone, Encoder):
        wrong = f"its backbone is a {type(backbone).__name__}; expected one of the Conformer family"
    elif not hasattr(head, "reader") or model.blocks:
        wrong = "its first head is not ctc or transducer on the last block"
    if wrong is None:
        wrong = _looks_ahead(backbone)
    if wrong:
        raise InputError(f"the model cannot read a stream: {wrong}")


def _looks_ahead(backbone: Encoder) -> str | None:
    """The first part of an encoder that sees later frames."""
    if backbone.upsample is not None:
        return "upsample is true; expected false"
    if getattr(backbone.stem, "official", False):
        return "convention is 'squeezeformer_tf'; expected 'seqformer' or 'nemo'"
    for module in backbone.modules():
        if isinstance(module, DepthwiseConv) and module.left < module.kernel - 1:
            return "a convolution sees later frames; expected causal: true"
        if isinstance(module, Attention) and (module.context is None or module.context[0] < 0 or module.context[1]):
            return f"attention has context {module.context}; expected [frames before, 0]"
        if isinstance(module, ConvModule) and module.gate is not None:
            return "a gate averages the whole recording; expected gate: none"
    return None
