"""The decoders of flashlight-text with KenLM, as another search of the first pass: of a lexicon's words, or free.

They are compiled, and search one text after the other. KenLM's logarithms are to base 10; we rescale. With a lexicon
three things differ from our prefix beam: of a word one spelling counts, where pieces have several; where no unit is a
space by itself, a word's last unit is heard in one frame alone; and spaces at the ends, or several, are one text.
"""

import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqformer.decode.beam_decoder import BeamDecoder
from seqformer.decode.prefix_beam import Hypothesis
from seqformer.errors import InputError, nearest
from seqformer.lm.kneser_ney import arpa_lines
from seqformer.lm.ngram import BEGIN, END, LOG_10, SPACE, UNKNOWN, NGram

NEVER = -1e4  # a logarithm of what cannot be, in numbers that add up
THRESHOLD = 100.0  # a prefix so far behind the best is dropped whatever the beam
Lexicon = list[tuple[str, list[str] | None]]  # words, each with the spellings of its units, if they are given


class Flashlight:
    """``search`` for a BeamDecoder: its model, weight, bonus, beam and ``top`` are meant, hot words are not known.

    With a model of words, or a lexicon (a file, one word a line, and after a tab its units, "▁" for a space, if the
    tokenizer's own are not meant), texts are of those words alone: those of the file, or of the model. Without, any.
    Raises InputError when flashlight-text or kenlm is missing, a unit of a word is unknown, or choices do not go
    together.
    """

    def __init__(self, lexicon: str | Path | None = None):
        self.place, self.text = lexicon, _flashlight()
        self.lexicon = read_lexicon(lexicon) if lexicon else None
        self.made: dict[tuple, tuple[Any, int | None]] = {}

    def search(self, heard: Sequence[np.ndarray], tokenizer: Any, decoder: BeamDecoder) -> list[list[Hypothesis]]:
        """log_probs (T, vocab) of each item -> up to ``beam`` texts of each, the best first."""
        key = id(tokenizer), id(decoder.model), decoder.weight, decoder.bonus, decoder.beam, decoder.top
        if key not in self.made:
            self.made[key] = *self._make(tokenizer, decoder), tokenizer, decoder.model  # held, so that ids stay theirs
        made, space = self.made[key][:2]
        return [self._read(made, space, item, decoder.beam) for item in heard]

    def _make(self, tokenizer: Any, decoder: BeamDecoder) -> tuple[Any, int | None]:
        """The decoder of flashlight, and the unit between words: the space, or one beyond the vocabulary."""
        if decoder.words:
            raise InputError("--decoder flashlight knows no hot words: leave --hot out, or take our own beam")
        model, spellings = decoder.model, tokenizer.spellings()
        if model is not None and not isinstance(model, NGram):
            raise InputError("--decoder flashlight takes n-gram models alone as --lm; a neural one is for --rescore")
        apart = " " in spellings and not any(spelling[:1] == " " for spelling in spellings if spelling != " ")
        space = spellings.index(" ") if apart else len(spellings)
        top = min(decoder.top or len(spellings), len(spellings))
        options = {"beam_size": decoder.beam, "beam_size_token": top, "beam_threshold": THRESHOLD}
        options |= {"lm_weight": decoder.weight * LOG_10, "sil_score": 0.0, "log_add": True}
        options |= {"criterion_type": self.text.CriterionType.CTC}
        if self.lexicon is None and (model is None or model.units == "chars"):
            return self._free(spellings, model, decoder.bonus, options), None
        if model is not None and model.units == "chars":
            raise InputError(
                "a lexicon is searched with a language model of words, or with none; this is of characters"
            )
        return self._of_words(tokenizer, model, decoder.bonus, options, space), space

    def _free(self, spellings: list[str], model: NGram | None, bonus: float, options: dict) -> Any:
        if bonus and model:
            raise InputError(f"--length-bonus {bonus:g}: --decoder flashlight has none without a lexicon; give 0")
        text = self.text
        names = [spelling.replace(" ", SPACE) for spelling in spellings]
        odd = [name for name in names[1:] if len(name) != 1]
        if model and odd:
            raise InputError(f"a language model of characters has no {odd[0]!r}, a unit of the run; take one of words")
        lm = self._kenlm(model, [BEGIN, *names[1:]]) if model else text.ZeroLM()  # no text holds the blank, as <s>
        return text.LexiconFreeDecoder(text.LexiconFreeDecoderOptions(**options), lm, -1, 0, [])

    def _of_words(self, tokenizer, model: NGram | None, bonus: float, options: dict, space: int) -> Any:
        text, end = self.text, [space] if space < tokenizer.size else []
        known = [(word, None) for (word,) in model.entries[0] if word not in (BEGIN, END, UNKNOWN)] if model else []
        lexicon = known if self.lexicon is None else self.lexicon
        words = list(dict.fromkeys(word for word, _ in lexicon))
        numbers = {word: number for number, word in enumerate(words)}
        lm = self._kenlm(model, words) if model else text.ZeroLM()
        trie, begin = text.Trie(tokenizer.size + 1, space), lm.start(False)
        units = {spelling.replace(" ", SPACE): unit for unit, spelling in enumerate(tokenizer.spellings()) if spelling}
        for line, (word, given) in enumerate(lexicon, start=1):
            spelled = self._spelled(tokenizer, units, word, given, line)
            trie.insert([*spelled, *end], numbers[word], lm.score(begin, numbers[word])[1])
        trie.smear(text.SmearingMode.MAX)
        given = options | {"word_score": bonus if model else 0.0, "unk_score": -np.inf}
        return text.LexiconDecoder(text.LexiconDecoderOptions(**given), trie, lm, space, 0, len(words), [], False)

    def _spelled(self, tokenizer, units: dict[str, int], word: str, given: list[str] | None, line: int) -> list[int]:
        place = f"{self.place}, line {line}" if self.place else "the language model"
        if given is None:
            found = tokenizer.encode(word)
            if 0 in found or not found:
                bad = next((one for one in word if 0 in tokenizer.encode(one)), word)
                raise InputError(f"{place}: word {word!r} holds {bad!r}, which no unit of the run stands for")
            return found
        for unit in given:
            if unit not in units:
                raise InputError(f"{place}: word {word!r} has unit {unit!r}; {nearest(unit, list(units))}")
        return [units[unit] for unit in given]

    def _kenlm(self, model: NGram, names: list[str]) -> Any:
        """KenLM's reading of a model, token n being the n-th name."""
        if model.order == 1:
            raise InputError("KenLM reads no model of 1-grams alone; train one of 2-grams, or take our own beam")
        tokens = self.text.Dictionary(list(names))
        if UNKNOWN not in names:
            tokens.add_entry(UNKNOWN)
        tokens.set_default_index(tokens.get_index(UNKNOWN))
        with tempfile.NamedTemporaryFile("w", suffix=".arpa", encoding="utf-8") as file:
            # KenLM wants nothing before the counts.
            file.writelines(f"{line}\n" for line in itertools.dropwhile("\\data\\".__ne__, arpa_lines(model)))
            file.flush()
            return self.text.KenLM(file.name, tokens)

    @staticmethod
    def _read(made: Any, space: int | None, log_probs: np.ndarray, beam: int) -> list[Hypothesis]:
        size = log_probs.shape[1]
        if space is not None:  # the last word ends as the others do: a certain space follows
            # Flashlight reads the unit between words at every word's end, without asking whether there is one.
            log_probs = np.pad(log_probs, ((0, space < size), (0, 1)), constant_values=NEVER)
            log_probs[len(log_probs) - 1, space] = 0.0 if space < size else NEVER
        frames = np.ascontiguousarray(log_probs, dtype=np.float32)
        found: dict[tuple[int, ...], Hypothesis] = {}
        for one in made.decode(frames.ctypes.data, *frames.shape):
            units = tuple(unit for unit, _ in itertools.groupby(one.tokens) if 0 < unit < size)
            while space is not None and units and space in (units[0], units[-1]):
                units = units[1:] if units[0] == space else units[:-1]
            found.setdefault(units, Hypothesis(list(units), one.emittingModelScore, one.score))
        # No text may be left: none of a lexicon's words fits into the frames.
        return sorted(found.values(), key=lambda one: -one.score)[:beam] or [Hypothesis([], -np.inf, -np.inf)]


def read_lexicon(path: str | Path) -> Lexicon:
    """Words of a file, one a line, each with its units where there are any behind a tab."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no lexicon: {error}") from error
    found: Lexicon = []
    for number, line in enumerate(lines, start=1):
        word, tab, units = line.rstrip().partition("\t")
        if len(word.split()) > 1 or (tab and not word):
            raise InputError(f"{path}, line {number}: found {line[:40]!r}; expected a word, or a word, a tab and units")
        if not word and any(one.strip() for one in lines[number:]):
            raise InputError(f"{path}, line {number}: the line is empty")
        found += [(word, units.split() if tab else None)] if word else []
    if not found:
        raise InputError(f"{path}: there is no word in it")
    return found


@functools.cache
def _flashlight() -> Any:
    """What is used of flashlight-text, in one namespace."""
    try:
        from flashlight.lib.text import decoder
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise InputError(
            "--decoder flashlight needs flashlight-text and kenlm: pip install 'seqformer[decode]'"
        ) from error
    from types import SimpleNamespace

    names = ("CriterionType", "LexiconDecoder", "LexiconDecoderOptions", "LexiconFreeDecoder", "SmearingMode", "Trie")
    names += ("LexiconFreeDecoderOptions", "ZeroLM")
    return SimpleNamespace(**{name: getattr(decoder, name) for name in names}, KenLM=KenLM, Dictionary=Dictionary)
