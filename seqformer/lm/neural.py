"""A neural language model of texts, asked as the n-gram model is, or for whole texts at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from seqformer.data.text import Characters, Words
from seqformer.errors import InputError
from seqformer.lm.ngram import SPACE

BEGIN = END = 0  # no text holds unit 0: it stands before and behind the others
Units = tuple[int, ...]


class NeuralLM:
    """A model whose ``head`` gives the next unit behind each: its tokenizer says what units are.

    With a tokenizer of characters or words a beam search may ask it token by token, a state being the text so far, and
    every answer computed anew from all of it: slow, and meant for small tasks. One of pieces is for whole texts. A
    symbol that the tokenizer does not know is scored as the end of the text would be there.
    """

    def __init__(self, model: torch.nn.Module, head: str, encoder: Any, tokens_at_once: int = 8192):
        if not getattr(model.heads[head], "given_targets", False):
            raise InputError(f"head {head} is of no language model; that takes next_unit")
        self.model, self.head, self.tokenizer = model.eval(), head, encoder.tokenizer
        self.tokens_at_once = tokens_at_once
        self.known: dict[Units, np.ndarray] = {}

    @property
    def units(self) -> str:
        """What a token of a beam search is. Raises InputError when there is none of them."""
        kinds = {Characters: "chars", Words: "words"}
        if type(self.tokenizer) not in kinds:
            raise InputError("a language model of pieces is no model of words or characters: take it as --rescore")
        return kinds[type(self.tokenizer)]

    def start(self) -> Units:
        return ()

    def score(self, state: Units, token: str) -> tuple[float, Units]:
        """log p(token | state) and the state after it."""
        (unit,) = self.tokenizer.encode(" " if token == SPACE else token)
        return float(self._after(state)[unit]), (*state, unit)

    def finish(self, state: Units) -> float:
        """log p of the end of the text."""
        return float(self._after(state)[END])

    def text_log_probs(self, texts: Sequence[str]) -> list[float]:
        """log p of each whole text, its end included, in batches of texts alike in length."""
        units = [self.tokenizer.encode(text) for text in texts]
        found, order = [0.0] * len(texts), sorted(range(len(texts)), key=lambda row: -len(units[row]))
        while order:
            count = max(1, self.tokens_at_once // (len(units[order[0]]) + 1))
            part, order = order[:count], order[count:]
            log_probs = self._read([units[row] for row in part])
            for row, item in zip(part, log_probs, strict=True):
                following = [*units[row], END]
                found[row] = float(item[np.arange(len(following)), following].sum(dtype=np.float64))
        return found

    def _after(self, state: Units) -> np.ndarray:
        """log p of what may come behind units (vocab,)."""
        if state not in self.known:
            self.known[state] = self._read([list(state)])[0][-1]
        return self.known[state]

    @torch.no_grad()
    def _read(self, units: list[list[int]]) -> list[np.ndarray]:
        """log p of the next unit before, between and behind those of each text (U + 1, vocab)."""
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(one) + 1 for one in units], device=device)
        x = torch.zeros(len(units), int(lengths.max()), dtype=torch.int64, device=device)
        for row, one in zip(x, units, strict=True):
            row[1 : len(one) + 1] = torch.tensor(one, dtype=torch.int64)
        mask = torch.arange(x.shape[1], device=device) < lengths[:, None]
        features = self.model.frontend({"x": x}, mask)
        y, mask = self.model.backbone(features.x, features.mask)
        return self.model.heads[self.head].predict(y, mask)
