"""What can be said aloud about one source file, and its fingerprint for finding near-duplicates.

Python is parsed with `ast`, so that names are names and docstrings are docstrings; other languages, and
Python that does not parse (old syntax, templates), are read by regular expressions, which is rougher but
never fails. The fingerprint is a MinHash over 5-token shingles (Broder 1997): two files' share of equal
entries estimates the Jaccard similarity of their shingle sets, with a standard error of about 0.06 for 64
entries. One file costs about 5 ms, so this runs in the rendering processes.
"""

from __future__ import annotations

import ast
import hashlib
import keyword
import random
import re
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass

NUM_PERMUTATIONS = 64
SHINGLE_TOKENS = 5
PRIME = 2**32 - 5
"""Of the hash family h -> (a h + b) mod PRIME, which stands for random permutations of the shingles."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`")
_BLOCK_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_LINE_COMMENT = re.compile(r"(?://|#(?!include|define|if|else|endif|undef|pragma))[^\n]*")
_CALLABLE = re.compile(
    r"\b([A-Za-z_]\w*)\s*\(([^()]{0,160})\)\s*"
    # what may follow: an arrow and a type, a type, Go's several results
    r"(?:->[^{;\n]{1,40}|[A-Za-z_*\[\]. ]{0,30}|\([^()\n]{0,60}\))?\s*[{:]"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,.'()\-_/:;]*[.!?]")

OTHER_KEYWORDS = frozenset(
    """abstract alignas as auto bool boolean break byte case catch chan char class const constexpr continue crate
    debugger default defer define delete do double dyn elif else elsif end endif enum exit export extends extern
    false final finally float fn for foreach friend func function go goto if ifdef ifndef impl implements import in
    include inline instanceof int interface is let long loop match mod module move mut namespace native new nil not
    null of operator or override package private protected pub public raise ref register require rescue return self
    short signed sizeof static struct super switch template then this throw throws trait true try type typedef typeof
    undefined union unless unsafe unsigned use using val var virtual void volatile wchar when where while with yield
    """.split()  # noqa: SIM905 (a list of strings is five times as long)
)
KEYWORDS = frozenset(keyword.kwlist) | OTHER_KEYWORDS


@dataclass(frozen=True)
class Extract:
    """What one file gives. `names` counts identifiers; `signatures` and `sentences` are in reading order."""

    names: dict[str, int]
    signatures: tuple[str, ...]
    sentences: tuple[str, ...]
    minhash: tuple[int, ...]
    content_hash: str

    @staticmethod
    def of_json(value: dict) -> Extract:
        return Extract(
            value["names"],
            tuple(value["signatures"]),
            tuple(value["sentences"]),
            tuple(value["minhash"]),
            value["content_hash"],
        )


def extract(text: str, *, language: str) -> Extract:
    """Names, signatures, sentences and fingerprint of a file's text. Raises nothing for odd text."""
    names, signatures, prose = _python(text) if language == "python" else _other(text, language)
    tokens = _TOKEN.findall(text)
    return Extract(
        names=dict(sorted(names.items())),
        signatures=tuple(dict.fromkeys(signatures)),
        sentences=tuple(dict.fromkeys(sentence for block in prose for sentence in _sentences(block))),
        minhash=_minhash(tokens),
        content_hash=hashlib.sha256("\x1f".join(tokens).encode()).hexdigest(),
    )


def name_parts(name: str) -> list[str]:
    """The parts of an identifier, split at _ and at camelCase, lower case: "HTTPServer_v2" -> http server v 2."""
    return [part.lower() for part in _PART.findall(name)]


def names_in(line: str) -> list[str]:
    """The identifiers of one line of code in order, each once, keywords and one-letter names left out."""
    line = _STRING.sub(" ", line)
    line = _LINE_COMMENT.sub(" ", line)
    return list(dict.fromkeys(word for word in _WORD.findall(line) if len(word) > 1 and word not in KEYWORDS))


def _python(text: str) -> tuple[Counter[str], list[str], list[str]]:
    with warnings.catch_warnings():
        # invalid escapes in somebody's strings are no business of this corpus
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return _other(text, "python")
    names: Counter[str] = Counter()
    # (line, column) restores reading order: ast.walk goes breadth first
    signatures: list[tuple[int, int, str]] = []
    prose: list[tuple[int, int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] += 1
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            names[node.arg] += 1
        elif isinstance(node, ast.alias):
            names.update(node.name.split("."))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] += 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            arguments = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            signatures.append((node.lineno, node.col_offset, _signature(node.name, arguments)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node)
            if docstring:
                prose.append((getattr(node, "lineno", 0), getattr(node, "col_offset", 0), docstring))
    return names, [item[2] for item in sorted(signatures) if item[2]], [item[2] for item in sorted(prose)]


def _other(text: str, language: str) -> tuple[Counter[str], list[str], list[str]]:
    if language in ("markdown", "rst", "text"):
        return Counter(), [], [text]
    comments = [re.sub(r"^[ \t]*[*!]+", "", block[2:-2], flags=re.M) for block in _BLOCK_COMMENT.findall(text)]
    code = _BLOCK_COMMENT.sub(" ", text)
    # neighbouring line comments are one paragraph
    for run in re.findall(r"(?:^[ \t]*(?://|#)[^\n]*\n)+", code, flags=re.M):
        comments.append(re.sub(r"^[ \t]*[/#!]+", "", run, flags=re.M))
    code = _LINE_COMMENT.sub(" ", _STRING.sub(" ", code))
    names = Counter(word for word in _WORD.findall(code) if word not in KEYWORDS)
    signatures = []
    for name, inside in _CALLABLE.findall(code):
        if name in KEYWORDS:
            continue
        arguments = []
        for piece in inside.split(","):
            # "name: Type" and Go's "name Type" put the name first, C's family puts it last
            words = _WORD.findall(piece.split(":")[0].split("=")[0])
            if words:
                arguments.append(words[0] if language == "go" or ":" in piece else words[-1])
        signatures.append(_signature(name, arguments))
    return names, [item for item in signatures if item], comments


def _signature(name: str, arguments: list[str]) -> str:
    """ "name(first, second)", or "" when it has more than six arguments or nothing that can be said."""
    if name.startswith("__") or len(arguments) > 6 or not name_parts(name):
        return ""
    return f"{name.strip('_')}({', '.join(arguments)})"


def _sentences(block: str) -> list[str]:
    """Plain sentences of 20 to 110 characters in a block of prose; code, lists and examples drop out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", block):
        if ">>>" in paragraph or "::" in paragraph:
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            letters = sum(char.isalpha() or char == " " for char in sentence)
            if 20 <= len(sentence) <= 110 and _PLAIN_SENTENCE.fullmatch(sentence) and letters >= 0.9 * len(sentence):
                found.append(sentence)
    return found


def _minhash(tokens: list[str]) -> tuple[int, ...]:
    """NUM_PERMUTATIONS minima over the file's shingles; empty for a file shorter than one shingle."""
    if len(tokens) < SHINGLE_TOKENS:
        return ()
    import numpy as np

    shingles = zip(*(tokens[start:] for start in range(SHINGLE_TOKENS)), strict=False)
    hashes = np.asarray(sorted({zlib.crc32("\x1f".join(shingle).encode()) for shingle in shingles}), np.uint64)
    draw = random.Random("minhash")
    minima = []
    for _ in range(NUM_PERMUTATIONS):
        # a < 2**31 and h < 2**32, so the product stays below 2**64
        a, b = draw.randrange(1, 2**31), draw.randrange(2**31)
        minima.append(int(((hashes * np.uint64(a) + np.uint64(b)) % np.uint64(PRIME)).min()))
    return tuple(minima)
