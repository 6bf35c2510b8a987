"""Sharding a long sequence over ranks: balance and bytes sent, compared with other assignments; and the ring's time on
gloo.

    python -m benchmarks.kernels.ring                        all cases, about 5 minutes on two cores
    python -m benchmarks.kernels.ring --cases log-normal     some of them

**Cases.** One sequence of 524,288 tokens on 2 to 64 ranks, five layers with a window of 1,024 to each global one:

    log-normal/W    packed documents, lengths log-normal (median 8,192, sigma 1), three sequences
    stdlib/W        a sequence of a real plan: the source files of Python's standard library, one token per byte
    one/W           one causal document: every later rank needs every earlier key, whatever the assignment
    gloo/W          16,384 tokens of such documents on W processes of this machine: forward and backward, measured

**Sides.** `balanced` is ours; `contiguous` sends the same way (only what is seen), from a cut into chunks; `plain
ring`, `zigzag` and `all-gather` send every key to every rank, `zigzag` from an assignment that is even for one
document. Cost is modelled, as in `brine.kernels.context_parallel.sharding`: area of the spans over the layer mix, and
linear layers at the price of a model of width 2,048 (12,288 (query, key) pairs per token and layer). Bytes are those of
keys and values in one forward pass of one layer of each kind and over the mix, 8 KV heads of 128 in bf16. The curve, at
64 ranks, is bytes against the imbalance asked for.

On gloo the plain ring is our own code with the assumption that every rank needs everything. Ranks share two cores
there, so times say what is computed and copied in vain, and nothing of a network.
"""

from __future__ import annotations

import dataclasses
import socket
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.measure import spread
from brine.kernels.attention import Spans, attention
from brine.kernels.context_parallel.layout import ContextLayout, ShardedSpans
from brine.kernels.context_parallel.sharding import ChunkAssignment, assign_chunks, contiguous, measure, zigzag

NAME = "ring"
TESTS = ("tests/kernels/test_context_parallel.py",)
NUM_TOKENS, CHUNK, WINDOW, LOCAL_LAYERS = 2**19, 512, 1024, 5.0
LINEAR = 6 * 2048.0
MEDIAN, SEQUENCES = 8192, 3
WORLDS = (2, 4, 8, 16, 32, 64)
TOKEN_BYTES = 2 * 8 * 128 * 2
CURVE = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5)
GLOO_TOKENS, GLOO_CHUNK, GLOO_HEADS, GLOO_KEY_HEADS, GLOO_DIM = 16384, 512, 8, 2, 64
TARGETS = {"imbalance": 1.05, "over contiguous": 3.0, "under plain ring": 10.0}
ASSIGNMENTS = ("balanced", "contiguous", "plain ring", "zigzag", "all-gather")


def log_normal(num_tokens: int, median: int, seed: int) -> torch.Tensor:
    """(1, S) int32 document ids."""
    generator = np.random.Generator(np.random.PCG64(seed))
    lengths = np.clip(median * np.exp(generator.standard_normal(num_tokens)[: num_tokens // 64]), 64, num_tokens)
    ids = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths.astype(np.int64))[:num_tokens]
    return torch.from_numpy(ids)[None]


def stdlib_sequence(num_tokens: int, seed: int) -> torch.Tensor:
    """(1, S) int32 document ids of a sequence of a plan over the source files of the standard library."""
    from types import SimpleNamespace

    from brine.data.document import MODALITIES
    from brine.data.packing.plan import PackingPlan

    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files += sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*/*.py"))
    lengths = np.array([file.stat().st_size + 1 for file in files], dtype=np.int64)
    lengths = lengths[lengths < num_tokens]
    zeros = np.zeros(len(lengths), dtype=np.int64)
    index = SimpleNamespace(
        num_documents=len(lengths), kinds=["file"], sources=["stdlib"], kind=zeros, level=zeros, split=zeros,
        source=zeros, num_tokens=lengths, num_media=dict.fromkeys(MODALITIES, zeros), fingerprint="stdlib",
    )  # fmt: skip
    plan = PackingPlan.build(index, seq_len=num_tokens, epochs=1, seed=seed)
    ids = np.full(num_tokens, -1, dtype=np.int32)
    start_token = 0
    for number, (_, start, stop, _) in enumerate(plan.chunks(seed % max(1, len(plan) - 1))):
        ids[start_token : start_token + stop - start] = number
        start_token += stop - start
    return torch.from_numpy(ids)[None]


DOCUMENTS = {
    "log-normal": lambda num_tokens, seed: log_normal(num_tokens, MEDIAN * num_tokens // NUM_TOKENS, seed),
    "stdlib": stdlib_sequence,
    "one": lambda num_tokens, seed: torch.zeros(1, num_tokens, dtype=torch.int32),
}


def masks_of(document: torch.Tensor, window: int) -> list[tuple[Spans, float]]:
    """Spans of both layer types, and how often each occurs."""
    return [(Spans.packed(document, window=window), LOCAL_LAYERS), (Spans.packed(document), 1.0)]


def mix(sent: list[float]) -> float:
    """Over the layers of one period."""
    return LOCAL_LAYERS * sent[0] + sent[1]


def simulate(case: str, quick: bool) -> dict[str, Any]:
    """Imbalance and bytes of all dealings, medians over sequences, and the curve of ours."""
    kind, _, world = case.partition("/")
    world = int(world)
    num_tokens, chunk, window = (NUM_TOKENS, CHUNK, WINDOW) if not quick else (2**14, 64, 128)
    options = {"world_size": world, "chunk": chunk, "linear": LINEAR}
    num_chunks = num_tokens // chunk
    everything = [num_chunks * (world - 1)] * 2
    sides: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in ASSIGNMENTS}
    curve: dict[float, list[tuple[float, float]]] = {tolerance: [] for tolerance in CURVE}
    seconds = []
    for seed in range(1 if quick or kind == "one" else SEQUENCES):
        masks = masks_of(DOCUMENTS[kind](num_tokens, seed), window)
        start = time.perf_counter()
        balanced = assign_chunks(masks, **options)
        seconds.append(time.perf_counter() - start)
        cut, zig = (
            measure(torch.from_numpy(make(num_chunks, world)), masks, **options) for make in (contiguous, zigzag)
        )
        sides["balanced"].append((balanced.imbalance, balanced.chunks_sent))
        sides["contiguous"].append((cut.imbalance, cut.chunks_sent))
        sides["plain ring"].append((cut.imbalance, everything))
        sides["zigzag"].append((zig.imbalance, everything))
        sides["all-gather"].append((cut.imbalance, everything))
        for tolerance in CURVE if world == max(WORLDS) else ():
            found: ChunkAssignment = assign_chunks(masks, **options, tolerance=tolerance)
            curve[tolerance].append((found.imbalance, mix(found.chunks_sent)))
    unit = chunk * TOKEN_BYTES / 2**20
    result = {"case": case, "world": world, "assign_s": spread(seconds), "sides": {}}
    for name, found in sides.items():
        sent = np.array([chunks for _, chunks in found], dtype=float) * unit
        result["sides"][name] = {
            "imbalance": spread([imbalance for imbalance, _ in found]),
            "local_mib": spread(sent[:, 0].tolist()),
            "global_mib": spread(sent[:, 1].tolist()),
            "mix_mib": spread([mix(row) for row in sent.tolist()]),
        }
    over = [mix(d[1]) / max(1.0, mix(c[1])) for d, c in zip(sides["balanced"], sides["contiguous"], strict=True)]
    under = [everything[1] / max(1.0, chunks[1]) for _, chunks in sides["balanced"]]
    result["mix_over_contiguous"], result["plain_ring_over_global"] = spread(over), spread(under)
    result["curve"] = [
        {"asked": asked, "imbalance": spread([i for i, _ in found])["median"],
         "mix_mib": spread([sent * unit for _, sent in found])["median"]}
        for asked, found in curve.items()
        if found
    ]  # fmt: skip
    return result


def _rank(rank: int, world: int, port: int, tokens: int, rounds: int, folder: str) -> None:
    """One process: times of forward and backward, both ways in turn."""
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    group = torch.distributed.group.WORLD.group_name
    masks = masks_of(log_normal(tokens, tokens // 16, 0), WINDOW)
    chunk = min(GLOO_CHUNK, tokens // (2 * world))
    balanced = assign_chunks(masks, world_size=world, chunk=chunk, linear=6.0 * GLOO_HEADS * GLOO_DIM).chunk_ranks
    plain = torch.from_numpy(contiguous(tokens // chunk, world))
    turns: dict[str, list[ShardedSpans]] = {}
    for name, chunk_ranks in (("balanced", balanced), ("plain ring", plain)):
        layout = ContextLayout(chunk_ranks, chunk, tokens, rank, world, group)
        turns[name] = [ShardedSpans.shard(spans, layout) for spans, _ in masks]
        if name == "plain ring":
            turns[name] = [
                dataclasses.replace(each, needed_chunks=torch.ones_like(each.needed_chunks)) for each in turns[name]
            ]
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(rounds + 1):
        for name, (local, far) in turns.items():
            heads = (GLOO_HEADS, GLOO_KEY_HEADS, GLOO_KEY_HEADS)
            q, k, v = (torch.randn(1, local.num_queries, h, GLOO_DIM, requires_grad=True) for h in heads)
            torch.distributed.barrier()
            start = time.perf_counter()
            for spans in (*[local] * int(LOCAL_LAYERS), far):
                attention(q, k, v, spans).sum().backward()
            torch.distributed.barrier()
            # the first round makes plans
            if turn:
                times[name].append(time.perf_counter() - start)
    if rank == 0:
        torch.save(times, Path(folder) / "times.pt")
    torch.distributed.destroy_process_group()


def on_gloo(case: str, quick: bool) -> dict[str, Any]:
    """Seconds of six layers, forward and backward, ours and the plain ring in turn."""
    world = int(case.partition("/")[2])
    tokens, rounds = (1024, 1) if quick else (GLOO_TOKENS, 5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world, port, tokens, rounds, folder), nprocs=world, start_method="spawn")
        times = torch.load(Path(folder) / "times.pt", weights_only=True)
    ratios = [plain / ours for ours, plain in zip(times["balanced"], times["plain ring"], strict=True)]
    seconds = {name: spread(values) for name, values in times.items()}
    return {
        "case": case,
        "world": world,
        "tokens": tokens,
        "seconds": seconds,
        "plain_ring_over_balanced": spread(ratios),
    }


def show(result: dict[str, Any]) -> str:
    """A case in lines."""
    if "skipped" in result:
        return f"\n{result['case']}: left out, {result['skipped']}"
    if "seconds" in result:
        seconds = ", ".join(f"{name} {found['median']:.3f} s" for name, found in result["seconds"].items())
        ratio = result["plain_ring_over_balanced"]["median"]
        return f"\n{result['case']}: {result['tokens']:,} tokens, six layers: {seconds}; {ratio:.2f} times as fast"
    rows = [
        {
            "assignment": name,
            "imbalance": f"{side['imbalance']['median']:.3f}",
            **{f"{what} MiB": f"{side[f'{what}_mib']['median']:,.0f}" for what in ("local", "global", "mix")},
        }
        for name, side in result["sides"].items()
    ]
    return (
        f"\n{result['case']} ranks, assigned in {result['assign_s']['median']:.2f} s\n{harness.table(rows)}\n"
        f"  {result['mix_over_contiguous']['median']:.2f} times contiguous over the mix; plain ring sends "
        f"{result['plain_ring_over_global']['median']:.1f} times as much on global layers"
    )


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At 64 ranks, for documents; one document is there to show the bound."""
    found = []
    for result in results:
        case = result["case"]
        if "sides" not in result or result["world"] != 64 or case.startswith("one"):
            continue
        over, under = result["mix_over_contiguous"]["median"], result["plain_ring_over_global"]["median"]
        imbalance = result["sides"]["balanced"]["imbalance"]["median"]
        found += harness.target(case, "imbalance", round(imbalance, 4), "at most", TARGETS["imbalance"])
        found += harness.target(case, "bytes over contiguous, mix", over, "at most", TARGETS["over contiguous"])
        found += harness.target(case, "plain ring over ours, global", under, "at least", TARGETS["under plain ring"])
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """Bytes against ranks for all dealings, and bytes against imbalance for ours, at most ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    results = [result for result in record["cases"] if "sides" in result]
    for name in ("balanced", "contiguous", "plain ring"):
        own = [result for result in results if result["case"].startswith("log-normal")]
        left.plot([r["world"] for r in own], [r["sides"][name]["mix_mib"]["median"] for r in own], "o-", label=name)
    left.set(xscale="log", yscale="log", xlabel="ranks", ylabel="MiB sent, five local layers and a global one",
             title="log-normal documents, 524,288 tokens")  # fmt: skip
    left.set_xticks(WORLDS, [str(world) for world in WORLDS], minor=False)
    left.minorticks_off()
    left.legend()
    for result in results:
        if result["world"] == max(WORLDS):
            curve = result["curve"]
            line = right.plot(
                [p["imbalance"] for p in curve], [p["mix_mib"] for p in curve], "o-", label=result["case"]
            )
            cut = result["sides"]["contiguous"]
            right.plot([cut["imbalance"]["median"]], [cut["mix_mib"]["median"]], "s", color=line[0].get_color())
    right.axvline(1.05, color="grey", linewidth=0.8)
    right.set(yscale="log", xlabel="cost of the busiest rank over the mean (square: contiguous)", ylabel="MiB sent")
    right.legend()
    figure.suptitle(f"{record['hardware']['processor']}, {record['hardware']['commit']}", fontsize=9)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    made = harness.parser(NAME, "Dealing long sequences to ranks: imbalance, bytes, and time on gloo.")
    options = made.parse_args(arguments)
    device = harness.prepare(options)
    cases = [f"{kind}/{world}" for kind in DOCUMENTS for world in WORLDS] + [f"gloo/{world}" for world in (2, 4)]
    names = harness.select(cases, options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    try:
        record = harness.begin(NAME, options, device, TESTS)
    except gate.TestsFailedError as error:
        return harness.print_refusal(NAME, error)
    record["cases"] = harness.run_cases(
        names,
        lambda name, _: (on_gloo if name.startswith("gloo") else simulate)(name, options.quick),
        show,
        minutes=options.minutes,
    )
    record["targets"] = targets(record["cases"])
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
