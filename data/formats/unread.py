"""What becomes of the fields of a row that its reader did not read: none of them vanishes without a word.

    check_unread(...)     for each of them: nothing, a note with its name, or DocumentError
    check_beside(...)     the same rule for the fields beside a message
    medium_inside(value)  the first name, address or content of a medium in a value, however deep

A field says where a row is from or what was measured of it (`data.formats.provenance`: ids, licences, scores, sizes),
and is passed over; or it is a mark or a split, which others read (what looks like a split and was not read as one is
noted, whatever its field); else a note counts it by its name. That is what
tells of a second caption, of a question beside one, of documents beside a conversation.

Words about a medium must not become a text of their own. So where no medium was read, these set a row aside:

    a value that names a medium or holds one    {"scan": "a.png"}, {"cams": {"front": "a.jpg"}}, base64, a .npy
    a name that says there was one              {"image_id": 7}, {"youtube_id": "x"}, {"num_images": 2}
    a caption with the address of its page      {"caption": "a heron", "url": "https://x.org/photos/7"}

false, 0, null and nothing are no media, and a row whose other fields are those of texts keeps its words.
"""

import functools
import re
from collections import Counter

from data.document import Document, DocumentError, Text
from data.endings import remedy_for
from data.formats.fields import FIELDS, SURE, WORDS, base64_kind, is_medium, is_nothing, is_pages, path_of
from data.formats.marks import UNWANTED, is_mark, looks_like_mark
from data.formats.provenance import (
    DOCUMENT_WORDS,
    LONG_CHARACTERS,
    is_metadata,
    is_of_repository,
    is_provenance,
    is_text_row,
    is_web_page,
    mentions_medium,
    names_medium,
)
from data.split_names import WORDS as SPLIT_WORDS
from data.split_names import flag_value, own_split, sort_of_field, split_in_field, split_words

MAX_NOTES = 100
"""Names of fields that are noted one by one."""
_ARRAYS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".pkl", ".tfrecord", ".mat")


def check_unread(
    fields: dict,
    read: frozenset[str] | set[str],
    notes: Counter,
    *,
    any_read: bool,
    words: tuple[str, str] = ("", ""),
    where: str = "'image', 'audio' or 'video'",
    by_name: bool = True,
) -> None:
    """Look at every field that is not in `read`. Raises DocumentError where a medium was not read.

    words: the field that holds the words, and these; of a conversation neither. where: what to call a medium instead.
    by_name: whether the media were read from fields of their names (`data.formats.fields`).
    """
    for key, value in fields.items():
        if key in read or value is None or value == "" or value == [] or value == {}:
            continue
        if any_read and by_name and key in FIELDS and _was_read(key, value):
            continue
        how = _how(key)
        # a text is taken from pages, a caption is about them
        pages = (bool(words[0]) and words[0] not in DOCUMENT_WORDS) or how == "medium" or _is_of_pages(key)
        path = medium_inside(value, pages=pages) if isinstance(value, str | list | dict) else ""
        if path and not ((FIELDS.get(key) == "" or how == "provenance") and is_of_repository(fields)):
            _check_medium(fields, key, value, path, notes, any_read=any_read, words=words, where=where)
        elif how == "split":
            _check_split(fields, key, value, notes)
        elif how == "medium":
            if _is_no_medium(value):
                continue
            if mentions_medium(key) and _is_word(value):
                note_field(key, notes)
                continue
            # a caption is short: a long text with the number of a film is its transcript
            is_long = words[0] in DOCUMENT_WORDS and len(words[1]) > LONG_CHARACTERS
            if not any_read and not is_long and not is_text_row(fields, key, *words):
                raise DocumentError(
                    f"field {key[:40]!r} says that the row belongs to a medium, and none is read: give the path of its "
                    f"file as {where}, or take the field out where the words stand alone"
                )
            if not is_metadata(key):
                note_field(key, notes)
        elif how == "other":
            if not (key in WORDS and value == words[1]):
                note_field(key, notes)
        elif how == "judged":
            if value is not True:
                note_field(key, notes)
        elif how == "provenance":
            is_caption, address = words[0] in ("caption", "captions"), path_of(value)
            if is_caption and not any_read and "://" in address[:12]:
                raise DocumentError(
                    f"field {key[:40]!r} shows that {words[0]!r} belongs to a medium, which is remote "
                    f"({address[:100]!r}): download it and give its path as {where}, or call the words 'text'"
                )
        if how in ("provenance", "metadata"):
            is_long = how == "metadata" and isinstance(value, str) and len(value) > 300
            if is_long or any(map(_is_held_out, value[:10] if isinstance(value, list) else [value])):
                note_field(key, notes)


def _check_split(fields: dict, key: str, value, notes: Counter) -> None:
    """Note a field that may name a split and was not read as the one that the row is of."""
    sort = sort_of_field(key)
    if sort == "flag":
        is_lost = flag_value(value) is None and value == value and str(value).strip() != ""
    elif said := split_in_field(key, value):
        is_lost = said != own_split(fields)
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
    if key in SURE:
        return True
    return any(is_medium(path) or "::" in path for path in map(path_of, _entries(value)[:10]))


def _check_medium(
    fields: dict, key: str, value, path: str, notes: Counter, *, any_read: bool, words: tuple[str, str], where: str
) -> None:
    is_deep = not isinstance(value, str) and path != next((path_of(v) for v in _entries(value)[:1]), "")
    if any_read:
        if key not in ("id", "source") and not is_provenance(key, path) and not is_metadata(key):
            _count(notes, f"note: field {key[:40]!r} names a medium too and was not read")
        return
    # what lies deep in notes on a text is no field of its row
    is_noted = is_deep and "://" in path and words[0] in DOCUMENT_WORDS
    if is_provenance(key, path) and (is_noted or is_text_row(fields, key, *words)):
        return
    if "://" in path and (is_web_page(fields, key, *words) or (is_deep and is_text_row(fields, key, *words))):
        _count(notes, f"note: field {key[:40]!r} names a medium too and was not read")
        return
    if path.lower().endswith(_ARRAYS) and is_text_row(fields, key, *words):
        note_field(key, notes)
        return
    raise DocumentError(_told(key, path, where))


def _told(key: str, path: str, where: str) -> str:
    what = f"field {key[:40]!r} names the medium {path[:100]!r}"
    if base64_kind(path) or path.startswith("data:"):
        return f"field {key[:40]!r} holds its medium in the text: store it as a file and give the path as {where}"
    if "://" in path:
        return f"{what}, which is remote: download it and give its path as {where}, or take the field out"
    if path.lower().endswith(_ARRAYS):
        return f"{what}, which is an array and no file of a medium: give the picture, sound or film itself as {where}"
    if remedy_for(path):
        return f"{what}, which is not read: {remedy_for(path)}, and give its path as {where}"
    if key in FIELDS and where.startswith("'image'"):
        where = "a path, or a list of paths"
    return f"{what}, but no medium is read from a field of that name or form: give it as {where}, or take it out"


def note_field(key: str, notes: Counter) -> None:
    """Count a field that was not read by its name; of a row of very many names no more than that there were."""
    _count(notes, f"note: field {key[:40]!r} was not read")


def _count(notes: Counter, sentence: str) -> None:
    notes[sentence if sentence in notes or len(notes) < MAX_NOTES else "note: fields of other names were not read"] += 1


@functools.lru_cache(maxsize=8192)
def _how(key: str) -> str:
    """What a field is by its name: read by others, a split, provenance, metadata, a medium, or "other"."""
    if key in UNWANTED:
        return "judged"
    if sort_of_field(key):
        return "split"
    if key in WORDS or key == "labels":
        return "other"
    if is_mark(key) or is_mark(key.removesuffix("s")) or looks_like_mark(key):
        return "others"
    if names_medium(key):
        return "medium"
    if is_provenance(key, "https://x"):
        return "provenance"
    return "metadata" if is_metadata(key) else "other"


def _is_no_medium(value) -> bool:
    """Whether a value of a field that is named after a medium says that there is none, or is words."""
    if isinstance(value, str):
        is_words = " " in value.strip() and "://" not in value
        return is_nothing(value) or value.strip() in ("0", "false", "False") or is_words
    if isinstance(value, list | dict):
        entries = value if isinstance(value, list) else list(value.values())
        return all(not entry or (isinstance(entry, str) and _is_no_medium(entry)) for entry in entries[:1000])
    return not value or value != value


@functools.lru_cache(maxsize=4096)
def _is_of_pages(key: str) -> bool:
    """Whether a field names pages as pictures (`scan`)."""
    return re.search(r"scan|figure|drawing|media|medium|attachment", key[:100].lower()) is not None


def _is_word(value) -> bool:
    """Whether a value is a word, or a list of words, and no path or address."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(entry, str) and _is_word(entry) for entry in value[:100])
    return isinstance(value, str) and len(value) < 100 and not re.search(r"[/\\]|\.\w|://|^[\d\W]*$", value)


def medium_inside(value, depth: int = 0, *, pages: bool = True) -> str:
    """The first name, address or content of a medium, or name of an array, in a value; "" for none.

    pages: whether those of pages of text (`manual.pdf`) count.
    """
    if isinstance(value, str):
        if len(value) < 1000 and "." in value and (is_medium(value) or value.lower().endswith(_ARRAYS)):
            if not pages and is_pages(re.split(r"[?#]", value)[0]):
                return ""
            return "" if re.search(r"\s", value) and value.lower().endswith(_ARRAYS) else value
        return value[:200] if (value.startswith("data:") and ";base64," in value[:100]) or base64_kind(value) else ""
    if depth < 6 and isinstance(value, list | dict):
        for entry in _entries(value)[:100]:
            found = medium_inside(entry, depth + 1, pages=pages) if isinstance(entry, str | list | dict) else ""
            if found:
                return found
    return ""


def _entries(value) -> list:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


def check_beside(message: dict, left: list[str], where: str, notes: Counter) -> None:
    """The fields beside a message that nobody read: noted, or DocumentError for a medium."""
    for key in left:
        value = message[key]
        if is_mark(key) or value is None or value in ("", [], {}):
            continue
        named = names_medium(key) or key.rstrip("s").lower() in ("attachment", "file", "medium", "media")
        path = medium_inside(value, pages=named) if isinstance(value, str | list | dict) else ""
        if path or (named and not _is_no_medium(value)):
            raise DocumentError(
                f"field {key[:40]!r} {where} has a medium that is not read: write it into the content as "
                '{"type": "image", "image": PATH}, or take it out'
            )
        _count(notes, f"note: field {key[:40]!r} {where} is not known and was not read")


def has_media(document: Document) -> bool:
    """Whether a document has a picture, sound or film."""
    return any(not isinstance(part, Text) for part in document.parts)
