"""Settings of the process: changed only where asked for, said, and without a difference in results."""

import json
import subprocess
import sys

import pytest

from seqformer.machine import tune_cpu, usable_cores

SCRIPT = """
import json, sys, torch, seqformer
x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
before = x @ x.T
threads = torch.get_num_threads()
first, second = seqformer.tune_cpu(threads=1), seqformer.tune_cpu(threads=1)
print(json.dumps([threads, first, second, torch.get_num_threads(), bool(((x @ x.T) - before).abs().max() < 1e-4)]))
"""


def test_what_was_changed_is_said():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, first, second, after, equal = json.loads(run.stdout)
    assert after == 1 and equal
    assert first.get("threads") == (None if before == 1 else f"{before} -> 1") and second == {}
    assert sys.platform != "linux" or first["freed memory"] == "given back -> kept"


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_the_quota_of_a_container(text, cores, tmp_path):
    """Whole cores, at least one; without a quota those of the affinity."""
    path = tmp_path / "cpu.max"
    assert usable_cores(path) >= 1
    path.write_text(text)
    assert usable_cores(path) == (cores or usable_cores(tmp_path / "none"))


def test_the_command_says_it_too():
    run = subprocess.run(
        [sys.executable, "-m", "seqformer", "--tune-cpu", "models", "squeezeformer_xs"], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.startswith("CPU: ")


def test_no_threads_at_all():
    with pytest.raises(ValueError, match="threads is 0"):
        tune_cpu(threads=0)
