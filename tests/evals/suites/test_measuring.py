"""What is measured on a suite is what the evaluation of documents measures, once for equal weights, for any model."""

import json
import math
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from brine.cli import main
from brine.common.content_store import ContentStore
from brine.common.files import read_jsonl
from brine.data.config import EncodeConfig
from brine.data.corpus.store import build_corpus
from brine.data.document import write_manifest
from brine.evals.suites import measure as measuring
from brine.evals.suites.measure import load_result, measure_on_suite, measure_suite, num_gate_uses
from brine.evals.suites.suite import Suite
from brine.inference.load import load
from tests.evals.command_runs import last_line
from tests.evals.suites.sources import ENCODE, make_model
from tests.forked import Command

pytestmark = pytest.mark.slow

CPU = ["--device", "cpu", "--dtype", "float32", "--workers", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two models: one tokenizer and patch size, and others."""
    base = tmp_path_factory.mktemp("runs")
    other = EncodeConfig(patch_size=4, mel_bins=32)
    return make_model(base / "one"), make_model(base / "two", seed=1, vocab_size=290, encode=other)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return ContentStore(tmp_path_factory.mktemp("cache") / ".store")


@pytest.fixture(scope="module")
def found(runs, suite, cache):
    """What was measured of the two models, in all parts."""
    return [
        measure_on_suite(run, suite, part=("dev", "test", "gate"), cache=cache, workers=1, out=run / "out")
        for run in runs
    ]


@pytest.fixture(scope="module")
def evaluated(runs, suite, tmp_path_factory):
    """The same documents by `brine eval --data`: lines of documents.jsonl and transcripts.jsonl of the first model."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(suite.folder / "media", folder / "documents" / "media")
    write_manifest(folder / "documents" / "manifest.jsonl", (case.document() for case in suite.cases))
    out = folder / "out"
    arguments = ["--data", str(folder / "documents"), "--out", str(out), "--transcripts-per-cell", "99", *CPU]
    assert main(["eval", str(runs[0]), *arguments]) == 0
    lines = [read_jsonl(out / "evaluate" / f"{name}.jsonl") for name in ("documents", "transcripts")]
    assert all(lines)
    return lines


def test_bits_per_byte_are_those_of_the_documents(found, suite, evaluated):
    for part, measured in found[0].items():
        for kind in (None, "pic", "say", "note", "film"):
            cases = {case.id for case in suite.cases_in(part) if kind in (None, case.kind)}
            lines = [each for each in evaluated[0] if each["id"] in cases and each["condition"] == "matched"]
            name = "bits_per_byte" if kind is None else f"bits_per_byte.{kind}"
            if not cases:
                assert name not in measured
                continue
            bits = sum(each["loss"] for each in lines) / math.log(2) / sum(each["bytes"] for each in lines)
            assert set(measured[name].case) == cases
            assert measured[name].value == pytest.approx(bits, rel=1e-5)


def test_gains_are_one_minus_matched_over_blank(found, suite, evaluated):
    checked = 0
    for part, measured in found[0].items():
        cases = {case.id for case in suite.cases_in(part)}
        for modality in ("image", "audio", "video"):
            losses = [
                sum(
                    each["loss"] for each in evaluated[0]
                    if each["id"] in cases and each["condition"] == condition and each["modality_context"] == modality
                )
                for condition in ("matched", f"blank {modality}")
            ]  # fmt: skip
            if losses[1]:
                assert measured[f"gain.{modality}"].value == pytest.approx(1 - losses[0] / losses[1], abs=1e-5)
                checked += 1
    assert checked >= 6


def test_error_rates_are_edits_over_characters(found, suite, evaluated):
    transcripts = {each["id"]: each for each in evaluated[1]}
    for part, measured in found[0].items():
        for modality in ("image", "audio", "video"):
            cases = {case.id for case in suite.cases_in(part) if case.transcription and modality_of(case) == modality}
            if not cases:
                continue
            each = measured[f"cer.{modality}"]
            assert set(each.case) == cases
            for name, edits, characters in zip(each.case, each.numerator, each.denominator, strict=True):
                reference = transcripts[name]["reference"]
                assert characters == len(reference) and "a heron by the water" in reference
                assert edits == transcripts[name]["edits"]


def modality_of(case):
    return case.transcription.modality


def test_models_of_other_tokenizers_and_patches_have_the_same_cases(found, suite):
    for part in suite.parts:
        ours, theirs = (each[part] for each in found)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].case == theirs[name].case and ours[name].kind == theirs[name].kind
        both = [each[part]["bits_per_byte"] for each in found]
        assert not np.array_equal(both[0].numerator, both[1].numerator)
        # images and films begin with media, so that each of their bytes is predicted by both
        for name in ("bits_per_byte.pic", "bits_per_byte.film", "cer.image"):
            if name in ours:
                assert np.array_equal(ours[name].denominator, theirs[name].denominator)


def test_the_same_request_again_loads_nothing(found, runs, suite, cache, monkeypatch):
    monkeypatch.setattr(measuring, "load", lambda *_, **__: pytest.fail("the model was loaded again"))
    start = time.process_time()
    again = measure_on_suite(runs[0], suite, part=("gate", "dev", "test"), cache=cache)
    assert time.process_time() - start < 1
    assert list(again) == ["dev", "test", "gate"]
    for part, measured in again.items():
        for name, each in measured.items():
            assert each.value == found[0][part][name].value and each.spec == found[0][part][name].spec


def test_equal_weights_give_equal_bytes(found, runs, suite, tmp_path):
    """In a fresh cache, from a copy of the run and of the suite elsewhere, one part at a time."""
    run, copy = shutil.copytree(runs[0], tmp_path / "run"), shutil.copytree(suite.folder, tmp_path / "moved")
    for number, part in enumerate(("gate", "test", "dev")):
        store = ContentStore(tmp_path / f"cache{number}")
        measure_on_suite(run, Suite.open(copy), part=part, cache=store, out=tmp_path / part, workers=2)
    lines = "".join((tmp_path / part / "measurements.jsonl").read_text() for part in ("dev", "gate", "test"))
    assert lines == (runs[0] / "out" / "measurements.jsonl").read_text()


@pytest.mark.parametrize("sign", ["suite_cases/*/store/building.json", "measured/*/stage.json"])
def test_a_killed_measurement_is_finished_by_the_next(found, runs, suite, tmp_path, sign):
    """Killed while cases are encoded, and while the model is measured."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    request = [str(runs[0]), "--on", str(suite.folder), "--cache", str(cache), "--part", "test", *CPU]
    process = Command(["-m", "brine.eval", *request, "--out", str(out)])
    try:
        end = time.monotonic() + 120
        while not list(cache.glob(sign)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (out / "measurements.jsonl").exists() and not list(cache.glob("measured/*/done"))
    assert main(["eval", *request, "--out", str(out)]) == 0
    whole = (runs[0] / "out" / "measurements.jsonl").read_text().splitlines()
    lines = (out / "measurements.jsonl").read_text().splitlines()
    assert lines == [line for line in whole if json.loads(line)["part"] == "test"]


def test_nothing_is_kept_without_a_cache(runs, suite, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert measure_on_suite(runs[0], suite, part="dev", workers=1)["dev"]["bits_per_byte"].value
    assert not list(tmp_path.iterdir())


def test_results_are_read_back(found, runs, suite):
    result = load_result(runs[0] / "out", suite)
    assert result.info["suite"] == suite.identity and len(result.info["weights"]) == 64
    assert (result.info["precision"], result.info["device"]) == ("float32", "cpu") and result.info["machine"]
    assert result.measurements["gate"]["bits_per_byte"].value == found[0]["gate"]["bits_per_byte"].value
    with pytest.raises(ValueError, match=r"measure the run on the suite first"):
        load_result(runs[0], suite)


def test_cases_that_a_model_cannot_take_are_named(suite, tmp_path):
    """Sounds of 0.2 s for an encoder that takes 0.1 s."""
    run = make_model(tmp_path / "run", encode=EncodeConfig(patch_size=8, mel_bins=16, max_audio_s=0.1))
    result = measure_suite(run, suite, part="dev", workers=1)
    sounds = {case.id for case in suite.cases_in("dev") if case.kind == "say"}
    named = {line["case"]: line for line in result.info["not_measured"]}
    assert sounds and named.keys() == sounds and all("0.1" in each["reason"] for each in named.values())
    measured = result.measurements["dev"]
    assert set(measured["bits_per_byte"].case) == {case.id for case in suite.cases_in("dev")} - sounds
    assert "gain.audio" not in measured and "bits_per_byte.say" not in measured and "gain.image" in measured


def test_a_model_that_diverged_is_not_measured_and_says_so(suite, tmp_path):
    run = make_model(tmp_path / "run")
    path = run / "large_baseline" / "model" / "model.safetensors"
    save_file({name: torch.full_like(value, math.nan) for name, value in load_file(path).items()}, path)
    result = measure_suite(run, suite, part="dev", workers=1)
    assert not {"bits_per_byte", "gain.image"} & result.measurements["dev"].keys()
    reasons = {line["case"]: line["reason"] for line in result.info["not_measured"]}
    assert reasons.keys() == {case.id for case in suite.cases_in("dev")}
    assert set(reasons.values()) == {"its loss is not finite"}


def test_cases_of_the_training_split_are_counted(found, runs, suite, source, cache, tmp_path):
    info = measure_suite(runs[0], suite, part="dev", cache=cache).info
    assert info["num_trained_on"] == {"dev": None}
    run = shutil.copytree(runs[0], tmp_path / "run")
    tokenizer = load(run).tokenizer
    corpus = build_corpus(source / "manifest.jsonl", run / "encoded" / "store", tokenizer=tokenizer, config=ENCODE)
    # the training split of the source is in no suite, also if results were kept before the corpus was there
    assert measure_suite(run, suite, part="dev", cache=cache).info["num_trained_on"] == {"dev": 0}
    column = run / "encoded" / "store" / "index" / "split.npy"
    np.save(column, np.zeros_like(np.asarray(corpus.split)))
    info = measure_suite(run, suite, cache=cache).info
    assert info["num_trained_on"] == {part: len(suite.cases_in(part)) for part in ("dev", "test")}


def test_damaged_media_are_not_measured(runs, suite, tmp_path):
    copy = shutil.copytree(suite.folder, tmp_path / "copy")
    case = next(case for case in suite.cases_in("dev") if case.kind == "pic")
    path = copy / case.parts[0].path
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{path.name} was changed"):
        measure_on_suite(runs[0], Suite.open(copy), part="dev", cache=ContentStore(tmp_path / "cache"))


def test_the_gate_part_is_counted_and_not_shown(found, runs, suite, cache, capsys):
    before = num_gate_uses(cache, suite)
    # once for each of the two models, and perhaps by another test
    assert before >= 2
    measure_on_suite(runs[0], suite, part=("gate",), cache=cache)
    measure_on_suite(runs[0], suite, part=("dev", "test"), cache=cache)
    assert num_gate_uses(cache, suite) == before + 1
    line = read_jsonl(cache.root / "gate_uses.jsonl")[-1]
    assert line["suite"] == suite.identity and len(line["weights"]) == 64
    for parts in (["gate"], ["dev", "gate"]):
        assert main(["eval", str(runs[0]), "--on", str(suite.folder), "--part", *parts, *CPU]) == 2
        assert "asked by `brine registry` alone" in capsys.readouterr().err
    assert num_gate_uses(cache, suite) == before + 1


def test_the_command_prints_tables_and_keeps_results(found, runs, suite, cache, tmp_path, capsys):
    arguments = ["eval", str(runs[0]), "--on", str(suite.folder), "--cache", str(cache.root), *CPU]
    assert main([*arguments, "--part", "dev", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "primary" in said and "gain.image" in said and "cases" in said
    value = last_line(said)["measures"]["dev"]["bits_per_byte"]
    assert value["low"] <= value["value"] <= value["high"]
    assert value["value"] == found[0]["dev"]["bits_per_byte"].value
    assert last_line(said)["parts"] == ["dev"] and load_result(tmp_path / "out", suite).measurements.keys() == {"dev"}
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "already holds something" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give either --on SUITE or --data DATA"),
        (["--on", "SUITE", "--data", "SUITE"], "give either"),
        (["--on", "SUITE", "--seq-len", "99"], "--seq-len has an effect with --data DATA alone"),
        (["--data", "SUITE", "--model", "small"], "--model has an effect with --on SUITE alone"),
        (["--on", "nowhere"], "nowhere is no suite"),
        (["--on", "SUITE", "--part", "dve"], "part 'dve' is none of dev, test, gate"),
        (["--on", "SUITE", "--model", "small"], "does not exist"),
    ],
)
def test_mistakes_of_the_command(runs, suite, capsys, more, message):
    given = [str(suite.folder) if each == "SUITE" else each for each in more]
    assert main(["eval", str(runs[0]), *given, *CPU]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
