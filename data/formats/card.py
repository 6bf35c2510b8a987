"""Which files a data set's card puts into which split: the `configs` at the top of a README.md of the Hugging Face hub.

    ---
    configs:
    - config_name: default
      data_files:
      - split: train
        path: data/seen-*.parquet
      - split: test
        path: ["data/unseen.parquet", "more/**"]
    ---

    read_card(root).of("data/unseen.parquet")    "test"; "" for what no pattern names

The splits of all configs count. A name of a split that nobody knows (`challenge`) says nothing and is noted. Of YAML
only what such a header is made of is read: block lists and maps, lists in brackets, quotes; no anchors, tags or
several lines in one. Another header, or one over 64 KiB, says nothing. A pattern is matched against the paths of files
that were found below the folder, step by step, so one that climbs out of it matches none.
"""

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from data.document import DocumentError, resolve_media
from data.split_names import split_of_word

_MAX_BYTES, _MAX_PATTERNS = 2**16, 1000
_LINE = re.compile(r"(?P<space> *)(?P<dashes>(?:- +)*(?:-$)?)(?P<rest>.*)")
_KEY = re.compile(r"(?P<key>[\w-]+|\"[\w-]+\"|'[\w-]+') *:(?: +(?P<value>.*))?$")


@dataclass(frozen=True)
class Card:
    """The splits that a card declares."""

    patterns: tuple[tuple[str, str], ...] = ()
    """(pattern of a path, split), in the order of the card."""
    unknown: tuple[str, ...] = ()
    """Names of splits that stand for none."""

    def of(self, path: str) -> str:
        """The split of the file at a path; held-out ones win."""
        found = [split for pattern, split in self.patterns if _matches(path.split("/"), pattern.split("/"))]
        return next((split for split in found if split != "train"), found[0] if found else "")


def read_card(root: Path) -> Card:
    """The card of the data set at `root` (resolved); an empty one where there is none."""
    try:
        file = resolve_media(root, "README.md", max_file_mib=256.0)
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            head = stream.read(_MAX_BYTES)
    except (DocumentError, OSError):
        return Card()
    lines = head.splitlines()
    if not lines or lines[0].strip() != "---":
        return Card()
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() in ("---", "...")), 0)
    patterns, unknown = [], []
    for split, path in _entries(lines[1:end]):
        try:
            word = split_of_word(split)
        except ValueError:
            unknown.append(split[:40])
            continue
        if word:
            patterns.append((path.removeprefix("./"), word))
    return Card(tuple(patterns[:_MAX_PATTERNS]), tuple(dict.fromkeys(unknown)))


def _entries(lines: list[str]) -> list[tuple[str, str]]:
    """(split, pattern) of each path below `data_files`: a list of splits and paths, or a map from one to the other."""
    found: list[tuple[str, str]] = []
    files_at, split, path_at, pending = None, "", None, []
    in_configs = False
    for line in lines:
        match = _LINE.match(line.rstrip())
        text = match["rest"].strip()
        if not (text or match["dashes"]) or text.startswith("#"):
            continue
        depth = len(match["space"]) + len(match["dashes"])
        key = _KEY.match(text)
        if not match["space"] and not match["dashes"]:
            in_configs, files_at = bool(key) and key["key"] == "configs", None
            continue
        if not in_configs:
            continue
        name = key["key"].strip("\"'") if key else ""
        # what stands no deeper than the key ends its value; a list may stand as deep as its key
        if files_at is not None and key and depth <= files_at:
            files_at = None
        if name == "data_files":
            files_at, split, path_at, pending = depth, "", None, []
        elif files_at is None:
            continue
        elif not key:
            # an entry of a list of paths
            if path_at is not None and match["dashes"]:
                found += [(split, path) for path in _values(text)] if split else []
                pending += [] if split else _values(text)
        elif name in ("split", "path") and (match["dashes"] or path_at is not None or split or pending):
            if match["dashes"]:
                split, path_at, pending = "", None, []
            if name == "split":
                split = next(iter(_values(key["value"] or "")), "")
                found += [(split, path) for path in pending]
                pending = []
            else:
                path_at = depth
                paths = _values(key["value"] or "")
                found += [(split, path) for path in paths] if split else []
                pending += [] if split else paths
        elif not match["dashes"]:
            # a map: split, and its path or paths
            split, path_at = name, depth
            found += [(split, path) for path in _values(key["value"] or "")]
    return found


def _values(text: str) -> list[str]:
    """The strings of a value: one, or several in brackets."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [value for piece in text[1:-1].split(",") for value in _values(piece)]
    if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
        return [text[1:-1]]
    text = re.split(r"\s#", text, maxsplit=1)[0].strip()
    return [text] if text and text[0] not in "&!|>{[" else []


def _matches(steps: list[str], pattern: list[str]) -> bool:
    """Whether the steps of a path match those of a pattern, of which `**` stands for any number."""
    reached = {0}
    for place, step in enumerate(pattern):
        if step == "**":
            reached = set(range(min(reached, default=len(steps) + 1), len(steps) + 1))
            # at the end it stands for whatever lies below
            if place == len(pattern) - 1:
                return bool(reached)
            continue
        reached = {at + 1 for at in reached if at < len(steps) and fnmatch.fnmatchcase(steps[at], step)}
    return len(steps) in reached
