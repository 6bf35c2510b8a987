"""Ahead-of-time compilation of the Triton kernels: clean on every architecture, and the same for every length.

In processes of their own, since other tests here ask for Triton's interpreter, which replaces the compiler.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton has no wheel for this platform")

ROOT = Path(__file__).parent.parent.parent


def run(*args: str, cache: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


def test_kernels_compile_without_spills_for_all_architectures(tmp_path):
    """Forward and both backward passes at D = 128, the tightest: no spills, shared memory that fits, and each
    architecture's own tensor-core instruction."""
    done = run(
        "-m", "benchmarks.compile_report", "--dim", "128", "--only", r"(fwd|bwd_rows|bwd_keys)-D128-bf16$",
        "--out", str(tmp_path / "report.json"), cache=tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["faulty"] == 0
    reports = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert len(reports) == 9
    for report in reports:
        assert report["spill"] == 0 and report["registers"] <= 255, report
        assert report["tensor"] > 0, f"no tensor-core instruction of this architecture: {report}"


def test_products_that_two_warp_groups_compute_are_counted():
    """Of a chained product Triton puts all warps along M: eight of them need 128 rows, and over 64 they repeat."""
    from benchmarks.compile_report import doubled_products

    layouts = """
#mma = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [8, 1], instrShape = [16, 16, 16]}>
#mma1 = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [4, 2], instrShape = [16, 64, 16]}>
"""
    product = (
        "  %1 = ttng.warp_group_dot %a, %b, %c {isAsync = true} : !ttg.memdesc<64x128xbf16, #s> * !ttg.memdesc<64x"
    )
    assert doubled_products(layouts + product + "32xbf16> -> tensor<64x32xf32, #mma>\n") == 1
    assert doubled_products(layouts + product + "32xbf16> -> tensor<128x32xf32, #mma>\n") == 0
    assert doubled_products(layouts + product + "128xbf16> -> tensor<64x128xf32, #mma1>\n") == 0
    assert doubled_products(layouts + product + "64xbf16> -> tensor<64x64xf32, #mma1>\n") == 1


def test_no_tile_of_the_tables_or_of_a_sweep_computes_products_twice():
    from kernels.attention import triton_tiles

    for name in triton_tiles.PASSES:
        for dim in (32, 64, 128):
            for narrow in (False, True):
                for tile in triton_tiles.candidates(name, dim, narrow=narrow, capability=(9, 0)):
                    assert not triton_tiles.doubled(name, tile), (name, dim, str(tile))
                    assert tile.rows <= triton_tiles.PADDED_ROWS


def test_no_length_and_no_packing_compiles_anew(tmp_path):
    """Token counts that are odd, even, multiples of 16 or huge launch one and the same set of compiled kernels."""
    code = """
import torch
from benchmarks.compile_report import attention_variants
def kernels(document):
    return {repr(v) for v in attention_variants(90, (128,), document=document)}
first = kernels(torch.zeros(1, 512, dtype=torch.int32))
assert len(first) > 10
for num, size in ((513, 513), (640, 7), (1031, 100), (2048, 2048)):
    assert kernels((torch.arange(num, dtype=torch.int32) // size)[None]) == first, num
"""
    done = run("-c", code, cache=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_is_refused(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_report"], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "unset it" in done.stderr
