"""Commands of the evals package: a run on other documents, mistakes, help; and no silence."""

import json
import math
import os
import shutil

import pytest

from brine.cli import main
from brine.data.corpus.store import build_corpus
from brine.data.filters.registry import run_filters
from brine.evals.cli import compare, report
from brine.evals.cli import evaluate as measure
from brine.evals.comparison.runs import load_losses
from brine.evals.report.sections import record_section
from brine.inference.load import load
from tests.evals.command_runs import ARGUMENTS, ENCODE, KINDS, last_line
from tests.evals.section_html import section_html

pytestmark = pytest.mark.slow


def test_what_is_kept_follows_the_umask(made):
    """Encoded documents, arrays, losses and samples, as any new file of the user."""
    for path in sorted((made[0] / "one-on").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_a_run_is_measured_on_other_documents(made):
    base, printed = made
    found = json.loads(printed[0][-1])
    assert (found["documents"], found["quarantined"], found["num_measured"]) == (11, 1, 11)
    assert found["main_model"] == "large_baseline" and set(found["models"]) == {"large_baseline", "small"}
    assert found["num_trained_on"] is None and found["out"] == str(base / "one-on")
    for model in found["models"].values():
        assert {row["kind"]: row["documents"] for row in model["kinds"]} == KINDS
        for row in [model, *model["kinds"]]:
            for name in ("loss", "bits_per_byte"):
                assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
        # an untrained model knows next to nothing
        assert model["loss"]["value"] == pytest.approx(math.log(280), abs=0.9)
    gain = found["media_gain"]["image"]
    assert gain["low"] <= gain["gain"] <= gain["high"] and [row["kind"] for row in gain["kinds"]] == ["pic"]
    # what a person reads stands before it
    assert "large_baseline" in printed[0][0] and "media gain, image" in printed[0][0]


def test_the_numbers_are_those_of_the_documents(made):
    base, printed = made
    lines = [json.loads(line) for line in (base / "one-on/evaluate/documents.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["condition"] == "matched" and line["model"] == "small"]
    assert {line["id"] for line in own} == {f"d{number}" for number in range(11)}
    loss, tokens = sum(line["loss"] for line in own), sum(line["tokens"] for line in own)
    model = json.loads(printed[0][-1])["models"]["small"]
    assert model["loss"]["value"] == pytest.approx(loss / tokens) and model["tokens"] == tokens
    bits = loss / math.log(2) / sum(line["bytes"] for line in own)
    assert model["bits_per_byte"]["value"] == pytest.approx(bits)
    # the run itself is as it was
    assert sorted(path.name for path in (base / "one").iterdir()) == ["large_baseline", "recipe.json", "small"]


def test_nothing_is_kept_unless_asked(made, capsys, tmp_path, monkeypatch):
    base, _ = made
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = [str(base / "one" / "small"), "--data", str(base / "documents" / "manifest.jsonl"), *ARGUMENTS]
    assert measure([*arguments, "--documents-per-cell", "2"]) == 0
    found = last_line(capsys.readouterr().out)
    assert found["out"] is None and found["num_measured"] == 4 and list(found["models"]) == ["small"]
    assert not list(tmp_path.iterdir())


def test_documents_of_the_training_are_counted(made, tmp_path, capsys):
    """A measurement on what a model was trained on is no test, and says so."""
    base, _ = made
    run = shutil.copytree(base / "one", tmp_path / "run")
    shutil.copytree(base / "one-on" / "encoded", run / "encoded" / "store")
    assert measure([str(run), "--data", str(base / "documents"), "--documents-per-cell", "1", *ARGUMENTS]) == 0
    said = capsys.readouterr().out
    # of eleven documents every third is in the training split
    assert last_line(said)["num_trained_on"] == 4 and "trained on 4" in said


def num_measured(run, data, capsys, *more):
    assert measure([str(run), "--data", str(data), *ARGUMENTS, *more]) == 0
    return last_line(capsys.readouterr().out)


def without_place(found):
    return {
        name: value for name, value in found.items() if name not in ("data", "out", "run", "num_trained_on", "notes")
    }


@pytest.mark.parametrize("run", ["one", "two"], ids=["same-tokens", "other-tokens"])
def test_a_built_corpus_is_read(made, capsys, tmp_path, run):
    """It was refused, though it holds the documents. Where its tokens are not the run's they are made anew."""
    base, printed = made
    built, before = base / "one-on" / "encoded", json.loads(printed[run == "two"][-1])
    found = num_measured(base / run, built, capsys, "--out", str(tmp_path / "out"))
    assert without_place(found) == without_place(before) | {
        "quarantined": int(run == "one"), "quarantine_reasons": before["quarantine_reasons"] if run == "one" else []
    }  # fmt: skip
    assert (tmp_path / "out" / "encoded").exists() == (run == "two")
    assert load_losses(tmp_path / "out").ids == load_losses(base / f"{run}-on").ids


def test_documents_that_filters_left_out_are_left_out(made, capsys, tmp_path):
    base, _ = made
    text = [{"type": "text", "text": "a heron by water"}]
    lines = [{"id": f"t{number}", "kind": "note", "split": "train", "content": text} for number in range(3)]
    lines.append({"id": "other", "kind": "note", "content": [{"type": "text", "text": "no heron"}]})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = load(base / "one" / "small").tokenizer
    corpus = build_corpus(tmp_path / "manifest.jsonl", tmp_path / "built", tokenizer=tokenizer, config=ENCODE)
    run_filters(corpus, ["exact_duplicates"])
    for run in ("one", "two"):
        found = num_measured(base / run, tmp_path / "built", capsys)
        assert (found["documents"], found["num_measured"]) == (2, 2)


def test_a_corpus_without_media_and_one_whose_media_are_gone(made, capsys, tmp_path):
    base, printed = made
    documents = shutil.copytree(base / "documents", tmp_path / "documents")
    tokenizer = load(base / "one" / "small").tokenizer
    build_corpus(documents, tmp_path / "built", tokenizer=tokenizer, config=ENCODE, keep_media=False)
    assert without_place(num_measured(base / "one", tmp_path / "built", capsys)) == without_place(
        json.loads(printed[0][-1])
    )
    documents.rename(tmp_path / "elsewhere")
    assert measure([str(base / "two"), "--data", str(tmp_path / "built"), *ARGUMENTS]) == 2
    assert "where its documents came from, is gone" in capsys.readouterr().err


def test_a_run_trained_on_a_built_corpus_knows_its_documents(made, capsys, tmp_path):
    base, _ = made
    run, built = shutil.copytree(base / "one", tmp_path / "run"), base / "one-on" / "encoded"
    recipe = json.loads((run / "recipe.json").read_text()) | {"corpus": {"manifest": str(built)}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    for asked in (run, run / "small", run / "small" / "model"):
        assert num_measured(asked, built, capsys, "--documents-per-cell", "1")["num_trained_on"] == 4


def test_a_model_of_before_is_not_held_to_the_documents_of_after(made, tmp_path, capsys):
    """0 were said to be of its training, since the run had another corpus by then."""
    base, _ = made
    run = shutil.copytree(base / "one", tmp_path / "run")
    shutil.copytree(base / "one-on" / "encoded", run / "encoded" / "store")
    old = run / "large_baseline.old-1"
    shutil.copytree(run / "large_baseline", old)
    for digest, num_trained_on in (("then", 4), ("now", None)):
        (old / "stage.json").write_text(json.dumps({"inputs": {"encoded": "then"}}))
        (run / "encoded" / "done").write_text(json.dumps({"digest": digest}))
        assert measure([str(old), "--data", str(base / "documents"), "--documents-per-cell", "1", *ARGUMENTS]) == 0
        said = capsys.readouterr().out
        assert last_line(said)["num_trained_on"] == num_trained_on
        assert ("overlap with the training set cannot be checked" in said) == (num_trained_on is None)


def test_documents_longer_than_a_row_are_told(made, tmp_path, capsys, caplog):
    """They were scored without their image, and the numbers said nothing of it."""
    base, _ = made
    out = tmp_path / "out"
    arguments = [str(base / "one"), "--data", str(base / "documents"), "--out", str(out), *ARGUMENTS]
    assert measure([*arguments, "--seq-len", "12"]) == 0
    found = json.loads((out / "evaluate/results.json").read_text())["split_documents"]
    assert found["documents"] > 0 and found["seq_len"] == 12 < found["longest_tokens"]
    assert f"seq_len {found['longest_tokens']} keeps them whole" in caplog.text
    page = section_html(record_section([], {}, {}, None, None, split_documents=found))
    assert f"{found['documents']} of {found['total_documents']} held-out documents are longer than 12 tokens" in page
    whole = json.loads((base / "one-on/evaluate/results.json").read_text())["split_documents"]
    assert whole["documents"] == 0 and "held-out" not in section_html(
        record_section([], {}, {}, None, None, split_documents=whole)
    )


def test_the_same_request_goes_on_and_another_is_refused(made, tmp_path, capsys):
    base, _ = made
    out, documents = str(base / "one-on"), str(base / "documents")
    before = (base / "one-on/evaluate/results.json").read_bytes()
    assert measure([str(base / "two"), "--data", documents, "--out", out, *ARGUMENTS]) == 2
    assert measure([str(base / "one"), "--data", documents, "--out", str(base / "one"), *ARGUMENTS]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 2 and said.count("give a new folder") == 2
    assert measure([str(base / "one"), "--data", documents, "--out", out, *ARGUMENTS]) == 0
    assert (base / "one-on/evaluate/results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({0: "nowhere"}, "nowhere does not exist"),
        ({0: "documents"}, "holds no finished model"),
        ({2: "nothing"}, "nothing does not exist"),
        ({2: "begun"}, "holds no finished corpus"),
        ({2: "documents/0.png"}, "0.png"),
        ({"more": ["--documents-per-cell", "0"]}, "documents_per_cell = 0"),
        ({"more": ["--device", "tpu-of-mine"]}, "device"),
    ],
    ids=["no-run", "no-model", "no-data", "half-built", "no-manifest", "count", "device"],
)
def test_mistakes_are_one_line(made, capsys, change, hint):
    base, _ = made
    (base / "begun").mkdir(exist_ok=True)
    (base / "begun" / "building.json").write_text("{}")
    paths = [str(base / change.get(0, "one")), "--data", str(base / change.get(2, "documents"))]
    assert measure([*paths, *ARGUMENTS, *change.get("more", ())]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and hint in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["eval", "compare", "report", "needle", "repository"])
def test_commands_have_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "RUN" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "compare", "report", "needle", "repository"])
def test_commands_without_arguments_say_so(command, capsys):
    """They printed nothing and returned 0."""
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert "RUN" in said and said.startswith("error: ") and said.count("\n") == 1


def test_what_was_passed_over_and_why_is_told(made, tmp_path, capsys):
    """Documents that were set aside were only counted, and files that were passed over not even that."""
    base, _ = made
    documents = shutil.copytree(base / "documents", tmp_path / "documents")
    lines = (documents / "manifest.jsonl").read_text().splitlines()
    lines += [json.dumps({"id": f"bad{number}", "content": [{"type": "image", "image": "no.png"}]}) for number in "abc"]
    (documents / "manifest.jsonl").write_text("".join(line + "\n" for line in lines))
    arguments = [str(base / "one" / "small"), "--data", str(documents), "--out", str(tmp_path / "out"), *ARGUMENTS]
    for number in range(3):
        # after the first time nothing is read again, and the same is told
        if number == 2:
            (tmp_path / "out" / "reader_notes.json").rename(tmp_path / "out" / "told.json")
        assert measure([*arguments, "--documents-per-cell", "1"]) == 0
        out = capsys.readouterr().out
        assert "media by extension: " in out and "splits: by " in out and "4 quarantined" in out
        assert "gone" in out and "no.png' does not exist" in out and "quarantined: 1 more, such as 1 for: " in out
        found = last_line(out)
        assert found["quarantined"] == 4 and len(found["quarantine_reasons"]) == 4 and found["notes"]


NOTHING = {
    "no-target": ({"d.jsonl": '{"messages": [{"role": "user", "content": "x"}]}\n'}, "there is nothing to learn from"),
    "media-gone": ({"d.jsonl": '{"id": "a", "content": [{"type": "image", "image": "no.png"}]}\n'}, "no.png"),
    "empty": ({"d.jsonl": ""}, "d.jsonl"),
    "no target": (
        {"d.jsonl": '{"id": "a", "content": [{"type": "text", "text": "x", "loss_mask": false}]}\n'},
        "d.jsonl has a target (0 of 1)",
    ),
    "three": ({"d.jsonl": '{"id": "a", "content": []}\n' * 4}, "1 more"),
}


@pytest.mark.parametrize("out", [True, False], ids=["out", "nothing-kept"])
@pytest.mark.parametrize(("files", "hint"), NOTHING.values(), ids=list(NOTHING))
def test_where_no_document_is_left_the_reason_is_told(made, tmp_path, capsys, files, hint, out):
    """The message named a file in a folder that was gone by then, or asked to mend the files of an empty list."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    where = ["--out", str(tmp_path / "out")] if out else []
    assert measure([str(made[0] / "one"), "--data", str(tmp_path / "d.jsonl"), *where, *ARGUMENTS]) == 2
    said = capsys.readouterr().err
    assert hint in said and "brine-evals" not in said and "mend the files it names" not in said


def test_a_format_can_be_given(made, tmp_path, capsys):
    """The message said to give one, and there was no way to."""
    base, _ = made
    (tmp_path / "one.data").write_bytes(b"\x00\x01\x02 a heron by water")
    arguments = [str(base / "one" / "small"), "--data", str(tmp_path / "one.data"), *ARGUMENTS]
    assert measure(arguments) == 2
    said = capsys.readouterr().err
    assert "give --format" in said and "format=" not in said
    assert measure([*arguments, "--format", "nonsense"]) == 2
    assert "'nonsense' is none of " in capsys.readouterr().err
    lines = (base / "documents" / "manifest.jsonl").read_text()
    (tmp_path / "odd.data").write_text(lines.replace('"image": "', f'"image": "{base}/documents/'))
    shutil.copytree(base / "documents", tmp_path / "d")
    (tmp_path / "d" / "manifest.jsonl").rename(tmp_path / "d" / "odd.data")
    arguments = [str(base / "one" / "small"), "--data", str(tmp_path / "d" / "odd.data"), *ARGUMENTS]
    assert measure([*arguments, "--format", "manifest", "--documents-per-cell", "1"]) == 0
    assert last_line(capsys.readouterr().out)["documents"] == 11
    assert measure([arguments[0], "--data", str(base / "one-on" / "encoded"), "--format", "manifest", *ARGUMENTS]) == 2
    assert "built corpus" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "report", "measure"])
def test_a_reader_that_stops_early_is_no_mistake(made, tmp_path, capsys, monkeypatch, command):
    base, _ = made
    run = shutil.copytree(base / "one", tmp_path / "run")
    asked = {
        "compare": lambda: compare([str(base / "one-on"), str(base / "two-on")]),
        "report": lambda: report([str(run)]),
        "measure": lambda: measure([str(base / "one"), "--data", str(base / "one-on" / "encoded"),
                                    "--documents-per-cell", "1", *ARGUMENTS]),
    }[command]  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert asked() == 0
    assert "rror" not in capsys.readouterr().err
