"""Fields that name media or hold words, in the words of other data sets.

A field such as `image_path` names images whatever the extension. `filename` and its like name media when the extension
is one of a media file, since a text's file has a name too; so with `speech`, `clip` or `photo`, which are often words.
A path in two fields is one image, audio or video. What becomes of all other fields is decided in
`brine.data.formats.notes`.
"""

import re
from collections import Counter
from pathlib import Path

from brine.data.document import DocumentError, Video
from brine.data.files.addresses import check_relative
from brine.data.files.extensions import VIDEO_OR_CODE, conversion_hint, extension_of, media_type_of, media_type_of_file
from brine.data.files.resolve import resolve_media
from brine.data.files.source_files import LANGUAGES
from brine.data.formats.lines.lines import list_in
from brine.data.formats.lines.provenance import DOCUMENT_WORDS, is_of_repository, mentions_media_in_text
from brine.data.formats.splits.names import word_set

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
_MODALITIES = {
    "image": ("image", "img", "picture", "photo"),
    "video": ("video", "clip", "film", "movie"),
    "audio": ("audio", "wav", "sound", "speech"),
}
_FILES = ("file_name", "filename", "file_path", "filepath", "file", "path", "media", "media_path")
_NAMED = {name + ending: kind for kind, names in _MODALITIES.items() for name in names for ending in _PATHS}
FIELDS: dict[str, str] = {"file_name": "", "file_names": "", "audio_filepath": "audio"}
"""Field -> "image", "video" or "audio"; "" where the extension of the file decides. In the order of reading."""
FIELDS |= {kind: kind for kind in _MODALITIES} | {f"{kind}s": kind for kind in _MODALITIES}
for _name, _kind in (*_NAMED.items(), *dict.fromkeys(_FILES, "").items()):
    FIELDS.setdefault(_name, _kind)
    FIELDS.setdefault(_name + "s", _kind)
_FOLDED = {*WORDS, *CONVERSATIONS, *FIELDS, "content", "id", "system", "system_prompt", "label"}
_ORDER = {name: index for index, name in enumerate(FIELDS)}
SURE = {name for name, kind in FIELDS.items() if kind and name.startswith(("image", "video", "audio", "img"))}
"""Fields that name media whatever their value looks like."""
_PAGES = word_set("pdf xps djvu djv ps")
# extensions of files that texts are taken from
_TEXT_FILES = word_set(
    "txt text md markdown rst org tex ltx bib htm html xhtml xml json jl jsonl jsonlines ndjson yaml yml csv tsv "
    "parquet log wiki srt vtt doc docx odt rtf zip ppt pptx odp xls xlsx ods epub mobi fb2 eml mbox msg ipynb warc"
)
_PATH_KEYS = ("path", "url", "file", "file_name", "filename", "content_url", "contentUrl", "src")
_NO_PATH = re.compile(
    r"""[\n\r\t"<>|{}]|\ b/|\s--?[a-zA-Z]|^(?:diff|index|---|\+\+\+|@@|rm|cp|mv|git|curl|wget|cat|ffmpeg|import|from"""
    r"""|return|print|//|\#|\$|!\[)\s"""
)
"""Lines of programs and diffs, and more than one line."""


def folded(fields: dict) -> dict:
    """The object with known field names in lower case (`TEXT`, `Caption`, `Image`), where those are free."""
    names = {}
    for key in fields:
        low = key.lower()
        names[low if low in _FOLDED and low not in fields and low not in names else key] = key
    return fields if names.keys() == fields.keys() else {name: fields[key] for name, key in names.items()}


def media_of(fields: dict, root: Path | None = None) -> list[tuple[str, str, object]]:
    """(field, kind, reference) of media; kind "" if unknown. root: for extensions that need a look inside (.ts)."""
    found, seen, of_repository = [], {}, is_of_repository(fields)
    for name in fields_in(fields):
        kind = FIELDS[name]
        value = None if (of_repository and not kind) or is_nothing(fields[name]) else fields[name]
        references = value if isinstance(value, list) else [] if value is None else [value]
        if len(references) > 100_000:
            raise DocumentError(f"field {name!r} has {len(references)} values, over the limit of 100,000")
        for reference in references:
            path = path_of(reference)
            is_video = not kind and root is not None and extension_of(path) in VIDEO_OR_CODE and _is_video(root, path)
            if name not in SURE and not is_video and not (path and (is_media_path(path) or "::" in path)):
                continue
            # the name of a program or of pages of text names no media
            if not kind and not is_video and (is_pages(path) or "." + extension_of(path) in LANGUAGES):
                continue
            if path and seen.setdefault(path, name) != name:
                continue
            media = Video if is_video else media_type_of(path or "")
            found.append((name, kind or (media.__name__.lower() if media else ""), reference))
    return found


def is_nothing(value, depth: int = 0) -> bool:
    """Whether a value means no media: null, false, 0, empty texts, and lists and objects of such."""
    if isinstance(value, str):
        return len(value) < 20 and value.strip().lower() in ("", "none", "null", "nan")
    if isinstance(value, list | dict):
        values = list(value.values()) if isinstance(value, dict) else value
        return len(values) < 1000 and depth < 4 and all(is_nothing(each, depth + 1) for each in values)
    return not value or value != value


def note_nothing(fields: dict, notes: Counter) -> str:
    """Note the first media field without media, where words are read alone; its name, or ""."""
    empty = next((key for key in fields if key in SURE and is_nothing(fields[key])), "")
    if empty:
        notes[f"note: field {empty!r} holds no media: the text was read alone"] += 1
    return empty


def fields_in(fields: dict) -> list[str]:
    """The fields of an object that may name media, in the order of reading."""
    return sorted(FIELDS.keys() & fields.keys(), key=_ORDER.__getitem__)


def _is_video(root: Path, path: str) -> bool:
    try:
        return media_type_of_file(resolve_media(root, path, max_file_mib=float("inf")), path) is Video
    except DocumentError:
        return False


def path_of(reference) -> str:
    """The path or address in a reference to a media file; "" when there is none."""
    if isinstance(reference, dict):
        return next(filter(None, (path_of(reference.get(key)) for key in _PATH_KEYS)), "")
    return reference if isinstance(reference, str) else ""


def json_decoded_fields(fields: dict) -> dict:
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
    """DocumentError for a row without media whose words are a caption or transcript of a file elsewhere."""
    for name in ("file_name", "file_names"):
        path = next(iter(map(path_of, value if isinstance(value := fields.get(name), list) else [value])), "")
        ending = extension_of(path)
        # a text may be taken from any file of texts; beside a caption only programs are sure to be none
        is_text = key in DOCUMENT_WORDS and (ending in _TEXT_FILES or not ending.isalpha() or is_pages(path))
        if is_text and path and not ending:
            check_relative(path)
        if not is_nothing(value) and not is_text and "." + ending not in LANGUAGES:
            raise DocumentError(f"file {path[:200]!r} has an extension of no image, audio or video")
    if named := mentions_media_in_text(fields, key, words):
        raise DocumentError(
            f"field {named[:40]!r} shows that {key!r} belongs to an image, audio or video, and none is read: give its "
            f"path as 'image', 'audio' or 'video' (download a remote one); or rename {key!r} to 'text' and remove this"
        )


def prompt_pair_hint(fields: dict) -> str:
    """What to do about a question and its answer in separate fields; "" when there are none."""
    pair = next((pair for pair in PAIRS if all(fields.get(name) is not None for name in pair)), None)
    return f"; write {pair[0]!r} and {pair[1]!r} as 'messages' of user and assistant" if pair else ""


def is_media_path(path: str) -> bool:
    """Whether a path or address has the extension of a media file, read or not."""
    if "://" in path:
        # a wiki's page about a file bears its name
        path = "" if "/wiki/" in path else re.split(r"[?#]", path)[0]
    return (media_type_of(path) is not None or conversion_hint(path) is not None) and is_path(path)


def is_path(text: str) -> bool:
    """Whether a text may be a path or an address, and is no line of code, no command and no change to a program."""
    if not 0 < len(text) < 1000 or _NO_PATH.search(text):
        return False
    return " " not in text or sum(media_type_of(part) is not None for part in text.split()) < 2


def is_pages(path: str) -> bool:
    """Whether a file holds pages of text (`manual.pdf`), which a text may be taken from."""
    return extension_of(path) in _PAGES


_BASE64 = {
    **dict.fromkeys(("iVBORw0KGgo", "/9j/", "R0lGOD", "Qk0", "SUkq", "TU0AK"), "image"),
    **dict.fromkeys(("T2dnU", "SUQz", "ZkxhQ"), "audio"),
    "UklGR": "media",
}
_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")


def base64_kind(text: str) -> str:
    """ "image", "audio" or "media" (either) for a media file written as base64; "" for any other text."""
    if not text.startswith(tuple(_BASE64)) or len(text) < 12 or "." in text[:1000]:
        return ""
    kind = next(kind for begin, kind in _BASE64.items() if text.startswith(begin))
    return kind if _BASE64_TEXT.fullmatch(text[:1000]) else ""
