"""``import timm`` where torch and torchvision disagree about CUDA."""

import functools
from types import ModuleType

import torch

_declared = []


def import_timm() -> ModuleType:
    """timm, with its optimisers loaded.

    torchvision's ordinary wheel is a CUDA build: beside a CPU build of torch its import ends in "operator
    torchvision::nms does not exist". timm needs none of its operators to run, only their names; so there, and only
    there, the two names are declared and the import is tried again.
    """
    import sys

    try:
        import timm.optim
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # the names live as long as this object
        import timm.optim
    if not torch.cuda.is_available():
        _muon_in_float32(timm.optim.muon)
    return timm


def _muon_in_float32(muon: ModuleType) -> None:
    """Let Muon's Newton-Schulz iteration run in float32: its bfloat16 is made for GPUs, where small products fly.

    On a CPU they crawl: a training step of the demo's model took 0.5 s in place of 0.2 s.
    """
    if not isinstance(muon.zeropower_via_newtonschulz, functools.partial):
        muon.zeropower_via_newtonschulz = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
