"""`brine registry`, and `champion` or a digest wherever a command takes a run."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from brine.cli import main
from brine.common.files import file_digest, write_json
from brine.inference.load import find_model_folder, load
from brine.inference.registered import resolve_registered
from brine.registry.registry import Registry
from tests.paths import ROOT
from tests.registry.fakes import CLEAN, FAKE_GATE, SUITE, add_setting, make_run, write_measured, write_stage


@pytest.fixture
def brine(capsys, monkeypatch, tmp_path):
    """Runs a command in a folder of its own; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRINE_REGISTRY", raising=False)
    monkeypatch.setattr("brine.registry.registry.the_gate", lambda: FAKE_GATE)
    monkeypatch.setattr("brine.registry.cli.suite_access.open_suite", lambda name: SUITE)

    def call(*words):
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def last(text):
    return json.loads(text.splitlines()[-1])


def prepare(runs, name, **options):
    """Three measured runs; returns their folders."""
    found = []
    for seed in range(3):
        train = {name: value for name, value in options.items() if name == "learning_rate"}
        measured = {name: value for name, value in options.items() if name != "learning_rate"}
        run = make_run(runs, f"{name}-{seed}", seed=seed, **train)
        weights = json.loads((run / "large_salt" / "done").read_text())["result"]["fingerprint"]
        write_measured(run / "suites" / "synth", weights, seed=seed, **measured)
        found.append(run)
    return found


def add_and_measure(brine, folders):
    code, out, _ = brine("registry", "add", *folders)
    assert code == 0
    models = last(out)["models"]
    for model, run in zip(models, folders, strict=True):
        assert brine("registry", "measure", model[:8], "--on", "synth", "--measured", run / "suites" / "synth")[0] == 0
    return models


@pytest.mark.slow
def test_from_the_first_model_to_the_way_back(brine, tmp_path):
    base = add_and_measure(brine, prepare(tmp_path / "runs", "base"))
    code, out, _ = brine("registry", "promote", *base, "--on", "synth")
    assert code == 0 and last(out)["promoted"] in base and "the first model of this registry" in out
    deaf = add_and_measure(
        brine, prepare(tmp_path / "runs", "deaf", learning_rate=2e-3, bits_per_byte=1.5, gain__audio=0.95)
    )
    code, out, err = brine("registry", "promote", *deaf, "--on", "synth")
    assert code == 1 and "gain.audio  FAILED" in out and "against it: guard gain.audio is worse" in out and not err
    assert "the champion stays" in out and last(out)["promoted"] is None and last(out)["uses"] == 1
    code, out, _ = brine("registry", "promote", *deaf, "--on", "synth", "--force", "a demonstration")
    assert code == 0 and "by force: a demonstration" in out
    code, out, _ = brine("registry", "list")
    first, *_ = [line for line in out.splitlines() if "champion" in line]
    assert "FORCED: a demonstration" in first and "synth@1" in first and "deaf-" in first
    code, out, _ = brine("registry", "rollback", "--reason", "it hears nothing")
    assert code == 0 and last(out)["champion"] in base and last(out)["before"] in deaf
    code, out, _ = brine("registry", "show", deaf[0])
    assert code == 0 and "corpus.source" in out and "0123456789ab" in out and "machine" in out
    code, out, _ = brine("registry", "revoke", deaf[1][:10], "--reason", "it hears nothing")
    assert code == 0 and last(out)["models"] == [deaf[1]] and f"revoked with it: {deaf[1]}" in out
    assert last(out)["revoked"] == deaf[1]
    with pytest.raises(ValueError, match=r"may not be used: .* is revoked \(it hears nothing\); its folder"):
        load(deaf[1][:10])
    code, out, _ = brine("registry", "verify")
    assert code == 0 and "everything is as it was recorded" in out
    path = tmp_path / "runs" / "registry" / "models" / deaf[2] / "model" / "config.json"
    path.unlink()
    code, out, _ = brine("registry", "verify")
    assert code == 1 and str(path.relative_to(tmp_path)) in out and len(last(out)["damage"]) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["list"], "no registry at runs/registry: `brine registry add RUN` begins one"),
        (["verify"], "no registry at runs/registry"),
        (["add"], "give at least one run"),
        (["add", "nowhere"], "nowhere does not exist"),
        (["rollback"], "--reason"),
        (["rollback", "--reason", "x"], "no registry at"),
        (["promote", "abc", "--on", "synth"], "no registry at"),
        (["prmote"], "invalid choice|unrecognized|prmote"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_exits_2_in_one_line_with_nothing_made(brine, tmp_path, words, said):
    code, _, err = brine("registry", *words)
    assert code == 2 and len(err.splitlines()) == 1 and any(one in err for one in said.split("|"))
    assert list(tmp_path.iterdir()) == []


def test_the_way_back_needs_no_torch():
    """Importing it alone takes longer than a rollback may."""
    code = (
        "import sys, brine.registry.cli.main, brine.registry.registry, brine.registry.verify, brine.registry.cli.tables"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], cwd=ROOT, capture_output=True, text=True,
        timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "False\n", done.stderr


def test_without_suites_the_request_is_refused(brine, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    add_setting(Registry(tmp_path / "registry"), tmp_path / "runs", "base", seeds=(0,))
    code, _, err = brine("registry", "promote", "abcd", "--on", "nowhere", "--root", tmp_path / "registry")
    assert code == 2 and err.startswith("error: ")


@pytest.fixture
def registered(model_folder, tmp_path, monkeypatch):
    """A registry under runs/registry with a model that answers; returns its digest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRINE_REGISTRY", raising=False)
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(model_folder, run)
    weights = file_digest(run / "large_salt" / "model" / "model.safetensors")
    result = {"fingerprint": weights, "code": CLEAN}
    write_stage(run / "large_salt", config={"seed": 0}, inputs={"manifest": "1" * 64}, result=result)
    write_json(run / "recipe.json", {"seed": 0, "evals": {"seq_len": 64, "seed": 3}})
    write_json(run / "environment.json", CLEAN)
    registry = Registry(tmp_path / "runs" / "registry")
    model = registry.add(run)
    registry.measure(model, write_measured(run / "m", model), SUITE)
    assert registry.promote([model], SUITE, gate=FAKE_GATE).model == model
    return model


def test_the_champion_and_digests_load_by_name(registered, capsys, tmp_path):
    whole = "".join(load(find_model_folder(tmp_path / "runs" / "tiny")).generate("def ", max_tokens=4, temperature=0))
    for name in ("champion", registered, registered[:9]):
        loaded = load(name)
        assert loaded.folder.parent.name == registered
        assert "".join(loaded.generate("def ", max_tokens=4, temperature=0)) == whole
        assert main(["generate", name, "--prompt", "def ", "--max-tokens", "4", "--temperature", "0"]) == 0
        assert whole.rstrip("\n") in capsys.readouterr().out


def test_a_path_comes_first_and_other_names_stay_paths(registered, tmp_path, monkeypatch):
    assert resolve_registered("runs/tiny").name == "tiny" and str(resolve_registered("nowhere")) == "nowhere"
    (tmp_path / registered[:8]).mkdir()
    assert resolve_registered(registered[:8]).parent == resolve_registered(".").parent
    with pytest.raises(ValueError, match=r"nowhere does not exist.*registry runs/registry"):
        load("nowhere")
    monkeypatch.setenv("BRINE_REGISTRY", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="champion does not exist"):
        load("champion")


def test_a_prefix_of_two_models_and_a_pointer_to_none_are_refused(tmp_path):
    root = tmp_path / "registry"
    for end in "ab":
        (root / "models" / ("c0ffee" + end * 58)).mkdir(parents=True)
    with pytest.raises(ValueError, match="c0ffee is the beginning of 2 models"):
        resolve_registered("c0ffee", root=root)
    assert resolve_registered("c0ffeea", root=root).name == "c0ffee" + "a" * 58
    (root / "champion").symlink_to("../../etc")
    with pytest.raises(ValueError, match="does not lead to a model"):
        resolve_registered("champion", root=root)


def test_evaluation_of_a_registered_model_has_the_settings_of_its_run(registered):
    from brine.evals.run_files import eval_config_of

    config = eval_config_of(resolve_registered("champion"))
    assert config.seq_len == 64 and config.seed == 3
