"""An encoded corpus that is brought along: a smaller corpus of the demo's data, for a machine without media libraries.

    python -m benchmarks.gpu --pack-corpus corpus.tar.xz [--pack-mib 24]
    python train.py demo --corpus.manifest FOLDER_OF_IT         what the stages `train` and `demo` do with it

Making a corpus takes libraries that render, speak and decode; reading an encoded one takes numpy. So it is made where
they are, with the demo's kinds and levels in the demo's proportions, held-out documents in the demo's numbers or fewer,
and packed (xz: the arrays are mostly white paper and silence). A machine with neither corpus nor libraries makes one of
text alone from Python's own library (`text_corpus`), and its run says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import shutil
import sysconfig
import tarfile
import tempfile
import zlib
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

from brine.data.config import EncodeConfig
from brine.data.corpus.readers import iter_texts
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.formats.open import open_source
from brine.data.tokenizer import train_tokenizer
from brine.recipes.registry import RECIPES
from brine.synth import SynthCounts, build_synth_corpus

DOCUMENTS_PER_MIB = 260
"""Documents of the demo's mixture in a packed MiB, roughly."""
HELD_OUT = 0.5
"""Share of the demo's held-out documents, where a corpus is not smaller than that anyway."""
TEXT_VOCABULARY = 512
LIBRARIES = ("PIL", "pygments", "matplotlib", "espeakng_loader", "av", "soundfile", "torchaudio")
"""What making a corpus imports and reading one does not."""


def scaled(counts: SynthCounts, share: float) -> SynthCounts:
    """Counts times a share, at least one of what there was."""

    def less(value):
        if isinstance(value, tuple):
            return tuple(less(each) for each in value)
        return min(value, max(1, round(value * share)))

    return SynthCounts(**{field.name: less(getattr(counts, field.name)) for field in fields(counts)})


def num_documents(counts: SynthCounts) -> int:
    """All of them."""
    values = [getattr(counts, field.name) for field in fields(counts)]
    return sum(sum(value) if isinstance(value, tuple) else value for value in values)


def pack(file: Path, *, mib: float, toy: bool = False, source: Path | None = None) -> int:
    """Make the corpus and write the archive -> exit code. toy: a few dozen documents. source: of code, for tests.

    Raises ValueError, ImportError or OSError where a library is missing or the file cannot be written, before it works.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file, such as {file / 'corpus.tar.xz'}")
    # written beside and renamed: half an archive is worse than none
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb"):
        partial.unlink()
    check_dependencies()
    config = RECIPES["demo"]().corpus
    share = 1 / 400 if toy else min(1.0, mib * DOCUMENTS_PER_MIB / num_documents(config.synth.train))
    held_out = scaled(config.synth.test, 0.1 if toy else HELD_OUT)
    synth_config = replace(
        config.synth, train=scaled(config.synth.train, share), validation=held_out, test=held_out, source=source
    )
    with tempfile.TemporaryDirectory() as folder:
        build_synth_corpus(synth_config, Path(folder) / "documents", progress=not toy)
        documents = open_source(Path(folder) / "documents" / "manifest.jsonl")
        corpus = build_corpus(
            documents, Path(folder) / "corpus", config=config.encode, progress=not toy,
            tokenizer=train_tokenizer(iter_texts(documents.documents()), config.vocab_size),
        )  # fmt: skip
        count = corpus.num_documents
        with tarfile.open(partial, "w:xz", preset=6) as archive:
            archive.add(Path(folder) / "corpus", "corpus")
        partial.replace(file)
    print(f"{file}: {count} documents, {file.stat().st_size / 2**20:.1f} MiB")
    return 0


def check_dependencies() -> None:
    """Raises ValueError unless what renders, speaks and decodes is there."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(f"making a corpus needs {', '.join(missing)}: run `uv sync --group corpus`")


def validate_archive(file: Path) -> None:
    """Raises ValueError where `unpack` would find no corpus. Reads an archive's beginning alone, so that an end that is
    missing is reported later."""
    if file.is_dir():
        EncodedCorpus.open(file)
        return
    try:
        with tarfile.open(file) as archive:
            first = archive.next()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error):
        first = None
    if first is None or first.name.split("/")[0] != "corpus":
        raise ValueError(f"{file} is no corpus: `python -m benchmarks.gpu --pack-corpus FILE` makes one")


def unpack(file: Path, folder: Path) -> Path:
    """The corpus of an archive, or of a folder that holds one, below `folder` -> its folder. Done once."""
    if file.is_dir():
        return file
    with file.open("rb") as archive:
        target = folder / f"corpus-{hashlib.file_digest(archive, 'sha256').hexdigest()[:16]}"
    if not target.exists():
        partial = folder / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(file) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(target)
    return target / "corpus"


def text_corpus(folder: Path, *, toy: bool) -> Path:
    """A corpus of text alone from some files of Python's library -> its folder. Needs no media library."""
    target, documents = folder / "text-corpus", folder / "text"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(documents)
    documents.mkdir(parents=True)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for file in files[: 24 if toy else None]:
        shutil.copyfile(file, documents / file.name)
    source = open_source(documents)
    tokenizer = train_tokenizer(iter_texts(source.documents()), TEXT_VOCABULARY)
    build_corpus(source, target, tokenizer=tokenizer, config=EncodeConfig(), num_workers=1)
    return target
