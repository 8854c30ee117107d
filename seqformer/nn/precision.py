"""Where autocast must not reach."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of ``x``; on the meta device, which has none, one that does nothing."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
