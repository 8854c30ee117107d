"""Augmentation of single examples; importing registers the transforms, albumentations itself loads on first use."""

from seqformer.augment import waveform  # noqa: F401
