"""What becomes of the fields of a row that its reader did not read: none is dropped silently.

Provenance and metadata (`brine.data.formats.lines.provenance`) are passed over; marks and splits are read elsewhere (a
field that looks like a split and was not read as one is noted); any other field is noted by name. Words about media
must not become a text of their own. So where no media were read, a row is refused for a value that names or holds media
(`{"scan": "a.png"}`), a name that says there were some (`{"image_id": 7}`), or a caption with its page's address.
false, 0, null and nothing are no media, and a row whose other fields are those of texts keeps its words.
"""

import functools
import re
from collections import Counter
from collections.abc import Collection

from brine.data.document import Document, DocumentError, Text
from brine.data.files.extensions import conversion_hint
from brine.data.formats.lines.fields import FIELDS, SURE, WORDS, base64_kind, is_medium, is_nothing, is_pages, path_of
from brine.data.formats.lines.marks import NEGATIVE_LABEL_KEYS, is_loss_key, looks_like_loss_key
from brine.data.formats.lines.provenance import (
    DOCUMENT_WORDS,
    LONG_CHARACTERS,
    is_metadata,
    is_of_repository,
    is_provenance,
    is_text_row,
    is_web_page,
    names_media,
    suggests_media,
)
from brine.data.formats.splits.names import WORDS as SPLIT_WORDS
from brine.data.formats.splits.names import (
    declared_split,
    flag_value,
    split_field_kind,
    split_from_field,
    split_words,
)

MAX_NOTES = 100
"""Names of fields that are noted one by one."""
_ARRAYS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".pkl", ".tfrecord", ".mat")
_EMPTY = (None, "", [], {})


def check_unread_fields(
    fields: dict,
    read: Collection[str],
    notes: Counter,
    *,
    any_read: bool,
    words: tuple[str, str] = ("", ""),
    where: str = "'image', 'audio' or 'video'",
    by_name: bool = True,
) -> None:
    """Note every field that is not in `read`. Raises DocumentError where media were not read.

    any_read: whether media were read. words: the field that holds the words, and these; of a conversation neither.
    where: what to call media instead. by_name: whether media were read from fields of their names.
    """
    is_caption, is_text = words[0] in ("caption", "captions"), words[0] in DOCUMENT_WORDS
    for key, value in fields.items():
        if key in read or value in _EMPTY or (any_read and by_name and key in FIELDS and _was_read(key, value)):
            continue
        sort = _sort(key)
        # a text is taken from pages, a caption is about them
        pages = (bool(words[0]) and not is_text) or sort == "medium" or _is_of_pages(key)
        path = nested_media(value, pages=pages)
        if path and not ((FIELDS.get(key) == "" or sort == "provenance") and is_of_repository(fields)):
            _check_medium(fields, key, value, path, notes, any_read=any_read, words=words, where=where)
        elif sort == "split":
            _check_split(fields, key, value, notes)
        elif sort == "medium":
            if _is_no_medium(value):
                continue
            is_word = suggests_media(key) and _is_word(value)
            # a caption is short: a long text with the number of a video is its transcript
            is_row_of_text = (is_text and len(words[1]) > LONG_CHARACTERS) or is_text_row(fields, key, *words)
            if not is_word and not any_read and not is_row_of_text:
                raise DocumentError(
                    f"field {key[:40]!r} says that the row belongs to an image, audio or video, and none is read: give "
                    f"the path of its file as {where}, or remove the field where the words stand alone"
                )
            if is_word or not is_metadata(key):
                note_field(key, notes)
        elif sort == "other":
            if not (key in WORDS and value == words[1]):
                note_field(key, notes)
        elif sort == "label":
            if value is not True:
                note_field(key, notes)
        elif sort == "provenance" and is_caption and not any_read and "://" in (address := path_of(value))[:12]:
            raise DocumentError(
                f"field {key[:40]!r} shows that {words[0]!r} belongs to an image, audio or video, which is remote "
                f"({address[:100]!r}): download it and give its path as {where}, or call the words 'text'"
            )
        if sort in ("provenance", "metadata"):
            is_long = sort == "metadata" and isinstance(value, str) and len(value) > 300
            if is_long or any(map(_is_held_out, value[:10] if isinstance(value, list) else [value])):
                note_field(key, notes)


def _check_split(fields: dict, key: str, value, notes: Counter) -> None:
    """Note a field that may name a split and was not read as that of the row."""
    sort = split_field_kind(key)
    if sort == "flag":
        is_lost = flag_value(value) is None and value == value and str(value).strip() != ""
    elif named := split_from_field(key, value):
        is_lost = named != declared_split(fields)
    else:
        # a subset may be anything
        is_lost = sort == "like" or (sort == "loose" and isinstance(value, str) and bool(split_words(value[:200])))
    if is_lost and sort != "own":
        _count(notes, f"note: field {key[:40]!r} was not read as a split: name it in a field 'split', if it is one")


def _is_held_out(value) -> bool:
    """Whether a value is no more than a word for a split that is held out."""
    return isinstance(value, str) and SPLIT_WORDS.get(value.strip().casefold(), "train") != "train"


def _was_read(key: str, value) -> bool:
    """Whether a field of media is one that `media_of` reads, where some were."""
    return key in SURE or any(is_medium(path) or "::" in path for path in map(path_of, _entries(value)[:10]))


def _check_medium(
    fields: dict, key: str, value, path: str, notes: Counter, *, any_read: bool, words: tuple[str, str], where: str
) -> None:
    """Note a field that names media in a row of text or beside media that were read; else DocumentError."""
    also = f"note: field {key[:40]!r} names media too and was not read"
    if any_read:
        if key not in ("id", "source") and not is_provenance(key, path) and not is_metadata(key):
            _count(notes, also)
        return
    is_remote, is_text = "://" in path, is_text_row(fields, key, *words)
    is_deep = not isinstance(value, str) and path != next(map(path_of, _entries(value)), "")
    # what lies deep in notes on a text is no field of its row
    if is_provenance(key, path) and (is_text or (is_deep and is_remote and words[0] in DOCUMENT_WORDS)):
        return
    if is_remote and (is_web_page(fields, key, *words) or (is_deep and is_text)):
        _count(notes, also)
    elif path.lower().endswith(_ARRAYS) and is_text:
        note_field(key, notes)
    else:
        raise DocumentError(_field_hint(key, path, where))


def _field_hint(key: str, path: str, where: str) -> str:
    what = f"field {key[:40]!r} names the media file {path[:100]!r}"
    if base64_kind(path) or path.startswith("data:"):
        return f"field {key[:40]!r} holds media in the text: store them as files and give their paths as {where}"
    if "://" in path:
        return f"{what}, which is remote: download it and give its path as {where}, or remove the field"
    if path.lower().endswith(_ARRAYS):
        return f"{what}, which is an array: give the image, audio or video itself as {where}"
    if hint := conversion_hint(path):
        return f"{what}, which is not read: {hint}, and give its path as {where}"
    where = "a path, or a list of paths" if key in FIELDS and where.startswith("'image'") else where
    return f"{what}, but no media are read from a field of that name or form: give it as {where}, or remove it"


def note_field(key: str, notes: Counter) -> None:
    """Count a field that was not read by its name; of a row of very many names no more than that there were."""
    _count(notes, f"note: field {key[:40]!r} was not read")


def _count(notes: Counter, sentence: str) -> None:
    notes[sentence if sentence in notes or len(notes) < MAX_NOTES else "note: fields of other names were not read"] += 1


@functools.lru_cache(maxsize=8192)
def _sort(key: str) -> str:
    """What a field is by its name: a label, a split, a mark, media, provenance, metadata or "other"."""
    if key in NEGATIVE_LABEL_KEYS:
        return "label"
    if split_field_kind(key):
        return "split"
    if key in WORDS or key == "labels":
        return "other"
    if is_loss_key(key) or is_loss_key(key.removesuffix("s")) or looks_like_loss_key(key):
        return "mark"
    if names_media(key):
        return "medium"
    if is_provenance(key, "https://x"):
        return "provenance"
    return "metadata" if is_metadata(key) else "other"


def _is_no_medium(value) -> bool:
    """Whether a value of a field that is named after media says that there are none, or is words."""
    if isinstance(value, str):
        is_words = " " in value.strip() and "://" not in value
        return is_nothing(value) or value.strip() in ("0", "false", "False") or is_words
    if isinstance(value, list | dict):
        return all(not each or (isinstance(each, str) and _is_no_medium(each)) for each in _entries(value)[:1000])
    return not value or value != value


@functools.lru_cache(maxsize=4096)
def _is_of_pages(key: str) -> bool:
    """Whether a field names pages as images (`scan`)."""
    return re.search(r"scan|figure|drawing|media|medium|attachment", key[:100].lower()) is not None


def _is_word(value) -> bool:
    """Whether a value is a word, or a list of words, and no path or address."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(entry, str) and _is_word(entry) for entry in value[:100])
    return isinstance(value, str) and len(value) < 100 and not re.search(r"[/\\]|\.\w|://|^[\d\W]*$", value)


def nested_media(value, depth: int = 0, *, pages: bool = True) -> str:
    """The first name, address or content of media, or name of an array, in a value, however deep; "" for none.

    pages: whether pages of text (`manual.pdf`) count.
    """
    if isinstance(value, str):
        is_array = value.lower().endswith(_ARRAYS)
        if len(value) < 1000 and "." in value and (is_array or is_medium(value)):
            is_text = (not pages and is_pages(re.split(r"[?#]", value)[0])) or (is_array and re.search(r"\s", value))
            return "" if is_text else value
        return value[:200] if (value.startswith("data:") and ";base64," in value[:100]) or base64_kind(value) else ""
    entries = _entries(value)[:100] if depth < 6 and isinstance(value, list | dict) else []
    return next(filter(None, (nested_media(entry, depth + 1, pages=pages) for entry in entries)), "")


def _entries(value) -> list:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


def check_message_fields(message: dict, left: list[str], where: str, notes: Counter) -> None:
    """The fields beside a message that nobody read: noted, or DocumentError for media."""
    for key in left:
        value = message[key]
        if is_loss_key(key) or value in _EMPTY:
            continue
        named = names_media(key) or key.rstrip("s").lower() in ("attachment", "file", "medium", "media")
        if nested_media(value, pages=named) or (named and not _is_no_medium(value)):
            raise DocumentError(
                f"field {key[:40]!r} {where} has media that are not read: write them into the content as "
                '{"type": "image", "image": PATH}, or remove it'
            )
        _count(notes, f"note: field {key[:40]!r} {where} is not known and was not read")


def has_media(document: Document) -> bool:
    """Whether a document has an image, audio or video."""
    return any(not isinstance(part, Text) for part in document.parts)
