"""One config trained with several seeds: a run each, on the same folds, so that their predictions can be pooled."""

from pathlib import Path
from typing import Any

import numpy as np

from seqformer.errors import InputError
from seqformer.train.crossval import train_run
from seqformer.train.log import RunLog


def train_seeds(
    plain: dict[str, Any], root: Path, seeds: list[int], accept_changes: bool = False, quiet: bool = False
) -> dict[str, dict]:
    """Train ``<run>_seed<s>`` for each seed, and return {run: what its metrics.json holds}; one table at the end.

    All have the folds of the config itself: of its ``folds.seed`` or, without, its ``seed``.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"--seeds {','.join(map(str, seeds))}: expected different whole numbers, such as 0,1,2")
    folds = {"seed": plain.get("seed", 0)} | {k: v for k, v in (plain.get("folds") or {}).items() if v is not None}
    found = {}
    for seed in seeds:
        name = f"{plain.get('run')}_seed{seed}"
        found[name] = train_run(plain | {"run": name, "seed": seed, "folds": folds}, root, accept_changes, quiet)
    scores = [facts["out_of_fold"] for facts in found.values() if "out_of_fold" in facts]
    rows = [[name, f"{facts['out_of_fold']:.4f}" if "out_of_fold" in facts else ""] for name, facts in found.items()]
    if scores:
        rows += [["mean", f"{np.mean(scores):.4f}"], ["spread", f"{np.std(scores):.4f}"]]
    with RunLog(None, quiet) as log:
        log.table(f"{plain.get('run')}: {len(seeds)} seeds", ["run", next(iter(found.values()))["metric"]], rows)
    return found
