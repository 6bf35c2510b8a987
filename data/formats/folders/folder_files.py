"""The files of a folder, sorted by kind in one pass over their names.

Which of them hold documents (`survey`) and what the folder is without those (`single_format`) follow from these sets.
No file is opened but those whose ending says too little, and only when that set is asked for.
"""

import functools
import itertools
import os
from pathlib import Path
from typing import NamedTuple

from brine.data.files.compressed import compressed_hint, is_split_part
from brine.data.files.extensions import SUPPORTED, UNSUPPORTED, VIDEO_OR_CODE, media_type_in
from brine.data.files.links import stays_within
from brine.data.files.pointers import dvc_target
from brine.data.files.source_files import LANGUAGES
from brine.data.files.walk import FolderListing
from brine.data.formats import detect
from brine.data.formats.lines.lines import LINES, is_array

CODE = frozenset(ending for ending, language in LANGUAGES.items() if language not in ("markdown", "rst", "text"))
PROGRAMS = CODE - {".yaml", ".yml", ".toml", ".ini", ".cfg"}
"""Endings of code that data sets do not have as their settings."""
CAPTIONS = (".txt", ".caption", ".json")
"""Endings of files with the words of the media that have their name."""
_MAX_FILES, _MAX_UNDETECTED = 200_000, 1000
_TEXTS = (".txt", ".text")


class ListedFile(NamedTuple):
    """A file by its name: `stem` + `ending` (lower case), whether it is media, and why it must not be opened."""

    name: str
    problem: str
    stem: str
    ending: str
    media: bool
    unread_media: bool
    hidden: bool


class FolderFiles:
    """The files below a folder: of hidden folders too in `files`, without those in `visible`."""

    def __init__(self, listing: FolderListing):
        self.root, self.listing = listing.root, listing

    @functools.cached_property
    def files(self) -> list[ListedFile]:
        found = []
        for name, problem in itertools.islice(self.listing, _MAX_FILES):
            # `._a.tar` is what a Mac noted about a.tar
            if name.startswith("._") or ("/._" in name and os.path.basename(name).startswith("._")):
                continue
            stem, ending = os.path.splitext(name)
            if ending == ".dvc" and (target := os.path.splitext(dvc_target(name)))[1][1:].lower() in _MEDIA_ENDINGS:
                # media that were not fetched are among the folder's media
                (stem, ending), name = target, dvc_target(name)
            ending = ending.lower()
            is_hidden = "/." in f"/{name.rpartition('/')[0]}"
            found.append(
                ListedFile(name, problem, stem, ending, ending[1:] in SUPPORTED, ending[1:] in UNSUPPORTED, is_hidden)
            )
        return found

    @functools.cached_property
    def visible(self) -> list[ListedFile]:
        return [file for file in self.files if not file.hidden]

    @functools.cached_property
    def readable(self) -> list[ListedFile]:
        return [file for file in self.visible if not file.problem]

    @functools.cached_property
    def media_names(self) -> set[str]:
        """Names of media with and without their endings: words may be named after either."""
        return {name for file in self.readable if file.media or file.unread_media for name in (file.name, file.stem)}

    @functools.cached_property
    def num_media(self) -> int:
        return sum(file.media for file in self.readable)

    @functools.cached_property
    def videos(self) -> set[str]:
        """The files of endings such as .ts that are videos by their content."""
        files = (file.name for file in self.files if file.ending[1:] in VIDEO_OR_CODE and not file.problem)
        return {name for name in files if media_type_in(self.root, name)}

    @functools.cached_property
    def code(self) -> list[str]:
        found = (file for file in self.readable if file.ending in PROGRAMS)
        return [
            file.name for file in found if file.ending not in LINES or not detect.is_named_lines(self.root / file.name)
        ]

    def is_mostly_code(self, num_found: int) -> bool:
        """Whether programs are more than media and so many other files."""
        return len(self.code) > self.num_media + num_found

    @functools.cached_property
    def is_clone(self) -> bool:
        return (self.root / ".git").exists()

    @functools.cached_property
    def undetected(self) -> list[str]:
        """The first files whose names do not say what they hold."""
        names = {file.name for file in self.readable}

        def is_undetected(file: ListedFile) -> bool:
            # of a file and its compressed twin one is read
            plain = detect.without_compression(file.name)
            name = plain if plain not in names else file.name
            stem, ending = os.path.splitext(name)
            if compressed_hint(name) or is_split_part(os.path.basename(name)) or ending.lower() in detect.EXTENSIONS:
                return False
            return not detect.has_known_extension(name) or (ending.lower() in _TEXTS and stem not in self.media_names)

        found = (file.name for file in self.readable if is_undetected(file))
        return list(itertools.islice(found, _MAX_UNDETECTED))

    def undetected_json(self, *, on_top: bool) -> list[Path]:
        """JSON of a known record format under names that say nothing, on top or below."""
        return [self.root / name for name in self.undetected if ("/" not in name) == on_top and self._holds_json(name)]

    def _holds_json(self, name: str) -> bool:
        file = self.root / name
        # one object in a text, or among programs and media, may be anything; under a name of no kind it is a line
        least = 2 if detect.has_known_extension(name) or self.num_media or self.code else 1
        try:
            is_json = detect.opens_like_json(file) and (is_array(file) or detect.is_lines(file, least=least))
            return is_json and bool(detect.record_formats_in(file))
        except OSError:
            return False


_MEDIA_ENDINGS = SUPPORTED.keys() | UNSUPPORTED.keys()


def is_inside(root: Path, file: Path) -> bool:
    """Whether a file is there, and no link out of the folder or pipe."""
    return file.is_file() and stays_within(root, file.resolve())
