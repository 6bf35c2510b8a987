"""Self-play of a model over some families, block by block, into a folder that a kill leaves resumable.

    FOLDER/settings.json      configuration, digests of weights, source, earlier pools and held-out content
    FOLDER/blocks/            every case played, a file for each block, written whole; with the media of what is kept
    FOLDER/pool.jsonl         the documents for training, a manifest (`brine.salt.pseudo_pool`), media below media/
    FOLDER/self_play.json     counts of each family and the collapse watch; written last

A document is kept when the model was right at least once and not certain, when neither it, its prompt nor its media are
those of a held-out case, when no earlier pool has it, when the collapse watch does not stop its family, and as far as
`max_targets` goes. Everything else is counted. The same settings resume, or give the same bytes elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from brine.common.content_store import file_lock
from brine.common.files import (
    differences,
    digest,
    file_digest,
    finite,
    read_json,
    read_jsonl,
    replacing,
    to_plain,
    write_json,
)
from brine.data.document import Document
from brine.inference.load import WEIGHTS, LoadedModel
from brine.salt.collapse import FIRST_ROUND, TRUE, CollapseResult, watch_kinds
from brine.salt.content import ContentHasher
from brine.salt.pseudo_pool import PseudoEntry, accumulate, choose_within, read_pool, write_pool
from brine.salt.self_play.block import PlayedCase, play_block
from brine.salt.self_play.config import SelfPlayConfig
from brine.salt.self_play.families import WRITING, check_libraries_of
from brine.salt.self_play.model_answers import ModelAnswers
from brine.salt.self_play.source_text import SourceText
from brine.synth.render_worker import Renderer

RESULT_FILE, SETTINGS_FILE = "self_play.json", "settings.json"
COUNTS = (
    "proposed", "unusable", "never", "certain", "right", "uncertain", "held_out", "repeated", "collapsed", "capped",
    "kept",
)  # fmt: skip
"""Columns of the table: of the proposed cases some are unusable, never right or certain; of the uncertain ones some are
left out, for the reasons that follow; `right` are certain and uncertain ones."""


def self_play(
    loaded: LoadedModel,
    folder: str | Path,
    config: SelfPlayConfig,
    *,
    source: SourceText,
    earlier: Sequence[str | Path] = (),
    held_out: Set[str] = frozenset(),
    compute_dtype: torch.dtype | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Play what `folder` does not have yet, write the pool and return what `self_play.json` says.

    earlier: folders or pools of earlier rounds, the first round first, whose documents are not made again. held_out:
    digests of held-out cases (`ContentHasher.identities`). Raises ValueError for a folder of other settings.
    """
    folder = Path(folder)
    check_libraries_of(config.families)
    (folder / "blocks").mkdir(parents=True, exist_ok=True)
    origin = file_digest(loaded.folder / WEIGHTS)
    pools = [read_pool(pool) for pool in earlier]
    known = {entry.key for pool in pools for entry in pool}
    settings = {
        "config": config.settings(), "origin": origin, "source": source.digest, "compute_dtype": str(compute_dtype),
        "earlier": digest(sorted(known)), "held_out": digest(sorted(held_out)),
    }  # fmt: skip
    with file_lock(folder / ".lock", what=f"self-play in {folder}", timeout_s=60.0):
        _check_settings(folder, settings)
        played: dict[str, list[PlayedCase]] = {}
        for family in config.families:
            played[family] = _play_family(loaded, folder, config, family, source, compute_dtype, say)
        result = _finish(folder, config, played, pools, held_out, known, origin)
    return result


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    before = read_json(folder / SETTINGS_FILE)
    if before is None:
        write_json(folder / SETTINGS_FILE, settings)
    elif changed := differences(before, settings):
        raise ValueError(f"{folder} holds self-play of other settings ({'; '.join(changed[:3])}): give another --out")


def _play_family(
    loaded: LoadedModel, folder: Path, config: SelfPlayConfig, family: str, source: SourceText,
    compute_dtype: torch.dtype | None, say: Callable[[str], None],
) -> list[PlayedCase]:  # fmt: skip
    played: list[PlayedCase] = []
    for number, first in enumerate(range(0, config.num_cases, config.block_size)):
        path = folder / "blocks" / f"{family}-{number:05d}.jsonl"
        if path.is_file():
            played += map(PlayedCase.from_json, read_jsonl(path))
            continue
        size = min(config.block_size, config.num_cases - first)
        with tempfile.TemporaryDirectory(prefix="brine-self-play-") as scratch:
            root = Path(scratch).resolve()
            (root / ".partial").mkdir()
            with closing(Renderer(root, utterance_timeout_s=20.0)) as renderer:
                model = ModelAnswers(loaded, root, temperature=config.temperature, compute_dtype=compute_dtype)
                cases = play_block(
                    model, source, renderer, config, family=family, number=number, size=size, before=played
                )
            hasher = ContentHasher(root)
            cases = [_adopted(case, hasher, folder / "blocks") for case in cases]
        with replacing(path) as file:
            file.writelines(json.dumps(case.to_json(), ensure_ascii=False) + "\n" for case in cases)
        played += cases
        say(f"{family}: {len(played)} of {config.num_cases}")
    return played


def _adopted(case: PlayedCase, hasher: ContentHasher, folder: Path) -> PlayedCase:
    """A case whose document's media lie in the folder."""
    if case.document is None:
        return case
    return dataclasses.replace(case, document=hasher.adopt(case.document, folder))


def _finish(
    folder: Path, config: SelfPlayConfig, played: dict[str, list[PlayedCase]], pools: list[list[PseudoEntry]],
    held_out: Set[str], known: Set[str], origin: str,
) -> dict[str, Any]:  # fmt: skip
    """Choose what is kept, write the pool and the result."""
    hasher = ContentHasher(folder / "blocks")
    counts = {family: Counter(_outcomes(cases)) for family, cases in played.items()}
    entries: dict[str, list[PseudoEntry]] = {}
    words: dict[str, dict[str, str]] = {}
    for family, cases in played.items():
        found: list[PseudoEntry] = []
        words[family] = {}
        for case in cases:
            if case.document is None or case.confidence is None:
                continue
            key = hasher.content(case.document)
            if hasher.is_held_out(case.document, held_out):
                counts[family]["held_out"] += 1
            elif key in known or key in words[family]:
                counts[family]["repeated"] += 1
            else:
                named = dataclasses.replace(case.document, id=f"self-play-{family}-{key[:16]}")
                found.append(PseudoEntry(named, key, case.num_targets, case.confidence, origin, config.round_number))
                words[family][key] = case.question
        entries[family] = accumulate((), found)
    watched = _watch(config, played, words, pools)
    for family, outcome in watched.items():
        if outcome.stops:
            counts[family]["collapsed"] = len(entries[family])
            entries[family] = []
    fresh = [entry for found in entries.values() for entry in found]
    limit = float("inf") if config.max_targets is None else config.max_targets
    chosen = choose_within(fresh, limit)
    kept = {entry.key for entry in chosen}
    for family, found in entries.items():
        counts[family]["kept"] = sum(entry.key in kept for entry in found)
        counts[family]["capped"] = len(found) - counts[family]["kept"]
    write_pool(folder, (dataclasses.replace(e, document=hasher.adopt(e.document, folder)) for e in chosen))
    result = {
        "config": config.settings(), "origin": origin, "entries": len(chosen),
        "num_targets": sum(entry.num_targets for entry in chosen),
        "counts": {family: {name: found[name] for name in COUNTS} for family, found in counts.items()},
        "by_level": {family: _by_level(cases) for family, cases in played.items()},
        "watch": {family: outcome.to_dict() for family, outcome in watched.items()},
        "stopped": sorted(family for family, outcome in watched.items() if outcome.stops),
    }  # fmt: skip
    write_json(folder / RESULT_FILE, finite(to_plain(result)))
    return result


def _outcomes(cases: Sequence[PlayedCase]) -> dict[str, int]:
    found: Counter[str] = Counter(case.outcome for case in cases)
    return {**found, "proposed": len(cases), "right": found["certain"] + found["uncertain"]}


def _by_level(cases: Sequence[PlayedCase]) -> dict[str, dict[str, int]]:
    levels = sorted({case.level for case in cases})
    return {str(level): dict(sorted(_outcomes([c for c in cases if c.level == level]).items())) for level in levels}


def _watch(
    config: SelfPlayConfig, played: dict[str, list[PlayedCase]], words: dict[str, dict[str, str]],
    pools: list[list[PseudoEntry]],
) -> dict[str, CollapseResult]:  # fmt: skip
    """What is kept of each family against the first round's, and against questions that chance asks.

    Where the model writes the text itself chance has no say: there the first round alone is the reference.
    """
    texts = {family: [known[key] for key in sorted(known)] for family, known in words.items()}
    true = {
        family: [case.random_question for case in cases if case.random_question]
        for family, cases in played.items() if family not in WRITING
    }  # fmt: skip
    first: dict[str, list[str]] = {}
    for entry in pools[0] if pools else ():
        family = entry.document.kind.removeprefix("self-play-")
        first.setdefault(family, []).append(question_and_answer(entry.document, writes=family in WRITING))
    return watch_kinds(texts, {FIRST_ROUND: first, TRUE: true}, config.collapse)


def question_and_answer(document: Document, *, writes: bool = False) -> str:
    """The words of a document that the watch counts: the last line before the answer, and the answer."""
    texts = [part.text for part in document.parts if hasattr(part, "text")]
    asked = "" if writes or len(texts) < 2 else texts[-2].strip("\n").rsplit("\n", 1)[-1]
    return f"{asked.strip()} {texts[-1].strip()}".strip()


def table_of(result: dict[str, Any]) -> str:
    """A line for each family with the counts."""
    names = [name for name in COUNTS if name in ("proposed", "right", "uncertain", "kept")]
    names += [name for name in COUNTS if name not in names]
    lines = [f"{'family':<14}" + "".join(f"{name:>10}" for name in names)]
    for family, counts in result["counts"].items():
        lines.append(f"{family:<14}" + "".join(f"{counts[name]:>10}" for name in names))
    for family, counts in result["counts"].items():
        if counts["unusable"] and family in WRITING:
            lines.append(f"{family}: {counts['unusable']} of {counts['proposed']} unusable, since {WRITING[family]}")
    for family in result["stopped"]:
        lines.append(f"{family} is stopped: {'; '.join(result['watch'][family]['breaches'])}")
    return "\n".join(lines)
