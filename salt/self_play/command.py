"""`brine self-play`: documents for the next round that a model asks, answers and learns from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from brine.common.command_line import command, parse
from brine.common.files import file_digest, read_json
from brine.data.corpus.readers import read_manifest
from brine.data.document import Document
from brine.inference.load import load
from brine.inference.options import ComputeOptions, Run
from brine.salt.content import ContentHasher
from brine.salt.self_play.config import SelfPlayConfig
from brine.salt.self_play.play import self_play, table_of
from brine.salt.self_play.source_text import SourceText

SUITES_ROOT = Path("runs") / "suites"
"""Where suites are that are given by name."""


@dataclass(frozen=True, kw_only=True)
class SelfPlayRequest(ComputeOptions):
    """Self-play: a trained model asks questions whose answers a rule knows and answers each several times; what it gets
    right without being certain becomes a manifest to train on.

    The same command resumes after a kill. Train on OUT/pool.jsonl."""

    model: Run
    """A run (runs/demo), a stage of it, or a model folder."""
    out: Path
    """Folder for the manifest, its media and the counts."""
    config: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    """What is asked and kept."""
    source: Path | None = None
    """Folder of code that scenes are made of; the standard library if not given."""
    earlier: tuple[Path, ...] = ()
    """Folders of earlier rounds, the first round first: their documents are not made again."""
    held_out: tuple[Path, ...] = ()
    """Held-out cases, as manifests or as suites (folders, or NAME@VERSION in runs/suites): nothing that shares their
    content, prompts or media is kept."""

    def run(self) -> None:
        """Print a table and one JSON object. Raises ValueError for a mistake in the request."""
        device, compute_dtype = self.resolve()
        held_out = held_out_digests(self.held_out)
        loaded = load(self.model, device=device)
        result = self_play(
            loaded, self.out, self.config, source=SourceText.read(self.source), earlier=self.earlier,
            held_out=held_out, compute_dtype=compute_dtype, say=partial(print, file=sys.stderr),
        )  # fmt: skip
        print(table_of(result))
        said = {name: result[name] for name in ("entries", "num_targets", "counts", "stopped")}
        print(json.dumps({"manifest": str(self.out / "pool.jsonl"), **said}))


def held_out_digests(given: Iterable[Path]) -> frozenset[str]:
    """What the documents of some manifests and suites are known by (`ContentHasher.identities`), of all their splits.

    Raises ValueError for one that cannot be read, and for a suite whose cases were changed."""
    found: set[str] = set()
    for path in map(_manifest_of, given):
        hasher = ContentHasher(path.parent)
        for item in read_manifest(path):
            if not isinstance(item, Document):
                name = item.id or "a document"
                raise ValueError(f"{path}: {name} cannot be held out, since it cannot be read: {item.reason}")
            found |= hasher.identities(item)
    return frozenset(found)


def _manifest_of(path: Path) -> Path:
    """A manifest as it is; of a suite its cases, which are native documents."""
    folder = SUITES_ROOT / path if "@" in path.name and not path.exists() else path
    if not folder.is_dir():
        return path
    info, cases = read_json(folder / "suite.json"), folder / "cases.jsonl"
    recorded = (info.get("files") or {}).get(cases.name) if isinstance(info, dict) else None
    if recorded is None or not cases.is_file():
        raise ValueError(f"{folder} is no suite: give a manifest, or a folder that `brine suite make` made")
    if file_digest(cases) != recorded:
        raise ValueError(f"{cases} was changed: it is not the file that the suite was made with; copy it again")
    return cases


main = command(
    partial(parse, "self-play", SelfPlayRequest),
    interrupted="interrupted; played blocks are kept, the same command resumes",
)
