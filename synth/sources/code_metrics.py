"""The numbers of one source file, and its outline: what tables and charts show, and trees and terminals list.

Python is parsed with `ast`: each function and class with its lines, calls, branches and so on, and integer constants of
modules and classes. Any other language, and Python that does not parse, gives what lines alone tell and constants found
by a regular expression: less, but never wrong about what it counts. A file of 40 KB costs about 20 ms, so this runs in
the rendering processes, and only for corpora that need it.
"""

import ast
import re
from collections import Counter
from dataclasses import dataclass, field

from brine.data.files.source_files import parse_python

MAX_ITEMS = 400
"""At most so many functions, classes and constants of a file are kept, the first ones: generated code has thousands."""
MAX_CONSTANT = 10**6
MAX_WORDS = 1000

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
_KINDS = {
    **dict.fromkeys(_FUNCTIONS, "functions"),
    ast.ClassDef: "classes",
    **dict.fromkeys((ast.Import, ast.ImportFrom), "imports"),
    ast.Call: "calls",
    ast.Return: "returns",
    **dict.fromkeys(_BRANCHES, "branches"),
}
"""Node of the syntax tree -> the column it adds to."""
_WORD = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{1,23}\b")
_COMMENT = ("#", "//", "--", ";", "/*", "*", "<!--", "%")
_CONSTANT = re.compile(r"^[^\n\"'#]*?\b([A-Z][A-Z0-9_]{2,})\b[ \t]*(?::[ \t]*\w+[ \t]*)?=?[ \t]*([0-9]{1,6})\b", re.M)


@dataclass(frozen=True)
class CodeDefinition:
    """A function or class: its name, the class around it ("" at the top), its first line (from 1), its numbers."""

    name: str
    parent: str
    line: int
    numbers: dict[str, int]


@dataclass(frozen=True)
class CodeMetrics:
    """The numbers of one file. Functions, classes and constants are in reading order."""

    file: dict[str, int]
    functions: tuple[CodeDefinition, ...]
    classes: tuple[CodeDefinition, ...]
    constants: tuple[tuple[str, int], ...]
    words: dict[str, tuple[int, int, int]]
    """word -> the number of lines that have it, the first and the last of them; the file's first MAX_WORDS."""


def measure_code(text: str, language: str) -> CodeMetrics:
    """The numbers of a file's text. Raises nothing for odd text."""
    lines = text.removesuffix("\n").split("\n")
    marks = ("#",) if language == "python" else _COMMENT
    numbers = {
        "lines": len(lines),
        "words": len(text.split()),
        "longest": max(map(len, lines)),
        "blank": sum(not line.strip() for line in lines),
        "comments": sum(line.lstrip().startswith(marks) for line in lines),
    }
    tree = parse_python(text) if language == "python" else None
    if tree is None:
        constants = dict([(name, int(number)) for name, number in _CONSTANT.findall(text)][:MAX_ITEMS])
        return CodeMetrics(numbers, (), (), tuple(constants.items()), _words(lines))
    module, *rest = _count(tree)
    numbers |= {column: module.kinds[column] for column in ("functions", "classes", "imports", "branches")}
    classes = [item for item in rest if isinstance(item.node, ast.ClassDef)]
    functions = [item for item in rest if not isinstance(item.node, ast.ClassDef)]
    return CodeMetrics(
        numbers, tuple(map(_definition, functions[:MAX_ITEMS])), tuple(map(_definition, classes[:MAX_ITEMS])),
        _constants([tree, *(item.node for item in classes)]), _words(lines),
    )  # fmt: skip


def line_numbers(line: str) -> dict[str, int]:
    """What one line of any text gives for a line chart: characters, indent, words, and symbols between them."""
    return {
        "characters": len(line),
        "indent": len(line) - len(line.lstrip(" ")),
        "words": len(re.findall(r"\w+", line)),
        "symbols": len(re.findall(r"[^\w\s]", line)),
    }


def _words(lines: list[str]) -> dict[str, tuple[int, int, int]]:
    """Words of the form of a name, 2 to 24 characters."""
    found: dict[str, tuple[int, int, int]] = {}
    for row, line in enumerate(lines, start=1):
        for word in dict.fromkeys(_WORD.findall(line)):
            if word in found or len(found) < MAX_WORDS:
                count, first, _last = found.get(word, (0, row, row))
                found[word] = (count + 1, first, row)
    return found


@dataclass
class _NodeCounter:
    """Counts what lies in one function, class or module; `kinds` by the names of columns."""

    node: ast.AST
    parent: str = ""
    kinds: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)


def _count(tree: ast.Module) -> list[_NodeCounter]:
    """The module, then its functions and classes that stand at the top or in a class, in reading order; those inside
    functions add to the numbers of what holds them."""
    module = _NodeCounter(tree)
    found = [module]
    waiting: list[tuple[ast.AST, tuple[_NodeCounter, ...], bool]]
    waiting = [(node, (module,), True) for node in reversed(tree.body)]
    while waiting:
        node, holders, outside = waiting.pop()
        kind = _KINDS.get(type(node))
        for holder in holders:
            if kind is not None:
                holder.kinds[kind] += 1
            if isinstance(node, ast.Name):
                holder.names.add(node.id)
        if outside and kind in ("functions", "classes"):
            found.append(_NodeCounter(node, holders[-1].node.name if len(holders) > 1 else ""))
            # itself last, so that holders[-1] is what holds its children
            holders = (*holders, found[-1])
        children = reversed(list(ast.iter_child_nodes(node)))
        waiting.extend((child, holders, outside and kind == "classes") for child in children)
    return found


def _definition(count: _NodeCounter) -> CodeDefinition:
    node, kinds = count.node, count.kinds
    numbers = {"lines": node.end_lineno - node.lineno + 1}
    if isinstance(node, ast.ClassDef):
        numbers["methods"] = sum(isinstance(item, _FUNCTIONS) for item in node.body)
        numbers |= {column: kinds[column] for column in ("calls", "branches")}
    else:
        given = node.args
        numbers["arguments"] = sum(map(len, (given.posonlyargs, given.args, given.kwonlyargs)))
        numbers["arguments"] += (given.vararg is not None) + (given.kwarg is not None)
        numbers |= {column: kinds[column] for column in ("branches", "calls", "returns")}
        numbers["names"] = len(count.names)
    return CodeDefinition(node.name, count.parent, node.lineno, numbers)


def _constants(holders: list[ast.Module | ast.ClassDef]) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for node in (node for holder in holders for node in holder.body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                if type(value) is int and 0 <= value < MAX_CONSTANT:
                    found.setdefault(name, value)
    return tuple(found.items())[:MAX_ITEMS]
