"""Makes a suite from sources, once: candidates, choice, needles, media, measures, digest; whole or not at all.

Equal contents and settings give equal bytes: no path, time or order enters. The folder is written beside its place and
renamed, its files lose their write bits, and a name and version that is there is never replaced.
"""

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from brine.common.config_fields import check_values
from brine.common.files import file_digest, replacing, sync_folder, to_json_line, write_json
from brine.data.document import SPLITS, Text
from brine.data.files.archive import open_media
from brine.data.inspect.check import default_decode_workers
from brine.evals.suites.case import PARTS, SuiteCase, media_sha256
from brine.evals.suites.making.candidates import Candidate, find_candidates, open_case_source
from brine.evals.suites.making.choose import CellChoice, CellName, choose_candidates, with_transcriptions
from brine.evals.suites.making.needle_cases import make_needle_cases
from brine.evals.suites.measures import measures_of, primary_and_guards
from brine.evals.suites.suite import (
    CASES_FILE,
    FORMAT,
    MEDIA_FOLDER,
    SUITE_FILE,
    SUITES_ROOT,
    Suite,
    split_name,
    suite_digest,
    versions_of,
)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """What a suite holds. Raises ValueError for counts that cannot work."""

    per_cell: int = 32
    """Cases of each kind and level in each part."""
    transcripts_per_cell: int = 16
    """Cases of each kind and level in each part that are transcribed too."""
    transcribed_level: int = 1
    """Highest level that is transcribed; documents that are not synthetic have level 0."""
    max_reference_chars: int = 320
    """Longest text, in characters, that is asked for in a transcription."""
    needle_lengths: tuple[int, ...] = ()
    """Lengths of contexts with needles, in bytes and patches; none for none."""
    needle_modalities: tuple[str, ...] = ("text", "image", "audio", "video")
    """What needles are in: text, image, audio, video, chain, multikey."""
    needle_contexts: int = 8
    """Contexts for each length and modality in each part."""
    needles: int = 10
    """Needles in each context, each with its question."""
    needle_source: Path | None = None
    """Folder of code that contexts are made of; the standard library if not given."""
    timing: bool = True
    """Whether latency and memory are measured."""
    max_level: int | None = None
    """Highest level of documents that are taken; all if not given."""
    all_splits: bool = False
    """Take documents of the training split too, for a source that no run is trained on."""
    primary: str = "bits_per_byte"
    """Measure that models are ranked by."""
    guards: tuple[str, ...] | None = None
    """Measures that must not become worse; every gain, error rate and needle that has cases in all parts, latency and
    memory if not given."""
    max_case_tokens: int = 16384
    """Longest case in tokens, as bytes and default patches; also the longest that is measured, in a model's tokens."""
    max_media_mib: float = 64.0
    """Largest media file of a case, in MiB."""
    max_suite_mib: float = 4096.0
    """Largest sum of media files, in MiB."""
    seed: int = 0
    """Key of the hash that chooses, and seed of the needles."""

    def __post_init__(self):
        counts = "per_cell needle_contexts needles max_reference_chars max_case_tokens"
        check_values(self, counts, lambda value: value >= 1, "be at least 1")
        check_values(self, "transcripts_per_cell transcribed_level", lambda value: value >= 0, "not be negative")
        check_values(self, "max_media_mib max_suite_mib", lambda value: value > 0, "be above 0")
        if any(length < 1 for length in self.needle_lengths):
            raise ValueError(f"needle_lengths = {self.needle_lengths}: give numbers of tokens, such as 2048")
        if self.max_case_tokens < max(self.needle_lengths, default=0):
            raise ValueError(
                f"needle_lengths = {self.needle_lengths} go beyond max_case_tokens = {self.max_case_tokens}: raise it"
            )

    def settings(self) -> dict[str, Any]:
        """What suite.json keeps: all but paths."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "needle_source"}
        return kept | {"needle_source": "the standard library" if self.needle_source is None else "given"}


def make_suite(
    name: str, sources: Sequence[Path], config: SuiteConfig, *, root: Path = SUITES_ROOT, format: str | None = None,
    like: Suite | None = None, workers: int | None = None,
) -> Suite:  # fmt: skip
    """Make NAME (its next version) or NAME@VERSION in `root`, and open it.

    like: an earlier suite whose highest ranks are kept (`choose.py`); its seed must be the same. Raises ValueError for
    a suite that is there, sources without usable documents, and what the options cannot give."""
    name, version = split_name(name)
    version = version or (versions_of(name, root=root) or [0])[-1] + 1
    target = root / f"{name}@{version}"
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} is there already, and no suite is replaced: leave @{version} out for a new one")
    if not sources and not config.needle_lengths:
        raise ValueError("a suite needs documents or needles: give a source, or --needle-lengths")
    if like is not None and (like.settings["seed"], like.info["format"]) != (config.seed, FORMAT):
        raise ValueError(f"--like {like.folder} was made with --seed {like.settings['seed']}: give the same seed")
    splits = SPLITS if config.all_splits else tuple(split for split in SPLITS if split != "train")
    opened = [
        open_case_source(path, splits=splits, max_file_mib=config.max_media_mib, format=format) for path in sources
    ]
    found = find_candidates(opened, max_media_mib=config.max_media_mib, max_text_bytes=config.max_case_tokens)
    if config.max_level is not None:
        for name in [name for name, each in found.by_id.items() if each.case.level > config.max_level]:
            found.skipped[f"a level above {config.max_level}"] += 1
            del found.by_id[name]
    choices = choose_candidates(
        found, per_cell=config.per_cell, seed=config.seed, max_tokens=config.max_case_tokens,
        workers=workers or default_decode_workers(), like=_highest_ranks(like),
    )  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f".{target.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / MEDIA_FOLDER).mkdir(parents=True)
        cases = _write_media(partial, choices, config)
        cases += make_needle_cases(
            partial / MEDIA_FOLDER, lengths=sorted(set(config.needle_lengths)), modalities=config.needle_modalities,
            contexts=config.needle_contexts, needles=config.needles, seed=config.seed, source=config.needle_source,
        )  # fmt: skip
        if not cases:
            raise ValueError("no document can be used: " + _counted(found.skipped))
        with replacing(partial / CASES_FILE) as file:
            for case in sorted(cases, key=lambda case: case.id):
                file.write(to_json_line(case.to_json()))
        origin = [
            {
                "name": source.name, "format": source.format, "fingerprint": source.fingerprint, "splits": splits,
                "documents": len(source.documents),
            }
            for source in opened
        ]  # fmt: skip
        info = _describe(name, version, cases, choices, config)
        info |= {"made_from": origin, "skipped": dict(sorted(found.skipped.items())), "duplicates": found.duplicates}
        info |= {"like": like.identity if like else None, "media_bytes": _size(partial / MEDIA_FOLDER)}
        info |= {"files": {CASES_FILE: file_digest(partial / CASES_FILE)}}
        write_json(partial / SUITE_FILE, info | {"digest": suite_digest(info)})
        _finish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Suite.open(target)


def _highest_ranks(like: Suite | None) -> dict[CellName, str | None] | None:
    if like is None:
        return None
    cells = [cell for cell in like.info["cells"] if "below" in cell]
    return {(cell["kind"], cell["level"], cell["part"]): cell["below"] for cell in cells}


def _write_media(folder: Path, choices: Sequence[CellChoice], config: SuiteConfig) -> list[SuiteCase]:
    """The chosen cases; copies their media. Raises ValueError where they are too large, or changed meanwhile."""
    cases, size = [], 0
    for choice in choices:
        for candidate in with_transcriptions(
            choice, most=config.transcripts_per_cell, max_level=config.transcribed_level,
            max_reference_chars=config.max_reference_chars,
        ):  # fmt: skip
            size += _copy_media(folder, candidate, config.max_media_mib)
            if size > config.max_suite_mib * 2**20:
                raise ValueError(
                    f"the media of these cases have over {config.max_suite_mib:g} MiB: lower --per-cell, or raise "
                    "--max-suite-mib"
                )
            cases.append(candidate.case)
    return cases


def _copy_media(folder: Path, candidate: Candidate, max_mib: float) -> int:
    """Copy what is not there yet; returns the bytes copied."""
    copied = 0
    for given, part in zip(candidate.document.parts, candidate.case.parts, strict=True):
        if isinstance(part, Text) or isinstance(given, Text) or (target := folder / part.path).exists():
            continue
        with open_media(candidate.source.root, given.path, max_file_mib=max_mib) as file:
            shutil.copyfile(file, target)
        if file_digest(target) != media_sha256(part.path):
            raise ValueError(f"{candidate.source.root / given.path} changed while the suite was made: make it again")
        copied += target.stat().st_size
    return copied


def _describe(
    name: str, version: int, cases: Sequence[SuiteCase], choices: Sequence[CellChoice], config: SuiteConfig
) -> dict[str, Any]:
    measures = measures_of(cases, timing=config.timing)
    by_part = [
        {spec.name for spec in measures_of([case for case in cases if case.part == part], timing=config.timing)}
        for part in PARTS
    ]
    everywhere = set.intersection(*by_part)
    primary, guards = primary_and_guards(measures, config.primary, config.guards, in_all_parts=everywhere)
    cells = [choice.to_json() for choice in choices]
    for kind in sorted({case.kind for case in cases if case.needles is not None}):
        for part in PARTS:
            count = sum(case.kind == kind and case.part == part and case.needles is not None for case in cases)
            cells.append({"kind": kind, "level": 0, "part": part, "cases": count})
    return {
        "format": FORMAT, "name": name, "version": version, "primary": primary, "guards": guards,
        "measures": [asdict(measure) for measure in measures], "cells": cells, "settings": config.settings(),
        "num_cases": {part: sum(case.part == part for case in cases) for part in PARTS},
    }  # fmt: skip


def _finish(partial: Path, target: Path) -> None:
    """Take the write bits of all files, and rename the folder to its place."""
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
        else:
            sync_folder(path)
    sync_folder(partial)
    # the same name and version made at the same time: a folder that holds files is not renamed over
    try:
        partial.rename(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}): another may have made it just now") from None
    sync_folder(target.parent)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} with {reason}" for reason, count in sorted(reasons.items())) or "the sources are empty"
