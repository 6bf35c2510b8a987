"""A small corpus, built once: some modules of the standard library, one of them twice under another name."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from brine.data.files.source_files import SourceFile, read_source, standard_library
from brine.synth import SynthConfig, SynthCounts, build_synth_corpus
from brine.synth.sources.features import cluster_near_duplicates, extract_features, split_clusters
from tests.synth.planned_corpus import CONFIG as PLANNED_CONFIG
from tests.synth.planned_corpus import Planned

MODULES = tuple(
    f"{name}.py"
    for name in (
        *("argparse", "ast", "base64", "calendar", "cmd", "codecs", "configparser", "contextlib", "copy", "csv"),
        *("dataclasses", "difflib", "dis", "ftplib", "gettext", "gzip", "heapq", "inspect", "locale", "mailbox"),
        *("optparse", "pathlib", "pdb", "plistlib", "random", "shlex", "shutil", "smtplib", "socket", "string"),
        *("tarfile", "textwrap", "threading", "trace", "typing", "zipfile"),
    )
)
COPY_OF = "textwrap.py"
CONFIG = SynthConfig(
    train=SynthCounts(
        text=60, package=3, screenshot=(60, 12, 12, 12), narration=(60, 12, 12, 12), recording=(12, 4, 4, 4),
        page=(8, 4, 4, 4),
    ),
    validation=SynthCounts(
        text=5, package=1, screenshot=(15, 4, 4, 4), narration=(15, 4, 4, 4), recording=(6, 2, 2, 2), page=(3, 1, 1, 1)
    ),
    test=SynthCounts(
        text=5, package=1, screenshot=(15, 4, 4, 4), narration=(15, 4, 4, 4), recording=(6, 2, 2, 2), page=(3, 1, 1, 1)
    ),
    validation_fraction=0.15,
    test_fraction=0.15,
    max_file_kib=200,
)  # fmt: skip


@dataclass
class Corpus:
    """A built corpus and what was said about it."""

    config: SynthConfig
    folder: Path
    summary: dict
    documents: list[dict]

    def of(self, kind: str, level: int | None = None) -> list[dict]:
        found = [item for item in self.documents if item["kind"] == kind and level in (None, item["level"])]
        assert found, f"no {kind} of level {level} was made"
        return found

    def medium(self, document: dict) -> Path:
        part = document["content"][0]
        return self.folder / part[part["type"]]


def read_corpus(config: SynthConfig, folder: Path, summary: dict) -> Corpus:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return Corpus(config, folder, summary, [json.loads(line) for line in lines])


@pytest.fixture(scope="session")
def workbench_source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workbench-source")
    library = standard_library()
    for name in MODULES:
        if (library / name).is_file():
            shutil.copy(library / name, folder / name)
    for package in ("json", "http"):
        shutil.copytree(library / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / COPY_OF).read_text()
    (folder / "http" / "wrapped.py").write_text(text.replace("width", "columns").replace("# ", "#  "))
    return folder


@pytest.fixture(scope="session")
def planned(workbench_source) -> Planned:
    """Tables, charts and interfaces of the same source, planned and not rendered."""
    return Planned(workbench_source, PLANNED_CONFIG)


@dataclass
class Dealt:
    """What the build found out about the source before planning."""

    files: list[SourceFile]
    clusters: list[list[int]]
    splits: dict[str, list[int]]


@pytest.fixture(scope="session")
def split_files(corpus) -> Dealt:
    config = corpus.config
    files, _skipped = read_source(config.source, max_file_kib=config.max_file_kib)
    features = [extract_features(item.text, language=item.language) for item in files]
    clusters = cluster_near_duplicates(features, threshold=config.near_duplicate_threshold)
    shares = {"validation_fraction": config.validation_fraction, "test_fraction": config.test_fraction}
    return Dealt(files, clusters, split_clusters(clusters, files=files, seed=config.seed, **shares))


@pytest.fixture(scope="session")
def corpus(workbench_source, tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("workbench-corpus")
    config = replace(CONFIG, source=workbench_source)
    return read_corpus(config, folder, build_synth_corpus(config, folder, progress=False))
