"""Audio played faster or slower, a batch at a time, on the device of the model.

Axes: B items, N samples before, T samples after, of the longest item; K taps, M groups of ``up`` output samples.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from seqformer.nn.mask import mask_of, zero_padding
from seqformer.nn.paths import fast_on_cpu
from seqformer.nn.precision import no_autocast

ZEROS, BETA = 10, 5.0  # zero crossings of the sinc on each side, and the Kaiser window's shape: scipy's defaults


def played(inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Samples of inputs["x"] as float32 (B, T), 0 beyond each item's end, mask (B, T).

    Where the batch has ``x_speed`` (B, 3), whole numbers, the x it has is (B, N): an item has as many real samples as
    the first number says and is played in ``up / down`` times as long, by the second and third. Its mask is that of
    afterwards, ceil(samples * up / down). Items of one proportion are filtered together; ``x_speed`` is read on the
    host, where a batch keeps it, so that nothing waits for a GPU.
    """
    if "x_speed" not in inputs:
        return zero_padding(inputs["x"].float(), mask)
    speeds, x = inputs["x_speed"], inputs["x"].float()
    if fast_on_cpu(x):
        return _an_item_at_a_time(x, speeds.tolist(), mask.shape[1])
    x = zero_padding(x, mask_of(speeds[:, 0].to(x.device, non_blocking=True), x.shape[1]))
    y, proportions = x.new_empty(mask.shape), [tuple(pair) for pair in speeds[:, 1:].tolist()]
    for proportion in sorted(set(proportions)):
        rows = [row for row, own in enumerate(proportions) if own == proportion]
        y[rows] = resampled(x[rows], *proportion, mask.shape[1])
    return zero_padding(y, mask)  # the filter rings on beyond the end


def _an_item_at_a_time(x: Tensor, speeds: list[list[int]], frames: int) -> Tensor:
    """The same, more than twice as fast on a CPU: an item stays in the cache, and nothing needs to be zeroed."""
    y = x.new_zeros(len(x), frames)
    for item, (samples, up, down) in enumerate(speeds):
        size = -(-samples * up // down)
        y[item, :size] = resampled(x[item : item + 1, :samples], up, down, size)[0]
    return y


def resampled(x: Tensor, up: int, down: int, size: int) -> Tensor:
    """The first ``size`` of the samples x (B, N) at ``up / down`` times their rate, both without a common divisor.

    What ``scipy.signal.resample_poly`` computes, by the same taps; beyond the ends of x there are zeros.
    """
    if up == down:
        return F.pad(x, (0, size - x.shape[1]))
    taps_KU, left = polyphase(up, down, x.device)
    K, M = len(taps_KU), -(-size // up)
    needed = (M - 1) * down + K
    x = F.pad(x, (left, needed - left - x.shape[1]))
    with no_autocast(x):
        if fast_on_cpu(x):  # a convolution, twice as fast; a GPU's would by default keep three digits
            y_BMU = F.conv1d(x[:, None], taps_KU.T[:, None], stride=down).transpose(1, 2)
        else:
            y_BMU = x.unfold(1, K, down) @ taps_KU
        return y_BMU.flatten(1)[:, :size]


@lru_cache(maxsize=64)
def polyphase(up: int, down: int, device: torch.device) -> tuple[Tensor, int]:
    """Taps (K, up) that make ``up`` samples of K, and how many of the K lie before the first sample's own place.

    Sample n is the sum of x[i] h(n * down - i * up), h being a sinc cut off at the lower of both halves of the rates,
    under a Kaiser window. For n = m * up + u, i = m * down - left + k.
    """
    half = ZEROS * max(up, down)
    place = torch.arange(-half, half + 1, dtype=torch.float64)
    h = torch.sinc(place / max(up, down)) * torch.kaiser_window(2 * half + 1, False, BETA, dtype=torch.float64)
    h = up * h / h.sum()
    left = half // up
    K = left + ((up - 1) * down + half) // up + 1
    lag = torch.arange(up) * down - (torch.arange(K)[:, None] - left) * up
    taps = h[(lag + half).clamp(0, 2 * half)].masked_fill(lag.abs() > half, 0)
    return taps.float().to(device), left
