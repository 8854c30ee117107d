"""Dropout that begins late."""

from torch import Tensor, nn
from torch.nn import functional as F


class LateDropout(nn.Module):
    """Dropout of share ``p``, from epoch ``late_from`` (0 is the first) of share ``late``, where that is given.

    The training loop calls ``begin_epoch`` at the start of each epoch, after a resume too. Raises ValueError on a
    share outside 0 to 1, or on one of the two without the other.
    """

    def __init__(self, p: float = 0.0, late: float | None = None, late_from: int | None = None):
        super().__init__()
        if (late is None) != (late_from is None):
            raise ValueError(f"late_dropout is {late}, late_from {late_from}; expected both or none")
        if not 0 <= p <= 1 or not 0 <= (late or 0) <= 1:
            raise ValueError(f"dropout is {p}, late_dropout {late}; expected 0 to 1")
        self.p, self.early, self.late, self.late_from = p, p, late, late_from

    def begin_epoch(self, epoch: int) -> None:
        """Take the share of an epoch."""
        self.p = self.early if self.late is None or epoch < self.late_from else self.late

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)
