"""Texts from the log-probabilities of frames: a beam search with its language model, hot words and settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from seqformer.decode.fusion import Fusion, LanguageModel, rescored
from seqformer.decode.prefix_beam import Hypothesis, prefix_beam
from seqformer.errors import InputError


class Tokenizer(Protocol):
    def spellings(self) -> list[str]: ...

    def decode(self, units: list[int]) -> str: ...


@dataclass(frozen=True)
class BeamDecoder:
    """What ``prefix_beam`` and ``Fusion`` are given; with ``rescore`` the model orders the texts found without it."""

    model: LanguageModel | None = None
    weight: float = 0.5
    bonus: float = 0.0
    words: tuple[str, ...] = ()
    hot: float = 1.0
    beam: int = 16
    top: int | None = 20
    least: float = -9.2
    rescore: bool = False

    def hypotheses(self, log_probs: Sequence[np.ndarray], tokenizer: Tokenizer) -> list[list[Hypothesis]]:
        """log_probs (T, vocab) of each item -> up to ``beam`` texts of each, the best first."""
        lengths = [len(item) for item in log_probs]
        padded = np.zeros((len(lengths), max(lengths, default=0), log_probs[0].shape[1] if lengths else 1))
        for row, item in zip(padded, log_probs, strict=True):
            row[: len(item)] = item
        guide = self.guide(tokenizer)
        found = prefix_beam(padded, lengths, self.beam, self.top, self.least, None if self.rescore else guide)
        return [rescored(texts, guide) for texts in found] if self.rescore and guide else found

    def texts(self, log_probs: Sequence[np.ndarray], tokenizer: Tokenizer) -> list[str]:
        """The best text of each item; of states of frames by the search of their own, over words."""
        if hasattr(tokenizer, "text"):
            if self.words or self.rescore:
                raise InputError("hot words and rescoring are for ctc; a search over a lexicon has neither")
            return [tokenizer.text(item, self.model, self.weight, self.bonus) for item in log_probs]
        return [tokenizer.decode(texts[0].units) for texts in self.hypotheses(log_probs, tokenizer)]

    def guide(self, tokenizer: Tokenizer) -> Fusion | None:
        if self.model is None and not self.words:
            return None
        return Fusion(tokenizer.spellings(), self.model, self.weight, self.bonus, self.words, self.hot)
