"""Registered names: presets and parts are there, wrong names and keywords are one line with the nearest known one."""

import pytest
import torch

import seqformer
from seqformer.errors import InputError
from seqformer.registry import check, create, lookup, names, parameter_types, register

torch.set_num_threads(1)

SMALL = dict(dim=8, depth=1, heads=2)
FRONTEND = {"name": "dense", "channels": 3}
BACKBONE = {"name": "conformer"} | SMALL
HEAD = {"name": "classify", "vocab": 2}


def test_the_published_names_are_registered():
    squeezeformers = [f"squeezeformer_{size}" for size in ("l", "m", "m_320", "ml", "s", "s_192", "sm", "xs")]
    assert seqformer.list_backbones("squeezeformer_*") == squeezeformers
    assert seqformer.list_backbones("conformer_ctc_?") == ["conformer_ctc_l", "conformer_ctc_m", "conformer_ctc_s"]
    # Every listed one can be made of in_dim alone; a family, whose size is to be given, is not listed.
    listed = set(seqformer.list_backbones())
    assert listed >= set(squeezeformers) and not listed & {"squeezeformer", "conformer", "fastconformer", "pretrained"}
    assert listed < set(names("backbone"))
    with torch.device("meta"):
        assert all(seqformer.create_backbone(name, in_dim=40).dim for name in listed)
    assert {"logmel", "dense"} <= set(names("frontend")) and {"classify", "ctc", "framewise"} <= set(names("head"))
    assert seqformer.list_backbones("nothing*") == [] == names("no such kind")


def test_a_preset_takes_every_argument_of_its_class():
    preset, built = lookup("backbone", "squeezeformer_xs"), lookup("backbone", "squeezeformer")
    assert parameter_types(preset) == parameter_types(built)
    model = seqformer.create_backbone("squeezeformer_xs", in_dim=16, dim=8, heads=2, positions="none", kernel=3)
    assert (model.dim, model.stride, len(model.blocks), model.reduce_at, model.recover_at) == (8, 4, 16, [7], [15])


@pytest.mark.parametrize(
    ("part", "change", "wanted"),
    [
        ("backbone", {"name": "squeezformer_s"}, "unknown backbone 'squeezformer_s'; did you mean 'squeezeformer_s'?"),
        ("frontend", {"name": "log_mel"}, "unknown frontend 'log_mel'; did you mean 'logmel'?"),
        ("head", {"name": "xyzzy"}, "unknown head 'xyzzy'; known: "),
        ("backbone", {"kernal": 3}, "backbone 'conformer': conformer has no argument 'kernal'; did you mean 'kernel'?"),
        ("head", {"vocabulary": 3}, "head 'classify': classify has no argument 'vocabulary'; "),
        ("backbone", {"depth": "two"}, "backbone 'conformer'.depth: found 'two' (str); expected int"),
        ("backbone", {"depth": True}, "backbone 'conformer'.depth: found True (bool); expected int"),
        ("backbone", {"dropout": None}, "backbone 'conformer'.dropout: found None (NoneType); expected float"),
        ("backbone", {"positions": "rotery"}, "'shaw', 'none'; did you mean 'rotary'?"),
        ("backbone", {"heads": 3}, "backbone 'conformer': dim 8 is not a multiple of heads 3"),
        ("frontend", {"channels": None}, "frontend 'dense'.channels: found None (NoneType); expected int"),
    ],
)
def test_a_wrong_name_or_keyword_is_one_clear_line(part, change, wanted):
    parts = {"frontend": FRONTEND, "backbone": BACKBONE, "head": HEAD}
    with pytest.raises(InputError) as error:
        seqformer.create_model(**(parts | {part: parts[part] | change}))
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_missing_keyword_is_named():
    with pytest.raises(InputError, match=r"backbone 'conformer': .*missing .* 'depth' and 'heads'"):
        seqformer.create_backbone("conformer", in_dim=3, dim=8)


def test_what_the_library_passes_itself_is_not_for_a_config():
    check("backbone", "conformer", SMALL, given=("in_dim",))
    with pytest.raises(InputError, match="no argument 'in_dim'"):
        check("backbone", "conformer", {"in_dim": 3}, given=("in_dim",))


def test_one_name_has_one_meaning():
    def noun(size: int = 1) -> int:
        return size

    def other() -> None: ...

    assert register("test kind")(noun) is noun and create("test kind", "noun", size=3) == 3
    register("test kind")(noun)  # the same object again, as when a plugin is loaded twice
    with pytest.raises(ValueError, match="test kind 'noun' is already registered by"):
        register("test kind", "noun")(other)


def test_a_whole_number_serves_where_a_number_is_wanted():
    assert seqformer.create_backbone("conformer", in_dim=3, **SMALL, dropout=0).dropout.p == 0
