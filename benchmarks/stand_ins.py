"""NeMo's encoders without NeMo's hundred dependencies: inert modules for what they import but do not compute by.

Only where ``lightning`` is absent; the arithmetic is NeMo's own code. Its type checks are left out, in its favour.
"""

import importlib.machinery
import sys
from contextlib import nullcontext
from types import ModuleType

from torch import nn

# Imported as if empty; every name taken from one of them is an empty class.
INERT = (
    "nemo.core",
    "nemo.utils",
    "nemo.collections.asr.models",
    "nemo.collections.asr.parts.mixins",
    "nemo.collections.asr.parts.submodules.adapters",
    "nemo.collections.asr.parts.utils.adapter_utils",
)
# Their files are read, their __init__, which would import all of NeMo, is not run.
HOLLOW = (
    "nemo.collections.asr",
    "nemo.collections.asr.modules",
    "nemo.collections.asr.parts.utils",
    "nemo.collections.common",
    "nemo.collections.common.parts",
)


class Mixin:
    """What NeMo asks of its mixins: nothing is switched on."""

    def is_access_enabled(self, *_) -> bool:
        return False

    is_adapter_available = is_access_enabled


def _typecheck(*_, **__):
    return lambda function: function


KNOWN = {"NeuralModule": nn.Module, "typecheck": _typecheck, "avoid_float16_autocast_context": nullcontext}


class _Inert(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in KNOWN:
            return KNOWN[name]
        return self if name.islower() else type(name, (Mixin,), {"__init__": lambda self, *_, **__: None})

    def __call__(self, *_, **__):
        return self


class _Finder:
    """A finder and loader of both kinds of module."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.startswith(INERT):
            return importlib.machinery.ModuleSpec(name, cls, is_package=True)
        if name in HOLLOW:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            hollow = importlib.machinery.ModuleSpec(name, cls, is_package=True)
            hollow.submodule_search_locations = spec.submodule_search_locations
            return hollow
        return None

    @staticmethod
    def create_module(spec):
        return _Inert(spec.name) if spec.name.startswith(INERT) else None

    @staticmethod
    def exec_module(module):
        pass


def install() -> None:
    """Put the stand-ins before what is installed, once."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
