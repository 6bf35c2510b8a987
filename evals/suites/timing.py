"""Latency and memory of a model: a prompt is read and answered, several times, in a process of its own.

    latency    seconds from the prompt's tokens to the last token of the answer, over tokens of the answer
    memory     MiB at the peak of that: on a GPU what torch allocated; on a CPU resident memory above the idle process

The prompt's ids are fixed and the end token is never chosen, so every model does the same number of steps; a first
round is not counted. A fresh process makes the numbers independent of what the caller did before. They are noisy where
other work runs beside, and belong to the machine and its number of threads (`machine_name`).
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from brine.common.files import parse_object
from brine.common.processes import IMPORT_FOLDER, die_with_parent, processor, usable_cores
from brine.data.encode import assemble_chunks
from brine.data.tokenizer import EOS_ID, SPECIAL_TOKENS
from brine.evals.measurement import Measurement
from brine.evals.suites.measures import TIMED
from brine.inference.decode import DynamicDecoder
from brine.inference.load import LoadedModel, load
from brine.inference.prefill import prefill_prompts

PROMPT_TOKENS, ANSWER_TOKENS, REPEATS = 512, 64, 5
TIMEOUT_S = 1800.0
_CLEAR_PEAK = "5"
"""Written to /proc/self/clear_refs, it sets the peak of resident memory back (man 5 proc)."""


@dataclass(frozen=True)
class TimingRequest:
    """What the process is asked for. dtype: of matmuls; None for that of the weights."""

    folder: str
    device: str
    dtype: str | None
    threads: int


def machine_name(device: torch.device) -> str:
    """Processor or GPU, cores and threads: what latency and memory depend on besides the model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {usable_cores()} cores, {torch.get_num_threads()} threads"


def time_model(folder: Path, *, device: torch.device, compute_dtype: torch.dtype | None) -> dict[str, Measurement]:
    """Latency and memory of a model folder, a case for each repetition. Raises ValueError where the process fails."""
    dtype = None if compute_dtype is None else str(compute_dtype).removeprefix("torch.")
    request = TimingRequest(str(folder), str(device), dtype, torch.get_num_threads())
    paths = [IMPORT_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "brine.evals.suites.timing", json.dumps(asdict(request))],
            capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(f"latency of {folder} took over {TIMEOUT_S:g} s: make a suite with --no-timing") from None
    said = parse_object((done.stdout.strip().splitlines() or [""])[-1])
    if done.returncode or said is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"latency of {folder} could not be measured ({last[:300]}): use a device with more memory")
    return _as_measurements(said["seconds"], said["tokens"], said["peak_mib"])


def _as_measurements(seconds: list[float], tokens: list[int], peak_mib: list[float]) -> dict[str, Measurement]:
    cases = tuple(f"repetition-{number}" for number in range(len(seconds)))
    latency, memory = TIMED
    values = ((latency, seconds, tokens), (memory, peak_mib, [1] * len(peak_mib)))
    return {
        spec.name: Measurement(spec, cases, np.array(above, np.float64), np.array(below, np.float64))
        for spec, above, below in values
    }


def answer_once(loaded: LoadedModel, compute_dtype: torch.dtype | None) -> int:
    """Read the prompt and answer it; returns the number of new tokens."""
    first, vocab = len(SPECIAL_TOKENS), loaded.tokenizer.vocab_size
    ids = [first + number * 7919 % (vocab - first) for number in range(PROMPT_TOKENS)]
    prompt = assemble_chunks([ids], loaded.encode_config)
    prefilled = prefill_prompts(loaded.model, [prompt], max_tokens=ANSWER_TOKENS, compute_dtype=compute_dtype)
    decoder = DynamicDecoder(loaded.model, prefilled, vocab_size=vocab, compute_dtype=compute_dtype)
    # every model does the same steps
    decoder.suppressed[EOS_ID] = True
    return sum(group.shape[1] for group in decoder.groups(ANSWER_TOKENS))


def _measure(request: TimingRequest) -> dict[str, list]:
    torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    compute_dtype = None if request.dtype is None else getattr(torch, request.dtype)
    gc.collect()
    idle = _resident_mib("VmRSS")
    loaded = load(request.folder, device=device)
    found: dict[str, list] = {"seconds": [], "tokens": [], "peak_mib": []}
    for repeat in range(REPEATS + 1):
        _clear_peak(device)
        start = time.perf_counter()
        tokens = answer_once(loaded, compute_dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        if repeat:
            found["seconds"].append(round(seconds, 6))
            found["tokens"].append(tokens)
            found["peak_mib"].append(round(_peak_mib(device, idle), 3))
    return found


def _clear_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # without it the peak is that since the start
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)


def _peak_mib(device: torch.device, idle: float) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return max(0.0, _resident_mib("VmHWM") - idle)


def _resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB; where there is no /proc the peak for both."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    die_with_parent()
    print(json.dumps(_measure(TimingRequest(**json.loads(sys.argv[1])))))
