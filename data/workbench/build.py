"""Builds a corpus: source files in, manifest and media files out.

Order: read and parse the files, cluster and split them, plan all documents, render what is not there yet,
write the manifest. Planning is one process and pure; rendering is spread over processes and each file is a
pure function of its recipe. So the corpus does not depend on the number of workers, and a build that was
killed goes on: it plans again (seconds), finds the media that are there, and renders the others. The
manifest is written last: where it stands, the corpus is complete.

A core renders about 500 level-1 screenshots, 150 level-1 narrations (espeak-ng is the limit) or 250 level-1
recordings a second; a film of level 4 with sound takes 0.1 s. Media files of an earlier config are left in
the folder; no manifest line names them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from data.workbench.config import SPLITS, WorkbenchConfig, WorkbenchError
from data.workbench.extract import Extract
from data.workbench.numbers import Measures
from data.workbench.plan import Plan, make_plan
from data.workbench.source import SourceFile, read_source, source_hash
from data.workbench.split import cluster, deal
from data.workbench.workers import Workers

ITEMS_PER_TASK = 16
MANIFEST = "manifest.jsonl"
SUMMARY = "summary.json"


def build_workbench(config: WorkbenchConfig, out_dir: Path, *, progress: bool = True) -> dict:
    """Writes out_dir/manifest.jsonl, out_dir/media/ and out_dir/summary.json; returns the summary.

    The files written are the same for the same source, config (less `workers`) and library versions. The
    returned summary has "wall_s" besides, the seconds by stage, and "rendered", the files that were not
    there yet. Its "lowered" lists counts that the source could not fill, "failed" how many media could not
    be rendered (their documents are left out), by reason.
    Raises WorkbenchError for a source that gives nothing, for a missing library and for an out_dir that
    cannot be written; RuntimeError when a rendering process dies.
    """
    check_libraries()
    out_dir = Path(out_dir)
    clock = _Clock()
    files, skipped = read_source(
        config.source,
        min_file_bytes=config.min_file_bytes,
        max_file_kib=config.max_file_kib,
        leave_out=out_dir,
    )
    files = _limit(files, config)
    partial = out_dir / ".partial"
    try:
        # what a killed build left half written
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise WorkbenchError(
            f"cannot write the corpus to {out_dir} ({error.strerror}): choose another folder"
        ) from None
    with Workers(config.workers, folder=out_dir, utterance_timeout_s=config.utterance_timeout_s) as workers:
        extracts = _read(files, workers, do="extract", record=Extract, progress=progress)
        measures = _read(files, workers, do="measure", record=Measures, progress=progress) if config.asks else None
        clock.lap("read")
        clusters = cluster(extracts, threshold=config.near_duplicate)
        splits = deal(
            clusters,
            files=files,
            validation_share=config.validation_share,
            test_share=config.test_share,
            seed=config.seed,
        )
        plan = make_plan(config, files=files, extracts=extracts, splits=splits, measures=measures)
        clock.lap("plan")
        missing = {path: recipe for path, recipe in plan.recipes.items() if not _exists(out_dir / path)}
        failed = _render(missing, workers, progress=progress)
        clock.lap("render")
    documents = [
        document
        for document in plan.documents
        if not any(part.get(part["type"]) in failed for part in document["content"] if part["type"] != "text")
    ]
    if not documents:
        raise WorkbenchError(
            f"no document could be made from {len(files)} source files"
            f"{_first_failure(failed)}: point --corpus.source at a folder with more code, or ask for other counts"
        )
    summary = _summary(config, files, skipped, clusters, splits, plan, documents, failed)
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    _write(out_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    _write(out_dir / MANIFEST, lines)
    shutil.rmtree(partial, ignore_errors=True)
    return {**summary, "rendered": len(missing) - len(failed), "wall_s": clock.laps}


def check_libraries() -> None:
    """Raises WorkbenchError unless the libraries of the dependency group `corpus` are installed."""
    missing = [name for name in ("av", "espeakng_loader", "pygments", "soundfile") if find_spec(name) is None]
    if missing:
        raise WorkbenchError(f"making the workbench corpus needs {', '.join(missing)}: run `uv sync --group corpus`")


def _limit(files: list[SourceFile], config: WorkbenchConfig) -> list[SourceFile]:
    if config.max_files is None or len(files) <= config.max_files:
        return files
    import random

    chosen = random.Random(f"files/{config.seed}").sample(range(len(files)), config.max_files)
    return [files[index] for index in sorted(chosen)]


def _read(files: list[SourceFile], workers: Workers, *, do: str, record: type, progress: bool) -> list:
    """What the workers' task `do` says about each file, as instances of `record` (Extract or Measures)."""
    # large files first would be quicker still; path order keeps the tasks' sizes near each other
    starts = range(0, len(files), ITEMS_PER_TASK)
    tasks = [
        {"do": do, "items": [[item.text, item.language] for item in files[start : start + ITEMS_PER_TASK]]}
        for start in starts
    ]
    found: list = [None] * len(files)
    label = {"extract": "reading source", "measure": "measuring source"}[do]
    with _bar(len(files), label, progress) as bar:
        for index, answer in workers.run(tasks):
            for offset, value in enumerate(answer):
                found[starts[index] + offset] = record.of_json(value)
            bar.update(len(answer))
    return found


def _render(recipes: dict[str, dict], workers: Workers, *, progress: bool) -> dict[str, str]:
    """Renders all; returns path -> reason of those that could not be rendered, in the order of the recipes."""
    items = list(recipes.items())
    tasks = [
        {"do": "render", "items": items[start : start + ITEMS_PER_TASK]}
        for start in range(0, len(items), ITEMS_PER_TASK)
    ]
    reasons: dict[str, str] = {}
    with _bar(len(items), "rendering media", progress) as bar:
        for index, answer in workers.run(tasks):
            for (path, _recipe), reason in zip(tasks[index]["items"], answer, strict=True):
                if reason is not None:
                    reasons[path] = reason
            bar.update(len(answer))
    return {path: reasons[path] for path in recipes if path in reasons}


def _summary(
    config: WorkbenchConfig,
    files: list[SourceFile],
    skipped: dict[str, int],
    clusters: list[list[int]],
    splits: dict[str, list[int]],
    plan: Plan,
    documents: list[dict],
    failed: dict[str, str],
) -> dict:
    made: dict[str, dict[str, dict[str, int]]] = {}
    for document in documents:
        # the second field of an id is the kind as counted: long text documents are `package` there
        split, kind, level, _number = document["id"].split("/")
        levels = made.setdefault(split, {}).setdefault(kind, {})
        levels[level] = levels.get(level, 0) + 1
    used = {part[part["type"]] for item in documents for part in item["content"] if part["type"] != "text"}
    return {
        "source": str(config.source) if config.source is not None else "the standard library",
        "source_hash": source_hash(files),
        "files": len(files),
        "skipped": skipped,
        "clusters": len(clusters),
        "near_duplicates": len(files) - len(clusters),
        "splits": {
            split: {"files": len(splits[split]), "bytes": sum(files[index].num_bytes for index in splits[split])}
            for split in SPLITS
        },
        "documents": made,
        "asked": plan.asked,
        "lowered": plan.lowered(),
        "media": dict(sorted(Counter(path.rsplit(".", 1)[1] for path in used).items())),
        "failed": dict(sorted(Counter(failed.values()).items())),
    }


def _first_failure(failed: dict[str, str]) -> str:
    return f" ({len(failed)} media failed, the first because {next(iter(failed.values()))})" if failed else ""


def _exists(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    aside = path.parent / ".partial" / path.name
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _bar(total: int, label: str, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="file", disable=not progress, dynamic_ncols=True)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 2)
        self._last = now
