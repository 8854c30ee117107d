"""Text to units and back. Unit 0 is the CTC blank and the unknown piece, as in the published models.

A tokenizer is fitted on training rows only and is plain JSON on disk.
"""

import base64
import functools
import io
from typing import Literal

from seqformer.errors import InputError


class Characters:
    """One unit per character; ``symbols`` are units 1, 2, ..."""

    def __init__(self, symbols: str):
        self.symbols = symbols
        self.numbers = {symbol: number for number, symbol in enumerate(symbols, start=1)}
        self.size = len(symbols) + 1

    @classmethod
    def fit(cls, texts: list[str]) -> "Characters":
        return cls("".join(sorted(set().union(*texts))))

    def encode(self, text: str) -> list[int]:
        """Unit numbers; 0 for an unknown character."""
        return [self.numbers.get(symbol, 0) for symbol in text]

    def decode(self, units: list[int]) -> str:
        return "".join(self.symbols[unit - 1] for unit in units if unit).strip()

    def spellings(self) -> list[str]:
        """What each unit adds to a text, with the spaces."""
        return ["", *self.symbols]

    def state(self) -> dict:
        return {"kind": "chars", "symbols": self.symbols}


class Words:
    """One unit per word, for small closed vocabularies."""

    def __init__(self, words: list[str]):
        self.words = words
        self.numbers = {word: number for number, word in enumerate(words, start=1)}
        self.size = len(words) + 1

    @classmethod
    def fit(cls, texts: list[str]) -> "Words":
        return cls(sorted({word for text in texts for word in text.split()}))

    def encode(self, text: str) -> list[int]:
        """Unit numbers; 0 for an unknown word."""
        return [self.numbers.get(word, 0) for word in text.split()]

    def decode(self, units: list[int]) -> str:
        return " ".join(self.words[unit - 1] for unit in units if unit)

    def spellings(self) -> list[str]:
        return ["", *(f" {word}" for word in self.words)]

    def state(self) -> dict:
        return {"kind": "words", "words": self.words}


class BPE:
    """SentencePiece byte-pair units; ``model`` is the serialised SentencePiece model (data, not code).

    Ours has the unknown piece 0, which is the blank too. A publisher's has a blank besides, so that with ``shift`` 1
    its piece p is unit p + 1.
    """

    def __init__(self, model: bytes, shift: int = 0):
        self.model, self.shift = model, shift

    @functools.cached_property
    def processor(self):
        """Opened at first use: a checkpoint's weights can be had without sentencepiece, or with a tokenizer damaged."""
        if not self.model:
            raise InputError("the SentencePiece model of a tokenizer is empty")
        try:
            return _sentencepiece().SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise InputError("the SentencePiece model of a tokenizer is damaged") from error

    @property
    def size(self) -> int:
        return self.processor.get_piece_size() + self.shift

    @classmethod
    def fit(cls, texts: list[str], vocab: int) -> "BPE":
        """``vocab`` pieces, the unknown one included. Raises InputError when the texts cannot give that many."""
        model, trainer = io.BytesIO(), _sentencepiece().SentencePieceTrainer
        try:
            trainer.train(
                sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab,
                character_coverage=1.0, normalization_rule_name="identity", max_sentence_length=1 << 16,
                unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, num_threads=1, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"text.vocab: {vocab} pieces cannot be fitted to {len(texts)} texts: {reason}") from error
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        """Unit numbers; 0 for an unknown character."""
        return [piece + self.shift for piece in self.processor.encode(text)]

    def decode(self, units: list[int]) -> str:
        return self.processor.decode([unit - self.shift for unit in units if unit]).strip()

    def spellings(self) -> list[str]:
        numbers = [unit - self.shift for unit in range(1, self.size)]
        odd = [self.processor.is_unknown(number) or self.processor.is_control(number) for number in numbers]
        pieces = self.processor.id_to_piece(numbers)
        return ["", *("" if skip else piece.replace("▁", " ") for piece, skip in zip(pieces, odd, strict=True))]

    def state(self) -> dict:
        return {"kind": "bpe", "model": base64.b64encode(self.model).decode()} | ({"shift": 1} if self.shift else {})


class Pieces:
    """A publisher's vocabulary by name alone: piece p is unit p + 1, "▁" starts a word. It reads, and does not write.

    Which pieces a text is made of is the business of the publisher's own tokenizer: ``encode`` raises InputError.
    """

    def __init__(self, pieces: list[str]):
        self.pieces, self.size = pieces, len(pieces) + 1

    def encode(self, text: str) -> list[int]:
        raise InputError("this tokenizer came with a checkpoint and only reads units; fit one to your texts to train")

    def decode(self, units: list[int]) -> str:
        return "".join(self.pieces[unit - 1] for unit in units if unit).replace("▁", " ").strip()

    def spellings(self) -> list[str]:
        return ["", *(piece.replace("▁", " ") for piece in self.pieces)]

    def state(self) -> dict:
        return {"kind": "pieces", "pieces": self.pieces}


Tokenizer = Characters | Words | BPE | Pieces


def _sentencepiece():
    try:
        import sentencepiece
    except ImportError as error:
        raise InputError("text.kind bpe needs sentencepiece: pip install 'seqformer[asr]'") from error
    return sentencepiece


def fit_tokenizer(
    kind: Literal["chars", "words", "bpe"], texts: list[str], vocab: int, alphabet: str | None
) -> Tokenizer:
    """A tokenizer of the training texts; characters may be given as ``alphabet`` instead of being collected.

    Raises InputError when the texts cannot give ``vocab`` pieces, or the alphabet is of no use or names one twice.
    """
    if alphabet and kind != "chars":
        raise InputError(f"text.alphabet is for kind chars; found kind {kind!r}")
    twice = sorted({symbol for symbol in alphabet or "" if alphabet.count(symbol) > 1})
    if twice:
        raise InputError(f"text.alphabet holds {' '.join(map(repr, twice))} twice")
    if kind == "bpe":
        return BPE.fit(texts, vocab)
    if kind == "words":
        return Words.fit(texts)
    return Characters(alphabet) if alphabet else Characters.fit(texts)


def load_tokenizer(state: dict) -> Tokenizer:
    """The tokenizer of a ``state()``. Raises InputError when it is not one."""
    if state["kind"] == "bpe":
        return BPE(base64.b64decode(state["model"]), state.get("shift", 0))
    if state["kind"] == "pieces":
        return Pieces(state["pieces"])
    if state["kind"] == "words":
        return Words(state["words"])
    if state["kind"] == "chars":
        return Characters(state["symbols"])
    raise InputError(f"unknown kind of tokenizer {state['kind']!r}; known: bpe, chars, pieces, words")


def unknown_symbols(tokenizer: Tokenizer, text: str) -> list[str]:
    """The characters of ``text`` (words, for a word tokenizer) that no unit stands for, each once, in order."""
    symbols = text.split() if isinstance(tokenizer, Words) else "".join(text.split())
    return [symbol for symbol in dict.fromkeys(symbols) if 0 in tokenizer.encode(symbol)]
