"""Prompts: from texts, paths, media and token ids to what `Transformer.forward` takes.

A prompt is encoded as a training document is, but without the end token; no template is added. Prompts share a batch by
padding on the *left*, so each new token is one column. A string that names an existing image, audio or video is that
file; one that only looks like a path (a known extension of media, a beginning that only paths have, a URL) is an error
that names the file and both remedies; all others are text. Files are opened in this process.
"""

import io
import numbers
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from brine.data.batch import collate
from brine.data.config import EncodeConfig
from brine.data.document import Audio, DocumentError, Image, Part, Text, Video, modality_of
from brine.data.encode import assemble_chunks
from brine.data.files.addresses import split_address
from brine.data.files.extensions import SUPPORTED, UNSUPPORTED, conversion_hint, extension_of, media_type_of
from brine.data.media.decode import Decoded, DecodedImage, decode_part
from brine.data.media.images import fit, grid_of, patchify, to_rgb
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import MEDIA_TOKEN_ID, Tokenizer
from brine.model.inputs import Inputs


@dataclass(frozen=True)
class TextFile:
    """A part of a prompt: the whole text of a file, in UTF-8."""

    path: str


TokenIds = list | tuple | np.ndarray | Tensor
"""Token ids as a part of a prompt: whole numbers, in one dimension."""
PromptPart = str | Path | PIL.Image.Image | Part | TextFile | TokenIds
LITERAL_HINT = "to give these words as text, wrap them in brine.data.document.Text"
"""Remedy for text that looks like a path, in Python."""
_PARTS = (
    "give a str, a pathlib.Path, a PIL image, a part of brine.data.document, or token ids in a nested list such as "
    "[[17, 18]]"
)
_MEDIA_TOKENS = {token: name for name, token in MEDIA_TOKEN_ID.items()}
_URL = re.compile(r"(https?|ftp|file|s3|gs|hf)://\S+$", re.IGNORECASE)
_ROOTED = re.compile(r"(/|~[^/\s]*/|\.{1,2}/|[A-Za-z]:[\\/])")
_MAX_MISSING, _MAX_PATH = 1000, 4096
"""Longest string that is checked for looking like a path; longest path of any system."""


def encode_prompt(
    parts: PromptPart | Sequence[PromptPart], *, tokenizer: Tokenizer, config: EncodeConfig
) -> EncodedDocument:
    """Encode a prompt; the sequence ends where the answer begins.

    A part is a `brine.data.document` part, a `TextFile` (at most `config.max_file_mib`), a PIL image, a `Path` (media,
    by its extension), a str (text, or the path of media) or token ids, which are taken unchanged: text that a model
    wrote need not be tokenized into the ids that it chose. Ids of media tokens are refused, as they have patches. A
    list of numbers alone, an array or a tensor is a prompt of ids. Raises ValueError naming the part or file that is
    unusable.
    """
    if isinstance(parts, str | Path | PIL.Image.Image | Part | TextFile | np.ndarray | Tensor):
        parts = [parts]
    if (
        isinstance(parts, list | tuple)
        and parts
        and all(isinstance(part, numbers.Integral) and not isinstance(part, bool) for part in parts)
    ):
        parts = [parts]
    # these iterate over something else than parts, or in no order
    if not isinstance(parts, Iterable) or isinstance(parts, Mapping | Set | bytes | bytearray | memoryview | io.IOBase):
        raise ValueError(f"a prompt is a part or a list of parts, not a {type(parts).__name__}: {_PARTS}")
    chunks: list[list[int] | tuple[str, Decoded]] = []
    for number, given in enumerate(parts):
        try:
            if isinstance(given, TokenIds):
                chunks.append(_check_token_ids(given, tokenizer))
                continue
            part, decoded = _read_part(given, config)
            if isinstance(part, Text):
                chunks.append(tokenizer.encode(_check_text(part.text)))
            else:
                chunks.append((modality_of(part), decoded))
        except ValueError as error:
            raise ValueError(f"prompt part {number}: {error}") from None
    if not chunks:
        raise ValueError("the prompt is empty: give at least one text or media file")
    sequence = assemble_chunks(chunks, config)
    if not len(sequence):
        raise ValueError("the prompt holds no token: give a text that is not empty, or media")
    return sequence


def _check_text(text: str) -> str:
    """The same text. Raises ValueError for bytes that are not UTF-8, which Python passes on as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = f"character {error.start} is {text[error.start]!a}"
        raise ValueError(f"the text is not in UTF-8 ({character}): convert it, such as by iconv -t UTF-8") from None
    return text


def _check_token_ids(given: TokenIds, tokenizer: Tokenizer) -> list[int]:
    if isinstance(given, np.ndarray | Tensor):
        if given.ndim != 1:
            raise ValueError(f"token ids have {given.ndim} dims: give 1")
        given = given.tolist()
    ids = []
    for index, token in enumerate(given):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise ValueError(f"token id {index} is a {type(token).__name__}: give whole numbers")
        token = token.__index__()
        if not 0 <= token < tokenizer.vocab_size:
            raise ValueError(
                f"token id {index} is {token}, but the vocabulary has the ids 0 to {tokenizer.vocab_size - 1}: "
                "give ids of this model's tokenizer"
            )
        if token in _MEDIA_TOKENS:
            raise ValueError(
                f"token id {index} is {token}, the token of a patch ({_MEDIA_TOKENS[token]}): give the media file"
            )
        ids.append(token)
    return ids


def _read_part(given: PromptPart, config: EncodeConfig) -> tuple[Part, Decoded | None]:
    if isinstance(given, PIL.Image.Image):
        if given.width * given.height > config.max_pixels:
            size = f"{given.width} x {given.height}"
            raise ValueError(f"an image of {size} pixels is over max_pixels={config.max_pixels}: scale it down")
        pixels = fit(np.asarray(to_rgb(given)), config, config.max_image_tokens)
        return Image("image"), DecodedImage(grid_of(pixels, config), patchify(pixels, config.patch_size))
    if isinstance(given, str):
        path = media_path_in(given)
        given = Text(given) if path is None else Path(path)
    if isinstance(given, Path):
        given = _media_part(given)
    if isinstance(given, TextFile):
        return Text(read_text_file(given, config)), None
    if isinstance(given, Text):
        return given, None
    if not isinstance(given, Image | Audio | Video):
        raise ValueError(f"a {type(given).__name__} is not a prompt part: {_PARTS}")
    if remedy := url_hint(given.path):
        raise ValueError(remedy)
    # the decoder reads a name inside a folder
    path = Path(os.path.expanduser(given.path))
    if os.path.isdir(path):
        raise ValueError(f"{given.path} is a folder: give a file in it")
    folder, name = path.parent.resolve(), path.name
    local = Video(name, use_audio=given.use_audio) if isinstance(given, Video) else type(given)(name)
    try:
        return given, decode_part(local, folder, config)
    except DocumentError as error:
        raise ValueError(f"in {folder}: {error}") from None
    except ImportError as error:
        missing = error.name or str(error)
        raise ValueError(
            f"reading {given.path} takes {missing}, which is not installed: `uv sync` installs it, or pip install "
            f"{missing}"
        ) from None


def read_text_file(given: TextFile, config: EncodeConfig) -> str:
    """The text of a file. Raises ValueError naming the file."""
    if remedy := url_hint(given.path):
        raise ValueError(remedy)
    path, limit = Path(os.path.expanduser(given.path)), int(config.max_file_mib * 2**20)
    try:
        with open(path, "rb") as file:
            # one byte more than allowed shows that a file is too long, pipes included
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a text file") from None
    if len(content) > limit:
        raise ValueError(f"{path} is over max_file_mib={config.max_file_mib:g}: give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if kind := media_type_of(path.name):
            name = kind.__name__
            raise ValueError(f"{path} is media, not text: give {name}(path), or --{name.lower()} PATH") from None
        byte = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise ValueError(f"{path} is not text in UTF-8 ({byte}): convert it, such as by iconv -t UTF-8") from None


def _media_part(path: Path) -> Part:
    kind = media_type_of(path.name)
    if kind is not None:
        return kind(str(path))
    if remedy := conversion_hint(path.name):
        raise ValueError(f"the format of {path} is not read: {remedy}")
    if os.path.isdir(os.path.expanduser(path)):
        raise ValueError(f"{path} is a folder: give a file in it")
    missing = "" if os.path.exists(os.path.expanduser(path)) else " (which does not exist)"
    raise ValueError(
        f"{path}{missing} has an unknown extension (known: {', '.join(SUPPORTED)}): wrap it in Image, Audio or Video "
        "of brine.data.document, or in TextFile"
    )


def batch_prompts(sequences: Iterable[EncodedDocument], *, device: torch.device | str = "cpu") -> Inputs:
    """The inputs (B, T) of a forward pass for one or more prompts, padded on the left. Raises ValueError for no prompt
    or an empty one."""
    sequences = list(sequences)
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise ValueError("there is no prompt, or one without tokens: give at least one token each")
    longest = max(len(sequence) for sequence in sequences)
    packed = [[(-1, longest - len(sequence), None), (0, len(sequence), sequence)] for sequence in sequences]
    return collate(packed, seq_len=longest).inputs.to(device)


class TextFileError(ValueError):
    """A string is the path of a file that is not media."""


def media_path_in(text: str, *, literal_hint: str = LITERAL_HINT) -> str | None:
    """The path of media that a string is, or None where it is text. Nothing is opened.

    literal_hint: remedy for text that looks like a path. Raises ValueError, naming the file and the remedies, for a
    string that looks like a path but is not of a file that can be read as media.
    """
    if not text or len(text) > _MAX_PATH:
        return None
    # the file as written, or without the white space around it
    for path in dict.fromkeys((text, text.strip())):
        if _has_media_ending(path) and "\n" not in path and os.path.isfile(_container(os.path.expanduser(path))):
            if media_type_of(path):
                return path
            hint = conversion_hint(os.path.expanduser(path))
            raise ValueError(f"the format of {escape_path(path)} is not read: {hint}; {literal_hint}")
    if len(text) > _MAX_MISSING or any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        return None
    if text.startswith("data:") and ";base64," in text[:100]:
        raise ValueError(f"{_url_remedy(text)}; {literal_hint}")
    if _URL.match(text) or (text.lower().startswith("file://") and os.path.isfile(_file_url_path(text))):
        if text.lower().startswith("file://") or _has_media_ending(re.split(r"[?#]", text, maxsplit=1)[0]):
            raise ValueError(f"{_url_remedy(text)}; {literal_hint}")
        return None
    path, has_space = os.path.expanduser(text), any(char.isspace() for char in text)
    if os.path.isfile(_container(path)):
        if extension_of(path) or os.sep in text:
            raise TextFileError(
                f"{text} is a file but not media: give TextFile (brine.inference.prompt) for its text, or Image, Audio "
                f"or Video (brine.data.document); {literal_hint}"
            )
        return None
    if os.path.isdir(path) and (_has_media_ending(path) or os.sep in text) and not has_space:
        raise ValueError(f"{text} is a folder: give a file in it; {literal_hint}")
    if not _looks_like_path(text, path, has_space):
        return None
    remedy = f", and its format is not read: {conversion_hint(path)}" if conversion_hint(path) else ""
    raise ValueError(f"file {text} does not exist or cannot be reached{remedy}: correct the path; {literal_hint}")


def _has_media_ending(path: str) -> bool:
    return extension_of(path) in SUPPORTED or extension_of(path) in UNSUPPORTED


def escape_path(path: str) -> str:
    """A path for a message, control characters escaped, since they would move a terminal's cursor."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cs") else char for char in path
    )


def _looks_like_path(text: str, path: str, has_space: bool) -> bool:
    """Whether a string that names no file was meant to."""
    rooted = _ROOTED.match(text) is not None
    if has_space:
        in_folder = rooted or (os.path.dirname(path) != "" and os.path.isdir(os.path.dirname(path)))
        return _has_media_ending(path) and text == text.strip() and in_folder
    # "/help" and "./configure" are text, and so is what ends in a dot and more than a word, as sentences do
    return _has_media_ending(path) or (rooted and re.fullmatch(r"[a-z0-9]{1,8}", extension_of(path)) is not None)


def url_hint(path: str) -> str | None:
    """What is wrong with a path that is a URL, and the remedy; None for any other."""
    # a pathlib.Path has one slash of the two
    is_url = re.match(r"(https?|ftp|file|s3|gs|hf|data):/*", path, re.IGNORECASE)
    return None if is_url is None or os.path.exists(path) else _url_remedy(path)


def _url_remedy(url: str) -> str:
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return f"{url[:40]} holds the bytes of a file: write them to a file and give its path"
    if scheme == "file":
        return f"{url} is a URL: give the path alone, {_file_url_path(url)}"
    return f"{url} is remote: download it and give the path of the file"


def _file_url_path(url: str) -> str:
    rest = re.sub(r"^file:/*", "", url, count=1, flags=re.IGNORECASE)
    return f"/{unquote(rest.removeprefix('localhost/'))}"


def _container(path: str) -> str:
    """The file to look for: the container of `shard.tar::a.png`, else the path itself."""
    return (split_address(path) or (path,))[0]
