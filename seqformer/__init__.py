"""seqformer: one Squeezeformer / Conformer family for any feature sequence, trained with k-fold cross-validation."""

from seqformer.augment.compose import on_example, on_time, on_values
from seqformer.batch import Batch, Example, collate
from seqformer.cli import run_command
from seqformer.data.audio import read_audio, read_pcm, read_pcm_files, resample
from seqformer.data.corpus import Faults, find_files
from seqformer.data.dataset import RowReader, SequenceDataset, draw_seed
from seqformer.data.folder import replace_folder
from seqformer.data.manifest import read_manifest, write_manifest
from seqformer.data.store import Store, StoreWriter
from seqformer.data.table import read_table
from seqformer.data.targets import Targets
from seqformer.decode.hmm import stretch_states
from seqformer.errors import InputError, first_few
from seqformer.machine import tune_cpu
from seqformer.model import SequenceModel, create_backbone, create_model, list_backbones
from seqformer.pretrained import load_pretrained, push_to_hub, save_pretrained
from seqformer.published.weights import import_backbone
from seqformer.registry import register
from seqformer.speech.alignment import align_rows
from seqformer.speech.streaming import Stream
from seqformer.submission import write_ragged_submission, write_submission

__all__ = [
    "Batch",
    "Example",
    "Faults",
    "InputError",
    "RowReader",
    "SequenceDataset",
    "SequenceModel",
    "Store",
    "StoreWriter",
    "Stream",
    "Targets",
    "align_rows",
    "collate",
    "create_backbone",
    "create_model",
    "draw_seed",
    "find_files",
    "first_few",
    "import_backbone",
    "list_backbones",
    "load_pretrained",
    "on_example",
    "on_time",
    "on_values",
    "push_to_hub",
    "read_audio",
    "read_manifest",
    "read_pcm",
    "read_pcm_files",
    "read_table",
    "register",
    "replace_folder",
    "resample",
    "run_command",
    "save_pretrained",
    "stretch_states",
    "tune_cpu",
    "write_manifest",
    "write_ragged_submission",
    "write_submission",
]
