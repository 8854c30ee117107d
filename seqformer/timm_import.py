"""``import timm`` where torch and torchvision disagree about CUDA."""

from types import ModuleType

_declared = []


def import_timm() -> ModuleType:
    """timm, with its optimisers loaded.

    torchvision's ordinary wheel is a CUDA build: beside a CPU build of torch its import ends in "operator
    torchvision::nms does not exist". timm needs none of its operators to run, only their names; so there, and only
    there, the two names are declared and the import is tried again.
    """
    import sys

    import torch

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
    return timm
