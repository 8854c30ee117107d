"""Frontends: raw inputs, mask -> Features. One file per kind of input, one import line each."""

from seqformer.frontends import audio, dense, landmarks, pair, tokens  # noqa: F401
