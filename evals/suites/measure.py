"""Measures any run on any suite, once for equal weights: `measure_on_suite`.

    <cache>/measured/<key>/measurements.jsonl, result.json    one part: (weights, suite, part, precision, device)
    <cache>/timed/<key>/timing.jsonl, result.json             latency and memory: the same without a part, and machine
    <cache>/suite_cases/<key>/                                encoded cases: (suite, part, tokenizer, encoder)
    <cache>/gate_uses.jsonl                                   a line whenever somebody asks for the gate part

Keys hold the revision of this code too. Equal weights, suite and machine give equal bytes of measurements.jsonl, at the
same number of threads; what a clock says is in timing.jsonl, and is returned with every part that is asked for. Cases
that a model cannot take are named in result.json under `not_measured`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from brine.common.content_store import ContentStore, file_lock, store_key
from brine.common.files import file_digest, read_json, read_jsonl, to_json_line, write_json
from brine.data.config import EncodeConfig
from brine.data.inspect.check import default_decode_workers
from brine.data.tokenizer import Tokenizer
from brine.evals.measurement import MEASUREMENTS_FILE, Measurement, load_measurements, save_measurements
from brine.evals.suites.answers import answer_needles, transcribe_cases
from brine.evals.suites.case import PARTS
from brine.evals.suites.encode import EncodedCases, open_encoded_cases
from brine.evals.suites.losses import measure_losses_of_cases
from brine.evals.suites.measures import TIMED_NAMES
from brine.evals.suites.suite import Suite
from brine.evals.suites.timing import machine_name, time_model
from brine.evals.suites.training_overlap import seen_in_training
from brine.inference.load import CONFIG, TOKENIZER, WEIGHTS, LoadedModel, find_model_folder, load

REVISION = 1
"""Raised where equal weights and cases give other numbers."""
MEASURED, TIMED_STAGE = "measured", "timed"
TIMING_FILE, RESULT_FILE, GATE_USES_FILE = "timing.jsonl", "result.json", "gate_uses.jsonl"
SHOWN_PARTS = ("dev", "test")
Measurements = dict[str, dict[str, Measurement]]
"""{part: {measure: Measurement}}"""


@dataclass(frozen=True)
class SuiteResult:
    """What was measured, and result.json: weights, suite, parts, precision, device, machine, revision, num_cases,
    not_measured, num_trained_on (cases that occur in the run's training split; None where its corpus is missing)."""

    measurements: Measurements
    info: dict[str, Any]


def measure_on_suite(
    run: Path, suite: Suite, *, model: str | None = None, part: str | Sequence[str] = SHOWN_PARTS,
    device: torch.device | str = "cpu", compute_dtype: torch.dtype | None = None, cache: ContentStore | None = None,
    out: Path | None = None, workers: int | None = None, timing: bool = True,
) -> Measurements:  # fmt: skip
    """The measurements of a run's model on parts of a suite; what was measured before is taken from the cache.

    model: stage of the run; its best one if None. cache: root of what is kept; None keeps nothing. out: a folder that
    gets measurements.jsonl, timing.jsonl and result.json of all parts. timing: also latency and memory, if the suite
    has them. Raises ValueError for a run without that model, an unknown part and a damaged suite."""
    return measure_suite(
        run, suite, model=model, part=part, device=device, compute_dtype=compute_dtype, cache=cache, out=out,
        workers=workers, timing=timing,
    ).measurements  # fmt: skip


def measure_suite(
    run: Path, suite: Suite, *, model: str | None = None, part: str | Sequence[str] = SHOWN_PARTS,
    device: torch.device | str = "cpu", compute_dtype: torch.dtype | None = None, cache: ContentStore | None = None,
    out: Path | None = None, workers: int | None = None, timing: bool = True,
) -> SuiteResult:  # fmt: skip
    """As `measure_on_suite`, with what is known besides."""
    parts = checked_parts(part)
    asked = AskedModel(run, model, torch.device(device), compute_dtype, workers or default_decode_workers())
    if "gate" in parts and cache is not None:
        _count_gate_use(cache, suite, asked)
    with _store(cache) as store:
        folders = {part: _measured(store, suite, part, asked) for part in parts}
        found: Measurements = {}
        for part, folder in folders.items():
            found |= {part: {}, **load_measurements(folder / MEASUREMENTS_FILE, suite.measures)}
        infos = {part: read_json(folder / RESULT_FILE) or {} for part, folder in folders.items()}
        info = asked.identity(suite) | {
            "parts": list(parts),
            "machine": machine_name(asked.device),
            "num_cases": {part: info["num_cases"] for part, info in infos.items()},
            "not_measured": [line for info in infos.values() for line in info["not_measured"]],
            "num_trained_on": _num_trained_on(store, suite, parts, asked),
        }
        if timing and set(TIMED_NAMES) & {spec.name for spec in suite.measures}:
            folder = _timed(store, suite, asked)
            timed = load_measurements(folder / TIMING_FILE, suite.measures)["machine"]
            found = {part: {**measured, **timed} for part, measured in found.items()}
    if out is not None:
        save_result(out, found, info)
    return SuiteResult(found, info)


def save_result(folder: Path, found: Measurements, info: dict[str, Any]) -> None:
    """Write measurements.jsonl, timing.jsonl (where something was timed) and result.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    split = [
        {
            part: {name: each for name, each in measured.items() if (name in TIMED_NAMES) == timed}
            for part, measured in found.items()
        }
        for timed in (False, True)
    ]
    save_measurements(folder / MEASUREMENTS_FILE, split[0])
    if any(split[1].values()):
        save_measurements(folder / TIMING_FILE, split[1])
    write_json(folder / RESULT_FILE, info)


def load_result(folder: Path, suite: Suite) -> SuiteResult:
    """What `save_result` wrote: measurements with timing. Raises ValueError where it is missing, damaged or of another
    suite."""
    info = read_json(folder / RESULT_FILE)
    if not isinstance(info, dict) or not isinstance(info.get("suite"), dict):
        raise ValueError(f"{folder / RESULT_FILE} is missing or cut off: measure the run on the suite first")
    if info["suite"].get("digest") != suite.digest:
        raise ValueError(f"{folder} was measured on another suite than {suite.name}@{suite.version}: measure again")
    found: Measurements = {part: {} for part in info.get("parts", [])}
    files = [MEASUREMENTS_FILE, *([TIMING_FILE] if (folder / TIMING_FILE).is_file() else [])]
    for name in files:
        for part, measured in load_measurements(folder / name, suite.measures).items():
            found.setdefault(part, {}).update(measured)
    return SuiteResult(found, info)


def checked_parts(part: str | Sequence[str]) -> tuple[str, ...]:
    """Parts in their order. Raises ValueError for an unknown one and for none."""
    given = (part,) if isinstance(part, str) else tuple(part)
    if unknown := [name for name in given if name not in PARTS]:
        raise ValueError(f"part {unknown[0]!r} is none of {', '.join(PARTS)}")
    if not given:
        raise ValueError(f"no part was asked for: give some of {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in given)


class AskedModel:
    """A model that is loaded only if something has to be measured."""

    def __init__(
        self, run: Path, model: str | None, device: torch.device, compute_dtype: torch.dtype | None, workers: int
    ):
        self.run, self.device, self.compute_dtype, self.workers = run, device, compute_dtype, workers
        self.folder = find_model_folder(run / model if model else run)
        self.weights = file_digest(self.folder / WEIGHTS)

    @cached_property
    def loaded(self) -> LoadedModel:
        return load(self.folder, device=self.device)

    @cached_property
    def encode_config(self) -> EncodeConfig:
        """The encoder settings, read without the weights."""
        said = read_json(self.folder / CONFIG)
        if not isinstance(said, dict) or not isinstance(said.get("encode"), dict):
            raise ValueError(f"{self.folder / CONFIG} does not describe a model of this version: save the model again")
        return EncodeConfig.from_dict(said["encode"])

    @cached_property
    def precision(self) -> str:
        """The dtype of matmuls; that of the weights where none is given."""
        if self.compute_dtype is not None:
            return str(self.compute_dtype).removeprefix("torch.")
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            dtypes = {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
        return "+".join(sorted(names.get(dtype, dtype) for dtype in dtypes))

    def identity(self, suite: Suite) -> dict[str, Any]:
        """For records: which weights, on which suite, how."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "weights": self.weights, "suite": suite.identity, "precision": self.precision, "device": kind,
            "revision": REVISION,
        }  # fmt: skip

    def key(self, suite: Suite, **more: str) -> dict[str, Any]:
        """The key of a result; `more` belongs to it too."""
        said = self.identity(suite)
        inputs = {"weights": self.weights, "suite": suite.digest}
        # what else a model folder holds
        inputs |= {name: file_digest(self.folder / name) for name in (CONFIG, TOKENIZER)}
        return store_key({name: said[name] for name in ("precision", "device")} | more, inputs, revision=REVISION)

    @contextmanager
    def encoded(self, store: ContentStore, suite: Suite, part: str) -> Iterator[EncodedCases]:
        """The cases of a part, encoded for this model."""
        with open_encoded_cases(
            suite, part, tokenizer=Tokenizer.load(self.folder / TOKENIZER), config=self.encode_config, store=store,
            workers=self.workers,
        ) as encoded:  # fmt: skip
            yield encoded


def _measured(store: ContentStore, suite: Suite, part: str, asked: AskedModel) -> Path:
    """The folder of one part's measurements."""

    def build(folder: Path) -> None:
        with asked.encoded(store, suite, part) as encoded:
            losses, no_loss = measure_losses_of_cases(asked.loaded, encoded, compute_dtype=asked.compute_dtype)
            rates, no_text = transcribe_cases(asked.loaded, encoded, compute_dtype=asked.compute_dtype)
            answers = answer_needles(asked.loaded, encoded, compute_dtype=asked.compute_dtype)
            refused = dict(encoded.refused)
        found = {name: each for one in (losses, rates, answers) for name, each in one.items()}
        not_measured = [
            {"case": name, "part": part, "measure": measure, "reason": reason}
            for measure, reasons in (("all", refused), ("loss", no_loss), ("transcription", no_text))
            for name, reason in sorted(reasons.items())
        ]
        save_measurements(folder / MEASUREMENTS_FILE, {part: found})
        counts = {"num_cases": len(suite.cases_in(part)), "not_measured": not_measured}
        write_json(folder / RESULT_FILE, asked.identity(suite) | {"parts": [part], **counts})

    return store.get_or_build(MEASURED, asked.key(suite, part=part), build)


def _timed(store: ContentStore, suite: Suite, asked: AskedModel) -> Path:
    """The folder of latency and memory on this machine."""
    machine = machine_name(asked.device)

    def build(folder: Path) -> None:
        found = time_model(asked.folder, device=asked.device, compute_dtype=asked.compute_dtype)
        names = {spec.name for spec in suite.measures}
        save_measurements(
            folder / TIMING_FILE, {"machine": {name: each for name, each in found.items() if name in names}}
        )
        write_json(folder / RESULT_FILE, asked.identity(suite) | {"machine": machine})

    return store.get_or_build(TIMED_STAGE, asked.key(suite, machine=machine), build)


def _num_trained_on(
    store: ContentStore, suite: Suite, parts: Sequence[str], asked: AskedModel
) -> dict[str, int | None]:
    """Cases of each part that occur in the run's training split; None where its corpus is missing."""
    found: dict[str, int | None] = {}
    for part in parts:
        with asked.encoded(store, suite, part) as encoded:
            numbers = np.array(sorted(encoded.number.values()), np.int64)
            seen = None if encoded.corpus is None else seen_in_training(asked.run, encoded.corpus, numbers)
            found[part] = None if seen is None else int(seen.sum())
    return found


@contextmanager
def _store(cache: ContentStore | None) -> Iterator[ContentStore]:
    if cache is not None:
        yield cache
        return
    with TemporaryDirectory(prefix="brine-suite-") as folder:
        yield ContentStore(Path(folder))


def _count_gate_use(cache: ContentStore, suite: Suite, asked: AskedModel) -> None:
    """Append a line about who asked for the gate part."""
    cache.root.mkdir(parents=True, exist_ok=True)
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "suite": suite.identity}
    line |= {"weights": asked.weights, "precision": asked.precision}
    path = cache.root / GATE_USES_FILE
    with file_lock(path.with_name(f"{path.name}.lock"), what=path.name, timeout_s=60.0), open(path, "a") as file:
        file.write(to_json_line(line))


def num_gate_uses(cache: ContentStore, suite: Suite) -> int:
    """How often the gate part of a suite was asked for through this cache."""
    lines = read_jsonl(cache.root / GATE_USES_FILE)
    return sum((line.get("suite") or {}).get("digest") == suite.digest for line in lines)


def default_cache(run: Path) -> Path:
    """The store beside a run: `.store` in the folder that holds it; for a model folder elsewhere, runs/.store."""
    for folder in (run.absolute(), *run.absolute().parents[:2]):
        if (folder / "recipe.json").is_file():
            return folder.parent / ".store"
    return Path("runs") / ".store"
