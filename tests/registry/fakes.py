"""Run folders, suites and measurements as the registry reads them, and a gate of a few lines; nothing is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from brine.common.files import digest, read_jsonl, write_json
from brine.evals.measurement import Measurement, MeasureSpec, save_measurements
from brine.registry.registry import Registry

SPECS = (
    MeasureSpec("bits_per_byte"),
    MeasureSpec("gain.image", lower_is_better=False, one_minus=True),
    MeasureSpec("gain.audio", lower_is_better=False, one_minus=True),
    MeasureSpec("cer.audio"),
    MeasureSpec("latency", unit="s"),
)
GUARDS = tuple(spec.name for spec in SPECS[1:])
CLEAN = {"commit": "0123456789ab", "diff": None}


@dataclass(frozen=True)
class FakeSuite:
    """What the registry reads of a suite."""

    name: str = "synth"
    version: int = 1
    digest: str = "5" * 64
    primary: str = "bits_per_byte"
    measures: tuple[MeasureSpec, ...] = SPECS
    guards: tuple[str, ...] = GUARDS


SUITE = FakeSuite()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_stage(folder: Path, *, config, inputs, result) -> str:
    """A finished stage as the pipeline leaves it; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    key = {"config": config, "inputs": inputs}
    name = digest({"key": key, "fingerprint": result.get("fingerprint")})
    write_json(folder / "stage.json", key)
    write_json(folder / "done", {"key": key, "digest": name, "result": result, "wall_s": 1.0})
    return name


def write_model(folder: Path, text: str) -> str:
    """A model folder with three files, whose weights are a text; returns their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "config.json").write_text('{"model": {}, "encode": {}}\n')
    (folder / "tokenizer.json").write_text("tokenizer\n")
    return sha(text)


def make_run(
    runs: Path, name: str, *, seed: int = 0, learning_rate: float = 1e-3, code=CLEAN, source: str = "source",
    init_from: str | None = None,
) -> Path:  # fmt: skip
    """A finished run of corpus, encoded, small and large_salt; equal arguments give equal weights."""
    run = runs / name
    corpus = write_stage(run / "corpus", config={"seed": 7}, inputs={"source": sha(source)}, result={"documents": 40})
    encoded = write_stage(
        run / "encoded", config={"vocab_size": 300}, inputs={"corpus": corpus}, result={"documents": 40}
    )
    base = {"encoded": encoded} | ({"init_from": init_from} if init_from else {})

    def train(stage: str, inputs: dict[str, str]) -> str:
        setting = {"train": {"learning_rate": learning_rate, "seed": seed}, "seed": seed}
        weights = write_model(run / stage / "model", f"{stage} {setting} {sorted(inputs.items())}")
        result = {"fingerprint": weights, "step": 10, "code": code}
        return write_stage(run / stage, config=setting, inputs=inputs, result=result)

    small = train("small", base)
    train("large_salt", base | {"small": small})
    training = {"seed": seed, "learning_rate": learning_rate}
    recipe = {"seed": seed, "small": training, "large": training, "evals": {"seed": 0, "seq_len": 64}}
    write_json(run / "recipe.json", recipe | {"corpus": {"synth": {"seed": 7}}})
    write_json(run / "environment.json", {"processor": "a processor", **code})
    write_json(run / "large_salt" / "compute_cost.json", {"student": {"flops": 5e9, "seconds": 1.0}})
    return run


def measurement(name: str, ratio: float, *, part: str, seed: int = 0, cases: int = 20) -> Measurement:
    """A measure whose ratio of sums is about `ratio`, a little different for each seed."""
    spec = next(spec for spec in SPECS if spec.name == name)
    rng = np.random.default_rng([seed, sum(map(ord, name + part))])
    below = np.full(cases, 100.0)
    return Measurement(
        spec, tuple(f"{part}-{case}" for case in range(cases)), below * ratio * rng.normal(1, 0.01, cases), below
    )


RATIOS = {"bits_per_byte": 2.0, "gain.image": 0.4, "gain.audio": 0.5, "cer.audio": 0.3, "latency": 0.01}
"""Numerator over denominator; gains are 1 minus it."""


def write_measured(folder: Path, weights: str, *, seed: int = 0, suite=SUITE, result=(), without=(), **changed) -> Path:
    """What `measure_on_suite` leaves: the ratios above, with those in `changed` (dots as double underscores)."""
    ratios = RATIOS | {name.replace("__", "."): value for name, value in changed.items()}
    parts = {
        part: {
            name: measurement(name, ratio, part=part, seed=seed)
            for name, ratio in ratios.items()
            if name not in without
        }
        for part in ("dev", "test", "gate")
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_measurements(folder / "measurements.jsonl", parts)
    said = {"weights": weights, "suite": {"name": suite.name, "version": suite.version, "digest": suite.digest}}
    said |= {"precision": "float32", "machine": "m1", "revision": 1}
    write_json(folder / "result.json", said | dict(result))
    return folder


def add_setting(registry: Registry, runs: Path, name: str, *, seeds=(0, 1, 2), learning_rate=1e-3, code=CLEAN,
                source="source", **measured) -> list[str]:  # fmt: skip
    """Add and measure one setting under several seeds; returns the models."""
    models = []
    for seed in seeds:
        run = make_run(runs, f"{name}-{seed}", seed=seed, learning_rate=learning_rate, code=code, source=source)
        models.append(registry.add(run))
        registry.measure(models[-1], write_measured(run / "suites" / "synth", models[-1], seed=seed, **measured), SUITE)
    return models


def value_of(run, name: str) -> float:
    return run[name].value


def fake_decide(candidate, champion, *, primary, guards, margins, paired=True):
    """By means of seeds alone: better by any amount, and no guard worse by more than its margin."""
    missing = [name for name in (primary, *guards) for run in candidate if name not in run]

    def worsening(name):
        ours, theirs = (np.mean([value_of(run, name) for run in side]) for side in (candidate, champion))
        return (ours - theirs) * (1 if candidate[0][name].spec.lower_is_better else -1)

    if missing:
        failed, outcome = [], "refused"
    else:
        failed = [name for name in guards if worsening(name) > margins[name]]
        better = worsening(primary) < -0.05
        outcome = "refused" if failed else "better" if better else "undecided"
    reasons = [f"{name} was not measured" for name in missing] + [f"guard {name} is worse" for name in failed]
    reasons += [f"{primary} is undecided: 4 more seeds would decide"] if outcome == "undecided" else []
    details = {
        "outcome": outcome, "reasons": reasons, "primary": None,
        "guards": [{"name": name, "failed": name in failed, "why": None, "margin": margins[name]} for name in guards],
    }  # fmt: skip
    return SimpleNamespace(outcome=outcome, passed=outcome == "better", reasons=tuple(reasons), to_dict=lambda: details)


def fake_median(runs, primary):
    order = sorted(range(len(runs)), key=lambda index: value_of(runs[index], primary))
    return order[len(order) // 2]


FAKE_GATE = SimpleNamespace(
    decide=fake_decide,
    median_seed=fake_median,
    calibrate_margins=lambda runs, guards, seeds: dict.fromkeys(guards, 0.05),
)


BETTER = {"learning_rate": 2e-3, "bits_per_byte": 1.5}
"""What makes a setting of `add_setting` a better one."""


def promote(registry, models, **options):
    return registry.promote(models, SUITE, gate=FAKE_GATE, **options)


def events(registry):
    """The events of the log, in order."""
    return [line["event"] for line in read_jsonl(registry.root / "log.jsonl")]
