"""An image network of timm over a spectrogram, or several: what it sees becomes frames."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from seqformer.errors import InputError, nearest
from seqformer.frontends.features import Features, inner_frontend
from seqformer.nn.images import Masks, drop_unused, filled, mask_layers
from seqformer.registry import register
from seqformer.timm_import import import_timm

KNOWN = "resnet, resnext, seresnet, regnetx, regnety, efficientnet (not tf_), mobilenetv2, mobilenetv3, darknet, repvgg"


@register("frontend", "spectrogram_cnn")
class SpectrogramCNN(nn.Module):
    """inputs["x"] (B, T, F) or (B, T, F, channels), mask (B, T) -> Features(x (B, ceil(T / stride), dim), mask).

    Or, in place of x, the features (B, T, F) of another ``frontend``, such as logmel. ``model`` is a name of timm's,
    built without pretrained weights and without the network; ``stage`` is the level of its features that is kept, of
    stride 2 in time and frequency for 0, 4 for 1 and so on (-1 the last), ``options`` are other keywords of its
    constructor, such as drop_path_rate. The mean over frequency is a frame. A missing value (NaN) is 0.

    Padding never changes a result: convolutions, max-pooling, BatchNorm and squeeze-excite are replaced by masked
    ones. A network that has anything else to mix time by (average pooling, padding that depends on the length) shows
    it on a first image of noise, and is refused with an InputError, as is an unknown one.
    """

    def __init__(
        self,
        model: str,
        channels: int = 1,
        stage: int = -1,
        frontend: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        timm = import_timm()
        if not timm.is_model(model):
            raise InputError(f"spectrogram_cnn: timm has no model {model!r}; {nearest(model, timm.list_models())}")
        self.frontend = None if frontend is None else inner_frontend(frontend)
        keywords = dict(features_only=True, in_chans=channels) | ({} if stage == -1 else {"out_indices": (stage,)})
        self.masks = Masks()
        try:
            self.network = timm.create_model(model, pretrained=False, **keywords | (options or {}))
            image = _noise(64, channels).permute(0, 3, 1, 2)
            drop_unused(self.network.eval(), image)
            self.stride, self.rates = mask_layers(self.network, image, self.masks)
            gap = _leak(self, channels)
            if not gap < 1e-6:
                raise ValueError(f"padding changes its output by {gap:.0e} of it, by a layer not known here")
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or f"no stage {stage}"
            raise InputError(f"spectrogram_cnn: {model} is refused: {reason}; known to work: {KNOWN}") from None
        self.dim = self.network.feature_info.channels()[-1]
        self.hop = self.stride * getattr(self.frontend, "hop", 1)
        self.train()

    @property
    def rate(self) -> int:
        """Samples a second, where the frontend inside reads audio."""
        return self.frontend.rate

    @property
    def fit(self):
        """That of the frontend inside, where it has one."""
        return self.frontend.fit

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Features:
        x = inputs["x"]
        if self.frontend is not None:
            x, mask, bias, _ = self.frontend(inputs, mask)
            if bias is not None:
                raise InputError(
                    "spectrogram_cnn: the frontend inside gives a bias of attention, at another frame rate"
                )
        return self.frames_of(x.float().nan_to_num(nan=0.0), mask)

    def frames_of(self, x: Tensor, mask: Tensor) -> Features:
        """Images x (B, T, F) or (B, T, F, channels) through the network."""
        x = x if x.dim() == 4 else x[..., None]
        self.masks.fill(mask, self.rates)
        y_BCTF = self.network(x.permute(0, 3, 1, 2))[-1]
        mask = self.masks.at[self.stride]
        self.masks.at = {}
        # Zeroed in the layout it has: of a transposed one export cannot prove the order.
        return Features(filled(y_BCTF, mask, 0).mean(dim=3).transpose(1, 2), mask)


@torch.no_grad()
def _leak(frontend: SpectrogramCNN, channels: int) -> float:
    """How far, relative to its largest value, an item's output differs between alone and padded."""
    probe, generator = copy.deepcopy(frontend).eval().double(), torch.Generator().manual_seed(0)
    for name, tensor in probe.state_dict().items():
        # Moved off the first weights, whose zeros hide branches and biases.
        if tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator).double() + (0.5 if "var" in name else 0))
    x, mask = _noise(65, channels).double(), torch.arange(65)[None] < 33  # odd at every rate: 33, 17, 9, 5, 3
    alone, padded = probe.frames_of(x[:, :33], mask[:, :33]).x, probe.frames_of(x, mask).x
    return float((padded[:, : alone.shape[1]] - alone).abs().max() / alone.abs().max().clamp(min=1e-12))


def _noise(frames: int, channels: int) -> Tensor:
    """An image of 32 frequencies (1, frames, 32, channels), the same every time."""
    return torch.randn(1, frames, 32, channels, generator=torch.Generator().manual_seed(0))
