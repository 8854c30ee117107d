"""The kernels compile for an H100 where there is no GPU: what the interpreter runs, the compiler may still refuse."""

from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context

import pytest

SHARED = 227 << 10  # bytes that a block may have on an H100
KINDS = {
    "i32": ("T", "N", "B", "left", "right", "bias_item", "bias_head", "bias_row", "columns", "parts"),
    "fp32": ("factor", "eps"),
    "*i64": ("lengths",),
    "*fp32": ("taps", "weight", "scale", "shift", "sums", "d_positions"),
}
TYPES = {name: kind for kind, names in KINDS.items() for name in names}  # the others hold what a network computes
CONVOLUTION = {"C": 392, "K": 31, "BC": 64, "ROWS": 8}
NORM = {"D": 196, "BD": 256, "ROWS": 2, "SCALED": True}
# (file, kernel, constants, warps); attention's sizes are added for each head width
KERNELS = [
    ("depthwise", "_filter", CONVOLUTION | {"STEPS": 8, "BACKWARD": False, "BIAS": True, "SILU": True}, 1),
    ("depthwise", "_filter", CONVOLUTION | {"STEPS": 8, "BACKWARD": True, "BIAS": False, "SILU": False}, 1),
    ("depthwise", "_tap_sums", CONVOLUTION | {"STEPS": 16}, 1),
    ("layer_norm", "_forward", NORM, 1),
    ("layer_norm", "_backward", NORM | {"STEPS": 16, "BRANCH": True}, 4),
]
for width, padded, warps in ((64, 64, 4), (49, 64, 4), (81, 128, 8)):
    sizes = {"H": 4, "K": width, "BK": padded, "BLOCK": 64}
    KERNELS += [
        ("attention", "_forward", sizes | {"WIDE": 12 * width, "BIAS": True}, warps),
        ("attention", "_backward_keys", sizes | {"WIDE": 12 * width, "BIAS": True}, 8),
        ("attention", "_backward_queries", sizes | {"WIDE": 12 * width}, warps),
        ("attention", "_backward_positions", sizes, warps),
    ]


def shared_memory(file: str, name: str, constants: dict, warps: int) -> int:
    """Bytes of shared memory of a kernel's block, compiled for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(f"seqformer.kernels.{file}"), name)
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "*bf16") for name in names}
    aligned = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": warps, "num_stages": 2}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


@pytest.fixture(scope="module")
def process():
    """Another process: this one shall not import triton."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "constants", "warps"), KERNELS, ids=[f"{k[0]}{k[1]}-{k[2].get('K', '')}" for k in KERNELS]
)
def test_a_kernel_compiles_for_an_h100(process, file, name, constants, warps):
    assert process.submit(shared_memory, file, name, constants, warps).result() <= SHARED
