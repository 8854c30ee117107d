"""Augmentation of single examples; importing registers the transforms, albumentations itself loads on first use."""

from seqformer.augment import compose, frames, mix, waveform  # noqa: F401
