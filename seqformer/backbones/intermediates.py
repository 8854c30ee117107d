"""What the blocks of a backbone give, beside its output."""

from torch import Tensor, nn

Kept = dict[int, tuple[Tensor, Tensor] | None]  # block -> its frames and their mask, for ``forward`` to fill


def forward_intermediates(
    self: nn.Module, x: Tensor, mask: Tensor, indices: list[int] | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, its mask, and the output of the blocks at ``indices`` (all by default), each at its own frame rate.

    A method of every backbone (it asks ``forward`` to fill ``keep``), named as in timm. With ``upsample`` all are at
    the input's rate. Negative indices count from the end. Raises IndexError when there is no such block.
    """
    every = range(len(self.blocks))
    wanted = every if indices is None else [every[index] for index in indices]
    keep = dict.fromkeys(wanted)
    x, mask = self.forward(x, mask, bias, keep)
    return x, mask, [keep[index][0] for index in wanted]
