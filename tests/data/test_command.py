"""The command line: what it counts, what it says, its exit codes, and the images it draws."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brine.data.cli.main import main
from brine.data.document import MODALITIES, Text, parse_document
from brine.data.inspect.check import RetryList
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import train_tokenizer
from tests.data.media_files import line, manifest, picture
from tests.paths import ROOT

pytestmark = pytest.mark.slow

REAL = ROOT.parent / "shared" / "real"
# one decoding process, and more patience than a busy machine can use up: time-outs are tested elsewhere
ONE = ["--workers", "1", "--decode-timeout-s", "300"]
SMALL = ["--max-image-tokens", "64", "--max-video-tokens", "256", "--max-video-s", "30", "--max-audio-s", "10"]


def last_json(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def coloured(path: Path) -> int:
    """Number of different colours in an image."""
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).astype(np.int64) @ [2**16, 2**8, 1]))


@pytest.fixture(scope="module")
def folder(manifest_path, tmp_path_factory) -> Path:
    """The session's material with three documents more that cannot be used."""
    folder = tmp_path_factory.mktemp("mixed") / "material"
    shutil.copytree(manifest_path.parent, folder)
    (folder / "media" / "broken.png").write_bytes((folder / "media" / "3.png").read_bytes()[:200])
    with open(folder / "manifest.jsonl", "a") as file:
        file.write("{no json\n")
        file.write(json.dumps(line("gone", {"image": "media/gone.png"}, "x")) + "\n")
        file.write(json.dumps(line("broken", {"image": "media/broken.png"}, "x")) + "\n")
    return folder


@pytest.fixture(scope="module")
def checked(folder, tmp_path_factory):
    """One check of the whole folder: exit code, output, folder written to, and the folder's files before."""
    out, before = tmp_path_factory.mktemp("out"), files_of(folder)
    done = subprocess.run(
        [sys.executable, "-m", "brine.data", "check", str(folder), "--out", str(out), *ONE, *SMALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "Traceback" not in done.stderr
    return done, out, before


def test_check_counts_what_is_there(checked, folder, corpus):
    """Against the manifest read by hand, and the media tokens of a corpus built beside."""
    done, out, _ = checked
    documents = [parse_document(json.loads(text)) for text in lines_of(folder / "manifest.jsonl")[:35]]
    parts = Counter(type(part).__name__.lower() for document in documents for part in document.parts)
    text = 0
    for document in documents:
        # a byte a token, two boundary tokens a medium, one end
        text += 1 + sum(len(part.text.encode()) if isinstance(part, Text) else 2 for part in document.parts)
    found = last_json(done.stdout)
    assert done.returncode == 0
    assert found.pop("seconds") > 0
    # the two documents whose media turn out broken or gone are not among them
    assert sum(sum(counts.values()) for counts in found.pop("split_origins").values()) == 35
    assert found == {
        "documents": 35,
        "parts": {name: parts[name] for name in ("text", *MODALITIES)},
        "tokens": {"text": text} | {name: int(corpus.num_media[name].sum()) for name in MODALITIES},
        "quarantined": 3,
        "kinds": dict(Counter(document.kind for document in documents)),
        "splits": dict(Counter(document.split for document in documents)),
        "max_tokens": 1 + max(len(document.parts[0].text) for document in documents if document.kind == "text"),
        "format": "content-parts",
    }
    assert json.loads((out / "check.json").read_text()) == last_json(done.stdout)


def test_check_says_it_in_words(checked):
    done, out, _ = checked
    rows = {row.split()[0]: row.split()[1:] for row in done.stdout.splitlines() if row.strip()}
    assert rows["screenshot"][:3] == ["9", "1", "10"] and rows["all"][0] == "65"
    for words in ("does not exist", "broken image", "not JSON", "quarantined: 3", str(out / "quarantine.jsonl")):
        assert words in done.stdout
    assert "38/38" in done.stderr
    # piped output is plain text
    assert "\x1b" not in done.stdout + done.stderr
    with Image.open(out / "check.png") as drawn:
        assert drawn.width == 1600
    assert coloured(out / "check.png") > 100


def test_check_writes_only_where_asked(checked, folder):
    _, out, before = checked
    assert files_of(folder) == before
    assert sorted(path.name for path in out.iterdir()) == ["check.json", "check.png", "quarantine.jsonl"]
    records = [json.loads(text) for text in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(record["id"], record["file"]) for record in records] == [
        ("line 36", ""),
        ("gone", "media/gone.png"),
        ("broken", "media/broken.png"),
    ]


def test_retry_reads_only_what_was_set_aside(checked, folder, tmp_path, capsys):
    """One mended file, one mended line, one still broken."""
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.copy(again / "media" / "3.png", again / "media" / "gone.png")
    lines = (again / "manifest.jsonl").read_text().splitlines()
    lines[35] = json.dumps(line("mended", "words"))
    (again / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    left = tmp_path / "left.jsonl"
    arguments = ["--retry", str(checked[1] / "quarantine.jsonl"), "--quarantine", str(left), *ONE]
    assert main(["check", str(again), *arguments]) == 0
    text = capsys.readouterr().out
    found = last_json(text)
    assert (found["documents"], found["quarantined"], found["parts"]["text"]) == (2, 1, 2)
    assert [json.loads(record)["id"] for record in left.read_text().splitlines()] == ["broken"]
    assert "no longer there" not in text
    (again / "manifest.jsonl").write_text("\n".join(lines[:36]) + "\n")
    assert main(["check", str(again), "--retry", str(left), *ONE]) == 1
    assert "no longer there under this name: 1 (broken)" in capsys.readouterr().out


def test_retry_file_that_is_none(tmp_path):
    for content, words in (
        ("", "names no document"),
        ("[1]\n", "line 1 is not a quarantine"),
        ('{"id": 1\n', "line 1 is not a quarantine"),
    ):
        (tmp_path / "q.jsonl").write_text(content)
        with pytest.raises(ValueError, match=words):
            RetryList.read(tmp_path / "q.jsonl")


def test_nothing_kept_is_exit_code_1(tmp_path, capsys):
    path = manifest(tmp_path, [b"{broken", line("a", {"image": "none.png"})])
    assert main(["check", str(path), *ONE, "--format", "content-parts"]) == 1
    found = last_json(capsys.readouterr().out)
    assert (found["documents"], found["quarantined"], found["max_tokens"]) == (0, 2, 0)


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["check", "MISSING"], "does not exist"),
        (["check", "CORPUS"], "corpus that is built already"),
        (["check", "HERE", "--limit", "0"], "whole number from 1"),
        (["check", "HERE", "--limit", "many"], "whole number from 1"),
        (["check", "HERE", "--format", "smell"], "'smell'"),
        (["check", "HERE", "--sample-rate", "123"], "multiple of 400"),
        (["check", "HERE", "--patch-sice", "8"], "--patch-sice"),
        (["check", "HERE", "--tokenizer", "MISSING"], "cannot be read"),
        (["check", "HERE", "--retry", "MISSING"], "cannot be read"),
        (["check", "HERE", "--quarantine", "HERE/manifest.jsonl/q.jsonl"], "cannot be written"),
        (["build", "HERE", "HERE"], "holds other files"),
        (["build", "HERE", "NEW", "--vocab-size", "20"], "vocab_size"),
        (["plan", "HERE"], "no finished corpus"),
        (["plan", "CORPUS", "--seq-len", "1"], "seq_len"),
        (["plan", "CORPUS", "--split", "dev"], "'dev'"),
        (["plan", "CORPUS", "--epochs", "1", "--num-sequences", "3"], "not both"),
        (["plan", "CORPUS", "--out", "NEW", "--name", "../x"], "plain file name"),
        (["show", "CORPUS", "nobody"], "'shot-0'"),
        (["show", "CORPUS", "35"], "0 to 34"),
        (["show", "CORPUS", "page", "--patch-size", "8"], "leave those options out"),
        (["show", "CORPUS", "page", "--out", "x.gif"], ".png or .html"),
        (["dance"], "dance"),
        ([], "Expected one of {check, build, filter, plan, show, convert}"),
    ],
    ids=lambda value: "-".join(value).replace("/", "_")[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_exit_code_2_and_one_line(arguments, words, tmp_path, corpus, capsys):
    manifest(tmp_path / "here", [line("a", "x")])
    names = {
        "MISSING": tmp_path / "missing",
        "CORPUS": corpus.folder,
        "HERE": tmp_path / "here",
        "NEW": tmp_path / "new",
    }
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    # what is trained or read before the mistake shows may be told first
    *before, last = said.splitlines()
    assert last.startswith("error: ") and words in last and "Traceback" not in said
    assert all(text.startswith(("training a tokenizer", "encode", "check")) for text in before)


def test_importing_the_command_is_cheap():
    """Neither torch nor the decoders, before a command asks for them."""
    code = (
        "import sys, brine.data.cli.main, brine.data.filters.names; print(*{'torch', 'av', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_help_names_every_number_of_the_encoding(capsys):
    assert main(["check", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--max-image-tokens" in text and "Token budget of one image" in text and "(default: 1024)" in text


def test_quarantine_is_the_same_for_any_number_of_workers(tmp_path, capsys):
    lines = []
    for number in range(150):
        lines.append(line(f"t{number}", "x" * number if number else "y"))
        lines += [b"{bad"] if number % 7 == 0 else []
        lines += [line(f"p{number}", {"image": f"{number}.png"})] if number % 11 == 0 else []
    path = manifest(tmp_path, lines)
    for workers in ("1", "2"):
        assert main(["check", str(path), *ONE, "--workers", workers, "--quarantine", str(tmp_path / workers)]) == 0
        assert last_json(capsys.readouterr().out)["quarantined"] == 22 + 14
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_limit_counts_documents_and_rejects(tmp_path, capsys):
    path = manifest(tmp_path, [line("a", "x"), b"{bad", line("b", "yy"), line("c", "z")])
    assert main(["check", str(path), "--limit", "3", *ONE]) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["documents"], found["quarantined"], found["max_tokens"]) == (2, 1, 3)


def test_interrupted_check_tells_what_was_seen(tmp_path, capsys, monkeypatch):
    path = manifest(tmp_path, [b"{bad", *(line(f"t{number}", "words") for number in range(50))])
    from brine.data.corpus.statistics import CorpusStats

    add = CorpusStats.add

    def add_or_stop(stats, *arguments):
        if stats.num_documents == 7:
            raise KeyboardInterrupt
        add(stats, *arguments)

    monkeypatch.setattr(CorpusStats, "add", add_or_stop)
    quarantine = tmp_path / "q.jsonl"
    assert main(["check", str(path), *ONE, "--quarantine", str(quarantine)]) == 130
    said = capsys.readouterr()
    found = last_json(said.out)
    assert found["interrupted"] and (found["documents"], found["quarantined"]) == (7, 1)
    assert "the 8 documents seen so far" in said.out and "Traceback" not in said.err
    assert len(quarantine.read_text().splitlines()) == 1


def test_build_makes_a_corpus_and_opens_it_again(tmp_path, capsys):
    picture(tmp_path / "source" / "p.png", 40, 20)
    text = "several words that come again and again, "
    lines = [line(f"t{n}", text * (n + 1), split="validation" if n == 5 else "train") for n in range(6)]
    manifest(tmp_path / "source", [*lines, line("p", {"image": "p.png"}, "noise"), line("gone", {"image": "no.png"})])
    arguments = ["build", str(tmp_path / "source"), str(tmp_path / "corpus"), "--vocab-size", "300", *ONE]
    assert main(arguments) == 0
    found = last_json(capsys.readouterr().out)
    reasons = [json.loads(text)["reason"] for text in lines_of(tmp_path / "corpus" / "quarantine.jsonl")]
    assert reasons == ["file 'no.png' does not exist"]
    assert (found["documents"], found["quarantined"], found["splits"]) == (7, 1, {"train": 6, "validation": 1})
    assert found["parts"] == {"text": 7, "image": 1, "audio": 0, "video": 0} and found["tokens"]["image"] == 3 * 2
    # the validation split teaches the tokenizer nothing
    expected = train_tokenizer([text * (n + 1) for n in range(5)] + ["noise"], 300)
    assert (tmp_path / "corpus" / "tokenizer.json").read_text() == expected.to_str()
    before = files_of(tmp_path / "corpus")
    assert main(arguments) == 0
    again = last_json(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    # an image that was only just written when it was encoded is looked at once more, and that is noted
    after = files_of(tmp_path / "corpus")
    written = {name for name in after if after[name] != before.get(name)}
    assert after.keys() == before.keys() and written <= {"shards/00000", "shards/00000/media.npy"}


def test_build_by_local_blocks_gives_the_same_corpus(tmp_path, capsys):
    source = manifest(tmp_path / "m", [line(str(number), f"words of {number} " * 9) for number in range(40)])
    found = {}
    for name, options in {"direct": [], "local": ["--engine", "local", "--shard-documents", "16"]}.items():
        assert main(["build", str(source), str(tmp_path / name), *ONE, *options]) == 0
        found[name] = last_json(capsys.readouterr().out)["fingerprint"]
    assert found["direct"] == found["local"] and len(list((tmp_path / "local" / "shards").iterdir())) == 3
    assert main(["build", str(source), str(tmp_path / "c"), "--address", "auto"]) == 2
    assert "also give --engine ray" in capsys.readouterr().err


def test_plan_shows_and_writes_what_plan_build_gives(corpus, tmp_path, capsys):
    arguments = [
        "plan",
        str(corpus.folder),
        "--seq-len",
        "128",
        "--audio-budget",
        "40",
        "--epochs",
        "2",
        "--seed",
        "5",
    ]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    plan = PackingPlan.build(corpus, seq_len=128, media_budget={"audio": 40}, epochs=2, seed=5)
    found = last_json(text)
    assert (found["sequences"], found["excluded"], found["seed"]) == (len(plan), plan.info["excluded"], 5)
    assert (
        found["packing_efficiency"] == pytest.approx(plan.packing_efficiency, abs=1e-6)
        and f"{100 * plan.packing_efficiency:.2f} %" in text
    )
    assert found["documents"] == len(set(plan.document.tolist()))
    assert sum(found["tokens"].values()) == int((plan.stop - plan.start).sum())
    assert plan.info["excluded"] and "cannot be split" in text
    assert main([*arguments, "--out", str(tmp_path), "--name", "mine"]) == 0
    loaded = PackingPlan.load(tmp_path / "mine.npz")
    assert np.array_equal(loaded.document, plan.document) and np.array_equal(loaded.offset, plan.offset)
    assert coloured(tmp_path / "mine.png") > 100
    # the same plan again changes nothing, another one does not take its place
    before = (tmp_path / "mine.npz").stat().st_mtime_ns
    assert main([*arguments, "--out", str(tmp_path), "--name", "mine"]) == 0
    assert main([*arguments[:-1], "6", "--out", str(tmp_path), "--name", "mine"]) == 2
    assert "another name" in capsys.readouterr().err and (tmp_path / "mine.npz").stat().st_mtime_ns == before


def test_filter_leaves_out_and_takes_back(tmp_path, capsys):
    """Equal lines are dropped from plans, told with their reason, and come back when that is undone."""
    lines = [line(f"{number}", f"document number {number % 7} says so", kind="text") for number in range(10)]
    folder, rows = str(tmp_path / "corpus"), ["--seq-len", "64"]
    assert main(["build", str(manifest(tmp_path, lines)), folder, *ONE]) == 0
    assert main(["filter", folder, "exact_duplicates", "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert last_json(text) == {"documents": 10, "kept": 7, "dropped": {"exact_duplicates": 3}}
    dropped = lines_of(tmp_path / "corpus" / "filter_log" / "01_exact_duplicates" / "dropped.jsonl")
    assert [json.loads(each)["id"] for each in dropped] == ["7", "8", "9"] and "dropped.jsonl" in text
    assert main(["plan", folder, *rows]) == 0
    assert last_json(capsys.readouterr().out)["documents"] == 7
    # a rule that is there already is not applied again
    assert main(["filter", folder, "exact_duplicates", "--workers", "1"]) == 0
    assert last_json(capsys.readouterr().out)["kept"] == 7
    assert main(["filter", folder, "--undo", "1"]) == 0 and main(["plan", folder, *rows]) == 0
    assert last_json(capsys.readouterr().out)["documents"] == 10
    assert main(["filter", folder, "--undo", "1"]) == 2 and main(["filter", folder, "dull"]) == 2
    said = capsys.readouterr().err
    assert "no filter pass to undo" in said and "unknown filter 'dull'" in said and "Traceback" not in said


@pytest.mark.skipif(not (REAL / "manifest.jsonl").is_file(), reason="../shared/real is not beside this checkout")
def test_check_of_real_material(capsys):
    raw = [json.loads(text) for text in lines_of(REAL / "manifest.jsonl")[:6]]
    assert {fields["kind"] for fields in raw} == {"doc"}
    assert main(["check", str(REAL), "--limit", "6", *ONE]) == 0
    found = last_json(capsys.readouterr().out)
    assert (found["documents"], found["quarantined"], found["format"]) == (6, 0, "captioned")
    assert found["splits"] == dict(Counter(fields["split"] for fields in raw))
    # vector images stay links in the text
    svg = sum((REAL / fields["path"]).read_text().count(".svg)") for fields in raw)
    assert found["parts"]["image"] == sum(fields["n_images"] for fields in raw) - svg
