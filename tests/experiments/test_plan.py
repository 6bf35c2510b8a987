"""A plan is frozen once, with whole recipes, absolute paths, and the code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from brine.common.content_store import file_lock
from brine.common.files import read_json
from brine.evals.measurement import MeasureSpec
from brine.experiments.cli import main
from brine.experiments.experiment import Budget, Grid, Listed, Seeds
from brine.experiments.planning import freeze as planning
from brine.experiments.planning import snapshot
from brine.experiments.planning.freeze import find_experiment, freeze
from brine.experiments.planning.plan import load_plan
from brine.experiments.planning.settings import parse_recipe, recipe_digest
from tests.experiments.tiny import finish_trial, tiny_experiment, write_experiment
from tests.paths import ROOT


def test_a_plan_holds_every_trial_as_a_whole_recipe(make_plan, source):
    plan = make_plan(seeds=Seeds((0, 2), confirm=(9,)))
    assert [trial.name for trial in plan.trials] == ["01-seed0", "01-seed2", "02-seed0", "02-seed2"]
    for trial in plan.trials:
        recipe = parse_recipe(trial.recipe)
        assert (recipe.name, recipe.runtime.num_threads, recipe.seed) == (trial.name, 1, 1000 * trial.seed)
        assert recipe_digest(recipe) == trial.digest and recipe.corpus.manifest.is_absolute()
        assert trial.resources["cores"] == 1 and 0.75 < trial.resources["memory_gib"] < 2
    assert plan.settings["02"]["label"] == "learning_rate=0.006" and plan.reference == "01"
    assert json.loads((plan.folder / "plan.json").read_text())["expects"] == "bits per byte fall a little"


def test_a_schedule_of_the_mixture_is_an_axis(make_plan):
    """Of kinds and of sources, constant or over the training."""
    schedules = [(), ("kind:text=0:0.5,1:2",), ("source:base=0.5",)]
    plan = make_plan(axes=Grid({"packing.mixture": schedules}))
    assert [trial.recipe["packing"]["mixture"] for trial in plan.trials] == [list(each) for each in schedules]
    assert len({trial.digest for trial in plan.trials}) == 3


def test_an_equal_plan_is_kept_and_another_refused(make_plan):
    plan = make_plan()
    before = {path: path.read_bytes() for path in plan.folder.iterdir() if path.is_file()}
    assert make_plan() == plan
    for changes, named in (
        ({"seeds": Seeds((0, 1))}, "seeds.screen"),
        ({"axes": Grid({"large.learning_rate": [3e-3, 7e-3]})}, "trial 02-seed0: other settings"),
        ({"expects": "nothing"}, "expects"),
        ({"budget": Budget(large_steps=5)}, "budget"),
    ):
        with pytest.raises(ValueError, match="give it a new name"):
            make_plan(**changes)
        with pytest.raises(ValueError, match=named):
            make_plan(**changes)
    assert before == {path: path.read_bytes() for path in plan.folder.iterdir() if path.is_file()}
    make_plan("other", seeds=Seeds((0, 1)))


def test_appended_trials_are_kept_and_a_cut_line_is_dropped(make_plan):
    plan = make_plan()
    more = [plan.trials[0].__class__(**{**vars(plan.trials[0]), "name": "01-seed7", "phase": "confirm"})]
    assert [trial.name for trial in plan.append(more).append(more).trials][2:] == ["01-seed7"]
    with open(plan.folder / "trials.jsonl", "a", encoding="utf-8") as file:
        file.write('{"name": "cut')
    assert load_plan(plan.folder).trials[2].phase == "confirm"
    # the frozen plan is still equal
    assert len(make_plan().trials) == 3
    lines = (plan.folder / "trials.jsonl").read_text().splitlines()
    (plan.folder / "trials.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(ValueError, match="lacks trials"):
        load_plan(plan.folder)


def test_the_last_batch_is_the_anchor(make_plan):
    with pytest.raises(ValueError, match="no other experiment"):
        make_plan("new", anchor="last")
    old = make_plan("old", seeds=Seeds((0, 1)))
    for trial in old.trials:
        finish_trial(old, trial, {"bits_per_byte": [2.0 if trial.setting == "02" else 3.0]})
    (old.folder / "table.json").write_text(json.dumps({"winner": {"setting": "02"}}))
    new = make_plan("new", anchor="last", seeds=Seeds((0, 3)), axes=Listed([{"large.grad_clip": 0.5}]))
    assert new.head["anchor"]["source"] == "old/02"
    names = [trial.name for trial in new.trials]
    assert names == ["01-seed0", "01-seed3", "anchor-seed0", "anchor-seed3", "former-seed0"]
    anchor, former = new.trial("anchor-seed0"), new.trial("former-seed0")
    assert parse_recipe(anchor.recipe).large.learning_rate == 6e-3 and not anchor.measured_run
    assert former.measured_run == str(old.trial_folder("02-seed0"))
    # who looks at which table does not change which batch was the last
    older = make_plan("older")
    (older.folder / "table.json").write_text(json.dumps({"winner": {"setting": "01"}}))
    os.utime(older.folder / "plan.json", (1, 1))
    assert make_plan("newest", anchor="old/02").head["anchor"]["source"] == "old/02"
    assert make_plan("next", anchor="last").head["anchor"]["source"] == "old/02"
    # a batch that came later does not move it
    later = make_plan("later")
    (later.folder / "table.json").write_text(json.dumps({"winner": {"setting": "01"}}))
    assert make_plan("new", anchor="last", seeds=Seeds((0, 3)), axes=Listed([{"large.grad_clip": 0.5}])) == new
    with pytest.raises(ValueError, match="no setting '07'"):
        make_plan("newer", anchor="old/07")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("axes=Grid({'large.lr': [1, 2]})", "no such field"),
        ("axes=Grid({'evals.seed': [1, 2]})", "evals.seed is no axis"),
        ("axes=Grid({'large.log_every': [1, 2]})", "has no effect"),
        ("suite='nowhere@1'", "nowhere@1"),
        ("primary='bits_per_bite'", "no measure 'bits_per_bite': it has bits_per_byte"),
        ("guards=('bits_per_byte.notes', 'cer.image')", "no measure 'cer.image'"),
        ("anchor='nowhere'", "has no plan.json"),
        ("seeds=Seeds(())", "give at least one seed"),
        ("question=3", "question = 3"),
    ],
)  # fmt: skip
def test_a_wrong_request_builds_nothing(more, message, source, tmp_path, capsys):
    path = write_experiment(tmp_path / "wrong.py", source, more=more)
    for verb in ("plan", "run"):
        assert main([verb, str(path), "--runs", str(tmp_path / "runs")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_wrong_command_lines_say_what_to_do(tmp_path, capsys, source):
    path = write_experiment(tmp_path / "right.py", source)
    runs = ["--runs", str(tmp_path / "runs")]
    for argv, message in (
        (["plot", "x"], "no verb 'plot'"),
        (["plan", "nowhere.py", *runs], "does not exist"),
        (["plan", "unknown", *runs], "unknown experiment 'unknown'"),
        (["status", "unknown", *runs], "has no plan.json"),
        (["run", str(path), "--workers", "0", *runs], "--workers 0"),
        (["run", str(path), "--engine", "kubernetes", *runs], "--engine kubernetes: give one of local"),
        (["run", str(path), "--tracker", "paper", *runs], "'paper' is unknown"),
        (["run", str(path), "--engine", "slurm", "--slurm", "account", *runs], "give name=value"),
        (["run", str(path), "--partition", "gpu", *runs], "--partition is SLURM's"),
        (["run", str(path), "--hours", "24", *runs], "--hours is SLURM's"),
        (["run", str(path), "--engine", "ray", "--hours", "0", *runs], "--hours is SLURM's"),
        (["run", str(path), "--engine", "slurm", "--address", "auto", *runs], "--address is Ray's"),
        (["run", str(path), "--address", "local", *runs], "--address is Ray's"),
        (["plan", str(path), "--threads", "0", *runs], "--threads 0"),
        (["plan", str(path), "--name", "a/b", *runs], "no name for an experiment"),
    ):
        assert main(argv) == 2, argv
        assert message in capsys.readouterr().err, argv
    assert main(["--help"]) == 0 and "retry" in capsys.readouterr().out


def test_a_plan_is_continued_as_it_is_by_name_and_by_a_file_that_still_says_the_same(
    tmp_path, capsys, source, monkeypatch
):
    """An edited file is never run as what it was before."""
    path, runs = write_experiment(tmp_path / "right.py", source), ["--runs", str(tmp_path / "runs")]
    begun = []
    monkeypatch.setattr("brine.experiments.batch.BatchRun.run", lambda self: begun.append(self.plan.name))
    monkeypatch.setattr("brine.experiments.cli.show_table", lambda plan, tracker: None)
    for argv in (["plan", str(path)], ["run", str(path)], ["run", "right"], ["run", "right", "--threads", "1"]):
        assert main([*argv, *runs]) == 0
    write_experiment(path, source, more="seeds=Seeds((0, 1, 2))")
    capsys.readouterr()
    assert main(["run", str(path), *runs]) == 2
    assert "plan.json is frozen and this plan differs" in capsys.readouterr().err
    assert main(["run", "right", "--threads", "2", *runs]) == 2
    assert "--threads 2: the plan of right has 1" in capsys.readouterr().err
    assert main(["run", "right", *runs]) == 0
    assert begun == ["right"] * 4


def test_a_suite_that_was_named_is_found_from_everywhere(make_plan, tmp_path, monkeypatch):
    """Trials run in other folders than the one in which the plan is made."""
    found = SimpleNamespace(
        name="held", folder=Path("runs/suites/held@1"), digest="d", primary="bits_per_byte", guards=(),
        measures=(MeasureSpec("bits_per_byte"),),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("brine.experiments.trials.measure._open_suite", lambda name: found)
    assert make_plan(suite="held@1").head["suite"]["path"] == str(tmp_path / "runs/suites/held@1")


def test_an_experiment_is_found_by_its_file(tmp_path, source):
    name, found = find_experiment(str(write_experiment(tmp_path / "rates.py", source)))
    assert name == "rates" and found.question == "Is a higher rate better?"
    (tmp_path / "number.py").write_text("def number():\n    return 3\n")
    with pytest.raises(ValueError, match="an experiment's function returns an Experiment"):
        find_experiment(str(tmp_path / "number.py"))


def test_explain_names_the_fields(make_plan, capsys):
    plan = make_plan(seeds=Seeds((0, 1)))
    runs = ["--runs", str(plan.folder.parent)]
    assert main(["explain", "tiny", *runs]) == 0
    assert "01 -> 02\n  large.learning_rate: 0.003 -> 0.006" in capsys.readouterr().out
    assert main(["explain", "tiny", "01-seed0", "01-seed1", *runs]) == 0
    said = capsys.readouterr().out
    assert "large.seed: 2 -> 1002" in said and "seed: 0 -> 1000" in said
    assert main(["explain", "tiny", "01", *runs]) == 2


def test_code_without_a_plan_is_replaced(source, tmp_path, monkeypatch):
    """`plan` was killed before plan.json, and the checkout was edited since."""
    root, runs = tmp_path / "checkout", tmp_path / "runs"
    root.mkdir()
    for name in ("train.py", "pyproject.toml"):
        (root / name).write_text("old")
    monkeypatch.setattr(snapshot, "IMPORT_FOLDER", str(root))
    folder = runs / "tiny"
    old = snapshot.take_snapshot(folder)
    (folder / ".code.77" / "common").mkdir(parents=True)
    (folder / "trials.jsonl").write_text("{}\n")
    (root / "train.py").write_text("new")
    plan = freeze("tiny", tiny_experiment(source), runs=runs, threads=1)
    assert (folder / "code" / "train.py").read_text() == "new" and plan.head["code"]["digest"] != old["digest"]
    assert not (folder / ".code.77").exists() and len(plan.trials) == 2
    # what a plan refers to stays
    (root / "train.py").write_text("newer")
    assert freeze("tiny", tiny_experiment(source), runs=runs, threads=1) == plan
    assert (folder / "code" / "train.py").read_text() == "new"


@pytest.mark.parametrize("held", ["log.jsonl", "code/mine.py", "trials/01-seed0/trial.json", "recipe.json"])
def test_a_folder_that_holds_something_else_is_refused(make_plan, held):
    path = make_plan.runs / "registry" / held
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    told = "is a run" if held == "recipe.json" else f"holds {held.partition('/')[0]} and no plan"
    with pytest.raises(ValueError, match=f"registry {told}.*another name with --name"):
        make_plan("registry")
    assert [each for each in (make_plan.runs / "registry").rglob("*") if each.is_file()] == [path]


def test_two_that_plan_at_once_make_one_plan(make_plan, monkeypatch):
    """The other one was faster, or is still copying the code."""
    (make_plan.runs / "tiny").mkdir(parents=True)
    lock = file_lock(make_plan.runs / "tiny" / "run.lock", what="tiny")
    with lock, pytest.raises(ValueError, match="is being planned or run by another process"):
        make_plan()
    draft, others = planning.draft_plan, []

    def slowly(*args, **options):
        found = draft(*args, **options)
        if not others:
            others.append(None)
            others.append(make_plan())
        return found

    monkeypatch.setattr(planning, "draft_plan", slowly)
    assert make_plan() == others[1]


def test_the_snapshot_is_the_running_code_with_changes(tmp_path, monkeypatch):
    """A checkout in git: tracked files as they are now, untracked ones, no ignored or deleted ones."""
    root = tmp_path / "checkout"
    files = {"train.py": "", "pyproject.toml": "", "common/a.py": "old", "common/gone.py": "", "tests/test.py": "",
             ".gitignore": "runs/\n*.log\n"}  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    (root / "common/a.py").write_text("new")
    (root / "common/gone.py").unlink()
    for name in ("common/b.py", "runs/x/plan.json", "x.log"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("more")
    monkeypatch.setattr(snapshot, "IMPORT_FOLDER", str(root))
    found = snapshot.take_snapshot(tmp_path / "experiment")
    code = tmp_path / "experiment" / "code"
    names = {path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()}
    assert names == {"COMMIT", "train.py", "pyproject.toml", ".gitignore", "common/a.py", "common/b.py"}
    assert (code / "common/a.py").read_text() == "new"
    assert found["files"] == 6 and snapshot.take_snapshot(tmp_path / "experiment") == found
    (code / "common/a.py").write_text("newer")
    assert snapshot.take_snapshot(tmp_path / "experiment")["digest"] != found["digest"]


def test_a_snapshot_of_an_installed_package_and_of_a_copy_without_git(tmp_path, monkeypatch):
    expected = {"site": {"brine/a.py", "brine/data/b.json"}, "copy": {"train.py", "pyproject.toml", "data/b.py"}}
    more = {"site": {"other/c.py", "brine/__pycache__/a.pyc"}, "copy": {".venv/x.py", "runs/y.py"}}
    for name, wanted in expected.items():
        root = tmp_path / name
        for each in wanted | more[name]:
            (root / each).parent.mkdir(parents=True, exist_ok=True)
            (root / each).write_text(each)
        monkeypatch.setattr(snapshot, "IMPORT_FOLDER", str(root))
        snapshot.take_snapshot(tmp_path / f"experiment-{name}")
        code = tmp_path / f"experiment-{name}" / "code"
        found = {path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()}
        assert found == {*wanted, "COMMIT"}


@pytest.mark.slow
def test_a_process_imports_the_snapshot_whatever_lies_elsewhere(tmp_path):
    snapshot.take_snapshot(tmp_path)
    (tmp_path / "code" / "brine" / "__init__.py").open("a").write("\nMARK = 'snapshot'\n")
    code = "import brine, brine.common.files, brine.experiments.planning.plan as p; print(brine.MARK, p.__file__)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'code'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    mark, path = done.stdout.split()
    assert mark == "snapshot" and Path(path).is_relative_to(tmp_path / "code"), done.stderr
    assert read_json(tmp_path / "plan.json") is None
