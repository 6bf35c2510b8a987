"""Which files a data set's card puts into which split: the `configs` at the top of a README.md of the Hugging Face hub.

    ---
    configs:
    - config_name: default
      data_files:
      - split: train
        path: data/seen-*.parquet
      - {split: test, path: ["data/unseen.parquet", "more/**"]}
    ---

    read_card(root).of("data/unseen.parquet")    "test"; "" for what no pattern names

The splits of all configs count. `data_files` is a list of splits and paths, or a map from one to the other; a
`data_dir` beside it is the folder that its paths begin in. A name of a split that nobody knows (`challenge`) says
nothing and is noted. So is a header with `configs` that is no YAML, or that is over 1 MiB.

A path that names a folder stands for what lies below.

The header is a stranger's: PyYAML makes a graph of nodes of it, in which what an alias repeats is there once, and no
object is made of a node. Of that graph 100,000 entries are visited at most (a set of 2,000 languages has 40,000). A
pattern is matched against the paths of files that were found below the folder, step by step, so one that climbs out of
it matches none.
"""

import fnmatch
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.document import DocumentError, resolve_media
from data.split_names import split_of_word

_MAX_CHARACTERS, _MAX_ENTRIES, _MAX_PATTERN = 2**20, 100_000, 1000
_LOST = "the splits of its configs were not read"
_WILD = re.compile(r"[*?\[]")
_OF_HUB = re.compile(r"hf://datasets/[^/]+/[^/]+/")
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Card:
    """The splits that a card declares."""

    patterns: tuple[tuple[str, str], ...] = ()
    """(pattern of a path, split), in the order of the card."""
    unknown: tuple[str, ...] = ()
    """Names of splits that stand for none."""
    problem: str = ""
    """Why its configs, or some of them, were not read."""

    def of(self, path: str) -> str:
        """The split of the file at a path; held-out ones win."""
        steps = path.split("/")
        # a card of a thousand languages has as many folders, of which a path begins with one
        near = sorted([*self._by_first.get(steps[0], ()), *self._by_first.get("", ())])
        found = [split for _, pattern, split in near if _matches(steps, pattern)]
        return next((split for split in found if split != "train"), found[0] if found else "")

    @functools.cached_property
    def _by_first(self) -> dict[str, list[tuple[int, list[str], str]]]:
        """First step -> (place, steps, split) of the patterns that begin with it; "" for those that begin otherwise."""
        found: dict[str, list[tuple[int, list[str], str]]] = {}
        for place, (pattern, split) in enumerate(self.patterns):
            steps = pattern.split("/")
            found.setdefault("" if _WILD.search(steps[0]) else steps[0], []).append((place, steps, split))
        return found

    def notes(self) -> list[str]:
        """What a reader of the data set should know about its card."""
        names = ", ".join(self.unknown[:5])
        found = [f"README.md names splits that nobody knows, which say nothing: {names}"] if names else []
        return [*found, f"README.md: {self.problem}"] if self.problem else found


def read_card(root: Path) -> Card:
    """The card of the data set at `root` (resolved); an empty one where there is none."""
    try:
        file = resolve_media(root, "README.md", max_file_mib=256.0)
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            head = stream.read(_MAX_CHARACTERS)
    except (DocumentError, OSError):
        return Card()
    lines = head.split("\n")
    if lines[0].strip() != "---" or "configs" not in head:
        return Card()
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() in ("---", "...")), 0)
    if end:
        return _card("\n".join(lines[1:end]))
    # a page may begin with a rule
    is_meant = any(line.startswith("configs:") for line in lines)
    return Card(problem=f"its header has no end (a line ---) in its first MiB: {_LOST}" if is_meant else "")


@functools.lru_cache(maxsize=8)
def _card(header: str) -> Card:
    """The card of a header, which is given without the lines around it."""
    if "configs" not in header:
        return Card()
    import yaml

    entries, patterns, unknown, problem = _Entries(), [], [], ""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        try:
            top = yaml.compose(header, Loader=loader)
        except yaml.YAMLError as error:
            # a title with a colon in it spoils no configs
            try:
                top = yaml.compose(_configs_alone(header), Loader=loader)
            except yaml.YAMLError:
                raise error from None
        for split, path in entries.of(top):
            try:
                word = split_of_word(split)
            except ValueError:
                unknown.append(split[:40])
                continue
            if word and len(path) <= _MAX_PATTERN:
                patterns.append((path, word))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        # the header begins in the second line of the file
        why = f"line {mark.line + 2}: {str(error.problem)[:100]}" if mark else "nested too deeply, or of odd bytes"
        problem = f"its header is no YAML ({why}): {_LOST}"
    except OverflowError:
        problem = f"its configs have over {_MAX_ENTRIES:,} entries, of which only the first were read"
    return Card(tuple(dict.fromkeys(patterns)), tuple(dict.fromkeys(unknown)), problem)


def _configs_alone(header: str) -> str:
    """The lines of `configs` in a header."""
    lines = header.split("\n")
    start = next((number for number, line in enumerate(lines) if line.startswith("configs:")), len(lines))
    stop = next(
        (n for n in range(start + 1, len(lines)) if lines[n][:1] not in ("", " ", "\t", "-", "#", "\r")), len(lines)
    )
    return "\n".join(lines[start:stop]) or header


class _Entries:
    """The entries of the configs in a graph of YAML's nodes. OverflowError where they are too many.

    A node that an alias repeats is visited as often as it is repeated, which is why visits are counted.
    """

    def __init__(self):
        self.left = _MAX_ENTRIES

    def of(self, top) -> Iterator[tuple[str, str]]:
        """(split, pattern) of each path below `data_files`."""
        pairs = top.value if top is not None and top.id == "mapping" else []
        # a key that stands twice hides nothing
        for value in [value for key, value in pairs if self._string(key) == "configs"]:
            for config in self._list(value):
                fields = self._fields(config)
                folder = self._string(fields.get("data_dir"))
                for split, path in self._of_files(fields.get("data_files")):
                    yield split, _below(folder, path)
                    if folder and path.startswith(f"{folder.strip('/')}/"):
                        # some write the folder again
                        yield split, _below("", path)

    def _of_files(self, files) -> Iterator[tuple[str, str]]:
        fields = self._fields(files)
        if fields and not {"split", "path"} <= fields.keys():
            for split, paths in fields.items():
                yield from ((split, path) for path in self._strings(paths))
            return
        for entry in self._list(files):
            named = self._fields(entry)
            if split := self._string(named.get("split")):
                yield from ((split, path) for path in self._strings(named.get("path")))

    def _visit(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise OverflowError

    def _list(self, node) -> list:
        """The entries of a list; of anything else it alone."""
        found = node.value if node is not None and node.id == "sequence" else [node]
        self._visit(len(found))
        return found

    def _strings(self, node) -> list[str]:
        return [text for entry in self._list(node) if (text := self._string(entry))]

    def _string(self, node) -> str:
        # a year without quotes is a name too
        return node.value if node is not None and node.id == "scalar" and node.tag != _NULL else ""

    def _fields(self, node) -> dict:
        """The values of a map by their names, also those that it takes from another (`<<`); {} for anything else."""
        if node is None or node.id != "mapping":
            return {}
        self._visit(len(node.value) + 1)
        found = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for other in self._list(value):
                    found = self._fields(other) | found
        return found | {self._string(key): value for key, value in node.value if self._string(key)}


def _below(folder: str, path: str) -> str:
    """A pattern as one of the whole data set: what `data_dir` says is a folder before it."""
    if _OF_HUB.match(path):
        folder, path = "", _OF_HUB.sub("", path)
    steps = [step for step in f"{folder}/{path}".split("/") if step not in ("", ".")]
    # one that names a folder stands for what lies below
    is_name = bool(steps) and not _WILD.search(steps[-1])
    steps = [step for step, before in zip(steps, ["", *steps], strict=False) if step != "**" or before != "**"]
    return "/".join([*steps, "**"] if is_name else steps)


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
