"""Needle cases: contexts of `brine.synth.needles` as content parts, made once, so that every model reads the same ones.

A context is laid out in bytes and default patches, and its `length` counts those. A model with another tokenizer or
patch size reads the same content in fewer or more tokens; the measure keeps the name of the length.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from brine.common.files import file_digest
from brine.common.formatting import progress_bar
from brine.data.config import EncodeConfig
from brine.data.document import Audio, Image, Part, Text, Video
from brine.data.files.source_files import read_source
from brine.data.inspect.check import byte_tokenizer
from brine.data.tokenizer import Tokenizer
from brine.evals.suites.case import PARTS, SuiteCase, SuiteNeedles, SuiteQuestion, content_id, part_of_id
from brine.evals.suites.making.candidates import extension
from brine.synth.needles.haystacks import HaystackBuilder, TokensOrMedia, check_dependencies
from brine.synth.needles.needle import question

MAX_TRIES = 20
"""Contexts made for each that is wanted, so that all three parts are filled."""
_TYPES = {"image": Image, "audio": Audio, "video": Video}


def needle_kind(length: int, modality: str) -> str:
    """The kind of the needle cases of a length and modality."""
    return f"needle.{length}.{modality}"


def make_needle_cases(
    media: Path, *, lengths: Sequence[int], modalities: Sequence[str], contexts: int, needles: int, seed: int,
    source: Path | None,
) -> Iterator[SuiteCase]:  # fmt: skip
    """`contexts` cases for each length, modality and part; their media are put into the folder `media`.

    source: a folder of code; None for the standard library. Raises ValueError for needles that do not fit into a
    length, an unknown modality, and where a library that makes media is missing."""
    if not lengths:
        return
    check_dependencies(modalities)
    files, _ = read_source(source)
    hashes: dict[str, str] = {}
    with HaystackBuilder(files, tokenizer=byte_tokenizer(), config=EncodeConfig(), seed=seed) as builder:
        for length in lengths:
            for modality in modalities:
                title, left = f"needles of {modality}, {length:,} tokens", dict.fromkeys(PARTS, contexts)
                with progress_bar(total=contexts * len(PARTS), desc=title, unit="context", leave=False) as bar:
                    for number in range(contexts * len(PARTS) * MAX_TRIES):
                        if not any(left.values()):
                            break
                        case, files_of_case = _needle_case(builder, hashes, modality, length, number, needles)
                        if left[case.part]:
                            left[case.part] -= 1
                            bar.update(1)
                            _copy(files_of_case, media)
                            yield case


def _copy(files: dict[str, Path], media: Path) -> None:
    for name, file in files.items():
        if not (media / name).exists():
            shutil.copyfile(file, media / name)


def _needle_case(
    builder: HaystackBuilder, hashes: dict[str, str], modality: str, length: int, number: int, needles: int
) -> tuple[SuiteCase, dict[str, Path]]:
    """A case, and its media: name in the suite -> file of the builder. hashes: path -> name, of what was hashed."""
    chunks, facts, starts = builder.chunks(modality, num_tokens=length, number=number, num_needles=needles)
    path_of_decoded = {id(decoded): path for path, decoded in builder.decoded.items()}
    paths = {id(chunk[1]): path_of_decoded[id(chunk[1])] for chunk in chunks if not isinstance(chunk, list)}
    for path in paths.values():
        if path not in hashes:
            hashes[path] = f"{file_digest(builder.root / path)}{extension(path)}"
    parts = tuple(_parts(chunks, builder.tokenizer, {key: f"media/{hashes[path]}" for key, path in paths.items()}))
    questions = tuple(
        SuiteQuestion(question(fact.key), fact.answer, round(starts[index] / length, 5))
        for index, fact in enumerate(facts)
    )
    name = content_id(parts, questions)
    case = SuiteCase(
        name, part_of_id(name), needle_kind(length, modality), 0, parts,
        needles=SuiteNeedles(length, modality, questions),
    )  # fmt: skip
    return case, {hashes[path]: builder.root / path for path in paths.values()}


def _parts(chunks: Sequence[TokensOrMedia], tokenizer: Tokenizer, paths: dict[int, str]) -> Iterator[Part]:
    """Neighbouring texts as one part, and media; nothing is a target. A character that the last line's end cut in two
    is left out."""
    text = b""
    for chunk in [*chunks, None]:
        if isinstance(chunk, list):
            text += b"".join(tokenizer.token_bytes(token) for token in chunk)
            continue
        if text:
            yield Text(text.decode("utf-8", errors="ignore"), loss_mask=False)
            text = b""
        if chunk is not None:
            modality, decoded = chunk
            yield _TYPES[modality](paths[id(decoded)])
