"""Prompts: from what a person hands over to what `Transformer.forward` takes.

A prompt is a list of parts, encoded by the data package exactly as a training document is, but without the end token.
What was said to the model in training is thus what is said to it here; no template is added (`brine.inference.chat`
writes the form that conversations have in training).

Prompts of unequal length share a batch by padding on the *left*: all rows end in the same column, so
each new token is one column for all of them, and padding (a negative document) is seen by nobody.
Positions come from the sequences and ignore the padding, so a row computes what it would compute alone.

This file opens media files in this process. They are the person's own; corpora, which are not, are decoded
in processes that can be killed (`brine.data.media.server`).

B batch, T tokens of the longest prompt, N patches of one modality.
"""

from __future__ import annotations

import io
import numbers
import os
from collections.abc import Iterable, Mapping, Set
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from brine.data.batch import collate
from brine.data.config import EncodeConfig
from brine.data.document import Audio, DocumentError, Image, Part, Text, Video, modality_of
from brine.data.encode import assemble_chunks
from brine.data.files.extensions import SUPPORTED, conversion_hint, media_type_of
from brine.data.media.decode import Decoded, DecodedImage, decode_part
from brine.data.media.images import fit, grid_of, patchify, to_rgb
from brine.data.sequence import Sequence
from brine.data.tokenizer import MEDIA_TOKEN_ID, Tokenizer
from brine.inference.prompt_paths import media_path_in, url_hint
from brine.model.inputs import Inputs


@dataclass(frozen=True)
class TextFile:
    """A part of a prompt that is the whole text of a file, in UTF-8."""

    path: str


TokenIds = list | tuple | np.ndarray | Tensor
"""Token ids as a part of a prompt: whole numbers, in one dim."""
PromptPart = str | Path | PIL.Image.Image | Part | TextFile | TokenIds
"""One part of a prompt; see `encode_prompt`."""
_PARTS = (
    "give a str, a pathlib.Path, a PIL image, a part of brine.data.document, or token ids in a list of their own, "
    "such as [[17, 18]]"
)
_MEDIA_TOKENS = {token: name for name, token in MEDIA_TOKEN_ID.items()}


def encode_prompt(parts: PromptPart | Items[PromptPart], *, tokenizer: Tokenizer, config: EncodeConfig) -> Sequence:
    """Encode a prompt; the sequence ends where the model's answer begins.

    Each part is a `brine.data.document` part (`Text`, `Image`, `Audio`, `Video`), a `TextFile` (of at most
    `config.max_file_mib`), a `PIL.Image`, a `Path` (a medium, told by its ending), or a str: text, unless it is the
    path of a medium; one that looks like such a path and is none is an error (`brine.inference.prompt_paths`; wrap it
    in `Text` to have it taken literally). Paths may be absolute or relative to the working folder.

    A list, tuple, array or tensor of whole numbers is a part too: token ids, taken as they are. Text that a model wrote
    need not come back as the ids that it chose; its ids do. Ids of special tokens are allowed, but for the slots of
    media, which have patches. A list of parts may hold ids (`["a", [17, 18]]`); a list of numbers alone, an array or a
    tensor is a prompt of ids.
    Raises ValueError naming the part or file that cannot be used.
    """
    if isinstance(parts, str | Path | PIL.Image.Image | Part | TextFile | np.ndarray | Tensor):
        parts = [parts]
    if isinstance(parts, list | tuple) and parts and all(map(_is_number, parts)):
        parts = [parts]
    # those that can be iterated over hold something else than parts, or in no order
    if not isinstance(parts, Iterable) or isinstance(parts, Mapping | Set | bytes | bytearray | memoryview | io.IOBase):
        raise ValueError(f"a prompt is a part or a list of parts, not a {type(parts).__name__}: {_PARTS}")
    runs: list[list[int] | tuple[str, Decoded]] = []
    for number, given in enumerate(parts):
        if isinstance(given, TokenIds):
            runs.append(_check_token_ids(given, number, tokenizer))
            continue
        part, decoded = _read_part(given, number, config)
        if isinstance(part, Text):
            runs.append(tokenizer.encode(_check_text(part.text, number)))
        else:
            runs.append((modality_of(part), decoded))
    if not runs:
        raise ValueError("the prompt is empty: give at least one text or medium")
    sequence = assemble_chunks(runs, config)
    if not len(sequence):
        raise ValueError("the prompt holds no token: give a text that is not empty, or a medium")
    return sequence


def _check_text(text: str, number: int) -> str:
    """The same text. Raises ValueError for bytes in it that are no UTF-8, which Python passes on as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt part {number}: the text is not in UTF-8 (character {error.start} is {text[error.start]!a}): "
            "convert it, for instance with iconv -t UTF-8"
        ) from None
    return text


def _is_number(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_token_ids(given: TokenIds, number: int, tokenizer: Tokenizer) -> list[int]:
    """Token ids as a list of int. Raises ValueError naming the id that cannot be one."""
    where = f"prompt part {number}"
    if isinstance(given, np.ndarray | Tensor):
        if given.ndim != 1:
            raise ValueError(f"{where}: token ids have {given.ndim} dims: give one row of them, of 1 dim")
        given = given.tolist()
    ids = []
    for place, token in enumerate(given):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise ValueError(f"{where}: token id {place} is a {type(token).__name__}: give whole numbers")
        token = token.__index__()
        if not 0 <= token < tokenizer.vocab_size:
            raise ValueError(
                f"{where}: token id {place} is {token}, but the vocabulary has the ids 0 to "
                f"{tokenizer.vocab_size - 1}: give ids of this model's own tokenizer"
            )
        if token in _MEDIA_TOKENS:
            raise ValueError(
                f"{where}: token id {place} is {token}, the slot of a patch ({_MEDIA_TOKENS[token]}): "
                f"give the medium itself as a part of the prompt"
            )
        ids.append(token)
    return ids


def _read_part(given: PromptPart, number: int, config: EncodeConfig) -> tuple[Part, Decoded | None]:
    """The data package's part, and what its file holds (None for text)."""
    if isinstance(given, PIL.Image.Image):
        if given.width * given.height > config.max_pixels:
            raise ValueError(
                f"prompt part {number}: a picture of {given.width} x {given.height} pixels is over "
                f"max_pixels={config.max_pixels}; scale it down"
            )
        pixels = fit(np.asarray(to_rgb(given)), config, config.max_image_tokens)
        return Image("picture"), DecodedImage(grid_of(pixels, config), patchify(pixels, config.patch_size))
    if isinstance(given, str):
        try:
            path = media_path_in(given)
        except ValueError as error:
            raise ValueError(f"prompt part {number}: {error}") from None
        given = Text(given) if path is None else Path(path)
    if isinstance(given, Path):
        given = _media_part(given, number)
    if isinstance(given, TextFile):
        return Text(read_text_file(given, number, config)), None
    if isinstance(given, Text):
        return given, None
    if not isinstance(given, Image | Audio | Video):
        raise ValueError(f"prompt part {number} is a {type(given).__name__}: {_PARTS}")
    if remedy := url_hint(given.path):
        raise ValueError(f"prompt part {number}: {remedy}")
    # the data package reads a name inside a folder: the person's own path is split into the two
    path = Path(os.path.expanduser(given.path))
    if os.path.isdir(path):
        raise ValueError(f"prompt part {number}: {given.path} is a folder: give a file in it")
    folder, name = path.parent.resolve(), path.name
    local = Video(name, use_audio=given.use_audio) if isinstance(given, Video) else type(given)(name)
    try:
        return given, decode_part(local, folder, config)
    except DocumentError as error:
        raise ValueError(f"prompt part {number}, in {folder}: {error}") from None
    except ImportError as error:
        # files are read by libraries that a machine for text alone may be without
        missing = error.name or str(error)
        raise ValueError(
            f"prompt part {number}: reading {given.path} takes {missing}, which is not installed: `uv sync` installs "
            f"it, or pip install {missing}"
        ) from None


def read_text_file(given: TextFile, number: int, config: EncodeConfig) -> str:
    """The text of a file, which is part `number` of a prompt. Raises ValueError naming the file."""
    if remedy := url_hint(given.path):
        raise ValueError(f"prompt part {number}: {remedy}")
    path, limit = Path(os.path.expanduser(given.path)), int(config.max_file_mib * 2**20)
    try:
        with open(path, "rb") as file:
            # one byte more than allowed tells a file that is too long from one that just fits, pipes included
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"prompt part {number}: {path} cannot be read ({error.strerror}): give a text file") from None
    if len(content) > limit:
        raise ValueError(
            f"prompt part {number}: {path} is over max_file_mib={config.max_file_mib:g}: give a part of it"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if kind := media_type_of(path.name):
            name = kind.__name__
            raise ValueError(
                f"prompt part {number}: {path} is no text but a medium: give it as {name} (brine.data.document), "
                f"which is --{name.lower()} on the command line"
            ) from None
        byte = error.object[error.start]
        raise ValueError(
            f"prompt part {number}: {path} is no text in UTF-8 (byte {error.start} is {byte:#04x}): "
            "convert it, for instance with iconv -t UTF-8"
        ) from None


def _media_part(path: Path, number: int) -> Part:
    """The part that a path means, by its ending."""
    kind = media_type_of(path.name)
    if kind is not None:
        return kind(str(path))
    if remedy := conversion_hint(path.name):
        raise ValueError(f"prompt part {number}: {path} is of a form that is not read: {remedy}")
    if os.path.isdir(os.path.expanduser(path)):
        raise ValueError(f"prompt part {number}: {path} is a folder: give a file in it")
    there = "" if os.path.exists(os.path.expanduser(path)) else " (which does not exist)"
    raise ValueError(
        f"prompt part {number}: cannot tell what {path}{there} is by its ending (known: {', '.join(SUPPORTED)}); "
        "wrap the path in brine.data.document.Image, Audio or Video, or in TextFile for its content as text"
    )


def batch_prompts(sequences: Iterable[Sequence], *, device: torch.device | str = "cpu") -> Inputs:
    """The inputs of a forward pass for one or more prompts, padded on the left. Raises ValueError for no prompt or an
    empty one."""
    sequences = list(sequences)
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise ValueError("there is no prompt, or one without tokens: give at least one token each")
    longest = max(len(sequence) for sequence in sequences)
    packed = [[(-1, longest - len(sequence), None), (0, len(sequence), sequence)] for sequence in sequences]
    return collate(packed, seq_len=longest).inputs.to(device)
