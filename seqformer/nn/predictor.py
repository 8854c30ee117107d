"""What a transducer knows of the units said so far, of all of them at once or one more.

``predictor(units (B, U), state)`` -> (B, U, dim) after each of them, and the state of each item, (B, ...), for the next
call. The start is unit 0, whose embedding is zeros (Graves 2012), with no state.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqformer.nn.conv import DepthwiseConv
from seqformer.nn.precision import no_autocast


class LSTMPredictor(nn.Module):
    """LSTM layers over an embedding of the units; the state is (B, 2 layers, dim)."""

    def __init__(self, vocab: int, dim: int, layers: int = 1):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim, padding_idx=0)
        self.lstm = nn.LSTM(dim, dim, layers, batch_first=True)

    def forward(self, units: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        past = None if state is None else tuple(state.transpose(0, 1).contiguous().chunk(2))
        # Under CPU autocast torch asks for a bfloat16 LSTM, which many processors have none of.
        with no_autocast(units):
            y, (hidden, cell) = self.lstm(self.embedding(units), past)
        return y, torch.cat([hidden, cell]).transpose(0, 1)


class StatelessPredictor(nn.Module):
    """The last ``context`` units alone (Ghodsi et al. 2020): a filter per channel over their embeddings, ReLU.

    The state is the last ``context`` - 1 units, (B, context - 1).
    """

    def __init__(self, vocab: int, dim: int, context: int = 2):
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocab, dim, padding_idx=0)
        self.conv = DepthwiseConv(dim, context, causal=True)

    def forward(self, units: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = units.new_zeros(len(units), self.context - 1)
        units = torch.cat([state, units], dim=1)
        y = F.relu(self.conv(self.embedding(units), torch.ones_like(units, dtype=torch.bool)))
        return y[:, self.context - 1 :], units[:, units.shape[1] - self.context + 1 :]
