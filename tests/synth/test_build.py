"""The corpus as a whole: the same bytes each time, no leak between splits, restart, and an end to every process."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from brine.data.document import parse_document
from brine.data.files.resolve import resolve_media
from brine.synth import SynthCounts, build_synth_corpus
from brine.synth.render_pool import RenderPool
from brine.synth.sources.code_regions import spoken_key, stripped_lines
from tests.paths import ROOT

pytestmark = pytest.mark.slow


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_build_workbench_does_not_depend_on_workers(corpus, tmp_path):
    build_synth_corpus(replace(corpus.config, workers=3), tmp_path, progress=False)
    assert digest(tmp_path) == digest(corpus.folder)


def test_build_workbench_makes_what_was_asked(corpus):
    requested = {split: asdict(corpus.config.counts(split)) for split in ("train", "validation", "test")}
    assert corpus.summary["failed"] == {}
    assert corpus.summary["shortfalls"] == []
    for split, kinds in requested.items():
        for kind, counts in kinds.items():
            levels = {0: counts} if isinstance(counts, int) else dict(enumerate(counts, start=1))
            made = corpus.summary["documents"][split].get(kind, {})
            assert made == {str(level): n for level, n in levels.items() if n}
    assert len({item["id"] for item in corpus.documents}) == len(corpus.documents)
    assert json.loads((corpus.folder / "summary.json").read_text())["documents"] == corpus.summary["documents"]


def test_manifest_is_native(corpus):
    for item in corpus.documents:
        document = parse_document(item)
        for part in document.parts:
            if hasattr(part, "path"):
                resolve_media(corpus.folder.resolve(), part.path, max_file_mib=16)


def test_media_files_are_exactly_the_manifests(corpus):
    named = {part[part["type"]] for item in corpus.documents for part in item["content"] if part["type"] != "text"}
    assert named == {path for path in digest(corpus.folder) if path.startswith("media/")}
    assert sum(corpus.summary["media"].values()) == len(named)


def train_lines(corpus) -> set[str]:
    texts = [p["text"] for d in corpus.documents if d["split"] == "train" for p in d["content"] if p["type"] == "text"]
    return {line for text in texts for line in stripped_lines(text)}


def test_held_out_targets_have_no_line_of_train(corpus):
    """`import sys` in a held-out image could be guessed without looking: every line must be new to the model."""
    known = train_lines(corpus)
    seen = 0
    for item in corpus.documents:
        if item["split"] != "train" and item["kind"] != "text":
            for part in item["content"]:
                lines = list(stripped_lines(part["text"])) if part["type"] == "text" else []
                assert not known & set(lines), item["id"]
                seen += len(lines)
    assert seen > 100


def test_held_out_targets_have_no_line_of_a_train_file(corpus, split_files):
    """Also not of a file in train that no text document of this corpus happens to show."""
    known = {line for index in split_files.splits["train"] for line in stripped_lines(split_files.files[index].text)}
    # the filter has something to do: files of different splits do share lines
    held_out = {line for index in split_files.splits["test"] for line in stripped_lines(split_files.files[index].text)}
    assert len(known & held_out) > 20
    for item in corpus.documents:
        if item["split"] != "train" and item["kind"] != "text":
            for part in item["content"]:
                assert part["type"] != "text" or not known & set(stripped_lines(part["text"])), item["id"]


def test_documents_come_from_their_split(corpus, split_files):
    split_of = {
        split_files.files[index].path: split for split, chosen in split_files.splits.items() for index in chosen
    }
    sources = {item["source"]: item["split"] for item in corpus.documents if item["source"]}
    assert sources == {source: split_of[source] for source in sources}
    assert set(sources.values()) == {"train", "validation", "test"}


def test_held_out_narration_says_no_sequence_of_train(corpus):
    said = {"train": set(), "validation": set(), "test": set()}
    for item in corpus.documents:
        for part, after in zip(item["content"], item["content"][1:], strict=False):
            if part["type"] == "audio":
                said[item["split"]].add(spoken_key(after["text"]))
    for split in ("validation", "test"):
        several = {words for words in said[split] if " " in words}
        assert len(several) >= 15
        assert not several & said["train"]
    level_1 = [item["content"][1]["text"] for item in corpus.of("narration", 1) if item["split"] != "train"]
    assert all(" " in text for text in level_1)


def test_build_workbench_goes_on(corpus, workbench_source, tmp_path):
    """A build finds what is there, renders what is missing, and removes what a killed one left half written."""
    config = replace(
        corpus.config,
        source=workbench_source / "http",
        train=SynthCounts(screenshot=(30, 0, 0, 0)),
        validation=SynthCounts(),
        test=SynthCounts(),
    )
    build_synth_corpus(config, tmp_path, progress=False)
    before = digest(tmp_path)
    media = sorted((tmp_path / "media").rglob("*.png"))
    for path in media[:7]:
        path.unlink()
    media[8].write_bytes(b"")
    (tmp_path / "manifest.jsonl").unlink()
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "1-x.png").write_bytes(b"half")
    assert build_synth_corpus(config, tmp_path, progress=False)["rendered"] == 8
    assert digest(tmp_path) == before


def test_more_documents_of_one_kind_leave_the_others(corpus, tmp_path):
    config = replace(
        corpus.config, train=SynthCounts(screenshot=(5, 3, 0, 0)), validation=SynthCounts(), test=SynthCounts()
    )
    build_synth_corpus(config, tmp_path, progress=False)
    made = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    known = {item["id"]: item for item in corpus.documents}
    assert len(made) == 8
    assert all(known[item["id"]] == item for item in made)


def test_run_says_that_a_process_died(tmp_path):
    with RenderPool(2, folder=tmp_path, utterance_timeout_s=5) as workers:
        workers.helpers[1].process.kill()
        with pytest.raises(RuntimeError, match=r"a rendering process ended \(exit code -9\).*run again"):
            list(workers.run("extract", [["x = 1", "python"]] * 800))


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(stat.parent.name)} | children_of(int(stat.parent.name))
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_no_process_outlives_a_killed_build(corpus, tmp_path):
    script = (
        "import sys; from pathlib import Path; from brine.synth import *\n"
        "build_synth_corpus(SynthConfig(source=Path(sys.argv[1]), train=SynthCounts(narration=(4000, 0, 0, 0)),"
        " validation=SynthCounts(), test=SynthCounts()), Path(sys.argv[2]), progress=False)"
    )
    build = subprocess.Popen([sys.executable, "-c", script, str(corpus.config.source), str(tmp_path)], cwd=ROOT)
    try:
        give_up = time.monotonic() + 60
        while not list(tmp_path.rglob("*.flac")) and time.monotonic() < give_up:
            time.sleep(0.05)
        helpers = children_of(build.pid)
        # two renderers, and their espeak servers
        assert len(helpers) >= 3
    finally:
        os.kill(build.pid, signal.SIGKILL)
        build.wait()
    give_up = time.monotonic() + 30
    while any(running(pid) for pid in helpers) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not [pid for pid in helpers if running(pid)]
    assert not (tmp_path / "manifest.jsonl").exists()
