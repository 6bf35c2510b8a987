"""Commands of the evals package: a run on other documents, two runs compared, a report made again; and no silence."""

import json
import math
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from brine.cli import main
from brine.data.config import EncodeConfig
from brine.data.corpus.store import build_corpus
from brine.data.filters.registry import run_filters
from brine.data.tokenizer import train_tokenizer
from brine.evals.cli import compare, report
from brine.evals.cli import evaluate as measure
from brine.evals.compare import load_losses
from brine.evals.config import ratio_interval
from brine.evals.report.page import render_section
from brine.evals.report.record import record_section
from brine.evals.run_files import read_results
from brine.inference.load import load, save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer

pytestmark = pytest.mark.slow

ENCODE = EncodeConfig(patch_size=4, mel_bins=16)
KINDS = {"pic": 6, "note": 5}


def make_run(folder, *, seeds=(0,), vocab_size=280):
    """A run folder with finished models of random weights."""
    tokenizer = train_tokenizer(["a heron by the water, " * 3] * 4, vocab_size)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16,
        image_dim=ENCODE.image_dim, audio_dim=ENCODE.audio_dim, video_dim=ENCODE.video_dim,
    )  # fmt: skip
    for seed, stage in zip(seeds, ("large_baseline", "small"), strict=False):
        model = Transformer(config, generator=torch.Generator().manual_seed(seed))
        save_model(folder / stage / "model", model, encode_config=ENCODE, tokenizer=tokenizer)
    evals = {"documents_per_cell": 3, "seq_len": 128, "bootstrap_resamples": 100, "targets": {"image_gain": 0.9}}
    (folder / "recipe.json").write_text(json.dumps({"name": folder.name, "evals": evals}))
    return folder


def make_documents(folder):
    """Images with words, and words, of all splits, and one that cannot be used."""
    folder.mkdir()
    lines = []
    for number in range(sum(KINDS.values())):
        text = {"type": "text", "text": f"a heron by water number {number} " + "and again " * (number % 3)}
        content = [text]
        if number < KINDS["pic"]:
            PIL.Image.new("RGB", (12, 8), (number * 40, 90, 9)).save(folder / f"{number}.png")
            content = [{"type": "image", "image": f"{number}.png"}, text]
        kind = "pic" if number < KINDS["pic"] else "note"
        split = ("train", "validation", "test")[number % 3]
        lines.append({"id": f"d{number}", "kind": kind, "split": split, "content": content})
    lines.append({"id": "gone", "kind": "pic", "content": [{"type": "image", "image": "gone.png"}]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


ARGUMENTS = ["--workers", "1", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of different tokenizers, documents, and what each measured on them, with what was printed."""
    base = tmp_path_factory.mktemp("evals")
    runs = [make_run(base / "one", seeds=(0, 1)), make_run(base / "two", seeds=(5,), vocab_size=270)]
    documents, printed = make_documents(base / "documents"), []
    before = os.umask(0o027)
    with pytest.MonkeyPatch.context() as patch:
        for run in runs:
            out = []
            patch.setattr("builtins.print", lambda *words, out=out, **_: out.append(" ".join(map(str, words))))
            code = measure([str(run), "--data", str(documents), "--out", str(base / f"{run.name}-on"), *ARGUMENTS])
            assert code == 0, out
            printed.append(out)
    os.umask(before)
    return base, printed


def test_what_is_kept_follows_the_umask(made):
    """Encoded documents, arrays, losses and samples, as any new file of the user."""
    for path in sorted((made[0] / "one-on").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


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
    page = render_section(record_section([], {}, {}, None, None, split_documents=found))
    assert f"{found['documents']} of {found['total_documents']} held-out documents are longer than 12 tokens" in page
    whole = json.loads((base / "one-on/evaluate/results.json").read_text())["split_documents"]
    assert whole["documents"] == 0 and "held-out" not in render_section(
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


def test_two_runs_are_compared_document_by_document(made, capsys):
    base, _ = made
    assert compare([str(base / "one-on"), str(base / "two-on")]) == 0
    said = capsys.readouterr().out
    found = last_line(said)
    assert found["models"] == ["large_baseline", "large_baseline"] and found["documents"] == 11
    ours, theirs = load_losses(base / "one-on"), load_losses(base / "two-on")
    assert ours.ids == theirs.ids
    gap = (ours.loss - theirs.loss) / math.log(2)
    expected = ratio_interval(gap, ours.bytes).to_dict(name="difference")
    assert {name: found["bits_per_byte"][name] for name in expected} == pytest.approx(expected)
    # the tokenizers differ, so a token is not a token
    assert not np.array_equal(ours.tokens, theirs.tokens) and found["nats_per_token"] is None
    assert {row["kind"]: row["documents"] for row in found["kinds"]} == KINDS
    assert "bits per byte" in said


def test_two_models_of_a_run_are_compared(made, capsys):
    base, _ = made
    out = str(base / "one-on")
    assert compare([out, out, "--models", "small", "large_baseline"]) == 0
    forth = last_line(capsys.readouterr().out)["nats_per_token"]
    assert compare([out, out, "--models", "large_baseline", "small"]) == 0
    back = last_line(capsys.readouterr().out)["nats_per_token"]
    assert forth["difference"] == pytest.approx(-back["difference"]) and forth["difference"] != 0
    assert compare([out, out]) == 0
    assert last_line(capsys.readouterr().out)["nats_per_token"]["outcome"] == "undecided"


def other_ids(out):
    path = out / "evaluate" / "documents.jsonl"
    path.write_text(path.read_text().replace('"id": "d3"', '"id": "e3"'))


def other_bytes(out):
    lines = [json.loads(line) for line in (out / "evaluate" / "documents.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"bytes": line["bytes"] + (line["id"] == "d2")}) + "\n" for line in lines)
    (out / "evaluate" / "documents.jsonl").write_text(text)


def fewer(out):
    path = out / "evaluate" / "documents.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"id": "d5"' not in line))


def not_evaluated(out):
    shutil.rmtree(out / "evaluate")


def no_losses(out):
    (out / "evaluate" / "documents.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (other_ids, "1 only in the first, such as d3; 1 only in the second, such as e3"),
        (fewer, "1 only in the first, such as d5"),
        (other_bytes, "document d2 has"),
        (not_evaluated, "is not evaluated"),
        (no_losses, "has no losses"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_runs_on_other_documents_are_not_compared(made, tmp_path, capsys, change, hint):
    base, _ = made
    out = shutil.copytree(base / "one-on", tmp_path / "out")
    change(out)
    assert compare([str(base / "one-on"), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and hint in said and said.count("\n") == 1


def test_evaluations_of_before_are_compared_by_their_corpus(made, tmp_path, capsys):
    """They hold numbers of documents; the run's corpus has the ids."""
    base, _ = made
    out = shutil.copytree(base / "one-on", tmp_path / "out")
    lines = [json.loads(line) for line in (out / "evaluate" / "documents.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({name: line[name] for name in line if name != "id"}) + "\n" for line in lines)
    (out / "evaluate" / "documents.jsonl").write_text(text)
    assert compare([str(base / "one-on"), str(out)]) == 2
    assert "does not say which documents" in capsys.readouterr().err
    (out / "encoded").rename(out / "store")
    (out / "encoded").mkdir()
    (out / "store").rename(out / "encoded" / "store")
    assert compare([str(base / "one-on"), str(out)]) == 0


def test_a_model_that_is_not_there_is_named(made, capsys):
    base, _ = made
    assert compare([str(base / "one-on"), str(base / "two-on"), "--models", "small", "small"]) == 2
    assert "has no model 'small': choose one of large_baseline" in capsys.readouterr().err


def test_a_report_is_made_again(made, tmp_path, capsys):
    base, _ = made
    run = shutil.copytree(base / "one", tmp_path / "run")
    shutil.copytree(base / "one-on" / "evaluate", run / "evaluate")
    (run / "summary.json").write_text('{"wall_s": 12.5, "peak_rss_gib": 1.5}')
    assert report([str(run)]) == 0
    assert last_line(capsys.readouterr().out) == {"report": str(run / "report.html"), "evaluated": True}
    assert '<section id="gain"' in (run / "report.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["wall_s"] == 12.5 and summary["peak_rss_gib"] == 1.5 and summary["bits_per_byte"]


def test_a_report_of_a_run_without_an_evaluation(made, tmp_path, capsys):
    run = shutil.copytree(made[0] / "one", tmp_path / "run")
    assert report([str(run)]) == 0
    captured = capsys.readouterr()
    assert last_line(captured.out)["evaluated"] is False and "not evaluated yet" in captured.err
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("name", ["nowhere", "documents"])
def test_a_report_of_no_run_is_refused(made, capsys, name):
    assert report([str(made[0] / name)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and name in said and not (made[0] / name / "report.html").exists()


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
    for _ in range(2):
        # the second time nothing is read again, and the same is told
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


@pytest.mark.parametrize(
    ("name", "hint"),
    [("nowhere", "nowhere does not exist"), ("one", "--out FOLDER"), ("documents", "--out FOLDER")],
)
def test_the_way_out_of_a_comparison_is_one(made, capsys, name, hint):
    """Without --out nothing is kept that could be compared."""
    assert compare([str(made[0] / "one-on"), str(made[0] / name)]) == 2
    assert hint in capsys.readouterr().err


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


def test_former_names_of_the_conditions_are_read(made, tmp_path, capsys):
    """Results called matched media "own" and mismatched ones "other"."""
    base, _ = made
    out = shutil.copytree(base / "one-on", tmp_path / "out")
    for name in ("documents.jsonl", "results.json"):
        path = out / "evaluate" / name
        path.write_text(path.read_text().replace('"mismatched', '"other').replace('"matched"', '"own"'))
    assert compare([str(base / "one-on"), str(out)]) == 0
    assert last_line(capsys.readouterr().out)["nats_per_token"]["difference"] == 0
    assert read_results(out) == read_results(base / "one-on")
    assert '"own"' in (out / "evaluate" / "results.json").read_text()
