"""The packing plan at scale: time, memory and waste of an epoch of 10 million documents, against a first fit in Python.

    python -m benchmarks.data.plan                        10 million documents, some 5 minutes
    python -m benchmarks.data.plan --documents 1000000

**Cases.** An index of made-up documents in the arrays of `brine.data.corpus.store.EncodedCorpus`, one epoch of it in
sequences of 8,192 tokens. Lengths are log-normal (median 400 tokens, sigma 1.2, 8 to 8,192), media are a part of them:

    media       half with images, audio or video, 10 to 90 % of each; a budget of half a sequence's tokens per modality
    text        no media: no budget can bind
    image-70    half with images that are 70 % of them; half a sequence's tokens as image budget
    image-all   all with such images: the budget decides the number of sequences

**Measured**, on one core: CPU and wall seconds of `PackingPlan.build`; growth of resident memory over the index, in a
process of its own; waste, the padding as a fraction of all tokens; `bound`, the waste that no packing can avoid, since
all tokens, or all patches of a modality, need so many sequences of that budget. No sequence exceeds a budget (checked).

**Against** a first fit in plain Python: documents in shuffled order, each into the first open sequence with space. It
gets the first `--peer-documents` of the same index, and its time is scaled by number, which flatters it.

Not measured: documents longer than a sequence (there are none here), reading the index from disk.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.harness import correctness as gate
from benchmarks.harness import records as harness
from benchmarks.harness.memory import peak_growth
from brine.data.document import MODALITIES
from brine.data.packing.plan import PackingPlan

NAME = "data_plan"
TESTS = ("tests/data/packing/test_plan.py", "tests/data/packing/test_pack.py", "tests/data/packing/test_mixture.py")
SEQ_LEN = 8192
DOCUMENTS, QUICK_DOCUMENTS = 10_000_000, 50_000
CASES = {
    "media": {"fraction": 0.5, "density": None, "budget": SEQ_LEN // 2},
    "text": {"fraction": 0.0, "density": 0.0, "budget": SEQ_LEN},
    "image-70": {"fraction": 0.5, "density": 0.7, "budget": SEQ_LEN // 2},
    "image-all": {"fraction": 1.0, "density": 0.7, "budget": SEQ_LEN // 2},
}
SEED = 11
# of 10 million documents on one core; waste over what the budgets make inevitable
TARGETS = {"seconds": 10.0, "memory_gib": 1.0, "waste": 0.005}


def make_index(documents: int, *, fraction: float, density: float | None, budget: int) -> SimpleNamespace:
    """Made-up documents as a corpus has them; media of `density` (None: varied) in `fraction` of them, if they fit."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    lengths = generator.standard_normal(documents, dtype=np.float32)
    lengths = np.clip(400 * np.exp(1.2 * lengths), 8, SEQ_LEN).astype(np.int64)
    num_modalities = len(MODALITIES) if density is None else 1
    which = generator.integers(0, num_modalities, documents, dtype=np.int8)
    which[generator.random(documents, dtype=np.float32) >= fraction] = -1
    if density is None:
        density = generator.uniform(0.1, 0.9, documents)
    patches = np.minimum((lengths * density).astype(np.int64), budget)
    return SimpleNamespace(
        num_documents=documents,
        kinds=["document"],
        sources=["made up"],
        kind=np.zeros(documents, dtype=np.int16),
        level=np.zeros(documents, dtype=np.int16),
        split=np.zeros(documents, dtype=np.int8),
        source=np.zeros(documents, dtype=np.int32),
        num_tokens=lengths,
        num_media={name: np.where(which == index, patches, 0) for index, name in enumerate(MODALITIES)},
        fingerprint="made up",
    )


def build(index: SimpleNamespace, budget: int) -> PackingPlan:
    """One epoch of the index."""
    return PackingPlan.build(index, seq_len=SEQ_LEN, media_budget=dict.fromkeys(MODALITIES, budget), epochs=1, seed=1)


def memory_call(tiny: bool, *, case: str, documents: int) -> Callable[[], list[torch.Tensor]]:
    """For `benchmarks.harness.memory`: the index outside, the plan inside."""
    arguments = CASES[case]
    index = make_index(QUICK_DOCUMENTS if tiny else documents, **arguments)

    def run() -> list[torch.Tensor]:
        plan = build(index, arguments["budget"])
        return [torch.from_numpy(getattr(plan, name)) for name in ("document", "start", "stop", "blank", "offset")]

    return run


def bound_of(index: SimpleNamespace, plan: PackingPlan) -> float:
    """Packed sequences that every packing needs: those that all tokens, or all patches of a modality, fill."""
    sequences = [index.num_tokens.sum() / plan.seq_len]
    sequences += [index.num_media[name].sum() / plan.media_budget[name] for name in MODALITIES]
    return float(max(sequences))


def check(index: SimpleNamespace, plan: PackingPlan) -> None:
    """Every document once and no budget exceeded. Raises TestsFailedError."""
    if not (plan.sample_counts() == 1).all():
        raise gate.TestsFailedError("a document is missing, or comes twice")
    for name, amount in {"tokens": index.num_tokens, **index.num_media}.items():
        total = np.concatenate([[0], np.cumsum(amount[plan.document])])
        most = int((total[plan.offset[1:]] - total[plan.offset[:-1]]).max())
        if most > plan.media_budget.get(name, plan.seq_len):
            raise gate.TestsFailedError(f"a packed sequence has {most} {name}")


def first_fit(lengths: list[int], media: list[tuple[int, ...]], budget: int) -> int:
    """Packed sequences of a first fit in plain Python; media budgets are kept too."""
    shortest = min(lengths)
    open_sequences: list[list[int]] = []
    closed = 0
    for length, patches in zip(lengths, media, strict=True):
        for index, free in enumerate(open_sequences):
            if free[0] >= length and all(have >= need for have, need in zip(free[1:], patches, strict=True)):
                free[0] -= length
                for column, need in enumerate(patches):
                    free[1 + column] -= need
                if free[0] < shortest:
                    del open_sequences[index]
                    closed += 1
                break
        else:
            open_sequences.append([SEQ_LEN - length, *[budget - need for need in patches]])
    return closed + len(open_sequences)


def measure_peer(index: SimpleNamespace, case: str, documents: int) -> dict[str, float]:
    """The first fit's CPU seconds and waste on some of the documents."""
    chosen = random.Random(SEED).sample(range(index.num_documents), min(documents, index.num_documents))
    lengths = index.num_tokens[chosen].tolist()
    media = list(zip(*[index.num_media[name][chosen].tolist() for name in MODALITIES], strict=True))
    start = time.process_time()
    sequences = first_fit(lengths, media, CASES[case]["budget"])
    seconds = time.process_time() - start
    return {"documents": len(chosen), "cpu_s": seconds, "waste": 1 - sum(lengths) / (sequences * SEQ_LEN)}


def measure(case: str, documents: int, peer_documents: int, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """One case: time, waste, memory, and the peer."""
    index = make_index(documents, **CASES[case])
    on_stage("plan")
    wall, cpu = time.perf_counter(), time.process_time()
    plan = build(index, CASES[case]["budget"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    on_stage("check")
    check(index, plan)
    bound = bound_of(index, plan)
    result = {
        "case": case,
        "documents": documents,
        "sequences": len(plan),
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "waste": 1 - plan.packing_efficiency,
        "bound": 1 - float(index.num_tokens.sum()) / (bound * SEQ_LEN),
        "waste_over_bound": 1 - bound / len(plan),
    }
    del plan
    on_stage("first fit")
    peer = measure_peer(index, case, peer_documents)
    del index
    on_stage("memory")
    result["memory"] = peak_growth(f"{harness.MODULES[NAME]}:memory_call", {"case": case, "documents": documents})
    scaled = peer["cpu_s"] * documents / peer["documents"]
    result["first_fit"] = {**peer, "scaled_cpu_s": scaled, "times_ours": scaled / cpu}
    return result


def show(result: dict[str, Any]) -> str:
    """A case in lines."""
    if "excluded" in result:
        return f"\n{result['case']}: left out, {result['excluded']}"
    peer, memory = result["first_fit"], result["memory"]
    gib = f"{memory['growth_bytes'] / 2**30:.2f}" if "growth_bytes" in memory else memory["excluded"]
    rows = [
        {"packer": "PackingPlan.build", "cpu s": f"{result['cpu_s']:.2f}", "wall s": f"{result['wall_s']:.2f}",
         "GiB": gib, "waste %": f"{100 * result['waste']:.3f}"},
        {"packer": f"first fit, scaled from {peer['documents']:,}", "cpu s": f"{peer['scaled_cpu_s']:.0f}",
         "wall s": "", "GiB": "", "waste %": f"{100 * peer['waste']:.3f}"},
    ]  # fmt: skip
    return (
        f"\n{result['case']}: {result['documents']:,} documents, {result['sequences']:,} sequences of "
        f"{SEQ_LEN:,} tokens\n"
        f"{harness.table(rows)}\n  inevitable waste {100 * result['bound']:.3f} %, above it "
        f"{100 * result['waste_over_bound']:.3f} % of the sequences"
    )


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached."""
    found = []
    for result in results:
        if "excluded" in result:
            continue
        growth = result["memory"].get("growth_bytes")
        memory_gib = None if growth is None else growth / 2**30
        found += harness.target(result["case"], "CPU seconds", result["cpu_s"], "at most", TARGETS["seconds"])
        found += harness.target(result["case"], "GiB above the index", memory_gib, "at most", TARGETS["memory_gib"])
        found += harness.target(
            result["case"], "waste over the inevitable", result["waste_over_bound"], "at most", TARGETS["waste"]
        )
    return found


def plot(record: dict[str, Any], path: Path) -> None:
    """Waste and CPU seconds of every case, ours and the first fit's, as bars."""
    from matplotlib.figure import Figure

    results = [result for result in record["cases"] if "excluded" not in result]
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    positions = np.arange(len(results))
    for shift, name in ((-0.2, "PackingPlan.build"), (0.2, "first fit in Python, scaled")):
        ours = name == "PackingPlan.build"
        seconds = [result["cpu_s"] if ours else result["first_fit"]["scaled_cpu_s"] for result in results]
        waste = [100 * (result["waste"] if ours else result["first_fit"]["waste"]) for result in results]
        above.bar(positions + shift, seconds, 0.38, label=name)
        below.bar(positions + shift, waste, 0.38, label=name)
    above.set_yscale("log")
    above.set_ylabel("CPU seconds for all documents")
    below.set_yscale("log")
    below.set_ylabel("padding, % of all tokens")
    below.set_xticks(positions, [result["case"] for result in results])
    above.legend()
    hardware = record["hardware"]
    figure.suptitle(f"an epoch of {record['documents']:,} documents, {hardware['processor']}, {hardware['commit']}")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    made = harness.parser(NAME, "Planning an epoch of millions of documents: time, memory, waste.")
    made.add_argument("--documents", type=int, default=DOCUMENTS, help="documents of the index")
    made.add_argument("--peer-documents", type=int, default=100_000, help="documents that the first fit gets")
    options = made.parse_args(arguments)
    device = harness.prepare(options)
    names = harness.select(list(CASES), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    documents, peer_documents = options.documents, options.peer_documents
    if options.quick:
        documents, peer_documents = QUICK_DOCUMENTS, 2000
    try:
        record = harness.begin(NAME, options, device, TESTS)
        record["documents"] = documents
        record["cases"] = harness.run_cases(
            names,
            lambda name, on_stage: measure(name, documents, peer_documents, on_stage),
            show,
            minutes=options.minutes,
        )
    except gate.TestsFailedError as error:
        return harness.print_refusal(NAME, error)
    record["targets"] = targets(record["cases"])
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
