"""From manifest columns to targets. What is fitted here knows the rows it was fitted on, and is refused elsewhere.

A head names its target column; the column's type says what it is: text (with a ``text`` section in the config) ->
units (U,), other text, a whole number or true/false -> a class number, a number -> a value, a list -> one class or
value a frame (T,), a list as long in every row by its type (``polars.Array``) -> values of the item (K,), a struct of a
text and lists -> hidden Markov states of frames (see ``seqformer.data.states``). A categorical
column is always one of classes, so that a run with a ``text`` section can have both. Each kind has ``size`` (outputs of
the head), ``axes`` (for collate), ``encode`` (column value -> array for the loss), ``decode`` (the head's prediction ->
what is written to files) and ``truth`` (column value -> what a metric compares to). An empty value is not scored (class
-1, value NaN), in a list too; an empty text is an error.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.manifest import as_text, plain_text
from seqformer.data.states import TEXT, States, fit_states
from seqformer.data.text import Tokenizer, fit_tokenizer, load_tokenizer, unknown_symbols
from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars


class Classes:
    """Class names, in order; a class number is a place in it. Raises InputError on a name that is not among them."""

    axes, whole = "", True

    def __init__(self, classes: list[str]):
        self.classes, self.size = classes, len(classes)
        self.numbers = {name: number for number, name in enumerate(classes)}

    def encode(self, value: Any) -> np.ndarray:
        if value is None:
            return np.asarray(-1)
        name = plain_text(value)
        if name not in self.numbers:
            raise InputError(f"unknown class {name!r}; {nearest(name, self.classes)}")
        return np.asarray(self.numbers[name])

    def truth(self, value: Any) -> int:
        return int(self.encode(value))

    def decode(self, prediction: np.ndarray) -> np.ndarray:
        return prediction

    def state(self) -> dict:
        return {"kind": "classes", "classes": self.classes}


class Units:
    """Text as tokenizer units."""

    axes = "U"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.size = tokenizer, tokenizer.size

    def encode(self, value: str) -> np.ndarray:
        # An unknown character has no unit to train on; rows with one are errors in training and counted in validation.
        return np.asarray([unit for unit in self.tokenizer.encode(value) if unit], dtype=np.int64)

    def truth(self, value: str) -> str:
        return value

    def decode(self, prediction: list[int] | np.ndarray) -> str | np.ndarray:
        """The text of units; log-probabilities, which a language model gives of a text, are an array and stay."""
        return prediction if isinstance(prediction, np.ndarray) else self.tokenizer.decode(prediction)

    def state(self) -> dict:
        return {"kind": "units", "tokenizer": self.tokenizer.state()}


class Values:
    """Numbers as they are; None is not scored. ``size`` is the number of classes, or of values per item or frame."""

    def __init__(self, size: int, axes: str, whole: bool):
        self.size, self.axes, self.whole = size, axes, whole

    def encode(self, value: Any) -> np.ndarray:
        """A number -> (), an array -> (size,), a list -> (T,) or (T, size); no list -> (0,) or (0, size)."""
        if self.axes != "T":
            missing = value is None and self.size > 1
            return np.asarray([None] * self.size if missing else value, dtype=np.float32)
        frames = list(value if value is not None else [])
        if self.whole:
            numbers = np.asarray(frames, dtype=np.float64)  # None becomes NaN
            return np.where(np.isnan(numbers), -1, numbers).astype(np.int64)
        if self.size > 1 or any(isinstance(frame, list) for frame in frames):
            frames = [[None] * self.size if frame is None else frame for frame in frames]
            return np.asarray(frames, dtype=np.float32).reshape(-1, self.size)
        return np.asarray(frames, dtype=np.float32)

    def truth(self, value: Any) -> np.ndarray:
        return self.encode(value)

    def decode(self, prediction: np.ndarray) -> np.ndarray:
        return prediction

    def state(self) -> dict:
        return {"kind": "values", "size": self.size, "axes": self.axes, "whole": self.whole}


class Made:
    """Codes that the model's own frontend makes of its input: no column holds them, and nothing else is compared."""

    axes = ""

    def __init__(self, size: int):
        self.size = size

    def encode(self, value: None) -> np.ndarray:
        return np.asarray(0.0)  # the frontend's take its place

    def truth(self, value: None) -> float:
        return 0.0

    def decode(self, prediction: np.ndarray) -> np.ndarray:
        return prediction

    def state(self) -> dict:
        return {"kind": "made", "size": self.size}


class Targets:
    """The target encoders of one fold, {column: encoder}, and a fingerprint of the rows they were fitted on."""

    def __init__(self, encoders: dict[str, Any], fitted_on: str):
        self.encoders, self.fitted_on = encoders, fitted_on

    @property
    def made(self) -> list[str]:
        """Names of those that are no columns."""
        return [name for name, encoder in self.encoders.items() if isinstance(encoder, Made)]

    def encode(self, values: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Column values of a row -> (targets, their axes)."""
        values = values | dict.fromkeys(self.made)
        encoded = {name: encoder.encode(values[name]) for name, encoder in self.encoders.items()}
        return encoded, {name: encoder.axes for name, encoder in self.encoders.items()}

    def require_fitted_on(self, ids: Iterable[str]) -> None:
        """Raise InputError unless these are the rows the encoders were fitted on."""
        if fingerprint(ids) != self.fitted_on:
            raise InputError(
                "targets were fitted on other rows than this fold trains on; fit them on its training rows"
            )

    def to_json(self) -> str:
        encoders = {name: encoder.state() for name, encoder in self.encoders.items()}
        return json.dumps({"fitted_on": self.fitted_on, "encoders": encoders}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Targets":
        """The Targets of a ``to_json()``. Raises InputError when the text is anything else."""
        try:
            state = json.loads(text)
            encoders = {name: _load_encoder(found) for name, found in state["encoders"].items()}
            return cls(encoders, state["fitted_on"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"damaged targets: {error}") from error


def _load_encoder(state: dict) -> Classes | Units | Values | Made | States:
    if state["kind"] == "units":
        return Units(load_tokenizer(state["tokenizer"]))
    if state["kind"] == "classes":
        return Classes(state["classes"])
    if state["kind"] == "values":
        return Values(state["size"], state["axes"], state["whole"])
    if state["kind"] == "made":
        return Made(state["size"])
    if state["kind"] == "states":
        return States.from_state(state)
    raise InputError(f"unknown kind of target {state['kind']!r}; known: classes, made, states, units, values")


def fit_targets(
    train: "polars.DataFrame",
    columns: list[str],
    text: dict | None,
    known: "polars.DataFrame",
    weights: list[str] = (),
    hmm: dict | None = None,
) -> Targets:
    """Fit an encoder for each target column on the training rows of a fold.

    ``text`` holds the keywords of fit_tokenizer, or is None. Names and number of classes, and whether a text is there
    at all, are seen on all rows, ``known``: they are the question, not something learned. ``weights`` names columns of
    loss weights, which travel with the targets as values, whole numbers too; ``hmm`` are settings of fit_states. Raises
    InputError naming the column and what it holds, or the rows at fault.
    """
    encoders = {}
    for column in columns:
        if column not in train.columns:
            raise InputError(
                f"the head's target {column!r} is no column of the manifest; {nearest(column, train.columns)}"
            )
        encoders[column] = _fit_column(train, column, text, known, hmm)
    for column in weights:
        if column in columns:
            raise InputError(f"column {column!r} cannot be both a target and the weights of one")
        encoders[column] = _fit_weights(known, column)
    if text is not None and not any(isinstance(encoder, Units | States) for encoder in encoders.values()):
        found = ", ".join(f"{column!r} ({train[column].dtype})" for column in columns)
        raise InputError(f"the config has a text section, but no target holds text: {found}")
    return Targets(encoders, fingerprint(train["id"]))


def _fit_column(train, column: str, text: dict | None, known, hmm: dict | None) -> Classes | Units | Values | States:
    import polars

    values = known[column]
    dtype = values.dtype
    if values.null_count() == len(values):
        raise InputError(f"column {column!r} is empty in every row")
    if dtype == polars.String and text is not None:
        return Units(_fit_text(train, column, text, known))
    if isinstance(dtype, polars.Struct) and dtype.to_schema().get(TEXT) == polars.String:
        return _fit_states(train, column, text, known, hmm)
    if dtype == polars.Enum:  # its order is meant, and so is a class without rows
        return Classes(dtype.categories.to_list())
    if dtype in (polars.String, polars.Categorical, polars.Boolean) or dtype.is_integer():
        return Classes(sorted(as_text(values).drop_nulls().unique().to_list(), key=_natural))
    if isinstance(dtype, polars.Array) and dtype.inner.is_numeric():
        return Values(dtype.size, " ", whole=False)
    if isinstance(dtype, polars.List):
        return _fit_frames(known, column)
    if dtype.is_numeric():
        return Values(1, "", whole=False)
    raise InputError(f"column {column!r} holds {dtype}; a target is text, a number, true/false or a list of numbers")


def _fit_states(train, column: str, text: dict | None, known, hmm: dict | None) -> States:
    import polars

    if text is None or hmm is None:
        raise InputError(f"column {column!r} holds texts with states of frames: the config needs sections text and hmm")
    texts = [frame.select("id", polars.col(column).struct.field(TEXT)) for frame in (train, known)]
    tokenizer = _fit_text(texts[0], TEXT, text, texts[1])
    return fit_states(train[column], train["id"], fingerprint(train["id"]), tokenizer, hmm)


def _fit_text(train, column: str, text: dict, known) -> Tokenizer:
    if known[column].null_count():
        ids = known.filter(known[column].is_null())["id"].to_list()
        raise InputError(f"column {column!r} is empty for {first_few(ids)}")
    texts = train[column].to_list()
    tokenizer = fit_tokenizer(text["kind"], texts, text["vocab"], text["alphabet"])
    if unknown_symbols(tokenizer, " ".join(texts)):
        found = [(row_id, unknown_symbols(tokenizer, value)) for row_id, value in zip(train["id"], texts, strict=True)]
        bad = [f"{row_id} ({' '.join(symbols)!r})" for row_id, symbols in found if symbols]
        raise InputError(f"column {column!r}: text outside the vocabulary in {len(bad)} rows: {first_few(bad)}")
    return tokenizer


def _fit_frames(known, column: str) -> Values:
    """What a list column holds for each frame: a class number, a value, or as many values as every other frame."""
    import polars

    frames = known.select("id", column).explode(column).drop_nulls()
    dtype, values = frames[column].dtype, frames[column]
    if dtype.is_integer():
        bad = frames.filter(values.cast(int) < -1)
        if bad.height or not frames.height or values.max() < 0:
            ids = f": {first_few(bad['id'].unique(maintain_order=True))}" if bad.height else ""
            raise InputError(f"column {column!r}: expected class numbers from 0 (-1 or empty: not scored){ids}")
        return Values(int(values.max()) + 1, "T", whole=True)
    if dtype.is_float():
        return Values(1, "T", whole=False)
    if not isinstance(dtype, polars.List | polars.Array) or not dtype.inner.is_numeric():
        raise InputError(
            f"column {column!r} holds {known[column].dtype}; expected numbers, or lists of them, per frame"
        )
    widths = values.list.len() if isinstance(dtype, polars.List) else values.arr.len()
    width = int(widths.max() or 0)
    bad = frames.filter(widths != width)
    if bad.height or not width:
        ids = f"; fewer in {first_few(bad['id'].unique(maintain_order=True))}" if bad.height else ""
        raise InputError(f"column {column!r}: expected the same number of values in every frame, found {width}{ids}")
    return Values(width, "T", whole=False)


def _fit_weights(known, column: str) -> Values:
    """A weight for each item, frame, or value of a frame: numbers, 0 or more."""
    import polars

    if column not in known.columns:
        raise InputError(
            f"the head's weights {column!r} is no column of the manifest; {nearest(column, known.columns)}"
        )
    numbers, depth = known.select("id", column), 0
    while isinstance(numbers[column].dtype, polars.List | polars.Array):
        numbers, depth = numbers.explode(column), depth + 1
    if not numbers[column].dtype.is_numeric() or depth > 2:
        raise InputError(
            f"column {column!r} holds {known[column].dtype}; weights are numbers, or lists of them per frame"
        )
    values = polars.col(column).cast(float)
    bad = numbers.filter((values < 0) | values.is_nan())
    if bad.height:
        raise InputError(
            f"column {column!r}: weights must be 0 or more, unlike {first_few(bad['id'].unique(maintain_order=True))}"
        )
    return _fit_frames(known, column) if depth == 2 else Values(1, "T" * depth, whole=False)


def _natural(name: str) -> tuple:
    """Numbers by value, then other names; the name itself settles ties such as 1 and 01."""
    return (0, int(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0, name)


def fingerprint(ids: Iterable[str]) -> str:
    """SHA-256 of a set of row ids."""
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()
