"""More steps for a run: it ends as one that was planned so from the start, and what was there stays."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from brine.common.processes import StopSignal, TrainingInterrupted
from brine.data.packing.extendable_plan import build_extendable_plan, same_prefix
from brine.data.packing.mixture import Mixture
from brine.data.packing.plan import PackingPlan
from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.pipeline import run as train
from brine.pipeline import train_stage
from brine.pipeline.recipe import CorpusConfig, PackingConfig, Recipe
from brine.pipeline.stages.stage_backup import ProtectedStageError
from brine.pipeline.stages.stage_store import EXTENDING_PREFIX, StageStore
from brine.salt.config import SaltConfig
from brine.training.checkpoint.extend import check_extension, checkpoint_to_extend, link_checkpoints
from brine.training.config import RuntimeConfig, TrainConfig, learning_rate
from tests.training.tiny_run import SHARD, final_bytes, timeless, tiny_config, tiny_train

pytestmark = pytest.mark.slow


def wsd(num_steps=12, **changes):
    return tiny_config(**{"num_steps": num_steps, "schedule": "wsd", "decay_steps": 4, "checkpoint_every": 5,
                          "keep_checkpoints": 1, **changes})  # fmt: skip


def test_rates_rise_stay_and_fall_to_their_end():
    config = wsd(10, learning_rate=1.0, final_lr_fraction=0.1)
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates[:6] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates[6:] == pytest.approx([0.1 + 0.9 * (1 - (part / 4) ** 0.5) for part in (1, 2, 3, 4)])
    assert dataclasses.replace(config, decay_steps=None, decay_fraction=0.5).decay_start == 5


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"decay_steps": 0}, "give at least 1"),
        ({"decay_steps": 11}, "too small for warmup_steps = 2 and a decay of 11 steps"),
        ({"decay_fraction": 0.0}, "decay_fraction"),
        ({"schedule": "wds"}, "linear, cosine, wsd"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        wsd(**fields)


@pytest.mark.parametrize("stopped_at", [None, 3, 10], ids=["finished", "before-the-decay", "within-the-decay"])
@pytest.mark.parametrize("decay", [{"decay_steps": 4}, {"decay_steps": None, "decay_fraction": 0.25}], ids=str)
def test_extended_equals_never_stopped(tmp_path, stopped_at, decay):
    """Weights, optimiser and metrics, bit for bit; the checkpoint of the decay's beginning is there although none was
    due, and newer ones came after it."""
    short, long = wsd(12, **decay), wsd(20, **decay)
    with StopSignal() as stop:

        def at(step):
            if step == stopped_at:
                stop.request("SIGTERM")

        try:
            tiny_train(tmp_path / "old", config=short, stop=stop, on_step=at if stopped_at else None)
        except TrainingInterrupted:
            assert stopped_at
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    check_extension(short, long)
    found = checkpoint_to_extend(tmp_path / "old", config=short)
    assert found.step in ((3, 4) if stopped_at == 3 else (short.decay_start,))
    (tmp_path / "new").mkdir()
    link_checkpoints(tmp_path / "old", tmp_path / "new", checkpoint=found, num_steps=20)
    tiny_train(tmp_path / "new", config=long)
    tiny_train(tmp_path / "whole", config=long)
    assert final_bytes(tmp_path / "new") == final_bytes(tmp_path / "whole")
    assert timeless(tmp_path / "new") == timeless(tmp_path / "whole")
    assert {path: path.read_bytes() for path in before} == before


def train_to(folder, *, config, stopped_at=None):
    """Train, or go on, to the end or a stop."""
    with StopSignal() as stop:

        def at(step):
            if step == stopped_at:
                stop.request("SIGTERM")

        try:
            tiny_train(folder, config=config, stop=stop, on_step=at)
        except TrainingInterrupted:
            assert stopped_at


@pytest.mark.parametrize(
    "stops", [(None, None), (10, 15)], ids=["finished", "both-in-their-decay"]
)  # fmt: skip
def test_extended_twice_equals_never_stopped(tmp_path, stops):
    """12 steps become 16 and then 24; one checkpoint is kept beside that of each decay's beginning."""
    old = None
    for number, steps in enumerate((12, 16, 24)):
        config, folder = wsd(steps), tmp_path / str(number)
        if old is not None:
            check_extension(old, config)
            found = checkpoint_to_extend(tmp_path / str(number - 1), config=old)
            folder.mkdir()
            link_checkpoints(tmp_path / str(number - 1), folder, checkpoint=found, num_steps=steps)
        train_to(folder, config=config, stopped_at=(*stops, None)[number])
        old = config
    tiny_train(tmp_path / "whole", config=wsd(24))
    assert final_bytes(tmp_path / "2") == final_bytes(tmp_path / "whole")
    assert timeless(tmp_path / "2") == timeless(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_steps_and_no_bits(tmp_path):
    tiny_train(tmp_path / "old", config=wsd(12, keep_checkpoints=9))
    shard = tmp_path / "old" / "checkpoints" / "step_00000008" / SHARD
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    found = checkpoint_to_extend(tmp_path / "old", config=wsd(12))
    assert found.step == 5
    (tmp_path / "new").mkdir()
    link_checkpoints(tmp_path / "old", tmp_path / "new", checkpoint=found, num_steps=20)
    tiny_train(tmp_path / "new", config=wsd(20))
    tiny_train(tmp_path / "whole", config=wsd(20))
    assert final_bytes(tmp_path / "new") == final_bytes(tmp_path / "whole")
    for path in (tmp_path / "old" / "checkpoints").glob("step_*/*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no undamaged checkpoint of step 8 or before"):
        checkpoint_to_extend(tmp_path / "old", config=wsd(12))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (tiny_config(schedule="linear"), {"num_steps": 20}, 'schedule = "linear" decays over all steps'),
        (tiny_config(schedule="cosine"), {"num_steps": 20}, 'give schedule "wsd" from the start'),
        (wsd(12), {"num_steps": 10}, "fewer than the 12"),
        (wsd(12), {"num_steps": 20, "warmup_steps": 4}, "the learning rate of step 0"),
        (wsd(12), {"num_steps": 20, "learning_rate": 2e-2}, "the learning rate of step 0"),
        (wsd(12), {"num_steps": 20, "decay_steps": 15}, "decay earlier"),
    ],
    ids=["linear", "cosine", "fewer-steps", "warm-up", "peak", "longer-decay"],
)
def test_what_would_have_been_another_run_is_refused(old, new, told):
    with pytest.raises(ValueError, match=told):
        check_extension(old, dataclasses.replace(old, **new))


TINY = ModelConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=16, window=16)


def recipe(manifest: Path, num_steps: int, **changes) -> Recipe:
    """Both arms of a tiny run."""
    run = TrainConfig(
        model=TINY,
        num_steps=num_steps,
        global_batch_size=2,
        micro_batch_size=2,
        warmup_steps=1,
        log_every=2,
        checkpoint_every=50,
        schedule="wsd",
        decay_steps=2,
    )
    fields = {
        "name": "run",
        "corpus": CorpusConfig(vocab_size=267, manifest=manifest),
        "packing": PackingConfig(seq_len=64, image_budget=32, audio_budget=32, video_budget=32),
        "small": dataclasses.replace(run, num_steps=3),
        "large": run,
        "salt": SaltConfig(kd_steps=2),
        "arms": ("baseline",),
        "evals": EvalConfig(documents_per_cell=2, transcripts_per_cell=1, validation_per_cell=2, seq_len=64,
                            bootstrap_resamples=100, max_new_tokens=1),
        "runtime": RuntimeConfig(compile=False, num_threads=1, device="cpu", dtype="float32", num_loader_workers=0),
    }  # fmt: skip
    return Recipe(**{**fields, **changes})


@pytest.fixture
def manifest(tmp_path, monkeypatch) -> Path:
    """Pages to train on; nothing is evaluated, since that is not what these tests are about."""
    monkeypatch.setattr(train.evaluate_stage, "report", lambda run: None)
    path = tmp_path / "manifest.jsonl"
    lines = [
        {"id": f"d{number}", "kind": "page", "split": ("validation", *["train"] * 7)[number % 8],
         "content": [{"type": "text", "text": f"page {number} of a small book about numbers"}]}
        for number in range(24)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model/model.safetensors").items()}


def test_the_line_goes_on_with_more_steps(tmp_path, manifest):
    """`--extend` on finished arms, with soft labels and without: equal to a run of more steps, the old ones kept."""
    both = {"arms": ("salt", "baseline")}
    train.run_pipeline(recipe(manifest, 6, **both), runs=tmp_path)
    old = weights(tmp_path / "run" / "large_salt")
    for _ in range(2):
        # the second time there is nothing to do
        train.run_pipeline(recipe(manifest, 9, **both), runs=tmp_path, extend=True)
    train.run_pipeline(recipe(manifest, 9, name="whole", **both), runs=tmp_path, store=tmp_path / "other")
    for stage in ("small", "large_salt", "large_baseline"):
        assert weights(tmp_path / "run" / stage) == weights(tmp_path / "whole" / stage), stage
        assert timeless(tmp_path / "run" / stage) == timeless(tmp_path / "whole" / stage), stage
    assert weights(tmp_path / "run" / "large_salt.old-1") == old
    assert (tmp_path / "run" / "large_baseline.old-1" / "done").exists()
    assert sorted(path.name for path in (tmp_path / "run").glob("*.old-*")) == ["large_baseline.old-1",
                                                                              "large_salt.old-1"]  # fmt: skip
    for changes, told in (
        ({"large": dataclasses.replace(recipe(manifest, 12).large, seed=9)}, "more than the number of steps changed"),
        ({"packing": PackingConfig(seq_len=64, image_budget=32, audio_budget=32, video_budget=32,
                             mixture=("kind:page=0:1,1:2",))}, "more than the number"),
        ({"salt": SaltConfig(kd_fraction=0.5), **both}, "give --salt.kd-steps 2"),
        ({"small": dataclasses.replace(recipe(manifest, 4).small, num_steps=4), **both}, "made from something else"),
    ):  # fmt: skip
        with pytest.raises(ProtectedStageError, match=told):
            train.run_pipeline(recipe(manifest, 12, **changes), runs=tmp_path, extend=True)
    assert weights(tmp_path / "run" / "large_salt") == weights(tmp_path / "whole" / "large_salt")


def test_an_arm_with_soft_labels_that_was_stopped_in_its_decay_goes_on(tmp_path, manifest, monkeypatch):
    """And with other settings that decide nothing, which need not be those of before."""
    real, salt = train_stage.Trainer, {"arms": ("salt",)}

    def dies(config, *, name, **options):
        def at(step):
            if name == "large_salt" and step == 5:
                raise KeyboardInterrupt

        return real(config, name=name, on_step=at, **options)

    monkeypatch.setattr(train_stage, "Trainer", dies)
    with pytest.raises(KeyboardInterrupt):
        train.run_pipeline(recipe(manifest, 6, **salt), runs=tmp_path)
    monkeypatch.setattr(train_stage, "Trainer", real)
    large = dataclasses.replace(recipe(manifest, 9).large, log_every=1, keep_checkpoints=1, checkpoint_every=3)
    train.run_pipeline(recipe(manifest, 9, **salt, large=large), runs=tmp_path, extend=True)
    train.run_pipeline(recipe(manifest, 9, name="whole", **salt), runs=tmp_path, store=tmp_path / "other")
    assert weights(tmp_path / "run" / "large_salt") == weights(tmp_path / "whole" / "large_salt")
    assert not (tmp_path / "run" / "large_salt.old-1" / "done").exists()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"mixture": ("kind:page=0:1,1:2",)}, "packing.mixture"),
        ({"length_schedule": ("0:16", "0.5:64")}, "length_sched"),
    ],
    ids=["mixture", "length-schedule"],
)
def test_rows_that_follow_the_progress_are_named(tmp_path, manifest, rows, told):
    rows = PackingConfig(seq_len=64, image_budget=32, audio_budget=32, video_budget=32, **rows)
    train.run_pipeline(recipe(manifest, 4, packing=rows), runs=tmp_path)
    with pytest.raises(ProtectedStageError, match=told):
        train.run_pipeline(recipe(manifest, 6, packing=rows), runs=tmp_path, extend=True)


def test_death_between_two_renames_is_mended(tmp_path):
    fresh = tmp_path / f"{EXTENDING_PREFIX}large_baseline"
    fresh.mkdir(parents=True)
    (fresh / "stage.json").write_text("{}")
    with StageStore(tmp_path):
        pass
    assert (tmp_path / "large_baseline" / "stage.json").exists() and not fresh.exists()


class Documents:
    """As much of an encoded corpus as a plan asks for."""

    def __init__(self, count: int):
        random = np.random.default_rng(0)
        self.num_documents, self.fingerprint, self.kinds, self.sources = count, "f", ["a", "b"], ["s"]
        self.num_tokens = random.integers(3, 60, count).astype(np.int32)
        self.num_media = {name: np.zeros(count, dtype=np.int32) for name in ("image", "audio", "video")}
        self.kind = (np.arange(count) % 2).astype(np.int16)
        self.level = np.zeros(count, dtype=np.int8)
        self.source = np.zeros(count, dtype=np.int32)
        self.split = np.zeros(count, dtype=np.int8)


@pytest.mark.parametrize("count", [20, 3000], ids=["small", "large"])
def test_rows_in_pieces_are_the_first_of_more(count):
    """`PackingPlan.build` shuffles all rows it is asked for together, so a longer plan begins otherwise."""
    corpus, options = Documents(count), {"seq_len": 64, "seed": 3, "mixture": Mixture({"kind:a": 0.5})}
    plans = [build_extendable_plan(corpus, num_sequences=rows, **options) for rows in (40, 1500, 4000)]
    assert [len(plan) for plan in plans] == [40, 1500, 4000]
    assert all(same_prefix(plans[0], plan, num_sequences=40) for plan in plans)
    assert same_prefix(plans[1], plans[2], num_sequences=1500)
    assert (
        plans[2].packing_efficiency > PackingPlan.build(corpus, num_sequences=4000, **options).packing_efficiency - 0.02
    )
    assert not same_prefix(
        plans[0], build_extendable_plan(corpus, num_sequences=40, **{**options, "seed": 4}), num_sequences=40
    )
    built = [PackingPlan.build(corpus, num_sequences=rows, **options) for rows in (40, 1500)]
    assert not same_prefix(*built, num_sequences=40)
    # every document as often as its weight says
    sample_counts = plans[2].sample_counts()
    assert sample_counts[corpus.kind == 1].mean() == pytest.approx(2 * sample_counts[corpus.kind == 0].mean(), rel=0.05)
