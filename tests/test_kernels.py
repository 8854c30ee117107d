"""The Triton kernels equal the plain path, forward and gradients: interpreted on a CPU, as they are where a GPU is."""

from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from multiprocessing import get_context

import kernel_cases
import pytest
import torch
from kernel_cases import DTYPES

from seqformer import InputError, kernels

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
LIMIT = {"float32": 1e-5, "bfloat16": 2e-2}
EACH = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module")
def check():
    """``check(case, dtype, ...)``: run a case where kernels can run, and hold its errors against the dtype's limit."""
    if find_spec("triton") is None:  # not imported to see: that would be one that does not interpret
        pytest.skip("triton is not installed")
    gpu = torch.cuda.is_available()
    with nullcontext() if gpu else ProcessPoolExecutor(1, get_context("spawn"), kernel_cases.interpret) as pool:

        def run(case, dtype="float32", *given):
            found = case("cuda", dtype, *given) if gpu else pool.submit(case, "cpu", dtype, *given).result()
            assert found and all(error <= LIMIT[dtype] for error in found.values()), found

        yield run


@pytest.mark.parametrize(
    ("dtype", "frames", "channels", "kernel", "left"),
    [
        ("float32", 1, 5, 5, 2),
        ("float32", 3, 66, 4, 1),
        ("bfloat16", 19, 3, 4, 1),
        ("float32", 11, 3, 31, 30),
        ("float32", 3, 2, 63, 31),
    ],
)
def test_a_convolution_equals_the_module(check, dtype, frames, channels, kernel, left):
    check(kernel_cases.convolution, dtype, frames, channels, kernel, left)


@EACH
def test_a_convolution_with_its_activation(check, dtype):
    check(kernel_cases.epilogue, dtype)


@pytest.mark.parametrize(
    ("dtype", "frames", "heads", "width", "bias", "context"),
    [
        ("float32", 1, 2, 5, "each", None),
        ("float32", 33, 1, 49, None, None),
        ("bfloat16", 17, 2, 49, None, None),
        ("float32", 17, 1, 81, "each", None),
        ("bfloat16", 34, 1, 32, "shared", (18, 3)),
        ("float32", 18, 1, 6, None, (-1, 0)),
    ],
)
def test_attention_equals_its_definition(check, dtype, frames, heads, width, bias, context):
    check(kernel_cases.attention, dtype, frames, heads, width, bias, context)


@pytest.mark.parametrize(
    ("dtype", "frames", "dim", "factor", "scaled", "mixed"),
    [
        ("float32", 1, 5, 1.0, False, False),
        ("float32", 9, 36, 0.5, True, False),
        ("bfloat16", 7, 130, 1.0, False, False),
        ("bfloat16", 3, 196, 1.0, True, True),
    ],
)
def test_the_norm_of_a_sum(check, dtype, frames, dim, factor, scaled, mixed):
    check(kernel_cases.layer_norm, dtype, frames, dim, factor, scaled, mixed)


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        ({"norm_at": "post", "layout": "fAC"}, ["add_layer_norm", "depthwise_conv", "relative_attention"]),
        ({"norm_at": "pre", "context": (3, 1)}, ["depthwise_conv", "relative_attention"]),
        ({"norm": "rms", "positions": "rotary"}, ["depthwise_conv"]),
    ],
    ids=["post", "pre", "rotary"],
)
def test_a_backbone_takes_them(check, choice, taken):
    check(kernel_cases.encoder, "float32", choice, taken)


@pytest.mark.slow
def test_torch_compile_knows_the_operators(check):
    check(kernel_cases.operators)


@needs_gpu
@EACH
@pytest.mark.parametrize("width", [32, 48, 49, 64, 80, 81, 96])
@pytest.mark.parametrize("bias", [None, "each"])
def test_attention_at_full_size(check, dtype, width, bias):
    check(kernel_cases.attention, dtype, 333, 4, width, bias, None)


@needs_gpu
@EACH
@pytest.mark.parametrize("kernel", [5, 31, 63])
def test_a_convolution_at_full_size(check, dtype, kernel):
    check(kernel_cases.convolution, dtype, 501, 648, kernel, kernel // 2)


@needs_gpu
def test_a_compiled_backbone_takes_them_without_a_break(check):
    check(kernel_cases.compiled)


def test_they_are_off_until_asked_for_and_say_what_they_need(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not kernels.active(torch.zeros(1))
    with pytest.raises(InputError, match="kernels need triton and a CUDA device"):
        kernels.use(True)
