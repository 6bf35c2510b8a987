"""What `benchmarks.context.long_context` measures, each case in its own process, so that its peak memory is its
own.

Peak memory is the process's largest resident set (VmHWM), interpreter, libraries and mapped prompt included; what it
was before anything was made stands beside it. Seconds of the processor (`cpu_s`) stand beside seconds of the clock,
since they tell how much of the time other work on the machine had. On a GPU clocks are read when it has ended its
work, and the peak that torch held there is recorded too; answers are written by `DynamicDecoder`, not by the static way
that commands take there. That has run on a stand-in device and on no GPU.

`prefill` keeps what it read in `state.safetensors` and a line a chunk in `progress.jsonl`; started again, it continues
behind the last state that was saved and forgets the lines after it.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.context.long_prompt import mixture, open_prompt
from brine.common.files import read_json, read_jsonl, write_json
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import EOS_ID
from brine.inference.decode import DynamicDecoder
from brine.inference.load import load
from brine.inference.prefill import ChunkedPrefill, prefill_prompts
from brine.inference.prompt import batch_prompts
from brine.kernels.linear_loss import linear_cross_entropy
from brine.model.config import ModelConfig
from brine.model.device import autocast, resolve_compute_dtype
from brine.model.flops import forward_flops
from brine.model.transformer import Transformer
from brine.recipes.demo import demo
from brine.training.config import TrainConfig
from brine.training.gradients import FlatGradients
from brine.training.logging.environment import commit
from brine.training.logging.metrics import append_line
from brine.training.optimizer import Optimizer
from brine.training.parallel.activations import checkpoint_blocks

SIX_LAYERS = ModelConfig(
    vocab_size=384, dim=256, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=704, window=256
)
"""5 local layers and a global one."""
TINY = ModelConfig(vocab_size=384, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, window=64)
NEW_TOKENS = 64
"""Written after a prompt of the case `prefill`."""
PARTS = ("forward", "loss", "backward", "optimizer")
"""Of a training step, in order."""


@dataclasses.dataclass(frozen=True)
class LongContextCase:
    """One thing to measure."""

    kind: str
    """"prefill", "train" or "generate"."""
    tokens: int
    """Of the prompt or the sequence; for "generate", of the answer."""
    batch: int = 1
    """Prompts continued together."""
    tiny: bool = False
    """A toy model, to try the script."""
    checkpoint: bool = False
    """Training computes each block again in the backward pass."""
    dtype: str = "bfloat16"
    """Of matmuls, keys and values; the rest is float32."""
    device: str = "cpu"
    """Where the model lies: "cpu", "cuda", "cuda:1", ..."""

    @property
    def name(self) -> str:
        """Such as "prefill-65536", or "generate-65536x4"."""
        return f"{self.kind}-{self.tokens}" + (f"x{self.batch}" if self.kind == "generate" else "")

    @property
    def kept(self) -> str:
        """Folder of its state and result: one for each device and dtype, whose bits and times are others."""
        usual = (self.device, self.dtype) == ("cpu", "bfloat16")
        return self.name if usual else f"{self.name}-{self.device.replace(':', '')}-{self.dtype}"

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """`dtype` for `autocast`."""
        return resolve_compute_dtype(self.dtype, self.device)

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Lengths of the prompts that it reads."""
        if self.kind != "generate":
            return (self.tokens,)
        unequal = (1000,) if self.batch == 1 else (500, 1000, 2000, 4000)
        return tuple(length // (10 if self.tiny else 1) for length in unequal[: self.batch])


def peak_gib() -> float:
    """The largest resident set of this process so far, GiB."""
    # of the process alone: what `getrusage` tells began with that of the process that started it
    return _status_gib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_gib() -> float:
    """The resident set of this process now, GiB; 0 where there is no /proc."""
    return _status_gib("VmRSS")


def _status_gib(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(name + ":"))


@contextmanager
def stopwatch(into: dict[str, dict[str, float]], name: str, device: str) -> Iterator[None]:
    """Put seconds of the clock and of the processor, and the peak until now, under `name`. device: is waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    into[name] = {
        "s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_gib": peak_gib()
    }  # fmt: skip


def make_model(case: LongContextCase, trained: str) -> Transformer:
    """The model of a case, on its device: that of the folder `trained`, or weights at random."""
    if trained:
        return load(trained, device=case.device).model
    if case.kind == "prefill":
        config = SIX_LAYERS
    else:
        config = dataclasses.replace(demo().large.model, vocab_size=SIX_LAYERS.vocab_size)
    model = Transformer(TINY if case.tiny else config, generator=torch.Generator().manual_seed(3))
    return model.to(case.device).eval()


class LongPrefill:
    """The case `prefill`: a prompt read chunk by chunk, put down every few minutes, and 64 tokens written after it."""

    def __init__(
        self, case: LongContextCase, prompt: EncodedDocument, folder: Path, *, prefill_tokens: int, trained: str = ""
    ):
        """folder: where the state is kept; what is there already is continued."""
        self.case, self.prompt, self.folder = case, prompt, folder
        self.state, self.progress = folder / "state.safetensors", folder / "progress.jsonl"
        self.model = make_model(case, trained)
        self.dtype = case.compute_dtype
        self.prefill = ChunkedPrefill(
            self.model, prompt, prefill_tokens=prefill_tokens, max_tokens=NEW_TOKENS, compute_dtype=self.dtype
        )
        self.lines: list[dict[str, Any]] = []
        if self.state.is_file():
            self.prefill.resume(self.state)
            self.lines = [line for line in read_jsonl(self.progress) if line["read"] <= self.prefill.num_prefilled]
        # without the chunks that were read but not saved, which will be read again
        self.progress.parent.mkdir(parents=True, exist_ok=True)
        self.progress.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        self.session = 1 + max((line["session"] for line in self.lines), default=0)
        self.commit = commit()

    def read(self, *, save_every_s: float, on_prefill: Callable[[int], None] = lambda count: None) -> None:
        """Read what is left, saving the state now and then."""
        saved = time.monotonic()
        while True:
            part: dict[str, dict[str, float]] = {}
            with stopwatch(part, "chunk", self.case.device):
                count = self.prefill.prefill_chunk()
            if not count:
                return
            line = {"read": self.prefill.num_prefilled, **part["chunk"], "session": self.session, "commit": self.commit}
            self.lines.append(line)
            append_line(self.progress, line)
            on_prefill(count)
            if not self.prefill.done and time.monotonic() - saved > save_every_s:
                self.prefill.save(self.state)
                saved = time.monotonic()

    def write(self) -> dict[str, Any]:
        """Go on greedily for 64 tokens -> what was measured, with a checksum of all logits' bits."""
        decoding = DynamicDecoder(self.model, self.prefill.prefilled(), compute_dtype=self.dtype)
        decoding.suppressed[EOS_ID] = True
        part: dict[str, dict[str, float]] = {}
        token, tokens, crc = None, [], 0
        with stopwatch(part, "write", self.case.device):
            for _ in range(NEW_TOKENS):
                logits = decoding.step(token)
                crc = zlib.crc32(logits.cpu().numpy(), crc)
                token = logits.argmax(-1)
                tokens.append(int(token))
        return part["write"] | {"tokens": tokens, "logits_crc32": crc}

    def result(self, written: dict[str, Any]) -> dict[str, Any]:
        """The whole case, over all its sessions."""
        config = self.model.config
        seconds = sum(line["s"] for line in self.lines)
        total = len(self.prompt)
        starts = [0, *(line["read"] for line in self.lines)]
        curve = [line | {"count": line["read"] - start} for start, line in zip(starts, self.lines, strict=False)]
        cache = sum(value.numel() * value.element_size() for value in self.prefill.cache.state().values())
        return {
            "kind": "prefill",
            "model": config.to_dict(),
            "mixture": mixture(self.prompt),
            "chunks": len(self.lines),
            "sessions": self.session,
            "commits": sorted({line["commit"] or "" for line in self.lines}),
            "read_s": seconds,
            "read_cpu_s": sum(line["cpu_s"] for line in self.lines),
            "read_tokens_per_s": total / seconds,
            "curve": curve,
            "write": written,
            "write_tokens_per_s": NEW_TOKENS / written["s"],
            "cache_gib": cache / 2**30,
            "peak_gib": max(peak_gib(), *(line["peak_gib"] for line in self.lines)),
        }  # fmt: skip


def measure_prefill(case: LongContextCase, folder: Path, options: Any) -> dict[str, Any]:
    """A long prompt read and continued; killed, it continues at the next call."""
    prompt = open_prompt(folder / f"prompt-{case.tokens}")
    run = LongPrefill(case, prompt, folder / case.kept, prefill_tokens=options.prefill_tokens, trained=options.model)
    with tqdm(
        total=len(prompt),
        initial=run.prefill.num_prefilled,
        desc=case.name,
        unit=" tokens",
        unit_scale=True,
        disable=None,
    ) as bar:
        run.read(save_every_s=60 * options.save_minutes, on_prefill=bar.update)
    return run.result(run.write())


def labels_of(prompt: EncodedDocument) -> Tensor:
    """(1, T) int64: the next token where it is a target, as in `brine.data.batch`."""
    labels = np.full(len(prompt), -100, np.int64)
    loss_mask = prompt.loss_mask[1:] & (prompt.block[:-1] == 0)
    labels[:-1][loss_mask] = prompt.token_ids[1:][loss_mask]
    return torch.from_numpy(labels)[None]


def measure_train(case: LongContextCase, folder: Path, options: Any) -> dict[str, Any]:
    """One training step on one sequence that is one document: forward, loss, backward, AdamW; then a second one."""
    prompt = open_prompt(folder / f"prompt-{case.tokens}")
    model = make_model(case, options.model).train()
    if case.checkpoint:
        checkpoint_blocks(model, "selective")
    optimizer = Optimizer(model, TrainConfig(model=model.config, learning_rate=1e-3))
    gradients = FlatGradients(optimizer.parameters)
    inputs, labels = batch_prompts([prompt], device=case.device), labels_of(prompt).flatten()
    targets, labels = int((labels >= 0).sum()), labels.to(case.device)
    before = resident_gib()
    steps = []
    for _ in range(options.steps):
        parts: dict[str, Any] = {}
        gradients.zero()
        with autocast(case.device, case.compute_dtype):
            with stopwatch(parts, "forward", case.device):
                hidden = model(inputs).flatten(0, 1)
            with stopwatch(parts, "loss", case.device):
                loss = linear_cross_entropy(hidden, model.head_weight, labels)
        with stopwatch(parts, "backward", case.device):
            loss.backward()
        del hidden
        with stopwatch(parts, "optimizer", case.device):
            gradients.scale(1.0 / targets)
            optimizer.step(1e-3)
        steps.append({"loss": float(loss.detach()) / targets, "parts": parts})
        del loss
    local, long = (spans.area() for spans in inputs.spans(model.config))
    seconds = [sum(part["s"] for part in step["parts"].values()) for step in steps]
    return {
        "kind": "train", "model": model.config.to_dict(), "mixture": mixture(prompt), "checkpoint": case.checkpoint,
        "targets": targets, "steps": steps, "step_s": min(seconds),
        "tokens_per_s": case.tokens / min(seconds), "inputs_gib": before, "peak_gib": peak_gib(),
        "flops": 3 * forward_flops(model.config, num_tokens=case.tokens, local_pairs=local, global_pairs=long),
    }  # fmt: skip


def measure_generate(case: LongContextCase, folder: Path, options: Any) -> dict[str, Any]:
    """A long answer to prompts of unequal length: time and memory by position."""
    model = make_model(case, options.model)
    prompts = [open_prompt(folder / f"prompt-{length}") for length in case.prompt_tokens]
    dtype = case.compute_dtype
    prefilled = prefill_prompts(model, prompts, max_tokens=case.tokens, compute_dtype=dtype)
    decoding = DynamicDecoder(model, prefilled, compute_dtype=dtype)
    decoding.suppressed[EOS_ID] = True
    every, points, token, written = max(1, case.tokens // 64), [], None, 0
    layers = decoding.cache.layers
    with tqdm(total=case.tokens, desc=case.name, unit=" tokens", unit_scale=True, disable=None) as bar:
        while written < case.tokens:
            part: dict[str, dict[str, float]] = {}
            count = min(every, case.tokens - written)
            with stopwatch(part, "steps", case.device):
                for _ in range(count):
                    token = decoding.step(token).argmax(-1)
            written += count
            local = [layer for number, layer in enumerate(layers) if not model.config.is_global(number)]
            held = sum(x.untyped_storage().nbytes() for layer in local for x in (layer.keys, layer.values))
            points.append(
                {"written": written, "count": count, **part["steps"], "resident_gib": resident_gib(),
                 "local_cache_mib": held / 2**20, "local_keys": max(x.stop - x.start for x in local)}
            )  # fmt: skip
            bar.update(count)
    seconds = [point["s"] / point["count"] for point in points]
    tenth = max(1, len(points) // 10)
    return {
        "kind": "generate", "model": model.config.to_dict(), "batch": case.batch, "prompts": list(case.prompt_tokens),
        "write_s": sum(point["s"] for point in points), "points": points,
        "first_tokens_per_s": case.batch / float(np.median(seconds[:tenth])),
        "last_tokens_per_s": case.batch / float(np.median(seconds[-tenth:])),
        "peak_gib": peak_gib(),
    }  # fmt: skip


MEASURES = {"prefill": measure_prefill, "train": measure_train, "generate": measure_generate}


def measure(case: LongContextCase, folder: Path, options: Any) -> dict[str, Any]:
    """Measure a case in this process, meant for a fresh one; a result that is there already is given back."""
    path = folder / case.kept / "result.json"
    if (found := read_json(path)) is not None:
        return found
    start = resident_gib()
    result = {
        "case": case.name, "tokens": case.tokens, "dtype": case.dtype, "device": case.device,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    result |= MEASURES[case.kind](case, folder, options) | {"imports_gib": start, "commit": commit()}
    if torch.device(case.device).type == "cuda":
        result["gpu_peak_gib"] = torch.cuda.max_memory_allocated(case.device) / 2**30
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result
