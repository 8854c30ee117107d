"""seqformer: one Squeezeformer / Conformer backbone family for any feature sequence, trained with k-fold cross-validation."""

from seqformer.batch import Batch, Example, collate
from seqformer.cli import run_command
from seqformer.data.audio import read_audio, resample
from seqformer.data.dataset import RowReader, SequenceDataset, draw_seed
from seqformer.data.manifest import read_manifest, write_manifest
from seqformer.data.store import Store, StoreWriter
from seqformer.data.targets import Targets
from seqformer.errors import InputError, first_few
from seqformer.model import SequenceModel, create_backbone, create_model, list_backbones
from seqformer.registry import register

__all__ = [
    "Batch",
    "Example",
    "InputError",
    "RowReader",
    "SequenceDataset",
    "SequenceModel",
    "Store",
    "StoreWriter",
    "Targets",
    "collate",
    "create_backbone",
    "create_model",
    "draw_seed",
    "first_few",
    "list_backbones",
    "read_audio",
    "read_manifest",
    "register",
    "resample",
    "run_command",
    "write_manifest",
]
