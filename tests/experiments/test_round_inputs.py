"""What a round is made from: pinned when it begins; feedback is read anew in each; the teacher may be a given model."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from brine.common.content_store import ContentStore
from brine.common.files import read_json, read_jsonl
from brine.data.config import EncodeConfig
from brine.data.document import Text
from brine.data.formats.corpus_source import CorpusSource
from brine.data.tokenizer import train_tokenizer
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.experiments.experiment import Seeds
from brine.experiments.rounds import driver, teacher
from brine.experiments.rounds import steps as round_steps
from brine.experiments.rounds.inputs import pin_inputs
from brine.experiments.rounds.line import RoundLine
from brine.experiments.rounds.steps import RoundSteps
from brine.inference.load import save_model
from brine.model.transformer import Transformer
from brine.salt.audit import AuditResult
from brine.salt.collapse import CollapseConfig
from brine.salt.content import ContentHasher
from brine.salt.pseudo_label import PseudoLabel
from brine.salt.self_play.config import SelfPlayConfig
from tests.experiments.rounds import line_run, tiny_line, write_images
from tests.experiments.tiny import finish_trial


@pytest.fixture
def steps(tmp_path):
    """Steps over a store, of a line with feedback of one document."""
    write_images(tmp_path / "feedback", count=2, first=400, labelled=True, mark=9)
    line = tiny_line(tmp_path, feedback=tmp_path / "feedback" / "manifest.jsonl")
    return RoundSteps(line, ContentStore(tmp_path / "store"))


def pin(steps, tmp_path, number, rejected=()):
    (tmp_path / f"line/round_{number:02d}").mkdir(parents=True, exist_ok=True)
    return pin_inputs(steps, tmp_path / "line", number, rejected=rejected)


def ids(folder):
    return [line["id"] for line in read_jsonl(folder / "manifest.jsonl")]


def test_a_document_that_comes_during_a_round_waits_for_the_next(steps, tmp_path):
    first = pin(steps, tmp_path, 1)
    assert ids(first.feedback) == ["i400", "i401"]
    write_images(tmp_path / "feedback", count=4, first=400, labelled=True, mark=9)
    write_images(tmp_path / "more", count=30, first=100, labelled=False)
    # killed and called again
    again = pin(steps, tmp_path, 1)
    assert again.feedback == first.feedback and again.unlabelled == first.unlabelled
    second = pin(steps, tmp_path, 2)
    assert ids(second.feedback) == ["i400", "i401", "i402", "i403"] and len(ids(second.unlabelled)) == 30
    assert second.words == first.words and second.held_out == first.held_out
    # what an earlier round left out does not come again
    left_out = steps.contents(second.feedback) - steps.contents(first.feedback)
    assert len(left_out) == 2 and ids(pin(steps, tmp_path, 3, left_out).feedback) == ["i400", "i401"]
    with pytest.raises(ValueError, match=r"feedback.* is gone"):
        steps.store.root.joinpath("feedback").rename(tmp_path / "elsewhere")
        pin(steps, tmp_path, 1)


def test_feedback_that_repeats_a_held_out_case_is_not_trained_on(steps, tmp_path):
    lines = read_jsonl(tmp_path / "words/manifest.jsonl")
    held_out = next(line for line in lines if line["split"] == "test")
    copy = (tmp_path / "words" / held_out["content"][0]["image"]).read_bytes()
    (tmp_path / "feedback/media/copy.png").write_bytes(copy)
    content = [{"type": "image", "image": "media/copy.png"}, {"type": "text", "text": "another word"}]
    with open(tmp_path / "feedback/manifest.jsonl", "a") as file:
        file.write(json.dumps({"id": "copy", "kind": "photo", "split": "train", "content": content}) + "\n")
    found = pin(steps, tmp_path, 1).feedback
    assert ids(found) == ["i400", "i401"]
    assert steps.store.result(found) == {"documents": 2, "shares_held_out": 1, "rejected": 0, "unreadable": 0}


def test_a_document_that_cannot_be_read_does_not_end_a_round(steps, tmp_path, caplog):
    """Users give what they give: the others are taken, and the round says how many were not and why."""
    write_images(tmp_path / "feedback", count=5, first=400, labelled=True, mark=9)
    (tmp_path / "feedback/media/402.png").unlink()
    (tmp_path / "feedback/media/403.png").write_bytes(bytes(2_000_000))
    (tmp_path / "more/media/105.png").unlink()
    with open(tmp_path / "feedback/manifest.jsonl", "a") as file:
        file.write('{"id": "empty", "kind": "photo"}\n')
    encode = dataclasses.replace(steps.line.base.corpus.encode, max_file_mib=1.0)
    base = dataclasses.replace(steps.line.base, corpus=dataclasses.replace(steps.line.base.corpus, encode=encode))
    steps = RoundSteps(dataclasses.replace(steps.line, base=base), steps.store)
    first = pin(steps, tmp_path, 1)
    assert ids(first.feedback) == ["i400", "i401", "i404"] and len(ids(first.unlabelled)) == 19
    assert first.unreadable["feedback"]["documents"] == 3 and first.unreadable["unlabelled"]["documents"] == 1
    assert "i402" in first.unreadable["feedback"]["first"] and "402.png" in first.unreadable["feedback"]["first"]
    assert "3 documents of feedback cannot be read" in caplog.text and "words" not in first.unreadable
    assert pin(steps, tmp_path, 1) == first
    # put back, it comes with the next round
    write_images(tmp_path / "feedback", count=5, first=400, labelled=True, mark=9)
    second = pin(steps, tmp_path, 2)
    assert len(ids(second.feedback)) == 5 and set(second.unreadable) == {"unlabelled"}
    for path in (tmp_path / "feedback/media").iterdir():
        path.unlink()
    third = pin(steps, tmp_path, 3)
    assert third.feedback is None and third.unreadable["feedback"]["documents"] == 5


def test_a_round_plays_about_the_source_that_it_began_with(steps, tmp_path, monkeypatch):
    source, played = tmp_path / "code", []
    source.mkdir()
    (source / "module.py").write_text("def first():\n    return 'the first of all functions here'\n" * 4)
    steps.line = dataclasses.replace(steps.line, self_play=SelfPlayConfig(), self_play_source=source)
    monkeypatch.setattr(round_steps, "self_play", lambda *_, source, **options: played.append(source.digest))
    (tmp_path / "model.safetensors").write_text("weights")
    teacher_model = SimpleNamespace(folder=tmp_path)

    def play(inputs, number=1):
        return steps.play(teacher_model, number=number, earlier=[], held_out=frozenset(),
                          source_digest=inputs.play_source)  # fmt: skip

    first, second = pin(steps, tmp_path, 1), pin(steps, tmp_path, 2)
    pool = play(first)
    (source / "module.py").write_text("def another():\n    return 'another function than the first'\n" * 4)
    # what has been played is found again, by a round that was killed
    assert pin(steps, tmp_path, 1).play_source == first.play_source and play(first) == pool
    with pytest.raises(ValueError, match=r"self_play_source .*code\) has changed since round 2 began.*put it back"):
        play(second, 2)
    third = pin(steps, tmp_path, 3)
    assert play(third, 3) != pool and played == [first.play_source, third.play_source]


def test_the_words_and_the_suite_of_a_line_stay(steps, tmp_path):
    held_out = write_images(tmp_path / "held-out", count=20, first=0, labelled=True, mark=3)
    config = SuiteConfig(transcripts_per_cell=0, timing=False)
    suites = [
        make_suite(
            "colours", [held_out], dataclasses.replace(config, per_cell=cases), root=tmp_path / "suites", workers=1
        )
        for cases in (1, 2)
    ]
    steps.line = dataclasses.replace(steps.line, suite=str(suites[0].folder))
    pin(steps, tmp_path, 1)
    steps.line = dataclasses.replace(steps.line, suite=str(suites[1].folder))
    with pytest.raises(ValueError, match=r"is not the one of the first round.*reading@1"):
        pin(steps, tmp_path, 2)
    # the round that has begun has its own
    assert pin(steps, tmp_path, 1).suite.digest == suites[0].digest
    steps.line = dataclasses.replace(steps.line, suite=str(suites[0].folder))
    write_images(tmp_path / "words", count=61, first=0, labelled=True)
    with pytest.raises(ValueError, match="give new documents as feedback"):
        pin(steps, tmp_path, 2)
    assert not (tmp_path / "line/round_02/inputs.json").exists()


def test_files_of_people_stay_theirs(steps, tmp_path):
    """Hard links would take their write bits, and an edit in place would change what the store has."""
    found = pin(steps, tmp_path, 1)
    image = tmp_path / "feedback/media/400.png"
    assert image.stat().st_nlink == 1 and image.stat().st_mode & 0o200
    stored = next(found.feedback.glob("media/*/*.png"))
    before = stored.read_bytes()
    for path in (tmp_path / "feedback/media").iterdir():
        path.write_bytes(b"edited")
    assert stored.read_bytes() == before


@pytest.fixture
def untrained(monkeypatch):
    """Rounds in which nothing is trained; `outcome` says what the new words brought, by round."""
    outcome = {}

    def compare(self, plan, last, *, is_new):
        brought = {"outcome": outcome.get(plan, "undecided")}
        return {"experiment": "e", "setting": "02", "primary": "b", "value": 1.0, "brought": brought,
                "last": {"outcome": "first round"}, "weights": []}  # fmt: skip

    monkeypatch.setattr(driver, "find_teacher", lambda line, folder, train: (None, {"name": "small", "weights": "w"}))
    monkeypatch.setattr(driver.LineRun, "_train", lambda self, number, *rest: number)
    monkeypatch.setattr(driver.LineRun, "_compare", compare)
    monkeypatch.setattr(driver.LineRun, "_trained_data", lambda self, plan: {})
    return outcome


def trained_on(runs, number, arm, source="feedback"):
    pools = read_json(runs / f"line/round_{number:02d}/{arm}/round_data.json")["pools"]
    return pools[source]["num_targets"] if source in pools else None


def test_new_feedback_is_what_a_round_brings(tmp_path, untrained):
    """The arm without it has that of the round before; what made it worse is left out of later rounds."""
    feedback = write_images(tmp_path / "feedback", count=3, first=401, labelled=True, mark=9)
    line, runs = tiny_line(tmp_path, feedback=feedback, unlabelled=None, patience=9), tmp_path / "runs"
    untrained[2] = "worse"
    line_run("line", line, runs).run(1)
    assert trained_on(runs, 1, "before") is None and (one := trained_on(runs, 1, "data")) > 0
    write_images(tmp_path / "feedback", count=8, first=401, labelled=True, mark=9)
    first, second = line_run("line", line, runs).run(2)
    assert trained_on(runs, 2, "before") == one and trained_on(runs, 2, "data") > one
    assert first["accepted"] and not second["accepted"]
    assert second["feedback"] == first["feedback"] and len(second["rejected"]) == 5
    write_images(tmp_path / "feedback", count=10, first=401, labelled=True, mark=9)
    third = line_run("line", line, runs).run(3)[2]
    assert trained_on(runs, 3, "before") == one
    stored = read_jsonl(runs / ".store" / third["feedback"] / "manifest.jsonl")
    assert [each["id"] for each in stored] == ["i401", "i402", "i403", "i409", "i410"]


def test_feedback_that_its_users_took_out_is_trained_on_by_no_arm(tmp_path, untrained):
    """Not even where a round is worse than what was kept, and the copies are there still."""
    feedback = write_images(tmp_path / "feedback", count=6, first=401, labelled=True, mark=9)
    line, runs = tiny_line(tmp_path, feedback=feedback, unlabelled=None, patience=9), tmp_path / "runs"
    untrained[2] = "worse"
    (first,) = line_run("line", line, runs).run(1)
    everything = feedback.read_text().splitlines(keepends=True)
    write_images(tmp_path / "feedback", count=8, first=401, labelled=True, mark=9)
    feedback.write_text("".join(feedback.read_text().splitlines(keepends=True)[2:]))
    second = line_run("line", line, runs).run(2)[1]
    kept = ["i403", "i404", "i405", "i406"]
    assert ids(runs / ".store" / second["feedback"]) == kept and len(second["rejected"]) == 2
    assert trained_on(runs, 2, "before") < trained_on(runs, 1, "data")
    assert trained_on(runs, 2, "data") > trained_on(runs, 2, "before")
    # given again, they come as new; and where nothing is left, nothing is kept
    feedback.write_text("".join(everything))
    third = line_run("line", line, runs).run(3)[2]
    assert ids(runs / ".store" / third["feedback"]) == ids(runs / ".store" / first["feedback"])
    assert trained_on(runs, 3, "before") == trained_on(runs, 2, "before")
    # the copies that the last round does not name may be deleted by hand, as the README says
    for folder in {*(runs / ".store/feedback").glob("*/")} - {runs / ".store" / third["feedback"]}:
        shutil.rmtree(folder)
    feedback.write_text(everything[0])
    (tmp_path / "feedback/media/401.png").unlink()
    fourth = line_run("line", line, runs).run(4)[3]
    assert fourth["feedback"] is None and trained_on(runs, 4, "before") is None
    assert fourth["unreadable"]["feedback"]["documents"] == 1


@pytest.mark.parametrize(
    ("with_words", "without", "outcome", "kept"),
    [("diverged", "done", "worse", "01"), ("diverged", "diverged", "not comparable", "01"),
     ("done", "diverged", "better", "02"), ("done", "done", "undecided", "02")],
)  # fmt: skip
def test_words_that_make_trainings_diverge_do_not_stay(tmp_path, make_plan, with_words, without, outcome, kept):
    plan = make_plan(seeds=Seeds((0, 1)))
    for trial in plan.trials:
        ended = "done" if trial.seed == 0 else with_words if trial.setting == "02" else without
        values = [1.0 + trial.seed, 2.0 if trial.setting == "01" else 2.1 - 0.2 * trial.seed]
        finish_trial(plan, trial, {"bits_per_byte": values}, outcome=ended)
    running = line_run("line", tiny_line(tmp_path), tmp_path / "runs")
    found = running._compare(plan, None, is_new=True)
    assert (found["brought"]["outcome"], found["setting"]) == (outcome, kept)


def save(folder, line, *, seed):
    """A model of random weights, as a run."""
    encode = EncodeConfig(max_image_tokens=16)
    tokenizer = train_tokenizer(["red", "blue"], 270)
    config = line.base.model(line.base.small.model, tokenizer.vocab_size)
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    save_model(folder / "small" / "model", model, encode_config=encode, tokenizer=tokenizer)
    return folder


def answered(loaded, prompts, *given, **options):
    for each in prompts:
        labelled = dataclasses.replace(each, kind="photo:pseudo", parts=(*each.parts, Text("red")))
        yield PseudoLabel(labelled, "red", 4, -0.1)


@pytest.mark.slow
def test_every_step_takes_media_as_large_as_the_recipe_does(tmp_path, monkeypatch):
    """A default of 256 MiB anywhere would end the round at a document that the recipe takes."""
    line = tiny_line(tmp_path, feedback=write_images(tmp_path / "feedback", count=2, first=400, labelled=True, mark=9))
    runs, model = tmp_path / "runs", save(tmp_path / "model", line, seed=1)
    line = dataclasses.replace(line, teacher=str(model), collapse=CollapseConfig(min_words=10**6))
    # a model of random weights says nothing that could be taken
    monkeypatch.setattr(AuditResult, "min_confidence", property(lambda self: {"photo": -1.0}))
    monkeypatch.setattr("brine.salt.relabel.answer_prompts", answered)
    monkeypatch.setattr(ContentHasher.__init__, "__kwdefaults__", {"max_file_mib": 1e-6})
    monkeypatch.setattr(driver.LineRun, "_train", lambda self, number, *rest: number)
    monkeypatch.setattr(driver.LineRun, "_compare", lambda *given, **named: {"brought": {}, "setting": "02"})
    monkeypatch.setattr(driver.LineRun, "_trained_data", lambda self, plan: {})
    found = line_run("line", line, runs).run(1)[0]
    assert found["unreadable"] == {} and found["feedback"]
    assert read_json(runs / "line/round_01/data/round_data.json")["pools"]["pseudo"]["chosen"] > 0


def forbidden():
    raise AssertionError("no small model was to be trained")


def test_a_given_teacher_is_pinned_by_its_digest(tmp_path):
    line = tiny_line(tmp_path)
    model = save(tmp_path / "other", line, seed=1)
    line = dataclasses.replace(line, teacher=str(model))
    loaded, said = teacher.find_teacher(line, tmp_path, forbidden)
    assert said["name"] == str(model) and loaded.folder == model / "small/model"
    assert read_json(tmp_path / "teacher.json")["weights"] == said["weights"]
    assert teacher.find_teacher(line, tmp_path, forbidden)[1] == said
    save(model, line, seed=2)
    with pytest.raises(ValueError, match=r"of this round was .* put it back"):
        teacher.find_teacher(line, tmp_path, forbidden)
    # the next round takes what is there
    (tmp_path / "next").mkdir()
    assert teacher.find_teacher(line, tmp_path / "next", forbidden)[1]["weights"] != said["weights"]
    missing = dataclasses.replace(line, teacher="nowhere")
    (tmp_path / "third").mkdir()
    with pytest.raises(ValueError, match="nowhere does not exist"):
        teacher.find_teacher(missing, tmp_path / "third", forbidden)
    assert not (tmp_path / "third/teacher.json").exists()


def test_the_champion_teaches_once_there_is_one(tmp_path, monkeypatch):
    """And a round goes on with the one that it began with."""
    line = tiny_line(tmp_path, registry=tmp_path / "registry", suite="s", teacher="champion")
    models = {name: save(tmp_path / name, line, seed=number) for number, name in enumerate(("small", "one", "two"))}
    registry = SimpleNamespace(champion=None, folder_of=lambda name: models[name])
    monkeypatch.setattr(teacher, "Registry", lambda root: registry)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    assert teacher.find_teacher(line, tmp_path / "first", lambda: models["small"])[1]["name"] == "small"
    registry.champion = "one"
    assert teacher.find_teacher(line, tmp_path / "first", lambda: models["small"])[1]["name"] == "small"
    loaded, said = teacher.find_teacher(line, tmp_path / "second", forbidden)
    assert said["name"] == "champion" and loaded.folder == models["one"] / "small/model"
    registry.champion = "two"
    assert teacher.find_teacher(line, tmp_path / "second", forbidden)[1] == said


def test_a_champion_teaches_only_with_a_registry(tmp_path):
    with pytest.raises(ValueError, match="give registry and suite"):
        tiny_line(tmp_path, teacher="champion")


def sources(*names):
    return tuple(CorpusSource(name, "x", consent="pseudo" if name == "pseudo" else "own") for name in names)


def test_weights_of_sources_may_change_over_the_training(tmp_path):
    """As in any recipe; an arm without a source has no weight for it, and the cap counts the mean."""
    line = tiny_line(tmp_path)
    entries = ("source:pseudo=0:0,0.5:2", "source:self-play*=3", "source:words=0.5", "kind:photo=2")
    packing = dataclasses.replace(line.base.packing, mixture=entries)
    line = dataclasses.replace(line, base=dataclasses.replace(line.base, packing=packing))
    assert line.recipe("r", sources("words"), tmp_path).packing.mixture == entries[2:]
    assert line.recipe("r", sources("words", "pseudo"), tmp_path).packing.mixture == (entries[0], *entries[2:])
    assert line.mixture(sources("words", "self-play-2")) == entries[1:]
    assert line.sampling("pseudo") == pytest.approx(1.5, abs=1e-3) and line.sampling("self-play-2") == 3.0
    assert line.sampling("feedback") == 1.0
    # a wrong name of a source is the recipe's to refuse
    wrong = dataclasses.replace(packing, mixture=("source:wrods=2",))
    assert (
        RoundLine(dataclasses.replace(line.base, packing=wrong), line.words).mixture(sources("words")) == wrong.mixture
    )
