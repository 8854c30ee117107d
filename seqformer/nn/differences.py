"""How values move from frame to frame."""

import torch
from torch import Tensor
from torch.nn import functional as F


def with_differences(x: Tensor, mask: Tensor, steps: tuple[int, ...]) -> Tensor:
    """x (B, T, ..., C), mask (B, T) -> (B, T, ..., C (1 + steps)): x, then x[t + step] - x[t] for each step.

    Steps are of one frame or more. The difference to a frame that is not there, or from or to a missing value (NaN),
    is NaN, as padded frames are: whoever fills missing values with 0 makes it 0 too.
    """
    x = x.masked_fill(~mask.reshape(mask.shape + (1,) * (x.dim() - 2)), torch.nan)
    beyond = (0, 0) * (x.dim() - 2)
    later = (F.pad(x, (*beyond, 0, step), value=torch.nan)[:, step:] for step in steps)
    return torch.cat([x, *(moved - x for moved in later)], dim=-1)
