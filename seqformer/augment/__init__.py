"""Augmentation of single examples; importing registers the transforms, albumentations itself loads on first use."""

from seqformer.augment import channels, compose, frames, landmarks, mix, room, waveform  # noqa: F401
