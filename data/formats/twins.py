"""Files of one name in several forms, of which one is read: what one program wrote twice must not be learned twice.

    without_twins(files)    JSON files without those whose rows another of them holds
    bare(name)              a file's name without its ending and number: `train` of `train-00000-of-00002.parquet`

Lines go before arrays of the same bare name, and of lines under several endings (`a.jsonl`, `a.ndjson`) the first of
LINES is read. What stands back is counted as a file that is not read (`data.formats.accounts`).
"""

from pathlib import Path

from data.compressed import READ_THROUGH, plain_stem
from data.formats.lines import LINES, is_array
from data.formats.opening import is_named_lines
from data.formats.splits import name_of_many


def without_twins(files: list[Path]) -> list[Path]:
    """The files, without arrays and lines that have the name of other lines."""
    if len(files) < 2:
        return files
    first: dict[tuple[Path, str], Path] = {}
    for file in sorted(filter(is_named_lines, files), key=_place):
        first.setdefault((file.parent, plain_stem(file)), file)
    files = [
        file for file in files if first.get((file.parent, plain_stem(file)), file) == file or not _place(file) >= 0
    ]
    is_lines_of = {file: not is_array(file) for file in files}
    lines = {(file.parent, bare(file.name)) for file in files if is_lines_of[file]}
    return sorted(file for file in files if is_lines_of[file] or (file.parent, bare(file.name)) not in lines)


def bare(name: str) -> str:
    """A file's name without its ending and number."""
    return name_of_many(name).strip("-_. ").casefold()


def _place(file: Path) -> int:
    """The place of a file's ending in LINES, before that of a compression; -1 for another."""
    ending = (file.with_suffix("") if file.suffix.lower() in READ_THROUGH else file).suffix.lower()
    return LINES.index(ending) if ending in LINES else -1
