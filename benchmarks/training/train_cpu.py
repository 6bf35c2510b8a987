"""Training steps on a CPU: our decoder against transformers' Llama of the same shape, on the same sequences, in one
run.

    python -m benchmarks.training.train_cpu

**Equal**: width, layers, heads, MLP, vocabulary, token batches, targets, masks, precision (bf16 autocast over fp32
weights if the processor supports bf16 natively, else fp32), optimizer and its settings, gradient clipping, torch's
version, threads; both are compiled. Parameters of both are printed; they differ by our query and key norms. **Not
equal**, since it is each one's own way: we compile block by block and run deterministic algorithms, the peer compiles
the model whole; we never hold (tokens, vocabulary) logits; our mask is spans, the peer's for packed sequences is the
dense one that it supports, built outside the clock, in the form that is faster for it.

**Cases.** "unpacked": each sequence is one document; target: at least the peer's speed. "packed": sequences hold
documents of log-normal lengths (median 256, sigma 1, 16 to a sequence); the peer is given the same document mask;
target: at least 1.2 times its speed.

**How.** The peer runs in its own virtual environment (made with uv when first needed, kept in a temporary folder named
after the versions), from a folder that does not see the project, since Brine does not depend on transformers. The two
children wait for turns: ours n steps, the peer's n steps, and so on, each round beginning with the other one. Ratios
are taken within rounds. A child that waits does nothing.

About 15 minutes on two cores, compilation included. What it does not do: GPUs, several ranks, data loading.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness import correctness as gate
from benchmarks.harness import machine
from benchmarks.harness import records as harness
from benchmarks.harness.implementations import OURS
from benchmarks.harness.measure import spread, summarize
from benchmarks.harness.peers import LLAMA_FILE, ModelShape, WorkerError, WorkerProcess, peer_python, start_peer
from benchmarks.kernels.masks import document_ids, document_lengths
from brine.common.files import to_plain
from brine.kernels.attention import Spans
from brine.model.config import ModelConfig
from brine.model.device import supports_bfloat16
from brine.model.flops import forward_flops

NAME = "train_cpu"
TESTS = (
    "tests/kernels/attention/test_attention.py",
    "tests/kernels/linear_loss/test_linear_loss.py",
    "tests/kernels/attention/test_spans.py",
    "tests/model/test_transformer.py",
    "tests/training/test_trainer.py",
)
PEER = "llama"
TARGETS = {"unpacked": 1.0, "packed": 1.2}
MEDIAN_TOKENS = 256
NUM_BATCHES = 4
SEED = 23


@dataclass(frozen=True)
class TrainCpuSetting:
    """One benchmark: the shape and the sequences."""

    shape: ModelShape = field(default_factory=ModelShape)
    """The models."""
    batch_size: int = 2
    """B, sequences of a step."""
    seq_len: int = 2048
    """T."""
    compile: bool = True
    """Compile both."""


QUICK = TrainCpuSetting(ModelShape(64, 32, 2, 2, 1, 16, 48), batch_size=2, seq_len=48, compile=False)


def make_batches(setting: TrainCpuSetting) -> dict[str, list[dict[str, Tensor]]]:
    """{"unpacked", "packed"} -> batches of token_ids, labels, document and position, each (B, T), from `SEED`."""
    generator = torch.Generator().manual_seed(SEED)
    cases: dict[str, list[dict[str, Tensor]]] = {"unpacked": [], "packed": []}
    for case, batches in cases.items():
        for number in range(NUM_BATCHES):
            sequences = []
            for index in range(setting.batch_size):
                lengths = [setting.seq_len]
                if case == "packed":
                    seed = SEED + number * setting.batch_size + index
                    lengths = document_lengths(
                        setting.seq_len, seed=seed, median=MEDIAN_TOKENS, low=16, high=setting.seq_len
                    )
                document = document_ids(lengths)[0]
                text = torch.randint(setting.shape.vocab_size, (setting.seq_len + 1,), generator=generator)
                labels = text[1:].clone()
                # the last token of a document has no target
                labels[torch.tensor(lengths).cumsum(0) - 1] = -100
                position = torch.cat([torch.arange(length) for length in lengths])
                sequences.append({"token_ids": text[:-1], "labels": labels, "document": document, "position": position})
            batches.append({name: torch.stack([one[name] for one in sequences]) for name in sequences[0]})
    return cases


def step_flops(setting: TrainCpuSetting, batches: list[dict[str, Tensor]]) -> float:
    """Operations of one training step, three forwards, over the seen area: the mean over batches."""
    config = ModelConfig(**asdict(setting.shape), window=None)
    areas = [Spans.packed(batch["document"]).area() for batch in batches]
    tokens = setting.batch_size * setting.seq_len
    forwards = [forward_flops(config, num_tokens=tokens, local_pairs=area, global_pairs=area) for area in areas]
    return 3.0 * sum(forwards) / len(forwards)


def start_children(folder: Path, python: Path | None, skipped: dict[str, str]) -> dict[str, WorkerProcess]:
    """Start both sides; a peer that cannot be started is noted in `skipped`."""
    children = {
        OURS: WorkerProcess(
            [sys.executable, "-m", "benchmarks.training.train_cpu_brine"], cwd=harness.ROOT, log=folder / "ours.log"
        )
    }
    try:
        children[PEER] = start_peer(python or peer_python(), LLAMA_FILE, "train", folder=folder)
    except (WorkerError, OSError) as error:
        skipped[PEER] = str(error)
    return children


def measure(
    case: str,
    children: dict[str, WorkerProcess],
    setting: TrainCpuSetting,
    spec: dict[str, Any],
    *,
    flops: float,
    peak: float,
    rounds: int,
    steps: int,
    skipped: dict[str, str],
) -> dict[str, Any]:
    """Let the children take turns on a case -> its part of the record. flops: of a step; peak: the roofline."""
    models, warm, times, losses = {}, {}, {}, {}

    def guarded(side: str, do: str, **details: Any) -> dict[str, Any] | None:
        try:
            return children[side].ask(do, **details)
        except WorkerError as error:
            skipped[side] = f"{case}: {error}"
            children.pop(side).close()
            times.pop(side, None)
            return None

    for name in list(children):
        # fresh weights, so that the first loss tells whether both were given the same work
        models[name] = guarded(name, "load", **spec)
        warm[name] = models[name] and guarded(name, "case", name=case)
        if warm[name] is not None:
            times[name], losses[name] = [], []
    for number in tqdm(range(rounds), desc=case, file=sys.stderr, disable=None):
        # each round begins with the other one
        for name in sorted(times, reverse=bool(number % 2)):
            answer = guarded(name, "steps", count=steps)
            if answer is not None:
                times[name].append({"total": answer["seconds"] / steps})
                losses[name] += answer["losses"]
    tokens = setting.batch_size * setting.seq_len
    implementations: dict[str, Any] = {name: {"skipped": why} for name, why in skipped.items()}
    for name, summary in summarize(times, reference=OURS).items():
        speeds = [tokens / r["total"] for r in times[name]]
        first, last = warm[name]["losses"][0], losses[name][-1]
        implementations[name] = summary | {
            "parameters": models[name]["parameters"],
            "versions": models[name]["versions"],
            "tokens_per_s": spread(speeds),
            "share_of_roofline": flops / summary["seconds"]["total"]["median"] / peak,
            "first_loss": first,
            "last_loss": last,
            "note": warm[name]["note"],
            # at the start each guesses evenly
            "plausible": math.isfinite(last) and abs(first - math.log(setting.shape.vocab_size)) < 1.0,
        }
    return {
        "case": case,
        "tokens": tokens,
        "step_flops": flops,
        "steps_a_round": steps,
        "implementations": implementations,
    }


def show(result: dict[str, Any]) -> str:
    """A case for the console."""
    rows, notes = [], []
    for name, implementation in result["implementations"].items():
        if "skipped" in implementation:
            notes.append(f"  {name} left out: {implementation['skipped']}")
            continue
        speed, over = implementation["tokens_per_s"], implementation.get("over", {}).get("total")
        rows.append(
            {
                "": name,
                "parameters": f"{implementation['parameters']:,}",
                "ms a step": f"{implementation['seconds']['total']['median'] * 1e3:.0f}",
                "tokens/s": f"{speed['median']:.0f}",
                "p20 .. p80": f"{speed['p20']:.0f} .. {speed['p80']:.0f}",
                "of roofline": f"{implementation['share_of_roofline']:.0%}",
                "time over ours": f"{over['median']:.3f}" if over else "",
                "loss": f"{implementation['first_loss']:.3f} -> {implementation['last_loss']:.3f}",
            }
        )
        notes.append(f"  {name}: {implementation['note']}")
    return "\n".join([f"\n{result['case']}", harness.table(rows), *notes])


def plot(record: dict[str, Any], path: Path) -> None:
    """Tokens per second of both, by case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    cases = [result for result in record["cases"] if "implementations" in result]
    for i, name in enumerate((OURS, PEER)):
        shown = [(at + 0.4 * (i - 0.5), result["implementations"].get(name, {})) for at, result in enumerate(cases)]
        speeds = [
            (at, implementation["tokens_per_s"]["median"])
            for at, implementation in shown
            if "tokens_per_s" in implementation
        ]
        if speeds:
            axes.bar(*zip(*speeds, strict=True), 0.38, label=name)
    axes.set_xticks(range(len(cases)), [result["case"] for result in cases])
    axes.set_ylabel("tokens per second of training")
    axes.legend()
    figure.suptitle(f"{record['hardware']['processor']}, {record['dtype']}, {record['hardware']['commit']}", fontsize=9)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    made = harness.parser(NAME, "Training steps on a CPU against transformers' Llama of the same shape.")
    made.add_argument("--rounds", type=int, default=12, help="rounds of each case")
    made.add_argument("--steps", type=int, default=2, help="steps of each side in a round")
    made.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="auto: as training does")
    made.add_argument("--peer-python", type=Path, default=None, help="interpreter for the peer; made with uv if absent")
    options = made.parse_args(arguments)
    device = harness.prepare(options)
    names = harness.select(list(TARGETS), options.cases)
    if options.list:
        print("\n".join(names))
        return 0
    try:
        record = harness.begin(NAME, options, device, TESTS)
    except gate.TestsFailedError as error:
        return harness.print_refusal(NAME, error)

    setting = QUICK if options.quick else TrainCpuSetting()
    rounds, steps = (2, 1) if options.quick else (options.rounds, options.steps)
    able, why = supports_bfloat16("cpu")
    dtype = options.dtype if options.dtype != "auto" else "bfloat16" if able else "float32"
    record |= {"dtype": dtype, "dtype_reason": why, "setting": to_plain(setting), "skipped": {}}
    low = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    record["roofline"] = machine.roofline("cpu", {dtype: low}, options.quick)
    skipped = record["skipped"]
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(setting)
        torch.save(batches, Path(folder) / "batches.pt")
        spec = {
            "shape": asdict(setting.shape), "batch_size": setting.batch_size, "seq_len": setting.seq_len,
            "dtype": dtype, "compile": setting.compile, "threads": options.threads, "seed": SEED,
            "batches": str(Path(folder) / "batches.pt"),
            "learning_rate": 3e-4, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8, "grad_clip": 1.0,
        }  # fmt: skip
        children = start_children(Path(folder), options.peer_python, skipped)
        try:
            (peak,) = record["roofline"].values()

            def run(name: str, _: Any) -> dict[str, Any]:
                flops = step_flops(setting, batches[name])
                counts = {"rounds": rounds, "steps": steps, "flops": flops, "peak": peak}
                return measure(name, children, setting, spec, skipped=skipped, **counts)

            record["cases"] = harness.run_cases(names, run, show, minutes=options.minutes)
            record["peak_rss_bytes"] = {name: child.ask("end")["peak_rss_bytes"] for name, child in children.items()}
        finally:
            for child in children.values():
                child.close()
    for result in record["cases"]:
        over = result.get("implementations", {}).get(PEER, {}).get("over", {}).get("total", {}).get("median")
        record["targets"] += harness.target(
            result["case"], "speed over the peer's", over, "at least", TARGETS[result["case"]]
        )
    return harness.finish(record, options, plot)


if __name__ == "__main__":
    sys.exit(harness.command(main))
