"""Heads: frames -> logits, loss, prediction. One file per task, one import line each."""

from seqformer.heads import classify, ctc, framewise, regress  # noqa: F401
