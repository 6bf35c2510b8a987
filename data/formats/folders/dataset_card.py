"""Which files a dataset card puts into which split: the `configs` at the top of a README.md of the Hugging Face hub.

    read_dataset_card(root).split_of("data/unseen.parquet")    "test"; "" for what no pattern names

The splits of all configs count; unknown names of splits are noted, and so is a header that is not YAML. The header is
untrusted: PyYAML composes a graph of nodes (no objects), of which 100,000 are visited at most, since an alias may
repeat itself. Patterns are matched against the paths of files that were found, so none leads out of the folder.
"""

import fnmatch
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brine.data.document import DocumentError
from brine.data.files.resolve import resolve_media
from brine.data.formats.splits.names import prefer_held_out, split_of_word

_MAX_CHARACTERS, _MAX_ENTRIES, _MAX_PATTERN = 2**20, 100_000, 1000
_LOST = "the splits of its configs were not read"
_WILD = re.compile(r"[*?\[]")
_OF_HUB = re.compile(r"hf://datasets/[^/]+/[^/]+/")
# the lines of `configs` in a header
_CONFIGS = re.compile(r"^(configs:[^\n]*\n(?:(?:[ \t\r#-][^\n]*)?\n)*)", re.MULTILINE)
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class DatasetCard:
    """The splits that a card declares."""

    patterns: tuple[tuple[str, str], ...] = ()  # (pattern of a path, split), in the order of the card
    unknown: tuple[str, ...] = ()  # unknown names of splits
    problem: str = ""  # why its configs, or some of them, were not read

    def split_of(self, path: str) -> str:
        """The split of the file at a path; held-out ones win."""
        steps = path.split("/")
        near = sorted([*self._by_first_step.get(steps[0], ()), *self._by_first_step.get("", ())])
        return prefer_held_out(split for _, pattern, split in near if _matches(steps, pattern))

    @functools.cached_property
    def _by_first_step(self) -> dict[str, list[tuple[int, list[str], str]]]:
        # a card of a thousand languages has as many folders, of which a path begins with one; "" is for patterns
        found: dict[str, list[tuple[int, list[str], str]]] = {}
        for index, (pattern, split) in enumerate(self.patterns):
            steps = pattern.split("/")
            found.setdefault("" if _WILD.search(steps[0]) else steps[0], []).append((index, steps, split))
        return found

    def notes(self) -> list[str]:
        """Remarks on what of the card was not read."""
        names = ", ".join(self.unknown[:5])
        found = [f"README.md names unknown splits, which are ignored: {names}"] if names else []
        return [*found, f"README.md: {self.problem}"] if self.problem else found


def read_dataset_card(root: Path) -> DatasetCard:
    """The card of the data set at `root` (resolved); an empty one where there is none."""
    try:
        file = resolve_media(root, "README.md", max_file_mib=256.0)
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            head = stream.read(_MAX_CHARACTERS)
    except (DocumentError, OSError):
        return DatasetCard()
    lines = head.split("\n")
    if lines[0].strip() != "---" or "configs" not in head:
        return DatasetCard()
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() in ("---", "...")), 0)
    if end:
        header = "\n".join(lines[1:end])
        return _card(header) if "configs" in header else DatasetCard()
    # a page may begin with a rule
    is_meant = any(line.startswith("configs:") for line in lines)
    return DatasetCard(problem=f"its header has no end (a line ---) in its first MiB: {_LOST}" if is_meant else "")


@functools.lru_cache(maxsize=8)
def _card(header: str) -> DatasetCard:
    import yaml

    patterns, unknown, problem = [], [], ""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        try:
            top = yaml.compose(header, Loader=loader)
        except yaml.YAMLError as error:
            # a title with a colon in it does not invalidate the configs
            try:
                top = yaml.compose(_CONFIGS.search(f"{header}\n")[1], Loader=loader)
            except (yaml.YAMLError, TypeError):
                raise error from None
        for split, path in _Nodes().split_paths(top):
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
        problem = f"its header is not YAML ({why}): {_LOST}"
    except OverflowError:
        problem = f"its configs have over {_MAX_ENTRIES:,} entries, of which only the first were read"
    return DatasetCard(tuple(dict.fromkeys(patterns)), tuple(dict.fromkeys(unknown)), problem)


class _Nodes:
    """A graph of YAML's nodes, of which only so many are visited. Raises OverflowError after that."""

    def __init__(self):
        self.left = _MAX_ENTRIES

    def split_paths(self, top) -> Iterator[tuple[str, str]]:
        """(split, pattern) of each path below `data_files`."""
        pairs = top.value if top is not None and top.id == "mapping" else []
        # a key that stands twice hides nothing
        for config in (each for key, value in pairs if _string(key) == "configs" for each in self._list(value)):
            fields = self._fields(config)
            folder, files = _string(fields.get("data_dir")), fields.get("data_files")
            entries = self._fields(files)
            if not entries or {"split", "path"} <= entries.keys():
                named = map(self._fields, self._list(files))
                entries = ((_string(each.get("split")), each.get("path")) for each in named)
            else:
                entries = entries.items()
            for split, paths in entries:
                for path in filter(None, map(_string, self._list(paths) if split else ())):
                    yield split, _below(folder, path)
                    if folder and path.startswith(f"{folder.strip('/')}/"):
                        # some write the folder again
                        yield split, _below("", path)

    def _visit(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise OverflowError

    def _list(self, node) -> list:
        found = node.value if node is not None and node.id == "sequence" else [node]
        self._visit(len(found))
        return found

    def _fields(self, node) -> dict:
        """The values of a map by their names, also those that it takes from another (`<<`); {} for anything else."""
        if node is None or node.id != "mapping":
            return {}
        self._visit(len(node.value) + 1)
        merged: dict = {}
        for other in (other for key, value in node.value if key.tag == _MERGE for other in self._list(value)):
            merged = self._fields(other) | merged
        return merged | {_string(key): value for key, value in node.value if _string(key)}


def _string(node) -> str:
    # a year without quotes is a name too
    return node.value if node is not None and node.id == "scalar" and node.tag != _NULL else ""


def _below(folder: str, path: str) -> str:
    """A pattern as one of the whole data set: what `data_dir` says is a folder before it."""
    if _OF_HUB.match(path):
        folder, path = "", _OF_HUB.sub("", path)
    steps = [step for step in f"{folder}/{path}".split("/") if step not in ("", ".")]
    # one that names a folder stands for what is below
    is_name = bool(steps) and not _WILD.search(steps[-1])
    steps = [step for step, before in zip(steps, ["", *steps], strict=False) if step != "**" or before != "**"]
    return "/".join([*steps, "**"] if is_name else steps)


def _matches(steps: list[str], pattern: list[str]) -> bool:
    """Whether the steps of a path match those of a pattern, of which `**` stands for any number."""
    reached = {0}
    for index, step in enumerate(pattern):
        if step == "**":
            reached = set(range(min(reached, default=len(steps) + 1), len(steps) + 1))
            # at the end it stands for whatever is below
            if index == len(pattern) - 1:
                return bool(reached)
            continue
        reached = {at + 1 for at in reached if at < len(steps) and fnmatch.fnmatchcase(steps[at], step)}
    return len(steps) in reached
