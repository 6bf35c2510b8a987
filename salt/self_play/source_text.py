"""What scenes are made of: lines, words and definitions of a folder of source code, read once."""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from brine.data.files.source_files import SourceFile, parse_python, read_source, source_hash
from brine.synth.needles.needle import haystack_words

MAX_LINE = 60
MIN_NAME, MAX_NAME = 4, 24


@dataclass(frozen=True)
class Definition:
    """A name that a file defines at its top level, and the lines from there on."""

    name: str
    lines: tuple[str, ...]


class SourceText:
    """Source files as material for scenes."""

    def __init__(self, files: list[SourceFile]):
        """Raises ValueError where no file has a line that can be used."""
        self.files = files
        lines = (line.rstrip() for item in files for line in item.text.split("\n"))
        found = (line for line in lines if len(line.strip()) >= 4 and len(line) <= MAX_LINE)
        self.lines = list(dict.fromkeys(line for line in found if line.isascii() and line.isprintable()))
        if not self.lines:
            raise ValueError("the source has no line of 4 to 60 characters: give a folder with code")
        self.words = haystack_words([item.text for item in files], most=400)

    @classmethod
    def read(cls, source: Path | None) -> SourceText:
        """Of a folder, the standard library for None."""
        return cls(read_source(source)[0])

    @cached_property
    def digest(self) -> str:
        """Equal for equal sources."""
        return source_hash(self.files)

    @cached_property
    def packages(self) -> dict[str, list[tuple[str, tuple[Definition, ...]]]]:
        """Folder -> (path, definitions) of its Python files that define something, for folders with two or more.

        Names that more than one file of the folder defines are left out, and so are files of one stem.
        """
        by_folder: dict[str, list[tuple[str, list[Definition]]]] = defaultdict(list)
        for item in self.files:
            if item.language == "python" and PurePosixPath(item.path).suffix == ".py":
                by_folder[str(PurePosixPath(item.path).parent)].append((item.path, _definitions(item.text)))
        packages = {}
        for folder, members in sorted(by_folder.items()):
            counts = Counter(name for _path, found in members for name in {one.name for one in found})
            clear = ((path, tuple(one for one in found if counts[one.name] == 1)) for path, found in members)
            usable = [(path, found) for path, found in clear if found and PurePosixPath(path).stem != "__init__"]
            if len(usable) > 1:
                packages[folder] = usable
        return packages


def _definitions(text: str) -> list[Definition]:
    """Functions, classes and constants of a module's top level, each once; none where it does not parse."""
    tree = parse_python(text)
    lines = [line.rstrip() for line in text.split("\n")]
    found: dict[str, Definition] = {}
    repeated = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        else:
            continue
        first = lines[node.lineno - 1]
        plain = first.isascii() and first.isprintable() and len(first) <= 2 * MAX_LINE
        if name in found:
            repeated.add(name)
        elif plain and MIN_NAME <= len(name) <= MAX_NAME and not name.startswith("__") and not keyword.iskeyword(name):
            body = (line for line in lines[node.lineno : node.end_lineno] if line.isascii() and line.isprintable())
            found[name] = Definition(name, (first, *body))
    return [one for name, one in found.items() if name not in repeated]


def keys_spelled(texts: list[str]) -> set[str]:
    """Every three capitals in a row of some texts: what would answer a needle's question by accident."""
    words = (word for text in texts for word in re.findall("[A-Z]{3,}", text))
    return {word[at : at + 3] for word in words for at in range(len(word) - 2)}


def seed_of(*parts: object) -> int:
    """63 bits from a hash of some parts, for generators that take a number."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
