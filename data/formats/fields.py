"""Fields that name media or hold words, in the words of other data sets.

    media_of(fields)     every medium that a known field names: a path, a list of them, or an object with a path

A field such as `image_path` names pictures whatever the ending. `filename` and its like name a medium when the ending
is one of a medium, since a text's file has a name too; the same holds for `speech`, `clip` or `photo`, which are often
words. A path that two fields name is one medium. What becomes of the other fields, `data.formats.unread` says.
"""

import re
from collections import Counter
from pathlib import Path

from data.document import DocumentError, Video, check_relative, resolve_media
from data.endings import FILM_OR_CODE, ending_of, medium_at, medium_of, remedy_for
from data.formats.lines import list_in
from data.formats.provenance import DOCUMENT_WORDS, is_of_repository, speaks_of_medium
from data.workbench.source import LANGUAGES

WORDS = (
    *("text", "caption", "captions", "sentence", "sentences", "transcription", "transcript", "txt"),
    *("normalized_text", *(name for name in DOCUMENT_WORDS if name != "text")),
)
"""Fields that hold the words, in the order they are looked for."""
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "texts", "qa", "qa_pairs")
"""Fields that hold a list of turns."""
PAIRS = (
    *(("question", "answer"), ("question", "answers"), ("instruction", "output"), ("instruction", "response")),
    *(("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("input", "output")),
    *(("query", "answer"), ("query", "answers"), ("question", "response"), ("problem", "solution")),
    *(("prompt", "answer"), ("input", "target"), ("inputs", "targets"), ("question", "solution")),
    *(("question", "label"), ("query", "label")),
)
"""Fields of a question and its answer, which are not read outside a list of turns."""
_PATHS = ("", "_path", "_file", "_filepath", "_file_path", "_file_name", "_filename")
_KINDS = {
    "image": ("image", "img", "picture", "photo"),
    "video": ("video", "clip", "film", "movie"),
    "audio": ("audio", "wav", "sound", "speech"),
}
_SURE = ("image", "video", "audio", "img")
_FILES = ("file_name", "filename", "file_path", "filepath", "file", "path", "media", "media_path")
_NAMED = {name + ending: kind for kind, names in _KINDS.items() for name in names for ending in _PATHS}
FIELDS: dict[str, str] = {"file_name": "", "file_names": "", "audio_filepath": "audio"}
"""Field -> "image", "video" or "audio"; "" where the ending of the file decides. In the order of reading."""
for _names in ({kind: kind for kind in _KINDS}, {kind + "s": kind for kind in _KINDS}):
    FIELDS |= _names
for _name, _kind in (*_NAMED.items(), *dict.fromkeys(_FILES, "").items()):
    FIELDS.setdefault(_name, _kind)
    FIELDS.setdefault(_name + "s", _kind)
_FOLDED = {*WORDS, *CONVERSATIONS, *FIELDS, "content", "id", "system", "system_prompt", "label"}
_ORDER = {name: place for place, name in enumerate(FIELDS)}
SURE = {name for name, kind in FIELDS.items() if kind and name.startswith(_SURE)}
"""Fields that name a medium whatever their value looks like."""
_PAGES = frozenset(("pdf", "xps", "djvu", "djv", "ps"))
_TEXT_FILES = {
    *(
        "txt",
        "text",
        "md",
        "markdown",
        "rst",
        "org",
        "tex",
        "ltx",
        "bib",
        "htm",
        "html",
        "xhtml",
        "xml",
        "json",
        "jsonl",
        "jsonlines",
        "jl",
    ),
    *(
        "ndjson",
        "yaml",
        "yml",
        "csv",
        "tsv",
        "parquet",
        "log",
        "wiki",
        "srt",
        "vtt",
        "doc",
        "docx",
        "odt",
        "rtf",
        "zip",
    ),
    *("ppt", "pptx", "odp", "xls", "xlsx", "ods", "epub", "mobi", "fb2", "eml", "mbox", "msg", "ipynb", "warc"),
}
"""Endings of files that texts are taken from."""
_NO_PATH = re.compile(
    r"""[\n\r\t"<>|{}]|\ b/|\s--?[a-zA-Z]|^(?:diff|index|---|\+\+\+|@@|rm|cp|mv|git|curl|wget|cat|ffmpeg|import|from"""
    r"""|return|print|//|\#|\$|!\[)\s"""
)
"""What is a line of a program, of a change to one, or more than one line."""


def folded(fields: dict) -> dict:
    """The object with the names of known fields in lower case (`TEXT`, `Caption`, `Image`), where those are free."""
    if all(key.islower() or key.lower() not in _FOLDED or key.lower() in fields for key in fields):
        return fields
    found: dict = {}
    for key, value in fields.items():
        low = key.lower()
        found[low if low in _FOLDED and low not in fields and low not in found else key] = value
    return found


def media_of(fields: dict, root: Path | None = None) -> list[tuple[str, str, object]]:
    """(field, kind, reference) of each medium; kind is "" when not even the ending tells it.

    root: resolved folder of the files, where one may be looked at: an ending such as .ts leaves it open.
    """
    found, seen, of_repository = [], {}, is_of_repository(fields)
    for name in fields_in(fields):
        kind = FIELDS[name]
        value = None if (of_repository and not kind) or is_nothing(fields[name]) else fields[name]
        references = value if isinstance(value, list) else [] if value is None else [value]
        if len(references) > 100_000:
            raise DocumentError(f"field {name!r} has {len(references)} entries, over the limit of 100,000")
        for reference in references:
            path = path_of(reference)
            is_film = not kind and root is not None and ending_of(path) in FILM_OR_CODE and _is_film(root, path)
            if name not in SURE and not is_film and not (path and (is_medium(path) or "::" in path)):
                continue
            # the name of a program or of pages of text is no medium
            if not kind and not is_film and (is_pages(path) or "." + ending_of(path) in LANGUAGES):
                continue
            if path and seen.setdefault(path, name) != name:
                continue
            medium = Video if is_film else medium_of(path or "")
            found.append((name, kind or (medium.__name__.lower() if medium else ""), reference))
    return found


def is_nothing(value, depth: int = 0) -> bool:
    """Whether a value says that there is no medium: null, false, 0, empty texts, and lists and objects of such."""
    if isinstance(value, str):
        return len(value) < 20 and value.strip().lower() in ("", "none", "null", "nan")
    if isinstance(value, list | dict):
        entries = list(value.values()) if isinstance(value, dict) else value
        return len(entries) < 1000 and depth < 4 and all(is_nothing(entry, depth + 1) for entry in entries)
    return not value or value != value


def note_nothing(fields: dict, notes: Counter) -> str:
    """Note the first field of media that holds none, where words are read alone; its name, or ""."""
    empty = next((key for key in fields if key in SURE and is_nothing(fields[key])), "")
    if empty:
        notes[f"note: field {empty!r} holds no medium: the words were read alone"] += 1
    return empty


def fields_in(fields: dict) -> list[str]:
    """The fields of an object that may name media, in the order of reading."""
    return sorted(FIELDS.keys() & fields.keys(), key=_ORDER.__getitem__)


def _is_film(root: Path, path: str) -> bool:
    try:
        return medium_at(resolve_media(root, path, max_file_mib=float("inf")), path) is Video
    except DocumentError:
        return False


def path_of(reference) -> str:
    """The path or address in a reference to a medium; "" when there is none."""
    if isinstance(reference, dict):
        return next(
            (
                path
                for key in ("path", "url", "file", "file_name", "filename", "content_url", "contentUrl", "src")
                if (path := path_of(reference.get(key)))
            ),
            "",
        )
    return reference if isinstance(reference, str) else ""


def unpacked(fields: dict) -> dict:
    """The object with turns that are written as JSON text parsed. Raises DocumentError naming the field."""
    for key in CONVERSATIONS:
        value = fields.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                fields = fields | {key: list_in(value)}
            except DocumentError as error:
                raise DocumentError(f"field {key!r} is a text that looks like JSON, but is {error}") from None
    return fields


def check_caption(fields: dict, key: str, words: str) -> None:
    """DocumentError for a row without a medium whose words are a caption or transcript of one that is elsewhere."""
    for name in ("file_name", "file_names"):
        path = next(iter(map(path_of, value if isinstance(value := fields.get(name), list) else [value])), "")
        ending = ending_of(path)
        # a text may be taken from any file of texts; beside a caption only programs are sure to be none
        is_text = key in DOCUMENT_WORDS and (ending in _TEXT_FILES or not ending.isalpha() or is_pages(path))
        if is_text and path and not ending:
            check_relative(path)
        if not is_nothing(value) and not is_text and "." + ending not in LANGUAGES:
            raise DocumentError(f"file {path[:200]!r} has an ending of no picture, sound or film")
    if named := speaks_of_medium(fields, key, words):
        raise DocumentError(
            f"field {named[:40]!r} shows that {key!r} belongs to a medium, and none is read: give its path as 'image', "
            "'audio' or 'video' (download what is remote); or call the words 'text' and take the field out"
        )


def asked_in_pairs(fields: dict) -> str:
    """What to do about a question and its answer in fields of their own; "" when there are none."""
    pair = next((pair for pair in PAIRS if all(fields.get(name) is not None for name in pair)), None)
    return f"; write {pair[0]!r} and {pair[1]!r} as 'messages' of user and assistant" if pair else ""


def is_medium(path: str) -> bool:
    """Whether a path or address has the ending of a medium, read or not."""
    if "://" in path:
        # a wiki's page about a file bears its name
        path = "" if "/wiki/" in path else re.split(r"[?#]", path)[0]
    return (medium_of(path) is not None or remedy_for(path) is not None) and is_path(path)


def is_path(text: str) -> bool:
    """Whether a text may be a path or an address, and is no line of code, no command and no change to a program."""
    if not 0 < len(text) < 1000 or _NO_PATH.search(text):
        return False
    return " " not in text or sum(medium_of(piece) is not None for piece in text.split()) < 2


def is_pages(path: str) -> bool:
    """Whether a file holds pages of text (`manual.pdf`), which a text may be taken from."""
    return ending_of(path) in _PAGES


_BASE64 = (
    *(("iVBORw0KGgo", "image"), ("/9j/", "image"), ("R0lGOD", "image"), ("Qk0", "image"), ("SUkq", "image")),
    *(("TU0AK", "image"), ("UklGR", "medium"), ("T2dnU", "audio"), ("SUQz", "audio"), ("ZkxhQ", "audio")),
)
_BEGINS = tuple(begin for begin, _ in _BASE64)
_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")


def base64_kind(text: str) -> str:
    """ "image", "audio" or "medium" for the content of a medium written as base64; "" for any other text."""
    if not text.startswith(_BEGINS) or len(text) < 12 or "." in text[:1000]:
        return ""
    kind = next((kind for begin, kind in _BASE64 if text.startswith(begin)), "")
    return kind if kind and _BASE64_TEXT.fullmatch(text[:1000]) else ""
