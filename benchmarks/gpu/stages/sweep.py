"""Stage `sweep`: which tiles of the Triton kernels are fastest, pass by pass, and what the table would say.

    compile                      all candidates, in as many processes as there are cores; nothing is timed meanwhile
    fwd-D128-causal ..           a pass, head dim and mask: every candidate of `benchmarks.kernels.tile_candidates`
    proposal                     the best by pass, head dim and mask class, into `tiles.json`, and attention with them

A pass is timed in its own launch: forward for `fwd`, the whole backward for `bwd_keys` and `bwd_queries`, in which the
other kernels keep the table's tiles. A candidate whose result differs from the table's is reported and left out. Masks
of one class ("wide": causal and a window of 1,024 keys; "narrow": a window of 256) share a tile: proposed is the one
that loses least against the best where it loses most.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.record import RESULTS, append, read
from benchmarks.gpu.stage import StageContext, SuiteItem
from benchmarks.harness.measure import CallTimer, reason_of, spread
from benchmarks.kernels.masks import BenchmarkMask, make_mask

PASSES = ("fwd", "bwd_keys", "bwd_queries")
DIMS = (128, 64)
MASKS = {"causal": (False, 16384, None), "window": (False, 16384, 1024), "narrow": (True, 32768, 256)}
"""name -> (narrow, tokens, window)."""
HEADS = (32, 8)
SAMPLES = 7
TOLERANCE = 0.03
PROPOSAL = "tiles.json"
HUNG = "sweep-hung.json"
COMPILE_S = 150.0
"""For all candidates together; what has not ended then is taken for a kernel that never does."""


@dataclass(frozen=True)
class TileTableKey:
    """An entry of the table of tiles, under one mask."""

    name: str
    """The pass."""
    dim: int
    mask: str
    """A key of `MASKS`."""

    @property
    def key(self) -> tuple[str, int, bool]:
        """(pass, dim, narrow), as the table has it."""
        return self.name, self.dim, MASKS[self.mask][0]


def items(toy: bool) -> list[SuiteItem]:
    """Compile, time, propose."""
    if toy:
        return [SuiteItem("compile", 120), SuiteItem("fwd-D16-narrow", 120), SuiteItem("proposal", 60)]
    timed = [SuiteItem(f"{name}-D{dim}-{mask}", 120, least_s=15) for dim in DIMS for mask in MASKS for name in PASSES]
    return [SuiteItem("compile", 240), *timed, SuiteItem("proposal", 90)]


def table_key_of(item: str) -> TileTableKey:
    """The table key that an item times."""
    name, dim, mask = item.split("-")
    return TileTableKey(name, int(dim[1:]), mask)


def run(item: SuiteItem, context: StageContext) -> None:
    """Do one item."""
    if item.name == "compile":
        compile_all(context)
    elif item.name == "proposal":
        propose(context)
    else:
        sweep(table_key_of(item.name), context)


def candidates(table_key: TileTableKey, device: str, toy: bool) -> list[Any]:
    """Tiles to try, the table's own first. Raises ImportError where the kernels have no such list."""
    from benchmarks.kernels import tile_candidates
    from brine.kernels.attention.triton import tiles as triton_tiles

    name, dim, narrow = table_key.key
    capability = torch.cuda.get_device_capability() if device == "cuda" else (9, 0)
    own = triton_tiles.tile_config_of(
        name, dim, narrow=narrow, itemsize=4 if device == "cpu" else 2, capability=capability
    )
    found = tile_candidates.candidates(name, dim, narrow=narrow, capability=capability)
    others = [tile for tile in found if tile != own]
    return [own, *others[: 2 if toy else None]]


@dataclass
class SweepProblem:
    """Inputs of one mask."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    mask: BenchmarkMask


def make_problem(table_key: TileTableKey, device: str, *, tokens: int = 0) -> SweepProblem:
    """From a seed. tokens: fewer than the mask's own."""
    _, usual, window = MASKS[table_key.mask]
    tokens = tokens or usual
    mask = make_mask("window" if window else "causal", tokens, device=device, window=window or 0)
    generator = torch.Generator(device).manual_seed(3)
    heads, dtype = (HEADS, torch.bfloat16) if device == "cuda" else ((2, 1), torch.float32)
    sizes = (heads[0], heads[1], heads[1], heads[0])
    tensors = [
        torch.empty(1, tokens, size, table_key.dim, device=device, dtype=dtype).normal_(generator=generator)
        for size in sizes
    ]
    return SweepProblem(*tensors, mask)


def call_of(table_key: TileTableKey, problem: SweepProblem):
    """What is timed: -> the results that the pass has to do with."""
    from brine.kernels.attention.spans import AttentionRequest
    from brine.kernels.attention.triton import launch as triton_launch

    spans, scale = problem.mask.spans, table_key.dim**-0.5
    given, request = (problem.q, problem.k, problem.v), AttentionRequest(spans.mask, scale)
    if table_key.name == "fwd":
        return lambda: triton_launch.forward(*given, request)
    out, lse = triton_launch.forward(*given, request)
    return lambda: triton_launch.backward(problem.grad, *given, out, lse, request)


def compile_one(table_key: TileTableKey, tile: Any, device: str) -> str:
    """In a process of a pool: launch a small problem, which leaves the kernel in Triton's cache -> what was wrong."""
    from brine.kernels.attention.triton import tiles as triton_tiles

    try:
        problem = make_problem(table_key, device, tokens=256 if device == "cuda" else 32)
        with triton_tiles.override_tiles({table_key.key: tile}):
            call_of(table_key, problem)()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return reason_of(error)
    return ""


def compile_all(context: StageContext) -> None:
    """Fill Triton's cache from several processes. One that dies takes the pool along, and is reported."""
    timed_keys = [table_key_of(item.name) for item in items(context.toy) if "-" in item.name]
    table_keys = {table_key.key: table_key for table_key in timed_keys}
    todo = [
        (table_key, tile)
        for table_key in table_keys.values()
        for tile in candidates(table_key, context.device, context.toy)
    ]
    processes = 1 if context.toy else min(14, len(os.sched_getaffinity(0)))
    failed, hung = {}, []
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    futures = {pool.submit(compile_one, table_key, tile, context.device): (table_key, tile) for table_key, tile in todo}
    done, late = wait(futures, timeout=min(COMPILE_S, context.left_s()))
    for future, (table_key, tile) in futures.items():
        try:
            said = "did not end, or never came to begin" if future in late else future.result()
        except Exception as error:
            said = reason_of(error)
        if said:
            failed[f"{table_key.name}-D{table_key.dim}-{table_key.mask} {tile}"] = said
        if future in late and future.running():
            hung.append([list(table_key.key), asdict(tile)])
    # one whose kernel never ends does not come back
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
    (context.work / HUNG).write_text(json.dumps(hung))
    context.record(candidates=len(todo), processes=processes, ended=len(done), failed=failed)


def hung_tiles(table_key: TileTableKey, context: StageContext) -> list[dict[str, Any]]:
    """Tiles of a table key whose kernels did not end when they were compiled and tried."""
    file = context.work / HUNG
    found = json.loads(file.read_text()) if file.exists() else []
    return [tile for key, tile in found if tuple(key) == table_key.key]


def sweep(table_key: TileTableKey, context: StageContext) -> None:
    """Time every candidate of a table key; each is reported as soon as it was timed."""
    from brine.kernels.attention.triton import tiles as triton_tiles

    problem = make_problem(table_key, context.device, tokens=32 if context.toy else 0)
    call, expected, hung = call_of(table_key, problem), None, hung_tiles(table_key, context)
    for tile in candidates(table_key, context.device, context.toy):
        if str(tile) in context.without or asdict(tile) in hung:
            continue
        context.on_work(str(tile))
        fields = {"pass": table_key.name, "dim": table_key.dim, "mask": table_key.mask, "tile": asdict(tile)}
        try:
            with triton_tiles.override_tiles({table_key.key: tile}):
                found = [x.float() for x in call()]
                expected = found if expected is None else expected
                off = max(map(_off, found, expected))
                del found
                if off > TOLERANCE:
                    context.record(str(tile), **fields, skipped=f"off by {off:.2g} of the largest value")
                    continue
                context.record(str(tile), **fields, seconds=timed(call, context), off=off)
        except Exception as error:
            context.record(str(tile), **fields, skipped=reason_of(error))
            if context.device == "cuda":
                # raises where the GPU answers no longer
                torch.cuda.synchronize()


def _off(found: Tensor, expected: Tensor) -> float:
    # queries that see nothing have an lse of -inf on both sides
    both = found.isneginf() & expected.isneginf()
    return float((found - expected).masked_fill(both, 0.0).abs().nan_to_num(1e9).max() / expected[~both].abs().max())


def timed(call, context: StageContext) -> dict[str, float]:
    """Median, p20 and p80 of some samples."""
    watch = CallTimer(lambda: call()[0], device=context.device)
    watch()
    watch.calibrate(watch()["total"])
    return spread([watch()["total"] for _ in range(2 if context.toy else SAMPLES)])


def best(lines: list[dict[str, Any]]) -> dict[tuple[str, int, bool], dict[str, Any]]:
    """The tile for each (pass, dim, narrow), from a results file's lines of this stage."""
    times: dict[tuple[str, int, bool], dict[str, dict[str, float]]] = {}
    tiles: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["stage"] == "sweep" and "seconds" in line:
            key, name = (line["pass"], line["dim"], MASKS[line["mask"]][0]), json.dumps(line["tile"])
            times.setdefault(key, {}).setdefault(line["mask"], {})[name] = line["seconds"]["median"]
            tiles[name] = line["tile"]
    found = {}
    for key, by_mask in times.items():
        names = set.intersection(*(set(seconds) for seconds in by_mask.values()))
        if names:
            over = {name: max(s[name] / min(s[each] for each in names) for s in by_mask.values()) for name in names}
            name = min(sorted(over), key=over.__getitem__)
            seconds = {mask: s[name] for mask, s in by_mask.items()}
            found[key] = {"tile": tiles[name], "worst_over_best": over[name], "seconds": seconds}
    return found


def propose(context: StageContext) -> None:
    """Write the best tiles, and time all passes of attention with them against the table's."""
    from brine.kernels.attention.triton import tiles as triton_tiles

    found = best(read(context.out / RESULTS))
    rows = [{"pass": key[0], "dim": key[1], "narrow": key[2], **entry} for key, entry in sorted(found.items())]
    append(context.out / PROPOSAL, json.dumps(rows, indent=1) + "\n", fresh=True)
    context.record("table", tiles=rows)
    for row in rows:
        context.say(f"  {row['pass']:<9} D{row['dim']:<4} {'narrow' if row['narrow'] else 'wide':<7} {row['tile']}")
    if context.toy:
        return
    for dim in DIMS:
        for mask in MASKS:
            tiles = {key: triton_tiles.TileConfig(**entry["tile"]) for key, entry in found.items() if key[1] == dim}
            seconds = {}
            for name in ("fwd", "bwd_keys"):
                table_key = TileTableKey(name, dim, mask)
                call = call_of(table_key, make_problem(table_key, context.device))
                part = "forward" if name == "fwd" else "backward"
                seconds[part] = {"table": timed(call, context)}
                with triton_tiles.override_tiles(tiles):
                    seconds[part]["proposed"] = timed(call, context)
            context.record(f"D{dim}-{mask}", dim=dim, mask=mask, seconds=seconds)
