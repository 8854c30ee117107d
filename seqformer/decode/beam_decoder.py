"""Texts from what a head heard in frames: a beam search with its language models, hot words and settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from seqformer.decode.fusion import Fusion, LanguageModel
from seqformer.decode.prefix_beam import Guide, Hypothesis, prefix_beam
from seqformer.errors import InputError


class Tokenizer(Protocol):
    def spellings(self) -> list[str]: ...

    def decode(self, units: list[int]) -> str: ...


class TextModel(Protocol):
    def text_log_probs(self, texts: Sequence[str]) -> list[float]:
        """log p of each whole text, its end included."""


class Engine(Protocol):
    def search(
        self, heard: Sequence[np.ndarray], tokenizer: Tokenizer, decoder: "BeamDecoder"
    ) -> list[list[Hypothesis]]:
        """What ``BeamDecoder.first_pass`` gives."""


Search = Callable[[Sequence[np.ndarray], int, Guide | None], list[list[Hypothesis]]]  # items, beam, guide


@dataclass(frozen=True)
class BeamDecoder:
    """What ``prefix_beam`` and ``Fusion`` are given, the first pass, and what orders the texts it found, the second.

    ``engine`` searches in place of our own prefix beam. The second pass adds ``rescore_weight`` log p of a whole text
    by ``rescorer``, and ``rescore_bonus`` for each word.
    """

    model: LanguageModel | None = None
    weight: float = 0.5
    bonus: float = 0.0
    words: tuple[str, ...] = ()
    hot: float = 1.0
    beam: int = 16
    top: int | None = 20
    least: float = -9.2
    rescorer: TextModel | None = None
    rescore_weight: float = 0.3
    rescore_bonus: float = 0.0
    engine: Engine | None = None

    def hypotheses(
        self, heard: Sequence[np.ndarray], tokenizer: Tokenizer, search: Search | None = None
    ) -> list[list[Hypothesis]]:
        """log_probs (T, vocab) of each item, or what a head's own ``search`` takes -> up to ``beam`` texts of each, the
        best first.
        """
        found = self.first_pass(heard, tokenizer, search)
        if self.rescorer is None:
            return found
        texts = list(dict.fromkeys(tokenizer.decode(one.units) for item in found for one in item))
        said = dict(zip(texts, self.rescorer.text_log_probs(texts), strict=True))
        return self.second_pass(found, tokenizer, said)

    def first_pass(
        self, heard: Sequence[np.ndarray], tokenizer: Tokenizer, search: Search | None = None
    ) -> list[list[Hypothesis]]:
        """The texts in the order of the search."""
        if hasattr(tokenizer, "hypotheses"):  # a search over a lexicon's words
            if self.words or self.rescorer or self.engine:
                raise InputError(
                    "hot words, rescoring and flashlight are not for a hybrid: it searches words of its own"
                )
            return [tokenizer.hypotheses(item, self.model, self.weight, self.bonus) for item in heard]
        if self.engine is not None:
            if search is not None:
                raise InputError(
                    "--decoder flashlight searches what a CTC head gives; a transducer has a search of its own"
                )
            return self.engine.search(heard, tokenizer, self)
        guide = self.guide(tokenizer)
        if search is not None:
            return search(heard, self.beam, guide)
        lengths = [len(item) for item in heard]
        padded = np.zeros((len(lengths), max(lengths, default=0), heard[0].shape[1] if lengths else 1))
        for row, item in zip(padded, heard, strict=True):
            row[: len(item)] = item
        return prefix_beam(padded, lengths, self.beam, self.top, self.least, guide)

    def second_pass(
        self, found: Sequence[Sequence[Hypothesis]], tokenizer: Tokenizer, said: dict[str, float]
    ) -> list[list[Hypothesis]]:
        """The texts of a first pass in the order of both, ``said`` being log p of each text by the rescorer."""

        def moved(one: Hypothesis) -> Hypothesis:
            text = tokenizer.decode(one.units)
            more = self.rescore_weight * said[text] + self.rescore_bonus * len(text.split())
            return one._replace(score=one.score + more)

        return [sorted(map(moved, item), key=lambda one: -one.score) for item in found]

    def texts(self, heard: Sequence[np.ndarray], tokenizer: Tokenizer, search: Search | None = None) -> list[str]:
        """The best text of each item."""
        return [tokenizer.decode(texts[0].units) for texts in self.hypotheses(heard, tokenizer, search)]

    def guide(self, tokenizer: Tokenizer) -> Fusion | None:
        if self.model is None and not self.words:
            return None
        return Fusion(tokenizer.spellings(), self.model, self.weight, self.bonus, self.words, self.hot)
