"""Lines of real code that only another file of the package can complete, found by `ast`.

A case is the first use in a file of a name that exactly one other file of the package defines at its top level, and
that is not a builtin, keyword or module of the package: mostly import lines and attributes of imported modules, such as
`from .decoder import |JSONDecoder`. The prompt is the package's other files, each headed by its path, then the file's
text up to the name. `window` makes it with the package, without it, and with another package of the same length, which
separates a name that was looked up from one that any long context makes likelier.
"""

import ast
import builtins
import keyword
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from brine.data.files.source_files import SourceFile, parse_python
from brine.data.tokenizer import Tokenizer

WITH_PACKAGE, WITHOUT_PACKAGE, OTHER_PACKAGE = CONTEXT_CONDITIONS = ("with_package", "without_package", "other_package")
"""The package in the context, no context, another package in it."""
MIN_NAME = 4
OWN_FRACTION = 0.25
"""Largest fraction of a window for the file's own text, cut at the front where it is longer."""


@dataclass(frozen=True)
class CompletionCase:
    """A name to complete: `answer`, after `offset` characters of the file `path`, defined in the file `defined_in` of
    the same folder `package`."""

    path: str
    offset: int
    answer: str
    defined_in: str
    package: str


def find_cases(files: list[SourceFile], *, completed: set[str] | None = None, seed: int = 0) -> list[CompletionCase]:
    """All cases of the packages among `files`, shuffled by the seed; at most one for a file and name.

    completed: paths of files to complete (held-out files), None for all.
    """
    cases = []
    for package, members in sorted(packages_of(files).items()):
        if len(members) < 2:
            continue
        homes: dict[str, set[str]] = defaultdict(set)
        for item in members:
            for name in defined_in(item.text):
                homes[name].add(item.path)
        modules = {PurePosixPath(item.path).stem for item in members}
        alone = {name: next(iter(paths)) for name, paths in homes.items() if len(paths) == 1 and name not in modules}
        for item in members:
            if completed is None or item.path in completed:
                cases += _cases_of(item, alone, package)
    random.Random(f"repository/{seed}").shuffle(cases)
    return cases


def packages_of(files: Iterable[SourceFile]) -> dict[str, list[SourceFile]]:
    """Folder -> its Python files, in the order given."""
    packages: dict[str, list[SourceFile]] = defaultdict(list)
    for item in files:
        if item.language == "python" and "/" in item.path:
            packages[str(PurePosixPath(item.path).parent)].append(item)
    return packages


def defined_in(text: str) -> set[str]:
    """Functions, classes and constants that a module defines at its top level; none where it does not parse."""
    tree = parse_python(text)
    names: set[str] = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    usable = {name for name in names if len(name) >= MIN_NAME and not name.startswith("__")}
    return usable - set(dir(builtins)) - set(keyword.kwlist)


def _cases_of(item: SourceFile, alone: dict[str, str], package: str) -> list[CompletionCase]:
    if parse_python(item.text) is None:
        return []
    found, seen = [], set()
    for match in re.finditer(r"[A-Za-z_]\w*", item.text):
        name = match.group()
        if name in seen:
            continue
        seen.add(name)
        home = alone.get(name)
        if home is None or home == item.path:
            continue
        line = item.text[item.text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if _uses_module(line, PurePosixPath(home).stem):
            found.append(CompletionCase(item.path, match.start(), name, home, package))
    return found


def _uses_module(line: str, module: str) -> bool:
    """Does a line, up to a name, import the name from a module or access it as the module's attribute?"""
    if "#" in line or '"' in line or "'" in line:
        # a word of a comment or of a string is no use of a name
        return False
    imported = re.match(rf"\s*from\s+[\w.]*\b{module}\s+import\b", line)
    return bool(imported or re.search(rf"\b{module}\.$", line))


class CompletionPrompts:
    """Makes cases into token ids of a bounded length."""

    def __init__(self, files: list[SourceFile], *, tokenizer: Tokenizer, seed: int = 0):
        self.files = {item.path: item for item in files}
        self.tokenizer, self.seed = tokenizer, seed
        packages = packages_of(self.files[path] for path in sorted(self.files))
        self.packages = {name: [item.path for item in members] for name, members in packages.items()}
        self._ids: dict[str, list[int]] = {}

    def window(self, case: CompletionCase, condition: str, *, num_tokens: int) -> tuple[list[int], list[int]]:
        """(ids of the prompt, at most `num_tokens`; ids of the answer, the space before it included).

        With the package, the defining file comes first, or a chunk of it around the definition where it is too long;
        then the others by path, as far as they fit. Raises ValueError for an unknown condition and a short length.
        """
        if condition not in CONTEXT_CONDITIONS:
            raise ValueError(f"unknown condition {condition!r}: choose from {', '.join(CONTEXT_CONDITIONS)}")
        if num_tokens < 64:
            raise ValueError(f"a window of {num_tokens} tokens holds no file: give 64 or more")
        before = self.files[case.path].text[: case.offset]
        stripped = before.rstrip(" ")
        space = " " if before != stripped else ""
        own = self.tokenizer.encode(f"{case.path}\n{stripped}")[-int(num_tokens * OWN_FRACTION) :]
        answer = self.tokenizer.encode(space + case.answer)
        if condition == WITHOUT_PACKAGE:
            return own, answer
        budget = num_tokens - len(own)
        context: list[int] = []
        for path in self._paths(case, condition):
            ids = self._file(path)
            if path == case.defined_in and len(ids) > budget:
                ids = self._around_definition(case, budget)
            context += ids[: budget - len(context)]
            if len(context) >= budget:
                break
        return context + own, answer

    def _paths(self, case: CompletionCase, condition: str) -> list[str]:
        """Files of the context: of the package, its defining file first, or of a package that lacks the name."""
        if condition == WITH_PACKAGE:
            others = [path for path in self.packages[case.package] if path not in (case.path, case.defined_in)]
            return [case.defined_in, *others]
        rng = random.Random(f"other/{self.seed}/{case.path}/{case.answer}")
        word = re.compile(rf"\b{re.escape(case.answer)}\b")
        packages = sorted(name for name in self.packages if name != case.package and len(self.packages[name]) > 1)
        rng.shuffle(packages)
        # several packages in turn, since one may be shorter than the window
        return [path for name in packages for path in self.packages[name] if not word.search(self.files[path].text)]

    def fits_full_package(self, case: CompletionCase, *, num_tokens: int) -> bool:
        """Does a window of this length hold all other files of the package?"""
        own, _ = self.window(case, WITHOUT_PACKAGE, num_tokens=num_tokens)
        return sum(len(self._file(path)) for path in self._paths(case, WITH_PACKAGE)) <= num_tokens - len(own)

    def _around_definition(self, case: CompletionCase, budget: int) -> list[int]:
        """A chunk of the defining file with the definition in its middle, headed by the path."""
        text = self.files[case.defined_in].text
        name = re.escape(case.answer)
        found = re.search(rf"^(?:(?:async\s+def|def|class)\s+{name}\b|{name}\s*[:=])", text, re.M)
        start = found.start() if found else 0
        head = self.tokenizer.encode(f"{case.defined_in}\n")
        before = self.tokenizer.encode(text[:start])[-(budget // 2) :] if start else []
        return (head + before + self.tokenizer.encode(text[start:]))[:budget]

    def _file(self, path: str) -> list[int]:
        if path not in self._ids:
            self._ids[path] = self.tokenizer.encode(f"{path}\n{self.files[path].text.rstrip()}\n\n")
        return self._ids[path]
