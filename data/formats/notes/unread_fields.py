"""What becomes of the fields of a row that its reader did not read: none is dropped silently.

Provenance and metadata (`lines.provenance`) are passed over, loss masks and splits are read elsewhere, and any other
field is noted by name. Words about media must not become a document by themselves: where no media were read, a row is
refused for a value that names or holds media (`{"scan": "a.png"}`), a name that says there were some (`{"image_id":
7}`), or a caption with its page's address. A row whose other fields are those of texts keeps its words.
"""

import functools
import re
from collections import Counter
from collections.abc import Collection

from brine.data.document import Document, DocumentError, media_paths
from brine.data.files.extensions import conversion_hint
from brine.data.formats.lines.fields import (
    FIELDS,
    SURE,
    WORDS,
    base64_kind,
    is_media_path,
    is_nothing,
    is_pages,
    path_of,
)
from brine.data.formats.lines.loss_masks import NEGATIVE_LABEL_KEYS, is_loss_key, looks_like_loss_key
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
from brine.data.formats.splits import names as split_names

MAX_NOTES = 100  # names of fields that are noted one by one
_ARRAYS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".pkl", ".tfrecord", ".mat")
_EMPTY = (None, "", [], {})
_OF_PAGES = re.compile(r"scan|figure|drawing|media|medium|attachment")


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
        if key in read or value in _EMPTY:
            continue
        paths = map(path_of, _values(value)[:10]) if any_read and by_name and key in FIELDS else ()
        if any(key in SURE or is_media_path(path) or "::" in path for path in paths):
            continue
        sort, is_noted, note = _sort(key), False, f"note: field {key[:40]!r} was not read"
        # a text is taken from pages, a caption is about them
        pages = (bool(words[0]) and not is_text) or sort == "media" or bool(_OF_PAGES.search(key[:100].lower()))
        path = nested_media(value, pages=pages)
        if path and not ((FIELDS.get(key) == "" or sort == "provenance") and is_of_repository(fields)):
            _check_media(fields, key, value, path, notes, any_read=any_read, words=words, where=where)
        elif sort == "split":
            if _may_be_split(fields, key, value):
                _note(notes, f"{note} as a split: name it in a field 'split', if it is one")
        elif sort == "media":
            if _is_no_media(value):
                continue
            is_word = suggests_media(key) and _is_word(value)
            # a caption is short: a long text with the number of a video is its transcript
            is_row_of_text = (is_text and len(words[1]) > LONG_CHARACTERS) or is_text_row(fields, key, *words)
            if not is_word and not any_read and not is_row_of_text:
                raise DocumentError(
                    f"field {key[:40]!r} says that the row belongs to an image, audio or video, and none is read: give "
                    f"the path of its file as {where}, or remove the field where the text stands alone"
                )
            is_noted = is_word or not is_metadata(key)
        elif sort == "other":
            is_noted = not (key in WORDS and value == words[1])
        elif sort == "label":
            is_noted = value is not True
        elif sort == "provenance" and is_caption and not any_read and "://" in (address := path_of(value))[:12]:
            raise DocumentError(
                f"field {key[:40]!r} shows that {words[0]!r} belongs to an image, audio or video, which is remote "
                f"({address[:100]!r}): download it and give its path as {where}, or rename {words[0]!r} to 'text'"
            )
        if sort in ("provenance", "metadata"):
            is_long = sort == "metadata" and isinstance(value, str) and len(value) > 300
            strings = [each for each in (value[:10] if isinstance(value, list) else [value]) if isinstance(each, str)]
            held_out = (split_names.WORDS.get(each.strip().casefold(), "train") != "train" for each in strings)
            is_noted = is_long or any(held_out)
        if is_noted:
            _note(notes, note)


def _note(notes: Counter, note: str) -> None:
    """Count a note on a field by its name; in a row of very many names only that there were some."""
    notes[note if note in notes or len(notes) < MAX_NOTES else "note: fields of other names were not read"] += 1


def _may_be_split(fields: dict, key: str, value) -> bool:
    sort = split_names.split_field_kind(key)
    if sort == "flag":
        return split_names.flag_value(value) is None and value == value and str(value).strip() != ""
    if named := split_names.split_from_field(key, value):
        return sort != "own" and named != split_names.declared_split(fields)
    # a subset may be anything
    is_loose = sort == "loose" and isinstance(value, str) and bool(split_names.split_words(value[:200]))
    return sort == "like" or is_loose


def _check_media(
    fields: dict, key: str, value, path: str, notes: Counter, *, any_read: bool, words: tuple[str, str], where: str
) -> None:
    """Note a field that names media in a row of text or beside media that were read; else DocumentError."""
    also = f"note: field {key[:40]!r} names media too and was not read"
    is_from = is_provenance(key, path)
    if any_read:
        if key not in ("id", "source") and not is_from and not is_metadata(key):
            _note(notes, also)
        return
    is_remote, is_text = "://" in path, is_text_row(fields, key, *words)
    is_array = path.lower().endswith(_ARRAYS)
    is_deep = not isinstance(value, str) and path != next(map(path_of, _values(value)), "")
    # what is deep in notes on a text is no field of its row
    if is_from and (is_text or (is_deep and is_remote and words[0] in DOCUMENT_WORDS)):
        return
    what = f"field {key[:40]!r} names the media file {path[:100]!r}"
    if is_remote and (is_web_page(fields, key, *words) or (is_deep and is_text)):
        _note(notes, also)
    elif is_array and is_text:
        _note(notes, f"note: field {key[:40]!r} was not read")
    elif base64_kind(path) or path.startswith("data:"):
        raise DocumentError(
            f"field {key[:40]!r} holds media in the text: store them as files and give their paths as {where}"
        )
    elif is_remote:
        raise DocumentError(f"{what}, which is remote: download it and give its path as {where}, or remove the field")
    elif is_array:
        raise DocumentError(f"{what}, which is an array: give the image, audio or video itself as {where}")
    elif hint := conversion_hint(path):
        raise DocumentError(f"{what}, which is not read: {hint}, and give its path as {where}")
    else:
        where = "a path, or a list of paths" if key in FIELDS and where.startswith("'image'") else where
        raise DocumentError(
            f"{what}, but no media are read from a field of that name or form: give it as {where}, or remove it"
        )


@functools.lru_cache(maxsize=8192)
def _sort(key: str) -> str:
    """What a field is by its name: a label, a split, a mark, media, provenance, metadata or "other"."""
    if key in NEGATIVE_LABEL_KEYS:
        return "label"
    if split_names.split_field_kind(key):
        return "split"
    if key in WORDS or key == "labels":
        return "other"
    if is_loss_key(key) or is_loss_key(key.removesuffix("s")) or looks_like_loss_key(key):
        return "mark"
    if names_media(key):
        return "media"
    if is_provenance(key, "https://x"):
        return "provenance"
    return "metadata" if is_metadata(key) else "other"


def _is_no_media(value) -> bool:
    if isinstance(value, str):
        is_words = " " in value.strip() and "://" not in value
        return is_nothing(value) or value.strip() in ("0", "false", "False") or is_words
    if isinstance(value, list | dict):
        return all(not each or (isinstance(each, str) and _is_no_media(each)) for each in _values(value)[:1000])
    return not value or value != value


def _is_word(value) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and _is_word(each) for each in value[:100])
    return isinstance(value, str) and len(value) < 100 and not re.search(r"[/\\]|\.\w|://|^[\d\W]*$", value)


def nested_media(value, depth: int = 0, *, pages: bool = True) -> str:
    """The first name, address or content of media in a value, however deep, or "". pages: count `manual.pdf`."""
    if isinstance(value, str):
        is_array = value.lower().endswith(_ARRAYS)
        if len(value) < 1000 and "." in value and (is_array or is_media_path(value)):
            is_text = (not pages and is_pages(re.split(r"[?#]", value)[0])) or (is_array and re.search(r"\s", value))
            return "" if is_text else value
        return value[:200] if (value.startswith("data:") and ";base64," in value[:100]) or base64_kind(value) else ""
    values = _values(value)[:100] if depth < 6 and isinstance(value, list | dict) else []
    return next(filter(None, (nested_media(each, depth + 1, pages=pages) for each in values)), "")


def _values(value) -> list:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


def check_message_fields(message: dict, left: list[str], where: str, notes: Counter) -> None:
    """The fields beside a message that were not read: noted, or DocumentError for media."""
    for key in left:
        value = message[key]
        if is_loss_key(key) or value in _EMPTY:
            continue
        named = names_media(key) or key.rstrip("s").lower() in ("attachment", "file", "medium", "media")
        if nested_media(value, pages=named) or (named and not _is_no_media(value)):
            raise DocumentError(
                f"field {key[:40]!r} {where} has media that are not read: write them into the content as "
                '{"type": "image", "image": PATH}, or remove it'
            )
        _note(notes, f"note: field {key[:40]!r} {where} is not known and was not read")


def has_media(document: Document) -> bool:
    return bool(media_paths(document))
