"""Whether a field says where a text is from, and whether a row is a text of its own or the caption of something.

Texts from the web come with the address of their page, and an address may end in `.jpg` as a picture's does
(`https://commons.wikimedia.org/wiki/File:Heron.jpg` is a page). Tables of pictures have the same columns: `url` and
`text` are those of C4 and those of LAION. What tells them apart is the other fields:

    {"text", "url": "https://x.org/a.jpg", "timestamp"}           a page: fields of crawls, none of pictures
    {"text", "url": "https://x.org/a.jpg", "width", "height"}     a caption: fields of pictures
    {"caption", "url": "https://x.org/a.jpg"}                     a caption: its field says so
    {"text", "url": "https://x.org/a.jpg"}                        a caption, unless the text is long

Only then does it matter that a field is one of provenance (`url`, `source_url`, `link`, `id`, `meta`, `warc_...`): a
field such as `pic` or `image_url` names a medium in any row, and a text beside one is no text of its own, but for a
page with the address of its picture (CC-News), which is told by a long text and two fields of crawls or articles.
"""

import functools
import re

DOCUMENT_WORDS = ("text", "raw_text", "content", "raw_content", "page_content", "full_text", "code")
"""Fields that hold a text of its own where there is no medium."""
LONG_CHARACTERS = 400


def _set(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_PROVENANCE = _set(
    "url urls uri link links href permalink page source sources origin reference references citation doi id ids docid",
    "uid uuid key warc meta metadata headers warcinfo provenance attributes domain site website host title crawl dump",
    "file filename path repo repository",
)
_LOCAL = _set("id ids docid uid uuid key source sources origin title meta metadata reference references")
_CRAWL = _set(
    "timestamp ts date dump crawl domain language lang languages token_count text_token_length num_tokens source",
    "created added meta metadata quality_signals perplexity int_score segment cc_segment seed_data audience subset",
    "red_pajama_subset data_source snapshot digest doc_id docid version warcinfo crawl_date crawl_id",
)
_ARTICLE = _set(
    "publish_date published published_at date_published publication_date pub_date datepublished date_publish author",
    "date_download hostname sitename site_name source_url authors byline excerpt headline meta_lang canonical_link",
    "meta_description meta_keywords meta_favicon fingerprint pagetype abstract sections infoboxes title url",
)
"""Fields of articles, which a long text may have beside an image's address."""
_POST = _set("by descendants kids subreddit num_comments comment_count view_count answer_count post_id thread_id")
_REPOSITORY = frozenset(("repo", "repository", "repos"))
_CRAWL_BEGINS = ("warc", "language_", "lang_", "fasttext", "ccnet", "rps_", "bff_", "max_stars_", "minhash", "cc_")
_OF_MEDIA = _set(
    "image images img picture photo thumbnail video clip audio wav width height aspect pwatermark punsafe similarity",
    "aesthetic phash duration fps frames sampling samplerate alt exif faces bbox bboxes resolution pic pics",
)
_METADATA = _set(
    "hash md sha phash checksum license licence licenses copyright credit credits attribution author authors artist",
    "creator photographer uploader username speaker channel client gender age sex accent accents locale language lang",
    "languages dialect country region city date dates time timestamp created updated modified year month version",
    "revision split subset fold level kind source dataset topic topics category categories tag tags keyword keywords",
    "score scores rating ratings quality confidence probability prob logprob logprobs perplexity similarity aesthetic",
    "aesthetics toxicity nsfw punsafe pwatermark watermark votes upvotes downvotes likes views stars count counts",
    "length lengths len size sizes chars characters width height aspect resolution ratio duration dur durations sr fps",
    "by rate samplerate sampling channels format mime encoding status exif index idx number row level type types",
)
_COUNTED = ("num", "n", "nb")
_SURE_WORD = re.compile(
    r"(images?|imgs?|pictures?|photos?|videos?|audios?|youtube|yt|vid|screenshots?|thumbnails?|wavs?|pixels?|frames)"
    r"(id|ids|url|urls|path|paths|name|names|file|files|src|key|dir)?|latents?|spectrograms?|mels?"
)
_BARE = _set(
    "image picture photo video audio screenshot thumbnail img vid wav pixel images pictures photos videos audios"
)
_REFERENCE = _set(
    "id ids url urls uri path paths name names filename file files src source key keys dir folder hash sha md link",
    "links index idx number no num ref refs reference token tokens data bytes base b hex content values",
    "features embedding ext uid uuid guid code",
)
_ABOUT = _set(
    "caption captions title titles description descriptions text texts alt transcript transcription credit credits",
    "label labels question answer prompt prompts category categories tag tags type types license language summary",
    "keywords channel author review reviews comment comments generation model",
)


_MEDIA = _set("image images img picture photo thumbnail video clip audio wav pic pics")
_OF_PAIRS = _set("pwatermark punsafe similarity aesthetic phash")


@functools.lru_cache(maxsize=4096)
def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def is_provenance(field: str, path: str) -> bool:
    """Whether a field says where a row is from rather than naming a medium: by its name, and for most by an address."""
    words = _words(field)
    if not words or words[-1] not in _PROVENANCE or not _OF_MEDIA.isdisjoint(words):
        return False
    return "://" in path or words[-1] in _LOCAL or not _REPOSITORY.isdisjoint(words)


@functools.lru_cache(maxsize=4096)
def is_metadata(field: str) -> bool:
    """Whether a field says what was measured of a row, who made it, or how it is filed."""
    words = _words(field)
    return bool(words) and (words[-1] in _METADATA or words[-1] in _PROVENANCE or words[0] in _COUNTED)


@functools.lru_cache(maxsize=4096)
def names_medium(field: str) -> bool:
    """Whether the name of a field says that its row has a picture, sound or film (`image_id`, `frames_dir`).

    Names of words about one (`video_title`) do not.
    """
    words = _words(field) if len(field) < 60 else []
    return any(map(_SURE_WORD.fullmatch, words)) and _ABOUT.isdisjoint(words)


@functools.lru_cache(maxsize=4096)
def mentions_medium(field: str) -> bool:
    """Whether the name of a field is about what is called after a medium (`video_game`, `picture_quality`)."""
    words = _words(field) if len(field) < 60 else []
    named = [place for place, word in enumerate(words) if _SURE_WORD.fullmatch(word)]
    behind = words[named[-1] + 1 :] if named else []
    bare = all(words[place] in _BARE for place in named)
    return bool(behind) and bare and _REFERENCE.isdisjoint(behind)


def is_of_repository(fields: dict) -> bool:
    """Whether a row is a file of a repository of programs, so that names of files in it name no media."""
    return any(not _REPOSITORY.isdisjoint(_words(name)) for name in fields if isinstance(name, str))


def is_text_row(fields: dict, named: str, key: str, words: str) -> bool:
    """Whether a row is a text of its own, though its field `named` looks like a medium; `key` holds its words."""
    if key and key not in DOCUMENT_WORDS:
        return False
    is_long = len(words) > LONG_CHARACTERS or "\n\n" in words
    crawl = _num_crawl(fields, named)
    if any(names_medium(name) or _is_of_media(name) for name, value in fields.items() if value is not None):
        return crawl > 2 or (is_long and crawl > 1)
    return is_long or crawl > 0


@functools.lru_cache(maxsize=4096)
def _is_of_media(name: str) -> bool:
    return not _OF_MEDIA.isdisjoint(_words(name))


def is_web_page(fields: dict, named: str, key: str, words: str) -> bool:
    """Whether a row is that of a page though a field names a picture's address."""
    if key not in DOCUMENT_WORDS or len(words) <= LONG_CHARACTERS:
        return False
    about = sum(name.lower() in _ARTICLE for name, value in fields.items() if name != named and value)
    return about + _num_crawl(fields, named) > 1


def speaks_of_medium(fields: dict, key: str, words: str) -> str:
    """The field that shows a row without a medium to be a caption, whose medium is elsewhere; "" for a text.

    Captions and transcripts are told by fields about images, films or sounds (`image_id`), captions by any address, and
    short texts by an address beside the numbers of collections of images (`width` and `height`, `similarity`).
    """
    is_caption = key in ("caption", "captions")
    about = [name for name, value in fields.items() if value is not None and not _MEDIA.isdisjoint(_words(name))]
    if is_caption or key in ("sentence", "sentences", "transcription", "transcript"):
        named = next((name for name in about if name != key), "")
        if named or not is_caption:
            return named
    address = next((name for name, value in fields.items() if _is_address(value)), "")
    if not address or is_caption:
        return address
    names = {word for name, value in fields.items() if value is not None for word in _words(name)}
    is_long = len(words) > LONG_CHARACTERS or "\n\n" in words
    paired = {"width", "height"} <= names or not _OF_PAIRS.isdisjoint(names)
    return address if paired and not is_long and _num_crawl(fields, address) < 3 else ""


def _is_address(value) -> bool:
    return isinstance(value, str) and re.match(r"(https?|s3|gs)://\S{1,2000}$", value) is not None


def tells_of_row(name: str) -> bool:
    """Whether a column helps to tell what its row is."""
    words = _words(name)
    known = _is_crawl(name) or not (_OF_MEDIA | _REPOSITORY).isdisjoint(words)
    return bool(words) and (known or words[-1] in _PROVENANCE)


def _num_crawl(fields: dict, named: str) -> int:
    return sum(_is_crawl(name) for name, value in fields.items() if name != named and value is not None)


def _is_crawl(name: str) -> bool:
    return name.lower() in _CRAWL or name.lower() in _POST or name.lower().startswith(_CRAWL_BEGINS)
