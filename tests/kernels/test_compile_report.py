"""Ahead-of-time compilation of the Triton kernels: clean on every architecture, and the same for every length.

In processes of their own, since other tests here ask for Triton's interpreter, which replaces the compiler.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytest.importorskip("triton", reason="triton has no wheel for this platform")

pytestmark = pytest.mark.slow


def run(*args: str, cache: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.mark.parametrize(
    ("passes", "num"), [("bwd_keys", 3), pytest.param("fwd|bwd_queries", 6, marks=pytest.mark.acceptance)]
)
def test_kernels_compile_without_spills_for_all_architectures(passes, num, tmp_path):
    """Each pass at D = 128, the tightest, the backward over keys being the tightest of them: no spills, shared memory
    that fits, and each architecture's own tensor-core instruction."""
    done = run(
        "-m", "benchmarks.kernels.compile_report", "--dim", "128", "--only", rf"({passes})-D128-bf16$",
        "--out", str(tmp_path / "report.json"), cache=tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["faulty"] == 0
    reports = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert len(reports) == num
    for report in reports:
        assert report["spill"] == 0 and report["registers"] <= 255, report
        assert report["tensor"] > 0, f"no tensor-core instruction of this architecture: {report}"
        assert (report["copies"] > 0) == (report["arch"] == 90) and report["loose"] == 0, report


def test_tma_copies_keep_their_loops_condition(tmp_path):
    """The story: the backward over keys divided by its number of tiles inside the pipelined loop. The pipeline divides
    ahead of its first turn, and of a division the compiler concludes that the divisor is not 0, so that the copy for a
    second turn lost its condition. Where a tile of keys had no full tile of rows, nobody waited for that copy, and on
    an H200 the kernel never ended. Here all three passes in the tiles of narrow masks; those of wide ones at D = 128
    are compiled above, and the report fails on such copies everywhere."""
    done = run(
        "-m", "benchmarks.kernels.compile_report", "--arch", "90", "--dim", "64",
        "--only", r"(fwd|bwd_queries|bwd_keys)-D64-bf16-narrow$",
        "--out", str(tmp_path / "report.json"), cache=tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert len(reports) == 3
    for report in reports:
        # two or three tiles are copied for each turn of two loops, and one or two before them
        assert report["copies"] >= 20 and report["loose"] == 0, report


def test_tma_copies_that_nobody_may_wait_for_are_counted():
    """A tile that is read once and waited for at once, then one in front of a loop, with and without a condition that
    follows from what was loaded."""
    from benchmarks.kernels.machine_code import tma_copies

    copy = """
	@{0} mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r41], 8192;
	@{0} cp.async.bulk.tensor.4d.shared::cta.global.mbarrier::complete_tx::bytes [%r32], [%rd16, {{%r1, %r2}}], [%r41];
"""
    ptx = """
	mov.u32 	%r2, %tid.x;
	setp.eq.b32 	%p2, %r2, 0;
ONCE
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r31], %r993;
	@!complete bra.uni waitLoop;
	ld.global.b32 { %r37 }, [ %rd12 + 0 ];
	sub.s32 	%r15, %r37, %r2;
	setp.ne.b32 	%p29, %r15, 0;
	and.pred 	%p11, %p2, %p29;
AHEAD
	@%p40 bra 	$L__BB0_3;
"""
    ptx = ptx.replace("ONCE", copy.format("%p2"))
    assert tma_copies(ptx.replace("AHEAD", copy.format("%p11"))) == (4, 0)
    assert tma_copies(ptx.replace("AHEAD", copy.format("%p2"))) == (4, 2)
    assert tma_copies(ptx.replace("AHEAD", copy.format("%p2") + copy.format("%p11"))) == (6, 2)


def test_products_that_two_warp_groups_compute_are_counted():
    """Of a chained product Triton puts all warps along M: eight of them need 128 rows, and over 64 they repeat."""
    from benchmarks.kernels.machine_code import doubled_products

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
    from benchmarks.kernels import tile_candidates
    from brine.kernels.attention.triton import tiles as triton_tiles

    for name in triton_tiles.PASSES:
        for dim in (32, 64, 128):
            for narrow in (False, True):
                for tile in tile_candidates.candidates(name, dim, narrow=narrow, capability=(9, 0)):
                    assert not tile_candidates.has_duplicate_warps(name, tile), (name, dim, str(tile))
                    assert tile.rows <= triton_tiles.PADDED_ROWS


def test_no_length_and_no_packing_compiles_anew(tmp_path):
    """Token counts that are odd, even, multiples of 16 or huge launch one and the same set of compiled kernels."""
    code = """
import torch
from benchmarks.kernels.compile_report import attention_variants
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
        [sys.executable, "-m", "benchmarks.kernels.compile_report"], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "unset it" in done.stderr
