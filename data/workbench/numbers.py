"""The numbers of one source file, and its outline: what tables and charts show, and trees and consoles list.

Python is parsed with `ast`: each function and class with its lines, calls, branches and so on, and integer
constants of modules and classes. Any other language, and Python that does not parse, gives what lines alone
tell (lines, words, the longest line, comments) and constants found by a regular expression: less, but never
wrong about what it counts. Nothing here is estimated, so every number in a picture can be counted again.
A file of 40 KB costs about 20 ms, most of it parsing, so this runs in the rendering processes, and only for
corpora that ask for it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass

from data.workbench.source import parse_python

MAX_ITEMS = 400
"""At most so many functions, classes and constants of a file are kept, the first ones: generated code has thousands."""
MAX_CONSTANT = 10**6
MAX_WORDS = 1000

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_KINDS = {
    **dict.fromkeys(_FUNCTIONS, "functions"),
    ast.ClassDef: "classes",
    ast.Import: "imports",
    ast.ImportFrom: "imports",
    ast.Call: "calls",
    ast.Return: "returns",
    **dict.fromkeys(
        (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case), "branches"
    ),
}
"""Node of the syntax tree -> the column it adds to."""
_WORD = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{1,23}\b")
_COMMENT = ("#", "//", "--", ";", "/*", "*", "<!--", "%")
_CONSTANT = re.compile(r"^[^\n\"'#]*?\b([A-Z][A-Z0-9_]{2,})\b[ \t]*(?::[ \t]*\w+[ \t]*)?=?[ \t]*([0-9]{1,6})\b", re.M)


@dataclass(frozen=True)
class Item:
    """A function or class: its name, the class around it ("" at the top), its first line (from 1), its numbers."""

    name: str
    inside: str
    line: int
    numbers: dict[str, int]


@dataclass(frozen=True)
class Measures:
    """The numbers of one file. Functions, classes and constants are in reading order."""

    file: dict[str, int]
    functions: tuple[Item, ...]
    classes: tuple[Item, ...]
    constants: tuple[tuple[str, int], ...]
    words: dict[str, tuple[int, int, int]]
    """word -> the number of lines that have it, the first and the last of them; the file's first MAX_WORDS."""

    @staticmethod
    def of_json(value: dict) -> Measures:
        return Measures(
            value["file"],
            tuple(Item(**item) for item in value["functions"]),
            tuple(Item(**item) for item in value["classes"]),
            tuple((name, number) for name, number in value["constants"]),
            {word: tuple(numbers) for word, numbers in value["words"].items()},
        )


def measure(text: str, *, language: str) -> Measures:
    """The numbers of a file's text. Raises nothing for odd text."""
    lines = text.removesuffix("\n").split("\n")
    numbers = {
        "lines": len(lines),
        "words": len(text.split()),
        "longest": max(len(line) for line in lines),
        "blank": sum(not line.strip() for line in lines),
        "comments": sum(line.lstrip().startswith(_comment_marks(language)) for line in lines),
    }
    tree = parse_python(text) if language == "python" else None
    if tree is None:
        found = [(name, int(number)) for name, number in _CONSTANT.findall(text)]
        return Measures(numbers, (), (), tuple(dict(found[:MAX_ITEMS]).items()), _words(lines))
    module, *rest = _count(tree)
    numbers |= {column: module.kinds[column] for column in ("functions", "classes", "imports", "branches")}
    functions = [_function_item(item) for item in rest if not isinstance(item.node, ast.ClassDef)]
    classes = [item for item in rest if isinstance(item.node, ast.ClassDef)]
    return Measures(
        numbers,
        tuple(functions[:MAX_ITEMS]),
        tuple(_class_item(item) for item in classes[:MAX_ITEMS]),
        _constants([tree, *(item.node for item in classes)]),
        _words(lines),
    )


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
            if word in found:
                count, first, _last = found[word]
                found[word] = (count + 1, first, row)
            elif len(found) < MAX_WORDS:
                found[word] = (1, row, row)
    return found


def _comment_marks(language: str) -> tuple[str, ...]:
    return ("#",) if language == "python" else _COMMENT


class _Count:
    """Counts what lies in one function, class or module; `kinds` by the names of columns."""

    def __init__(self, node: ast.AST, inside: str) -> None:
        self.node, self.inside = node, inside
        self.kinds: Counter[str] = Counter()
        self.names: set[str] = set()


def _count(tree: ast.Module) -> list[_Count]:
    """The module, then its functions and classes that stand at the top or in a class, in reading order; those inside
    functions add to the numbers of what holds them. One walk over the tree, however deep things are nested.
    """
    module = _Count(tree, "")
    found = [module]
    waiting: list[tuple[ast.AST, tuple[_Count, ...], bool]] = [(node, (module,), True) for node in reversed(tree.body)]
    while waiting:
        node, holders, outside = waiting.pop()
        kind = _KINDS.get(type(node))
        if kind is not None:
            for holder in holders:
                holder.kinds[kind] += 1
        if isinstance(node, ast.Name):
            for holder in holders:
                holder.names.add(node.id)
        elif outside and kind in ("functions", "classes"):
            inside = holders[-1].node.name if len(holders) > 1 else ""
            found.append(_Count(node, inside))
            # itself last, so that holders[-1] is what holds its children
            holders = (*holders, found[-1])
        waiting.extend(
            (child, holders, outside and kind == "classes") for child in reversed(list(ast.iter_child_nodes(node)))
        )
    return found


def _function_item(count: _Count) -> Item:
    node = count.node
    given = node.args
    arguments = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
    numbers = {
        "lines": node.end_lineno - node.lineno + 1,
        "arguments": arguments + (given.vararg is not None) + (given.kwarg is not None),
        **{column: count.kinds[column] for column in ("branches", "calls", "returns")},
        "names": len(count.names),
    }
    return Item(node.name, count.inside, node.lineno, numbers)


def _class_item(count: _Count) -> Item:
    node = count.node
    numbers = {
        "lines": node.end_lineno - node.lineno + 1,
        "methods": sum(isinstance(item, _FUNCTIONS) for item in node.body),
        **{column: count.kinds[column] for column in ("calls", "branches")},
    }
    return Item(node.name, count.inside, node.lineno, numbers)


def _constants(holders: list[ast.Module | ast.ClassDef]) -> tuple[tuple[str, int], ...]:
    """`NAME = 123` of a module and its classes, each name once with its first value."""
    found: dict[str, int] = {}
    for node in (node for holder in holders for node in holder.body):
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        value = node.value.value if target is not None and isinstance(node.value, ast.Constant) else None
        if isinstance(target, ast.Name) and type(value) is int and 0 <= value < MAX_CONSTANT:
            found.setdefault(target.id, value)
    return tuple(list(found.items())[:MAX_ITEMS])
