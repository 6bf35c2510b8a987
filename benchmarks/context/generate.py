"""Tokens per second of generation: our static decoding against transformers' static cache, side by side in one run.

    python -m benchmarks.context.generate --device cuda --minutes 5 --out FOLDER
    python -m benchmarks.context.generate --toy

**Equal**: width, layers, heads, MLP, vocabulary, all layers causal over everything, bf16 products on a GPU, prompts of
equal length, batch, number of new tokens, greedy, no end token. **Not equal**: weights are random and each one's own;
ours have norms on queries and keys, an fp32 residual stream and fp32 norms. Implementations:

    brine                 as `brine.inference.decode` decodes: on a GPU static, the step replayed as a CUDA graph
    brine-compiled        the same with blocks fused by the compiler, on a GPU
    transformers-static   GenerationConfig(cache_implementation="static"), compiled as transformers does by default
    transformers-dynamic  its default cache

**Fields.** `first_s`: time to the first token. Tokens per second: batch * (new - 1) / rest, where rest is the time from
the first token to the last. `prepare_s`: compilation, capture and a first answer, before any round. `bytes_per_s`:
weights, keys and values that a step must read, by its time. Rounds alternate; medians, p20 and p80 are over rounds.

Each implementation of each case is a line of JSON, printed and, with `--out`, appended to FOLDER/generate.jsonl and
synced to the disk at once. What fails is a line with "skipped". The peer runs in a process that does not see the
project (`--peer-python`: an interpreter with torch and transformers; this one, where it has transformers).

Not measured: sampling, prompts of unequal length, windows, several GPUs. It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.peers import LLAMA_FILE, ModelShape, WorkerError, WorkerProcess, start_peer
from brine.data.sequence import FIELDS, EncodedDocument
from brine.data.tokenizer import EOS_ID
from brine.inference.decode import DynamicDecoder, uses_static_decoder
from brine.inference.prefill import prefill_prompts
from brine.kernels.selection.choice_log import backend_choices
from brine.model.config import ModelConfig
from brine.model.device import native_dtype, resolve_device
from brine.model.transformer import Transformer
from brine.training.logging.environment import commit

OURS, PEERS = ("brine", "brine-compiled"), ("transformers-static", "transformers-dynamic")
MIN_ROUNDS, MAX_ROUNDS = 3, 15
EVERY = 16
"""Tokens between two readings of the host, in ours."""


@dataclass(frozen=True)
class GenerateCase:
    """Prompts of one length, answered together."""

    batch: int
    prompt: int
    """Tokens of each prompt."""
    new_tokens: int

    @property
    def name(self) -> str:
        return f"B{self.batch}-P{self.prompt}-N{self.new_tokens}"


SHAPE = ModelShape(32_768, 2048, 16, 16, 8, 128, 5632)
CASES = (GenerateCase(1, 512, 256), GenerateCase(16, 512, 256), GenerateCase(1, 16_384, 256))
TOY_SHAPE = ModelShape(512, 64, 2, 4, 2, 16, 128)
TOY_CASES = (GenerateCase(1, 12, 8), GenerateCase(3, 40, 8))


def prompts_of(case: GenerateCase, vocab_size: int) -> list[EncodedDocument]:
    """Random text."""
    rng, position = np.random.default_rng(1), np.arange(case.prompt)
    empty = {name: np.zeros((0, 1)) for name in ("image", "audio", "video")}
    zeros = np.zeros(case.prompt)
    found = []
    for _ in range(case.batch):
        fields = {"token_ids": rng.integers(20, vocab_size, case.prompt), "position": np.stack([position] * 3, axis=1),
                  "block": zeros, "loss_mask": zeros, "modality_context": zeros} | empty  # fmt: skip
        found.append(EncodedDocument(**{name: value.astype(FIELDS[name]) for name, value in fields.items()}))
    return found


class BrineGenerator:
    """Our model of a shape, and what it keeps between answers of one case."""

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype):
        config = ModelConfig(**asdict(shape), window=None, global_every=1)
        self.model = Transformer(config, generator=torch.Generator().manual_seed(0)).to(device).eval()
        self.device, self.dtype, self.static = device, None if dtype == torch.float32 else dtype, None

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, case: GenerateCase, prompts: list[EncodedDocument], *, compile_blocks: bool) -> dict[str, float]:
        """Answer once -> first_s and rest_s."""
        self.wait()
        start = time.perf_counter()
        prefilled = prefill_prompts(self.model, prompts, max_tokens=case.new_tokens, compute_dtype=self.dtype)
        if self.static is not None:
            self.static.restart(prefilled)
        else:
            decoding = DynamicDecoder(self.model, prefilled, compute_dtype=self.dtype)
            decoding.suppressed[EOS_ID] = True
            if not uses_static_decoder(self.model):
                token = decoding.step().argmax(-1)
                first = time.perf_counter()
                for _ in range(case.new_tokens - 1):
                    token = decoding.step(token).argmax(-1)
                    token.tolist()
                return {"first_s": first - start, "rest_s": time.perf_counter() - first}
            self.static = decoding.static(case.new_tokens, compile_blocks=compile_blocks)
        self.wait()
        first = time.perf_counter()
        count = sum(group.shape[1] for group in self.static.groups(EVERY))
        assert count == case.new_tokens
        return {"first_s": first - start, "rest_s": time.perf_counter() - first}


class ResultWriter:
    """Where results go."""

    def __init__(self, folder: Path | None, common: dict[str, Any]):
        self.path, self.common = None if folder is None else folder / "generate.jsonl", common
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line | self.common)
        print(text, flush=True)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())


def summary(case: GenerateCase, rounds: list[dict[str, float]], least_bytes: int) -> dict[str, Any]:
    """Medians over rounds."""
    rest = np.array([one["rest_s"] for one in rounds])
    speed = case.batch * (case.new_tokens - 1) / rest
    return {
        "tokens_per_s": float(np.median(speed)),
        "p20": float(np.percentile(speed, 20)),
        "p80": float(np.percentile(speed, 80)),
        "first_token_s": float(np.median([one["first_s"] for one in rounds])),
        "bytes_per_s": least_bytes * (case.new_tokens - 1) / float(np.median(rest)),
        "rounds": len(rounds),
    }


def step_bytes(shape: ModelShape, case: GenerateCase, itemsize: int) -> int:
    """What a step in the middle of an answer reads at least: blocks and head once, keys and values of every
    sequence."""
    heads = (2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    weights = shape.num_layers * (shape.dim * heads + 3 * shape.dim * shape.mlp_dim) + shape.vocab_size * shape.dim
    row = (case.prompt + case.new_tokens // 2) * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return (weights + case.batch * row) * itemsize


def measure(case: GenerateCase, runs: dict[str, Callable[[], dict[str, float]]], seconds: float) -> dict[str, Any]:
    """Implementations in turn -> {name: (prepare_s, rounds)} or {name: reason}."""
    found: dict[str, Any] = {}
    for name, run in runs.items():
        start = time.perf_counter()
        try:
            # the first answer compiles and captures, the second is the first that did not
            run()
            run()
            found[name] = (time.perf_counter() - start, [])
        except Exception as error:
            found[name] = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:300]}"
    end = time.monotonic() + seconds
    for number in range(MAX_ROUNDS):
        for name in [name for name, one in found.items() if not isinstance(one, str)]:
            try:
                found[name][1].append(runs[name]())
            except Exception as error:
                found[name] = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:300]}"
        if number + 1 >= MIN_ROUNDS and time.monotonic() > end:
            break
    return found


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.add_argument("--minutes", type=float, default=4.5, help="begin no case later than this (default 4.5)")
    parser.add_argument("--out", type=Path, help="folder of generate.jsonl")
    parser.add_argument("--toy", "--quick", action="store_true", help="tiny sizes, to try the command; a CPU's default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each side, on a CPU")
    parser.add_argument("--peer-python", type=Path, help="an interpreter with torch and transformers")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run it -> 0, 1 where nothing of ours ran, 2 for a device that is not there."""
    options = build_parser().parse_args(argv)
    began = time.monotonic()
    try:
        device = resolve_device(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    toy = options.toy or device.type != "cuda"
    shape, cases = (TOY_SHAPE, TOY_CASES) if toy else (SHAPE, CASES)
    dtype = native_dtype(device) if device.type == "cuda" else torch.float32
    torch.set_num_threads(options.threads)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    common = {"benchmark": "generate", "toy": toy, "device": gpu or str(device), "shape": asdict(shape),
              "dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__, "commit": commit()}  # fmt: skip
    lines, ours, succeeded = ResultWriter(options.out, common), BrineGenerator(shape, device, dtype), False
    with tempfile.TemporaryDirectory() as folder:
        peer, why = peer_or_reason(options.peer_python, Path(folder))
        if peer is not None:
            try:
                longest = max(case.prompt + case.new_tokens for case in cases)
                said = peer.ask(
                    "load", shape=asdict(shape), max_tokens=longest, dtype=common["dtype"], device=str(device),
                    threads=options.threads,
                )  # fmt: skip
                common["peer"] = said["versions"]
            except WorkerError as error:
                peer.close()
                peer, why = None, str(error)
        for number, case in enumerate(cases):
            left = 60 * options.minutes - (time.monotonic() - began)
            if left < 0 and number:
                lines.write({"case": case.name, "skipped": "the time was up"})
                continue
            succeeded |= run_case(case, ours, peer, why, lines, max(left, 0.0) / (len(cases) - number) / 3)
        if peer is not None:
            peer.close()
    return 0 if succeeded else 1


def run_case(
    case: GenerateCase, ours: BrineGenerator, peer: WorkerProcess | None, why: str, lines: ResultWriter, seconds: float
) -> bool:
    """Measure a case and write its lines -> whether ours ran."""
    prompts, shape = prompts_of(case, ours.model.config.vocab_size), ModelShape(**lines.common["shape"])
    statics: dict[str, Any] = {}

    def run_ours(name: str) -> dict[str, float]:
        ours.static = statics.get(name)
        times = ours.run(case, prompts, compile_blocks=name == "brine-compiled")
        statics[name] = ours.static
        return times

    def run_peer(cache: str) -> dict[str, float]:
        if peer is None:
            raise RuntimeError(why)
        return peer.ask("run", cache=cache, **asdict(case))

    names = OURS if uses_static_decoder(ours.model) else OURS[:1]
    runs = {name: lambda name=name: run_ours(name) for name in names}
    runs |= {name: lambda name=name: run_peer(name.partition("-")[2]) for name in PEERS}
    found = measure(case, runs, seconds)
    least = step_bytes(shape, case, torch.bfloat16.itemsize if ours.dtype else torch.float32.itemsize)
    for name, one in found.items():
        line = {"case": case.name, "implementation": name}
        if isinstance(one, str):
            lines.write(line | {"skipped": one})
            continue
        line |= {"prepare_s": one[0]} | summary(case, one[1], least)
        if name in OURS:
            static = statics.get(name)
            line |= {"graph": static is not None and static.graphs, "backend_choices": dict(backend_choices())}
        lines.write(line)
    ours.static = None
    return not isinstance(found[OURS[0]], str)


def peer_or_reason(python: Path | None, folder: Path) -> tuple[WorkerProcess | None, str]:
    """-> (the peer's process, "") or (None, why there is none)."""
    if python is None and importlib.util.find_spec("transformers") is not None:
        python = Path(sys.executable)
    if python is None:
        return None, "there is no transformers here: give --peer-python, an interpreter that has it"
    try:
        return start_peer(python, LLAMA_FILE, "generate", folder=folder), ""
    except OSError as error:
        return None, str(error)


if __name__ == "__main__":
    sys.exit(main())
