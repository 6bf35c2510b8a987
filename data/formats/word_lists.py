"""Lists of words that are no CSV, and folders that are named after what they show: the command that makes a manifest.

    list_remedy(root, paths)            the first text that names media and their words, and what to do about it
    classes_remedy(root, paths)         the same for folders that have the names of classes

    84-121123.trans.txt     84-121123-0000 GO DO YOU HEAR           LibriSpeech: all of that ending, beside their media
    text, transcripts.txt   utt1 hello world                        Kaldi, MLS: one list for many folders
    captions.txt            image,caption                           Flickr8k: a table under another ending
    cat/1.jpg  dog/1.jpg                                            the folders name what the images show

Nothing here is read as documents, since it is guessed: the guess stands in a command that a person can read.
"""

import glob
import itertools
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from data.endings import medium_of
from data.formats.accounts import is_about
from data.formats.word_columns import NONE, words_column, words_in
from data.formats.word_tables import delimiter_of, place_of, table_remedy
from data.split_names import split_words
from data.text import foreign_encoding

_ENDINGS = ("", ".txt", ".text", ".lst", ".list", ".token", ".tok", ".trans", ".transcript", ".transcripts", ".scp")
_LOOKED_AT, _HEAD_BYTES, _LINES = 200, 2**16, 50
_DELIMITERS = ",\t;|"
_CLASSES_SHOWN = 3
_MEDIA, _TOKENS = 50_000, 8
_OF_KALDI = re.compile(r"(utt|spk|reco)2(?!text)")
_BETWEEN = re.compile(r'[\s,|;"#/]+')


def list_remedy(root: Path, paths: list[str]) -> str:
    """What to do about the first text that names media, as the end of a sentence that begins with its name; else ""."""
    media = (os.path.basename(path) for path in itertools.islice(filter(medium_of, paths), _MEDIA))
    names = {name for base in media for name in (base, os.path.splitext(base)[0])}
    likely = [path for path in paths if _ending(path) in _ENDINGS and not is_about(path)]
    for path in likely[:_LOOKED_AT]:
        lines = _head(root / path)
        first = next((line for line in lines if not names.isdisjoint(_BETWEEN.split(line)[:_TOKENS])), "")
        if any(mark in first for mark in _DELIMITERS):
            rows = [row for line in lines if len(row := line.split(delimiter_of(lines))) > 1]
            place = place_of(rows, root / path, root=root)
            has_words = words_column(rows, taken={place.column}) is not None
            if has_words and 2 * place.count >= len(lines) - 1:
                return table_remedy(root / path, path, root=root)
        if first and (told := _lines_remedy(root, path, lines, likely)):
            return told
    return ""


def _lines_remedy(root: Path, path: str, lines: list[str], others: list[str]) -> str:
    """What to do about lines of a name and words with a space between; "" for others."""
    rows = [row for line in lines if len(row := line.split(None, 1)) == 2]
    place = place_of([row[:1] for row in rows], root / path, root=root)
    if place.column is None or 2 * place.count < len(lines):
        return ""
    # numbers and paths are no words (CelebA's list_attr_celeba.txt, Kaldi's wav.scp), nor are speakers (utt2spk)
    if words_in([row[1] for row in rows]) == NONE or _OF_KALDI.match(os.path.basename(path)):
        return ""
    name, dots = os.path.basename(path), os.path.basename(path).partition(".")[2]
    alike = [other for other in others if os.path.basename(other).partition(".")[2] == dots]
    path_of, base, shown = place.around("k"), place.base, os.path.relpath((root / path).resolve(), place.base)
    files = f"[{_spelt(shown)}]"
    if not place.is_above(root / path) and len(alike) > 1:
        # each of them lies beside its own media
        files, base = f"sorted(glob.glob({_spelt(f'**/*.{glob.escape(dots)}')}, recursive=True))", root.resolve()
        path_of = f"os.path.join(os.path.dirname(t), {path_of})"
        name = f"*.{dots}"
    program = (
        f"import glob, json, os, pathlib; {place.names}"
        f'[print(json.dumps({{"file_name": {path_of}, "text": w}})) for t in {files} '
        'for k, _, w in (l.strip().replace("\\t", " ").partition(" ") for l in open(t, encoding="utf-8")) if w]'
    )
    return (
        f"{path!r}, lines of a name and words, which are not read: write a metadata.jsonl from {name}, in the folder "
        f"{str(base)!r}, where its paths hold, by `python -c {shlex.quote(program)} > metadata.jsonl`"
    )


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
