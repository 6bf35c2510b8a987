"""What the name of a field says about its row: where a text is from, what was measured of it, or a media file.

`url` and `text` are columns of C4 (an address of a page) and of LAION (a caption). Their other fields decide: fields of
crawls and none of images make it a page (`timestamp`), fields of images (`width`, `height`) or a field `caption` make
it a caption, and without either only a long text is a page. A field such as `image_url` names media in any row, except
on a page with its address: a long text and two such fields.
"""

import functools
import re
from collections.abc import Iterable

from brine.data.formats.splits.names import word_set

DOCUMENT_WORDS = ("text", "raw_text", "content", "raw_content", "page_content", "full_text", "code")
"""Fields whose text is a document by itself where there are no media."""
LONG_CHARACTERS = 400
_PROVENANCE = word_set(
    "url urls uri link links href permalink page source sources origin reference references citation doi id ids docid "
    "uid uuid key warc meta metadata headers warcinfo provenance attributes domain site website host title crawl dump "
    "file filename path repo repository"
)
_LOCAL = word_set("id ids docid uid uuid key source sources origin title meta metadata reference references")
_CRAWL = word_set(
    "timestamp ts date dump crawl domain language lang languages token_count text_token_length num_tokens source "
    "created added meta metadata quality_signals perplexity int_score segment cc_segment seed_data audience subset "
    "red_pajama_subset data_source snapshot digest doc_id docid version warcinfo crawl_date crawl_id by descendants "
    "kids subreddit num_comments comment_count view_count answer_count post_id thread_id"
)
_ARTICLE = word_set(
    "publish_date published published_at date_published publication_date pub_date datepublished date_publish author "
    "date_download hostname sitename site_name source_url authors byline excerpt headline meta_lang canonical_link "
    "meta_description meta_keywords meta_favicon fingerprint pagetype abstract sections infoboxes title url"
)
_REPOSITORY = word_set("repo repository repos")
_CRAWL_BEGINS = ("warc", "language_", "lang_", "fasttext", "ccnet", "rps_", "bff_", "max_stars_", "minhash", "cc_")
_OF_MEDIA = word_set(
    "image images img picture photo thumbnail video clip audio wav width height aspect pwatermark punsafe similarity "
    "aesthetic phash duration fps frames sampling samplerate alt exif faces bbox bboxes resolution pic pics"
)
_METADATA = word_set(
    "hash md sha phash checksum license licence licenses copyright credit credits attribution author authors artist "
    "creator photographer uploader username speaker channel client gender age sex accent accents locale language lang "
    "languages dialect country region city date dates time timestamp created updated modified year month version "
    "revision split subset fold level kind source dataset topic topics category categories tag tags keyword keywords "
    "score scores rating ratings quality confidence probability prob logprob logprobs perplexity similarity aesthetic "
    "aesthetics toxicity nsfw punsafe pwatermark watermark votes upvotes downvotes likes views stars count counts "
    "length lengths len size sizes chars characters width height aspect resolution ratio duration dur durations sr fps "
    "by rate samplerate sampling channels format mime encoding status exif index idx number row level type types"
)
_METADATA |= _PROVENANCE
_COUNTED = ("num", "n", "nb")
_ADDRESS = re.compile(r"(https?|s3|gs)://\S{1,2000}$")
_SURE_WORD = re.compile(
    r"(images?|imgs?|pictures?|photos?|videos?|audios?|youtube|yt|vid|screenshots?|thumbnails?|wavs?|pixels?|frames)"
    r"(id|ids|url|urls|path|paths|name|names|file|files|src|key|dir)?|latents?|spectrograms?|mels?"
)
_BARE = word_set(
    "image picture photo video audio screenshot thumbnail img vid wav pixel images pictures photos videos audios"
)
_REFERENCE = word_set(
    "id ids url urls uri path paths name names filename file files src source key keys dir folder hash sha md link "
    "links index idx number no num ref refs reference token tokens data bytes base b hex content values features "
    "embedding ext uid uuid guid code"
)
_ABOUT = word_set(
    "caption captions title titles description descriptions text texts alt transcript transcription credit credits "
    "label labels question answer prompt prompts category categories tag tags type types license language summary "
    "keywords channel author review reviews comment comments generation model"
)
_MEDIA = word_set("image images img picture photo thumbnail video clip audio wav pic pics")
_OF_PAIRS = word_set("pwatermark punsafe similarity aesthetic phash")


@functools.lru_cache(maxsize=8192)
def plain_name(field: str) -> str:
    """A field's name without case, spaces and punctuation; "" for one too long to be known."""
    return re.sub(r"[\W_]", "", field).casefold() if len(field) < 40 else ""


@functools.lru_cache(maxsize=8192)
def words_of_field(name: str) -> tuple[str, ...]:
    """The words of a field's name, in lower case, taken apart where a capital begins one."""
    return tuple(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def _has_word(name: str, words: frozenset[str]) -> bool:
    return not words.isdisjoint(words_of_field(name))


def _filled(fields: dict, besides: str = "") -> Iterable[str]:
    return (name for name, value in fields.items() if value is not None and name != besides)


def is_provenance(field: str, path: str) -> bool:
    """Whether a field says where a row is from rather than naming media: by its name, and for most by an address."""
    words = words_of_field(field)
    if not words or words[-1] not in _PROVENANCE or _has_word(field, _OF_MEDIA):
        return False
    return "://" in path or words[-1] in _LOCAL or _has_word(field, _REPOSITORY)


def is_metadata(field: str) -> bool:
    """Whether a field says what was measured of a row, who made it, or how it is filed."""
    words = words_of_field(field)
    return bool(words) and (words[-1] in _METADATA or words[0] in _COUNTED)


@functools.lru_cache(maxsize=4096)
def names_media(field: str) -> bool:
    """Whether a field's name says that its row has an image, audio or video (`image_id`), not words about one."""
    return len(field) < 60 and any(map(_SURE_WORD.fullmatch, words_of_field(field))) and not _has_word(field, _ABOUT)


@functools.lru_cache(maxsize=4096)
def suggests_media(field: str) -> bool:
    """Whether a field's name is about what is called after media (`video_game`, `picture_quality`)."""
    words = words_of_field(field) if len(field) < 60 else ()
    named = [index for index, word in enumerate(words) if _SURE_WORD.fullmatch(word)]
    behind = words[named[-1] + 1 :] if named else ()
    return bool(behind) and all(words[index] in _BARE for index in named) and _REFERENCE.isdisjoint(behind)


def is_of_repository(fields: dict) -> bool:
    """Whether a row is a file of a repository of programs, so that file names in it name no media."""
    return any(_has_word(name, _REPOSITORY) for name in fields if isinstance(name, str))


def is_text_row(fields: dict, named: str, key: str, words: str) -> bool:
    """Whether a row is a document of text, though its field `named` looks like media; `key` holds its words."""
    if key and key not in DOCUMENT_WORDS:
        return False
    crawl, is_long = _num_crawl(fields, named), len(words) > LONG_CHARACTERS or "\n\n" in words
    if any(names_media(name) or _has_word(name, _OF_MEDIA) for name in _filled(fields)):
        return crawl > 2 or (is_long and crawl > 1)
    return is_long or crawl > 0


def is_web_page(fields: dict, named: str, key: str, words: str) -> bool:
    """Whether a row is that of a page though a field names an image's address."""
    if key not in DOCUMENT_WORDS or len(words) <= LONG_CHARACTERS:
        return False
    about = sum(name.lower() in _ARTICLE for name, value in fields.items() if name != named and value)
    return about + _num_crawl(fields, named) > 1


def mentions_media_in_text(fields: dict, key: str, words: str) -> str:
    """The field that shows a row without media to be a caption or transcript; "" for a document of text.

    An address counts in captions, and in short texts beside `width` and `height`, `similarity` and their like.
    """
    is_caption = key in ("caption", "captions")
    if is_caption or key in ("sentence", "sentences", "transcription", "transcript"):
        named = next((name for name in _filled(fields, key) if _has_word(name, _MEDIA)), "")
        if named or not is_caption:
            return named
    address = next((name for name, value in fields.items() if isinstance(value, str) and _ADDRESS.match(value)), "")
    if not address or is_caption:
        return address
    names = {word for name in _filled(fields) for word in words_of_field(name)}
    is_pair = {"width", "height"} <= names or not _OF_PAIRS.isdisjoint(names)
    is_long = len(words) > LONG_CHARACTERS or "\n\n" in words
    return address if is_pair and not is_long and _num_crawl(fields, address) < 3 else ""


def _num_crawl(fields: dict, named: str) -> int:
    names = (name.lower() for name in _filled(fields, named))
    return sum(name in _CRAWL or name.startswith(_CRAWL_BEGINS) for name in names)
