"""From manifest columns to targets. What is fitted here knows the rows it was fitted on, and is refused elsewhere.

A head names its target column; the column's type says what it is: text (with a ``text`` section in the config) ->
units (U,), other text or a whole number -> a class number, a number -> a value, a list -> one class or value a frame (T,).
Each kind has ``size`` (outputs of the head), ``axes`` (for collate), ``encode`` (column value -> array for the loss),
``decode`` (the head's prediction -> what is written to files) and ``truth`` (column value -> what a metric compares to).
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from seqformer.data.text import Tokenizer, fit_tokenizer, load_tokenizer, unknown_symbols
from seqformer.errors import InputError, first_few, nearest

if TYPE_CHECKING:
    import polars


class Classes:
    """Class names, in order; a class number is a place in it."""

    axes = ""

    def __init__(self, classes: list[str]):
        self.classes, self.size = classes, len(classes)
        self.numbers = {name: number for number, name in enumerate(classes)}

    def encode(self, value: Any) -> np.ndarray:
        return np.asarray(-1 if value is None else self.numbers.get(str(value), -1))

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

    def decode(self, prediction: list[int]) -> str:
        return self.tokenizer.decode(prediction)

    def state(self) -> dict:
        return {"kind": "units", "tokenizer": self.tokenizer.state()}


class Values:
    """Numbers as they are; None is not scored. ``size`` is the number of values per item or frame."""

    def __init__(self, size: int, axes: str, whole: bool):
        self.size, self.axes, self.whole = size, axes, whole

    def encode(self, value: Any) -> np.ndarray:
        if self.whole:
            return np.asarray(value, dtype=np.int64)
        return np.asarray(value, dtype=np.float32)

    def truth(self, value: Any) -> np.ndarray:
        return self.encode(value)

    def decode(self, prediction: np.ndarray) -> np.ndarray:
        return prediction

    def state(self) -> dict:
        return {"kind": "values", "size": self.size, "axes": self.axes, "whole": self.whole}


class Targets:
    """The target encoders of one fold, {column: encoder}, and a fingerprint of the rows they were fitted on."""

    def __init__(self, encoders: dict[str, Any], fitted_on: str):
        self.encoders, self.fitted_on = encoders, fitted_on

    def encode(self, values: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Column values of a row -> (targets, their axes)."""
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
        state, encoders = json.loads(text), {}
        for name, found in state["encoders"].items():
            if found["kind"] == "units":
                encoders[name] = Units(load_tokenizer(found["tokenizer"]))
            elif found["kind"] == "classes":
                encoders[name] = Classes(found["classes"])
            else:
                encoders[name] = Values(found["size"], found["axes"], found["whole"])
        return cls(encoders, state["fitted_on"])


def fit_targets(train: "polars.DataFrame", columns: list[str], text: dict | None, known: "polars.DataFrame") -> Targets:
    """Fit an encoder for each target column on the training rows of a fold.

    ``text`` holds the keywords of fit_tokenizer, or is None. Class names alone come from all rows, ``known``: they
    are the question, not something learned. Raises InputError naming the column, or the row and the character that
    no unit stands for.
    """
    import polars

    encoders = {}
    for column in columns:
        if column not in train.columns:
            raise InputError(
                f"the head's target {column!r} is no column of the manifest; {nearest(column, train.columns)}"
            )
        dtype = train[column].dtype
        if dtype == polars.String and text is not None:
            encoders[column] = Units(_fit_text(train, column, text))
        elif dtype == polars.String or dtype.is_integer():
            encoders[column] = Classes(sorted(known[column].drop_nulls().cast(str).unique().to_list(), key=_natural))
        elif dtype.is_nested():
            encoders[column] = _frame_values(known, column)
        else:
            encoders[column] = Values(1, "", whole=False)
    return Targets(encoders, fingerprint(train["id"]))


def _fit_text(train, column: str, text: dict) -> Tokenizer:
    if train[column].null_count():
        ids = train.filter(train[column].is_null())["id"].to_list()
        raise InputError(f"column {column!r} is empty for {first_few(ids)}")
    tokenizer = fit_tokenizer(text["kind"], train[column].to_list(), text["vocab"], text["alphabet"])
    bad = [
        f"{row_id} ({' '.join(symbols)!r})"
        for row_id, value in train.select("id", column).iter_rows()
        if (symbols := unknown_symbols(tokenizer, value))
    ]
    if bad:
        raise InputError(f"column {column!r}: text outside the vocabulary in {len(bad)} rows: {first_few(bad)}")
    return tokenizer


def _frame_values(known, column: str) -> Values:
    inner = known[column].dtype.inner
    if inner.is_integer():
        return Values(int(known[column].explode().max()) + 1, "T", whole=True)
    if inner.is_nested():
        return Values(len(known[column][0][0]), "T", whole=False)
    return Values(1, "T", whole=False)


def _natural(name: str) -> tuple:
    return (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name)


def fingerprint(ids: Iterable[str]) -> str:
    """SHA-256 of a set of row ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
