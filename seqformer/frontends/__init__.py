"""Frontends: raw inputs, mask -> Features. One file per kind of input, one import line each."""

from seqformer.frontends import audio, dense, gammatone, landmarks, pair, spectrogram, tokens  # noqa: F401
