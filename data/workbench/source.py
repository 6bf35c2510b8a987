"""Finds the source files under a folder and reads them.

Any repository will do: Python files are read as the interpreter would read them (`tokenize.open` honours
their coding line), all others as UTF-8. Left out are installed packages, tests, tables (`encodings`,
`pydoc_data`), hidden folders, links, anything that is no plain file, and files outside the size bounds. A
file that cannot be read is counted and skipped: one bad file must not cost a corpus. What cannot be
skipped, a folder that is missing, unreadable or without a source file, raises WorkbenchError.
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

from data.workbench.config import WorkbenchError

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
    """The folder of the running interpreter's standard library. Raises WorkbenchError where it has none."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not folder.is_dir():
        raise WorkbenchError(
            f"this interpreter has its standard library not in a folder ({folder}): point --corpus.source at one"
        )
    return folder


def read_source(
    source: Path | None, *, min_file_bytes: int = 64, max_file_kib: int = 512, leave_out: Path | None = None
) -> tuple[list[SourceFile], dict[str, int]]:
    """All source files below `source` in the order of their paths, and how many were skipped for which reason.

    `leave_out` is a folder never entered: the corpus that is being built may lie inside its own source.
    Raises WorkbenchError when the source is no readable folder or holds no source file.
    """
    root = standard_library() if source is None else Path(source).expanduser()
    if not root.exists():
        raise WorkbenchError(f"the source folder {root} does not exist: point --corpus.source at a folder of code")
    if not root.is_dir():
        raise WorkbenchError(f"the source {root} is no folder: point --corpus.source at a folder of code")
    root = root.resolve()
    try:
        os.scandir(root).close()
    except OSError as error:
        raise WorkbenchError(
            f"cannot read the source folder {root} ({error.strerror}): change its permissions, "
            f"or point --corpus.source at another folder"
        ) from None
    skipped: Counter[str] = Counter()
    files = []
    for path in sorted(_candidates(root, leave_out.resolve() if leave_out else None, skipped)):
        text = _read(root / path, skipped, min_file_bytes=min_file_bytes, max_bytes=max_file_kib * 1024)
        if text is not None:
            files.append(SourceFile(path, LANGUAGES[Path(path).suffix.lower()], text))
    if not files:
        reasons = f" ({', '.join(f'{n} skipped: {why}' for why, n in sorted(skipped.items()))})" if skipped else ""
        raise WorkbenchError(
            f"found no source file under {root}{reasons}: point --corpus.source at a folder with code outside its tests"
        )
    return files, dict(sorted(skipped.items()))


def source_hash(files: list[SourceFile]) -> str:
    """A digest of all paths and texts: equal digests mean the same source."""
    digest = hashlib.sha256()
    for item in files:
        digest.update(f"{item.path}\0{item.num_bytes}\0{item.text}".encode())
    return digest.hexdigest()


def _candidates(root: Path, leave_out: Path | None, skipped: Counter[str]) -> list[str]:
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
            and (leave_out is None or Path(folder, name) != leave_out)
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


def _read(path: Path, skipped: Counter[str], *, min_file_bytes: int, max_bytes: int) -> str | None:
    """The file's text, or None with the reason counted. A pipe or device is never opened."""
    try:
        status = path.lstat()
    except OSError:
        skipped["unreadable"] += 1
        return None
    if stat.S_ISLNK(status.st_mode):
        # a link to a file inside the source is a copy, one to a file outside is not ours
        skipped["link"] += 1
        return None
    if not stat.S_ISREG(status.st_mode):
        skipped["no plain file"] += 1
        return None
    if not min_file_bytes <= status.st_size <= max_bytes:
        skipped["too small" if status.st_size < min_file_bytes else "too large"] += 1
        return None
    try:
        if path.suffix.lower() in (".py", ".pyi"):
            with tokenize.open(path) as stream:
                text = stream.read()
        else:
            text = path.read_text(encoding="utf-8-sig")
    except OSError:
        skipped["unreadable"] += 1
        return None
    except (UnicodeDecodeError, SyntaxError, LookupError):
        skipped["not text in its encoding"] += 1
        return None
    # universal newlines were translated on reading; other separators would split lines differently elsewhere
    if "\0" in text:
        skipped["binary"] += 1
        return None
    return text.replace("\f", "").replace("\v", "")


def parse_python(text: str) -> ast.Module | None:
    """The syntax tree of a Python file, None where it has none: this interpreter need not know its language."""
    with warnings.catch_warnings():
        # invalid escapes in somebody's strings are no business of those who ask
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
