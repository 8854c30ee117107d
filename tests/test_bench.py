"""The benchmarks: every part runs and says what it promises, and the arithmetic of ratios, shares and memory."""

import importlib
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import decode, measure, report, stand_ins
from benchmarks.measure import Case, Row, in_turns, peak_bytes, rows_of
from benchmarks.passes import padding_error
from benchmarks.setting import Setting
from seqformer.errors import InputError

torch.set_num_threads(1)
# Of peers only those made of torch and Python: the import of another library takes longer than all the rest.
QUICK = Setting(rounds=2, peers="torch,*", quick=True, shapes=((2, 40),), train_shapes=((2, 40),))
CEILING = {"gemm_gflops": 10.0, "copy_gbytes": 4.0}


@pytest.mark.parametrize("part", report.PARTS)
def test_a_part_gives_finite_figures_and_all_that_its_json_promises(part, tmp_path):
    said = []
    found = report.measure([part], replace(QUICK, absent={}), said.append)
    report.write(found, tmp_path / "bench" / "run.json")
    found = json.loads((tmp_path / "bench" / "run.json").read_text())
    assert {"date", "device", "threads", "torch", "git", "setting", "parts", "ceilings", "absent"} <= set(found)
    assert found["setting"]["rounds"] == 2 and found["setting"]["quick"] and "manifest" in found["setting"]
    assert found["torch"] == torch.__version__ and found["threads"] == 1 and found["parts"] == [part]
    assert all(ceiling["gemm_gflops"] > 0 and ceiling["copy_gbytes"] > 0 for ceiling in found["ceilings"])
    first = {}
    for row in found["rows"]:
        assert row["part"] == part and 0 < row["ms_least"] <= row["ms"] <= row["ms_most"]
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float))
        assert row["ratio"] == 1 or row["what"] in first  # the first of a comparison is ours
        first.setdefault(row["what"], row["who"])
        assert row["who"] in "\n".join(said) and row["what"] in "\n".join(said)
    assert len(first) == len(found["ceilings"]) and all(
        who.startswith(("seqformer", "whole")) for who in first.values()
    )


def test_ratios_are_medians_within_rounds_and_shares_are_of_the_ceilings():
    cases = [Case("work", "seqformer", list, count=6, unit="items/s", flops=4e9, bytes=2e9), Case("work", "peer", list)]
    ours, peer = rows_of("part", cases, [[1.0, 2.0, 4.0], [3.0, 4.0, 2.0]], [5e6, None], CEILING)
    assert (ours.ms, ours.ms_least, ours.ms_most, ours.ratio) == (2000, 1000, 4000, 1)
    assert (ours.rate, ours.gflop, ours.peak_mb) == (3, 4, 5)
    assert ours.gemm_share == pytest.approx(0.2) and ours.copy_share == pytest.approx(0.25)  # 2 of 10, 1 of 4
    assert peer.ratio == 2  # of 3, 2 and 1/2; the ratio of the medians is 1.5
    assert (peer.rate, peer.gflop, peer.gemm_share, peer.copy_share, peer.peak_mb) == (None,) * 5


def test_every_round_times_every_case_once_after_what_comes_before_it():
    done = []
    cases = [Case("work", str(index), lambda index=index: done.append(index)) for index in range(4)]
    cases[3] = replace(cases[3], before=lambda: done.append("before"))
    times = in_turns(cases, [1, 1, 2, 1], 3, "cpu")
    assert [len(taken) for taken in times] == [3] * 4 and len(done) == 3 * 6
    for start in range(0, 18, 6):
        turn = done[start : start + 6]
        assert sorted(map(str, turn)) == ["0", "1", "2", "2", "3", "before"]
        assert turn.index("before") == turn.index(3) - 1
    assert done[:6] != done[6:12] or done[6:12] != done[12:]  # an order of its own


def test_peak_memory_is_the_most_that_lives_at_once_beyond_what_was_there():
    x = torch.zeros(100_000)

    def call() -> torch.Tensor:
        first = x + 1
        first = first * 2  # two more tensors for a moment, and one that goes
        return first + (x + 2)  # and three here

    assert peak_bytes(call, "cpu") == 3 * x.nbytes
    assert peak_bytes(lambda: torch.add(x, x, out=x), "cpu") == 0


def test_padding_error_is_none_of_what_looks_at_its_own_frame_and_that_of_a_mean_by_hand():
    assert padding_error(lambda x, n: 2 * x, 3, "cpu") == 0
    blind = padding_error(lambda x, n: x.mean(dim=1, keepdim=True).expand_as(x), 3, "cpu")
    assert blind == pytest.approx(0.5)  # twice the frames, half of them zeros


def test_a_peer_that_is_absent_or_fails_is_told_and_ends_nothing():
    def missing():
        raise ImportError("no such thing")

    def broken():
        raise RuntimeError("its own fault\nand more")

    setting = replace(QUICK, peers="*", absent={})
    assert setting.built({"a": missing, "b": broken, "c": lambda: 3}) == {"c": 3}
    assert replace(setting, peers="B").built({"c": lambda: 3}) == {}
    assert setting.absent == {"a": "not importable: no such thing", "b": "failed: RuntimeError: its own fault"}
    rows, _ = measure.compare("part", [Case("work", "seqformer", list), Case("work", "late", broken)], setting)
    assert [row.who for row in rows] == ["seqformer"] and "late" in setting.absent


def test_a_table_has_the_columns_of_which_there_is_something_to_say():
    rows = [Row("part", "work", who, 1234.5, 1000, 1500, ratio, None, "", None, None, None, None, None, note)
            for who, ratio, note in (("seqformer", 1.0, ""), ("peer", 1.5, "no mask"))]  # fmt: skip
    head, line, *body = report.table(rows).splitlines()
    assert head == "| part: work | ms | spread | ratio | note |" and line.count("---") == 5
    assert body == ["| seqformer | 1,234 | 41% | 1.00 |  |", "| peer | 1,234 | 41% | 1.50 | no mask |"]


def test_all_greedy_decoders_agree():
    generator = torch.Generator().manual_seed(0)
    best = torch.randint(0, 3, (5, 30), generator=generator)
    mask = torch.arange(30) < torch.tensor([30, 1, 0, 17, 29])[:, None]
    wanted = decode.frame_by_frame(best, mask)
    assert all(run()(best, mask) == wanted for run in decode.GREEDY.values())
    assert decode.collapse(best, mask) == wanted


def test_stand_ins_let_a_file_be_imported_without_what_is_around_it(tmp_path, monkeypatch):
    folder = tmp_path / "nemo" / "collections" / "asr" / "modules"
    folder.mkdir(parents=True)
    for package in (tmp_path / "nemo", tmp_path / "nemo" / "collections"):  # or an installed NeMo would come first
        (package / "__init__.py").touch()
    (folder / "__init__.py").write_text("raise RuntimeError('not to be run')")
    (folder.parent / "__init__.py").write_text("import lightning_that_is_not_there")
    (folder / "made_up.py").write_text(
        "from nemo.core.classes.common import typecheck\n"
        "from nemo.core.classes.mixins import AccessMixin, adapter_mixins\n"
        "from nemo.core.classes.module import NeuralModule\n"
        "class Encoder(NeuralModule, AccessMixin):\n"
        "    @typecheck()\n"
        "    def forward(self, x):\n"
        "        return 2 * x if not self.is_access_enabled() else x\n"
        "known = adapter_mixins.get_registered_adapter(Encoder)\n"
    )
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "modules", {name: one for name, one in sys.modules.items() if name[:4] != "nemo"})
    monkeypatch.syspath_prepend(tmp_path)
    stand_ins.install()
    from nemo.collections.asr.modules.made_up import Encoder

    assert isinstance(Encoder(), torch.nn.Module) and Encoder()(3) == 6


def test_the_command_refuses_what_it_does_not_know(tmp_path, monkeypatch):
    bench = importlib.import_module("seqformer.cli.bench")  # the package's name is the command's
    assert bench.pairs("--shapes", "8x1000,1x6000") == ((8, 1000), (1, 6000)) and bench.pairs("--shapes", "") == ()
    for text in ("8", "8x", "0x5", "8x5x2"):
        with pytest.raises(InputError, match="expected items x frames"):
            bench.pairs("--shapes", text)
    with pytest.raises(InputError, match="no part 'encoder'; did you mean 'encoders'"):
        bench.bench(["encoder"], device="cpu", precision="fp32")
    assert all(part in bench.bench.__doc__ for part in report.PARTS)
    for option in ({"device": "tpu"}, {"precision": "fp8"}):
        with pytest.raises(InputError, match=f"{next(iter(option.values()))}: expected"):
            bench.bench(["wer"], **{"device": "cpu", "precision": "fp32"} | option)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a" / "b" / "c" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a checkout"):
        bench.checkout_report()
