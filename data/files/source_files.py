"""Finds the source files under a folder and reads them.

Python files are read as the interpreter would (`tokenize.open` honours their coding line), all others as UTF-8. Left
out are installed packages, tests, tables (`encodings`, `pydoc_data`), hidden folders, links, and files outside the size
bounds. A file that cannot be read is counted and skipped; a folder that is missing or has no source raises SourceError.
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
from dataclasses import dataclass
from pathlib import Path


class SourceError(ValueError):
    """A source folder cannot be read; the message names it and what to do."""


LANGUAGES = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".tsx": "typescript", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hh": "cpp", ".hpp": "cpp", ".cu": "cpp", ".rs": "rust", ".go": "go", ".java": "java", ".kt": "kotlin",
    ".swift": "swift", ".rb": "ruby", ".php": "php", ".cs": "csharp", ".scala": "scala", ".lua": "lua", ".pl": "perl",
    ".r": "r", ".jl": "julia", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".erl": "erlang", ".clj": "clojure",
    ".sh": "bash", ".sql": "sql", ".css": "css", ".html": "html", ".toml": "toml", ".ini": "ini", ".cfg": "ini",
    ".yaml": "yaml", ".yml": "yaml", ".md": "markdown", ".rst": "rst", ".txt": "text",
}  # fmt: skip
"""File name ending -> Pygments lexer. Endings that are not here are not source."""

SKIPPED_FOLDERS = frozenset({
    "site-packages", "dist-packages", "node_modules", "venv", "__pycache__",
    "test", "tests", "testing", "encodings", "pydoc_data",
})  # fmt: skip
"""Never entered: other people's packages, tests, and tables that are no code."""


@dataclass(frozen=True)
class SourceFile:
    """One file: where it lies below the source (posix), its language, its text with "\\n" line ends."""

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
    """The folder of the running interpreter's standard library. Raises SourceError where it has none."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not folder.is_dir():
        raise SourceError(f"the standard library is not in a folder ({folder}): point --corpus.source at one")
    return folder


def read_source(
    source: Path | None, *, min_file_bytes: int = 64, max_file_kib: int = 512, exclude: Path | None = None
) -> tuple[list[SourceFile], dict[str, int]]:
    """All source files below `source` in the order of their paths, and how many were skipped for which reason.

    `exclude` is a folder never entered: the corpus that is being built may lie inside its own source.
    Raises SourceError when the source is no readable folder or holds no source file.
    """
    root = standard_library() if source is None else Path(source).expanduser()
    root = root.resolve()
    try:
        os.scandir(root).close()
    except OSError as error:
        raise SourceError(
            f"cannot read the source folder {root} ({error.strerror}): point --corpus.source at a folder of code"
        ) from None
    skipped: Counter[str] = Counter()
    files = []
    for path in sorted(_candidates(root, exclude.resolve() if exclude else None, skipped)):
        text, reason = _read(root / path, min_file_bytes=min_file_bytes, max_bytes=max_file_kib * 1024)
        if reason:
            skipped[reason] += 1
        else:
            files.append(SourceFile(path, LANGUAGES[Path(path).suffix.lower()], text))
    if not files:
        reasons = f" ({', '.join(f'{n} skipped: {why}' for why, n in sorted(skipped.items()))})" if skipped else ""
        raise SourceError(
            f"found no source file under {root}{reasons}: point --corpus.source at a folder with code outside its tests"
        )
    return files, dict(sorted(skipped.items()))


def source_hash(files: list[SourceFile]) -> str:
    """A digest of all paths and texts: equal digests mean the same source."""
    digest = hashlib.sha256()
    for item in files:
        digest.update(f"{item.path}\0{item.num_bytes}\0{item.text}".encode())
    return digest.hexdigest()


def _candidates(root: Path, exclude: Path | None, skipped: Counter[str]) -> list[str]:
    """Relative paths of the plain files with a known ending; folders are entered only when they may be."""
    found = []

    def unreadable(_error: OSError) -> None:
        skipped["unreadable folder"] += 1

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=False):
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED_FOLDERS
            and not name.startswith(".")
            and not os.path.islink(os.path.join(folder, name))
            and (exclude is None or Path(folder, name) != exclude)
        )
        for name in names:
            stem, ending = os.path.splitext(name)
            if name.startswith(".") or ending.lower() not in LANGUAGES:
                continue
            # a build's own record of its settings is a table full of this machine's paths
            if stem.startswith(("test_", "_sysconfigdata")) or stem.endswith(("_test", ".test")):
                continue
            path = Path(folder, name).relative_to(root).as_posix()
            # the path becomes text of the corpus; names may hold any byte
            if not path.isprintable() or len(path) > 500:
                skipped["odd name"] += 1
                continue
            found.append(path)
    return found


def _read(path: Path, *, min_file_bytes: int, max_bytes: int) -> tuple[str, str]:
    """(text, "") or ("", the reason to skip the file). A pipe or device is never opened."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            # a link to a file inside the source is a copy, one to a file outside is not ours
            return "", "link"
        if not stat.S_ISREG(status.st_mode):
            return "", "no plain file"
        if not min_file_bytes <= status.st_size <= max_bytes:
            return "", "too small" if status.st_size < min_file_bytes else "too large"
        is_python = path.suffix.lower() in (".py", ".pyi")
        with tokenize.open(path) if is_python else open(path, encoding="utf-8-sig") as stream:
            text = stream.read()
    except OSError:
        return "", "unreadable"
    except (UnicodeDecodeError, SyntaxError, LookupError):
        return "", "not text in its encoding"
    # universal newlines were translated on reading; other separators would split lines differently elsewhere
    return (text.replace("\f", "").replace("\v", ""), "") if "\0" not in text else ("", "binary")


def parse_python(text: str) -> ast.Module | None:
    """The syntax tree of a Python file, None where it has none: this interpreter need not know its language."""
    with warnings.catch_warnings():
        # invalid escapes in somebody's strings are not ours
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
