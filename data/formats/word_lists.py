"""Lists of words that are no CSV, and folders that are named after what they show: the command that makes a manifest.

    list_remedy(root, paths)            the first text that names media and their words, and what to do about it
    classes_remedy(root, paths)         the same for folders that have the names of classes

    84-121123.trans.txt     84-121123-0000 GO DO YOU HEAR           LibriSpeech: all of that ending, beside their media
    train/text  test/text   utt1 hello world                        Kaldi: a file for each split
    train.txt  test.txt     1.png a cat                             the same
    transcripts.txt         utt1 hello world                        MLS: one list for many folders
    captions.txt            image,caption                           Flickr8k: a table under another ending
    cat/1.jpg  dog/1.jpg                                            the folders name what the images show

Lists that differ in numbers and words for splits go together. Where the media do not lie in folders that say the same,
the lines of each split go into a file of its own (train.jsonl, test.jsonl): in one, the test would be trained on. Of
lists that are tables each has a command of its own, since columns may differ.

Nothing here is read as documents, since it is guessed: the guess stands in a command that a person can read.
"""

import dataclasses
import glob
import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data.endings import medium_of
from data.formats.accounts import is_about
from data.formats.splits import NamedSplits
from data.formats.table_form import delimiter_of
from data.formats.word_columns import NONE, words_column, words_in
from data.formats.word_tables import Place, place_of, table_remedy
from data.split_names import split_words, words_of_name
from data.text import foreign_encoding

_ENDINGS = ("", ".txt", ".text", ".lst", ".list", ".token", ".tok", ".trans", ".transcript", ".transcripts")
_LOOKED_AT, _ABOVE, _HEAD_BYTES, _LINES = 200, 20, 2**16, 50
_DELIMITERS = ",\t;|"
_CLASSES_SHOWN, _SHOWN = 3, 8
_KALDI = re.compile(r"(utt|spk|reco)2(?!text).*|segments")
"""Names of files about utterances that hold none of their words."""
_MEDIA, _TOKENS = 50_000, 8
_BETWEEN = re.compile(r'[\s,|;"#/]+')


def list_remedy(root: Path, paths: list[str]) -> str:
    """What to do about the first text that names media, and its like, as the end of a sentence that begins with its
    name; else ""."""
    media = (os.path.basename(path) for path in itertools.islice(filter(medium_of, paths), _MEDIA))
    names = {name for base in media for name in (base, os.path.splitext(base)[0])}
    likely = [path for path in paths if _ending(path) in _ENDINGS and not is_about(path) and not _is_no_words(path)]
    for path in likely[:_LOOKED_AT]:
        is_table, place = _place(root, path, names)
        if place is None:
            continue
        others = [other for other in likely if other != path and _are_alike(path, other)]
        is_above, found = place.is_above(root / path), {path: place}
        most = _ABOVE if is_above else _LOOKED_AT
        for number, other in enumerate(others[:most]):
            # of many that lie beside their media only the names are looked at
            it_is, its = is_table, dataclasses.replace(place, base=(root / other).parent.resolve())
            if is_above or number < _SHOWN:
                it_is, its = _place(root, other, names, is_part=True)
            if its is not None and it_is == is_table:
                found[other] = its
        told = _tables_remedy(root, list(found)) if is_table else _lines_remedy(root, dict(sorted(found.items())))
        left = len(others) - most if "glob.glob(" not in told else 0
        return told + (f" ({left:,} more lists of this kind were not looked at: put theirs in too)" if left > 0 else "")
    return ""


def _place(root: Path, path: str, names: set[str], *, is_part: bool = False) -> tuple[bool, Place | None]:
    """Whether a list is a table, and where the media lie that it names; no place for any other text.

    is_part: whether it is one of several, and may be too short to tell that it holds words.
    """
    lines = _head(root / path)
    first = next((line for line in lines if not names.isdisjoint(_BETWEEN.split(line)[:_TOKENS])), "")
    if any(mark in first for mark in _DELIMITERS):
        rows = [row for line in lines if len(row := line.split(delimiter_of(lines))) > 1]
        place = place_of(rows, root / path, root=root)
        has_words = is_part or words_column(rows, taken={place.column}) is not None
        # a comma in the words of a single line makes no table
        if has_words and place.count and 2 * place.count >= len(lines) - 1:
            return True, place
    rows = [row for line in lines if len(row := line.split(None, 1)) == 2] if first else []
    place = place_of([row[:1] for row in rows], root / path, root=root)
    # numbers and paths are no words (CelebA's list_attr_celeba.txt, Kaldi's wav.scp)
    has_words = is_part or words_in([words for _, words in rows]) != NONE
    if place.column is None or 2 * place.count < len(lines) or not has_words:
        return False, None
    return False, place


def _is_no_words(path: str) -> bool:
    """Whether a text is one of Kaldi's that tell something else about the same names (utt2spk, segments)."""
    return bool(_KALDI.fullmatch(os.path.basename(path)))


def _are_alike(one: str, other: str) -> bool:
    """Whether two lists are parts of one: of one name, or of names that differ in numbers and words for splits."""
    if os.path.basename(one) == os.path.basename(other):
        return True
    dots, others_dots = (os.path.basename(path).partition(".")[2] for path in (one, other))
    return dots == others_dots and ("." in dots or _without_splits(one) == _without_splits(other))


def _without_splits(path: str) -> list[tuple[str, ...]]:
    words = (words_of_name(step) for step in path.split("/"))
    return [tuple(word for word in step if not split_words(word)) for step in words]


def _tables_remedy(root: Path, paths: list[str]) -> str:
    """What to do about lists that are tables: a command for each, since their columns may differ."""
    folders = Counter(map(os.path.dirname, paths))
    told = [
        table_remedy(root / path, path, alone=folders[os.path.dirname(path)] == 1, sole=len(paths) == 1, root=root)
        for path in paths[:_SHOWN]
    ]
    rest = f"; the same with the {len(paths) - _SHOWN} others of this kind" if len(paths) > _SHOWN else ""
    return "; and in ".join(told) + rest


def _lines_remedy(root: Path, found: dict[str, Place]) -> str:
    """What to do about lines of a name and words with a space between."""
    (path, place), named = next(iter(found.items())), NamedSplits(found, files=True)
    splits = {path: named.declared(path) for path in found} if named.held_out else {}
    top, what = root.resolve(), f"{path!r}, lines of a name and words, which are not read"
    # where the media lie in folders of these names too, one file is enough
    by_folder = all(not found[path].is_above(root / path) and named.of_one(path) == named.of(path) for path in splits)
    if len(found) == 1 and by_folder:
        shown = os.path.relpath((root / path).resolve(), place.base)
        program = f"{place.names}{_printed(f'[{_spelt(shown)}]', place.around('k'))}"
        return _told(what, os.path.basename(path), place.base, program, "metadata.jsonl")
    alike, dots = {os.path.basename(path) for path in found}, os.path.basename(path).partition(".")[2]
    has_pattern = len(alike) == 1 or "." in dots
    if by_folder and len(found) > _SHOWN and has_pattern and not place.is_above(root / path):
        name = glob.escape(alike.pop()) if len(alike) == 1 else f"*.{glob.escape(dots)}"
        files = f"sorted(glob.glob({_spelt(f'**/{name}')}, recursive=True))"
        # names are looked for from the top
        path_of = place.around("k") if place.by_name else f"os.path.join(os.path.dirname(t), {place.around('k')})"
        return _told(what, name, top, f"{place.names}{_printed(files, path_of)}", "metadata.jsonl")
    groups: dict[str, dict[tuple[str, str], list[str]]] = {}
    for path, place in found.items():
        below = os.path.relpath(place.base, top)
        before = place.before if below == "." else f"{below}/{place.before}"
        at = (place.names_below(below), dataclasses.replace(place, before=before).around("k"))
        out = "metadata.jsonl" if by_folder else f"{splits.get(path) or 'train'}.jsonl"
        groups.setdefault(out, {}).setdefault(at, []).append(path)
    names = ", ".join(list(found)[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    each: dict[str, list[str]] = {}
    for out, of in groups.items():
        for (n, path_of), files in of.items():
            listed = f"[{', '.join(map(_spelt, files))}]"
            each.setdefault(out, []).append(n + _printed(listed, path_of, is_one=by_folder))
    if by_folder:
        return _told(what, names, top, "; ".join(each["metadata.jsonl"]), "metadata.jsonl")
    opened = (f'f = open("{out}", "w", encoding="utf-8"); {"; ".join(of)}; f.close()' for out, of in each.items())
    return _told(what, names, top, "; ".join(opened), *each)


def _printed(files: str, path_of: str, *, is_one: bool = True) -> str:
    """The statement that prints the lines of some files."""
    return (
        f'[print(json.dumps({{"file_name": {path_of}, "text": w}}){"" if is_one else ", file=f"}) for t in {files} '
        'for k, _, w in (l.strip().replace("\\t", " ").partition(" ") for l in open(t, encoding="utf-8-sig")) if w]'
    )


def _told(what: str, names: str, base: Path, program: str, *outs: str) -> str:
    command = f"python -c {shlex.quote(f'import glob, json, os, pathlib; {program}')}"
    if outs == ("metadata.jsonl",):
        command, made = f"{command} > metadata.jsonl", "a metadata.jsonl"
    else:
        made = " and ".join(outs) + (
            ", which keep the splits apart," if len(outs) > 1 else ", a name that holds it out,"
        )
    return f"{what}: write {made} from {names}, in the folder {str(base)!r}, where its paths hold, by `{command}`"


def classes_remedy(root: Path, paths: Iterable[str]) -> str:
    """What to do where all media lie in folders that may be named after what they show; "" for others."""
    media = list(itertools.islice((path for path in paths if medium_of(path)), 10_000))
    folders = dict.fromkeys(path.split("/")[-2] if "/" in path else "" for path in media)
    if len(folders) < 2 or "" in folders or len(folders) == len(media) > 2 or any(map(split_words, folders)):
        return ""
    shown = ", ".join(map(repr, list(folders)[:_CLASSES_SHOWN])) + (", ..." if len(folders) > _CLASSES_SHOWN else "")
    endings = tuple(sorted({_ending(path) for path in media}))
    program = (
        'import glob, json, os; [print(json.dumps({"file_name": p, "text": os.path.basename(os.path.dirname(p))})) '
        f'for p in sorted(glob.glob("**/*", recursive=True)) if p.lower().endswith({endings!r})]'
    )
    return (
        f"; if the names of their folders ({shown}) are their words, write a metadata.jsonl in the folder "
        f"{str(root)!r} by `python -c {shlex.quote(program)} > metadata.jsonl`"
    )


def _head(file: Path) -> list[str]:
    try:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return []
    if b"\0" in head or foreign_encoding(head[:64]):
        return []
    return [line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()][:_LINES]


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _spelt(text: str) -> str:
    return repr(text) if not text.isprintable() else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
