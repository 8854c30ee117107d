"""What a run of the benchmarks is asked for."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """One run. ``quick`` asks for sizes that take seconds and say nothing, ``absent`` fills with who was not there."""

    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    precision: str = "fp32"  # or bf16, by autocast
    peers: str = "*"  # a pattern of their names
    quick: bool = False
    backbones: tuple[str, ...] = ("squeezeformer_s",)
    shapes: tuple[tuple[int, int], ...] = ((8, 1000), (1, 6000))  # items, frames
    train_shapes: tuple[tuple[int, int], ...] = ((8, 1000),)
    manifest: Path | None = None  # audio with texts, for what needs real recordings
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager:
        """Inside, models run in the precision asked for."""
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def built(self, peers: Mapping[str, Callable], *arguments) -> dict[str, Any]:
        """What the wanted peers give for the arguments, of those that give anything."""
        wanted = [name for name in peers if fnmatch(name.lower(), self.peers.lower())]
        found = {name: self.tried(name, lambda name=name: peers[name](*arguments)) for name in wanted}
        return {name: made for name, made in found.items() if made is not None}

    def tried(self, name: str, call: Callable) -> Any:
        """What a peer's call gives, or None: then why is kept, and the others go on."""
        try:
            return call()
        except ImportError as error:
            self.absent[name] = f"not importable: {error}"
        except Exception as error:  # another library's fault must not end the run
            self.absent[name] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        return None
