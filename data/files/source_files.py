"""Finds the source files under a folder and reads them, for the synthetic corpus.

Python files are read as the interpreter would (`tokenize.open` honours their coding line), all others as UTF-8.
Excluded are installed packages, tests, tables (`encodings`, `pydoc_data`), hidden folders, links, and files outside the
size bounds. A file that cannot be read is counted and skipped.
"""

from __future__ import annotations

import ast
import hashlib
import os
import stat
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".tsx": "typescript", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hh": "cpp", ".hpp": "cpp", ".cu": "cpp", ".rs": "rust", ".go": "go", ".java": "java", ".kt": "kotlin",
    ".swift": "swift", ".rb": "ruby", ".php": "php", ".cs": "csharp", ".scala": "scala", ".lua": "lua", ".pl": "perl",
    ".r": "r", ".jl": "julia", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".erl": "erlang", ".clj": "clojure",
    ".sh": "bash", ".sql": "sql", ".css": "css", ".html": "html", ".toml": "toml", ".ini": "ini", ".cfg": "ini",
    ".yaml": "yaml", ".yml": "yaml", ".md": "markdown", ".rst": "rst", ".txt": "text",
}  # fmt: skip
"""File extension -> Pygments lexer. Extensions that are not here are not source."""
SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "node_modules", "venv", "__pycache__",
    "test", "tests", "testing", "encodings", "pydoc_data",
}  # fmt: skip
"""Never entered: other people's packages, tests, and tables that are not code."""


@dataclass(frozen=True)
class SourceFile:
    """One file: its path below the source (posix), its language, its text with "\\n" line ends."""

    path: str
    language: str
    text: str

    @property
    def package(self) -> str:
        """The folder directly below the source that holds the file; "" for files at the top."""
        return self.path.split("/", 1)[0] if "/" in self.path else ""

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def read_source(
    source: Path | None, *, min_file_bytes: int = 64, max_file_kib: int = 512, exclude: Path | None = None
) -> tuple[list[SourceFile], dict[str, int]]:
    """All source files below `source` (default: the standard library) in path order, and how many were skipped and why.

    `exclude` is never entered: a corpus may be built inside its source. Raises ValueError without a source file.
    """
    root = (standard_library() if source is None else Path(source).expanduser()).resolve()
    try:
        os.scandir(root).close()
    except OSError as error:
        raise ValueError(
            f"cannot read the source folder {root} ({error.strerror}): point --corpus.source at a folder of code"
        ) from None
    skipped: Counter[str] = Counter()
    files = []
    for path in sorted(_candidates(root, exclude.resolve() if exclude else None, skipped)):
        text, reason = _read(root / path, min_file_bytes, max_file_kib * 1024)
        if reason:
            skipped[reason] += 1
        else:
            files.append(SourceFile(path, LANGUAGES[Path(path).suffix.lower()], text))
    if not files:
        reasons = f" ({', '.join(f'{n} skipped: {why}' for why, n in sorted(skipped.items()))})" if skipped else ""
        raise ValueError(
            f"found no source file under {root}{reasons}: point --corpus.source at a folder with code outside its tests"
        )
    return files, dict(sorted(skipped.items()))


def source_hash(files: list[SourceFile]) -> str:
    """A digest of all paths and texts: equal digests mean the same source."""
    content = (f"{item.path}\0{item.num_bytes}\0{item.text}".encode() for item in files)
    return hashlib.sha256(b"".join(content)).hexdigest()


def _candidates(root: Path, exclude: Path | None, skipped: Counter[str]) -> Iterator[str]:

    def unreadable(_error: OSError) -> None:
        skipped["unreadable folder"] += 1

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = (
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not name.startswith(".") and Path(folder, name) != exclude
        )
        for name in names:
            stem, ending = os.path.splitext(name)
            # a build's record of its settings is a table full of this machine's paths
            is_test = stem.startswith(("test_", "_sysconfigdata")) or stem.endswith(("_test", ".test"))
            if name.startswith(".") or ending.lower() not in LANGUAGES or is_test:
                continue
            path = Path(folder, name).relative_to(root).as_posix()
            # the path becomes text of the corpus; names may hold any byte
            if path.isprintable() and len(path) <= 500:
                yield path
            else:
                skipped["odd name"] += 1


def _read(path: Path, min_bytes: int, max_bytes: int) -> tuple[str, str]:
    """(text, "") or ("", the reason to skip the file). A pipe, device or link is never opened."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return "", "link" if stat.S_ISLNK(status.st_mode) else "no plain file"
        if not min_bytes <= status.st_size <= max_bytes:
            return "", "too small" if status.st_size < min_bytes else "too large"
        is_python = path.suffix.lower() in (".py", ".pyi")
        with tokenize.open(path) if is_python else open(path, encoding="utf-8-sig") as stream:
            text = stream.read()
    except OSError:
        return "", "unreadable"
    except (UnicodeDecodeError, SyntaxError, LookupError):
        return "", "not text in its encoding"
    # other separators than line ends would split lines differently elsewhere
    return (text.replace("\f", "").replace("\v", ""), "") if "\0" not in text else ("", "binary")


def parse_python(text: str) -> ast.Module | None:
    """The syntax tree of a Python file; None for one that this interpreter cannot parse."""
    with warnings.catch_warnings():
        # invalid escapes in strings of others
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
