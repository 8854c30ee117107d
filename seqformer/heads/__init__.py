"""Heads: frames -> logits, loss, prediction. One file per task, one import line each."""

from seqformer.heads import classify, codes, ctc, decoder, framewise, next_unit, regress, transducer  # noqa: F401
