"""Builds a corpus: source files in, manifest and media files out.

Read and parse the files, cluster and split them, plan all documents, render the media that are missing, write the
manifest, which is last: where it is, the corpus is complete. Planning is one process and pure, a media file a pure
function of its spec: the corpus does not depend on the number of workers, and a build that was killed continues. A core
renders about 500 level-1 screenshots, 150 level-1 narrations or 250 level-1 recordings per second.
"""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from brine.common.files import write_text
from brine.common.formatting import progress_bar
from brine.data.document import SPLITS
from brine.data.files.source_files import SourceFile, read_source, source_hash
from brine.synth.config import INSTALL, SynthConfig, SynthError
from brine.synth.plan import SynthPlan, plan_corpus
from brine.synth.render_pool import RenderPool
from brine.synth.sources.features import cluster_near_duplicates, split_clusters

MANIFEST = "manifest.jsonl"
SUMMARY = "summary.json"


def build_synth_corpus(config: SynthConfig, out_dir: Path, *, progress: bool = True) -> dict:
    """Writes out_dir/manifest.jsonl, out_dir/media/ and out_dir/summary.json; returns the summary.

    The returned summary also has "wall_s", the seconds by stage, and "rendered", the number of new media files.
    Documents whose media could not be rendered are left out and counted under "failed". Raises SynthError for a source
    without documents, a missing library and an out_dir that cannot be written; RuntimeError when a process ends.
    """
    if missing := [name for name in ("av", "espeakng_loader", "pygments", "soundfile") if find_spec(name) is None]:
        raise SynthError(f"making the synthetic corpus needs {', '.join(missing)}: {INSTALL}")
    times = [time.monotonic()]
    bounds = {"min_file_bytes": config.min_file_bytes, "max_file_kib": config.max_file_kib}
    files, skipped = read_source(config.source, **bounds, exclude=out_dir)
    if config.max_files is not None and len(files) > config.max_files:
        chosen = random.Random(f"files/{config.seed}").sample(range(len(files)), config.max_files)
        files = [files[index] for index in sorted(chosen)]
    partial = out_dir / ".partial"
    try:
        # what a killed build left half written
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise SynthError(f"cannot write the corpus to {out_dir} ({error.strerror}): choose another folder") from None
    with RenderPool(config.workers, folder=out_dir, utterance_timeout_s=config.utterance_timeout_s) as pool:

        def run(op: str, items: list, label: str) -> Iterable:
            answers, total = pool.run(op, items), len(items)
            return progress_bar(answers, desc=label, total=total, unit="file", quiet=not progress)

        texts = [(item.text, item.language) for item in files]
        features = list(run("extract", texts, "reading source"))
        code_metrics = list(run("measure", texts, "measuring source")) if config.needs_code_metrics else None
        times.append(time.monotonic())
        clusters = cluster_near_duplicates(features, threshold=config.near_duplicate_threshold)
        held_out = {"validation_fraction": config.validation_fraction, "test_fraction": config.test_fraction}
        splits = split_clusters(clusters, files=files, **held_out, seed=config.seed)
        plan = plan_corpus(config, files=files, features=features, splits=splits, code_metrics=code_metrics)
        times.append(time.monotonic())
        # one of no bytes is made again
        there = {path for path in plan.specs if (out_dir / path).is_file() and (out_dir / path).stat().st_size}
        missing = [(path, spec) for path, spec in plan.specs.items() if path not in there]
        reasons = run("render", missing, "rendering media")
        failed = {path: reason for (path, _spec), reason in zip(missing, reasons, strict=True) if reason is not None}
        times.append(time.monotonic())
    documents = [item for item in plan.documents if not any(path in failed for path in _media_paths(item))]
    if not documents:
        failure = f" ({len(failed)} media failed, the first because {next(iter(failed.values()))})" if failed else ""
        raise SynthError(
            f"no document could be made from {len(files)} source files{failure}: "
            "point --corpus.source at a folder with more code, or ask for other counts"
        )
    summary = {
        "source": str(config.source) if config.source is not None else "the standard library",
        "source_hash": source_hash(files),
        "files": len(files),
        "skipped": skipped,
        "clusters": len(clusters),
        "near_duplicates": len(files) - len(clusters),
        **_document_summary(files, splits, plan, documents),
        "failed": dict(sorted(Counter(failed.values()).items())),
    }
    write_text(out_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    write_text(out_dir / MANIFEST, "".join(json.dumps(document) + "\n" for document in documents))
    shutil.rmtree(partial, ignore_errors=True)
    stages = zip(("read", "plan", "render"), times, times[1:], strict=False)
    wall_s = {stage: round(end - start, 2) for stage, start, end in stages}
    return {**summary, "rendered": len(missing) - len(failed), "wall_s": wall_s}


def _media_paths(document: dict) -> list[str]:
    return [part[part["type"]] for part in document["content"] if part["type"] != "text"]


def _document_summary(files: list[SourceFile], splits: dict, plan: SynthPlan, documents: list[dict]) -> dict:
    made: dict = {}
    for document in documents:
        # the second field of an id is the kind as counted: long text documents are `package` there
        split, kind, level, _number = document["id"].split("/")
        made.setdefault(split, {}).setdefault(kind, Counter())[level] += 1
    extensions = Counter(path.rsplit(".", 1)[1] for path in {path for item in documents for path in _media_paths(item)})
    sizes = {
        split: {"files": len(splits[split]), "bytes": sum(files[index].num_bytes for index in splits[split])}
        for split in SPLITS
    }
    counts = {"splits": sizes, "documents": made, "requested": plan.requested, "shortfalls": plan.shortfalls()}
    return counts | {"media": dict(sorted(extensions.items()))}
