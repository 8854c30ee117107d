"""Frontends: raw inputs, mask -> Features. One file per kind of input, one import line each."""

from seqformer.frontends import audio, best_rq, dense, gammatone, landmarks, pair, spectrogram, tokens  # noqa: F401
