"""`brine data convert`: writes manifests from what is not read as it is, with meanings that are guessed.

Tables of words, lists of words, folders named after classes, COCO, lists inside one JSON object, and JSON files of one
document each. Opening such a path is refused with this command and what it would guess.
"""

from pathlib import Path

from brine.data.files.walk import walk
from brine.data.formats.notes.refusals import convert_coco, convert_documents, convert_wrapped, describe_coco
from brine.data.formats.tables.conversion import ManifestConversion, convert_table
from brine.data.formats.tables.lists import convert_classes, convert_lists


def conversions(path: Path, *, root: Path | None = None) -> list[ManifestConversion]:
    """The manifests that can be written from a file or folder; media are in `root`. Raises ValueError for none."""
    if path.is_dir():
        root = path.resolve()
        paths = [name for name, problem in walk(root) if not problem]
        found = convert_lists(root, paths) or convert_classes(root, paths) or [convert_documents(root, paths)]
        if not any(next(iter(rows()), None) for each in found for rows in each.manifests.values()):
            raise ValueError(f"{path} holds no lists, classes or documents: there is nothing to convert")
        return found
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix.lower() in (".csv", ".tsv"):
        return [convert_table(path, root=root)]
    try:
        return [convert_coco(path, root=root) if describe_coco(path) else convert_wrapped(path)]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is neither a table nor an object around lists: there is nothing to convert") from None
