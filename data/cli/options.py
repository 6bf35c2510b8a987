"""The options of `brine data`: each command is a dataclass, whose fields tyro makes options and docstrings the help.

Options that set how media become tokens are the fields of `EncodeConfig` under their own names.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from brine.data.config import EncodeConfig
from brine.data.filters.names import FILTERS


def _count(args: list[str]) -> int:
    if not args[0].isdecimal() or int(args[0]) < 1:
        raise ValueError(f"must be a whole number from 1, not {args[0]!r}")
    return int(args[0])


_COUNT = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="N",
    instance_from_str=_count,
    is_instance=lambda value: value is None or isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)
Count = Annotated[int | None, _COUNT]
Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What `check`, `build` and `show` have in common."""

    path: tyro.conf.Positional[Path]
    """A folder, tar, Parquet file or manifest, or its URL (s3://..., extra [remote])."""
    format: str | None = None
    """Format of PATH; detected if not given."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a folder that holds one."""
    workers: Count = None
    """Decoding processes; one per core, at most 8, if not given."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=EncodeConfig)
    """How media become tokens."""


@dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """What `check` and `plan` have in common."""

    seq_len: Count = None
    """Tokens per packed sequence."""
    image_budget: int | None = None
    """Maximum number of image tokens per packed sequence."""
    audio_budget: int | None = None
    """Maximum number of audio tokens per packed sequence."""
    video_budget: int | None = None
    """Maximum number of video tokens per packed sequence."""

    @property
    def media_budget(self) -> dict[str, int]:
        """The budgets that were given, by modality."""
        given = {name: getattr(self, f"{name}_budget") for name in ("image", "audio", "video")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class CheckRequest(SourceOptions, PackingOptions):
    """Read and decode everything, count it, and say what cannot be used and why. Nothing is written unless asked for.

    With --seq-len or --recipe it also says which documents of the train split do not fit a packed sequence.
    """

    recipe: str | None = None
    """Use the packing and encoding settings of this recipe, unless given here."""
    limit: Count = None
    """Look at the first N documents only."""
    retry: Path | None = None
    """Look only at the documents that this quarantine file names."""
    quarantine: Path | None = None
    """Write what is quarantined to this file, as JSON lines."""
    plot: Path | None = None
    """Plot lengths and tokens to this PNG file."""
    out: Path | None = None
    """Write quarantine.jsonl, check.png and check.json to this folder."""
    max_excluded_fraction: tyro.conf.Suppress[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class BuildRequest(SourceOptions):
    """Encode everything in PATH into a corpus in FOLDER. The same command resumes a build that was stopped.

    Several sources: `build FOLDER --sources NAME=PATH NAME=PATH`.
    """

    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FOLDER")] = None
    """Output folder: new, empty, or an unfinished build to resume."""
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PATH ...")] = ()
    """Several sources instead of PATH: NAME=PATH, with ,consent=CLASS ,format=FORMAT after it where needed, as in
    `corpus.sources`; FOLDER is then the only argument. Weights are given in training (`packing.mixture`)."""
    vocab_size: Count = 512
    """Vocabulary size of the tokenizer trained on the train split."""
    no_media: bool = False
    """Store no patches: media are decoded again when used."""
    engine: Literal["direct", "local", "ray"] = "direct"
    """What encodes: decoders of this process; a process for each block of items; or a Ray cluster (extra [ray]). All
    write the same bytes. --workers: decoders, blocks at a time, or decoders (CPUs) of each block."""
    address: str | None = None
    """Address of the Ray cluster ("auto", "host:port"); one of this machine alone is started if not given."""
    out: str | None = None
    """Upload the finished corpus to this URL (s3://..., extra [remote])."""
    shard_documents: Count = 4096
    """Items of a block, after which a shard is closed."""


@dataclass(frozen=True, kw_only=True)
class FilterRequest:
    """Apply filters to a corpus, or undo passes. Without arguments: list the passes.

    What is dropped and why is written below FOLDER; `plan` and training then exclude it.
    """

    folder: Folder
    """A corpus written by `build`."""
    filters: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[FILTER ...]", help=f"In the order to be applied: {', '.join(FILTERS)}."),
    ] = ()
    undo: Count = None
    """Remove the last N filter passes first."""
    workers: Count = None
    """Processes; one per core, at most 8, if not given."""


@dataclass(frozen=True, kw_only=True)
class DataPlanRequest(PackingOptions):
    """Show how a corpus is packed into sequences. Nothing is written without --out."""

    folder: Folder
    """A corpus written by `build`, or RUN/encoded/store: what the run's filters have kept of it."""
    seq_len: Count = 2048
    """Tokens per packed sequence."""
    num_sequences: Count = None
    """Plan this many sequences."""
    epochs: Count = None
    """Plan as many sequences as N epochs fill; one epoch if neither is given."""
    seed: int = 0
    """Seed of the shuffle."""
    split: str = "train"
    """train, validation or test."""
    long: Literal["split", "drop"] = "split"
    """Split documents longer than a sequence, or drop them."""
    name: str = "plan"
    """Name of the plan written to --out."""
    out: Path | None = None
    """Write NAME.npz and NAME.png to this folder."""
    plot: Path | None = None
    """Plot sequences and mixture to this PNG file."""


@dataclass(frozen=True, kw_only=True)
class ShowRequest(SourceOptions):
    """Draw one document as the model will see it: patches, mel, frames, tokens, position ids and the mask."""

    path: tyro.conf.Positional[Path]
    """A folder, tar, Parquet file or manifest, or a corpus written by `build`."""
    id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
    """The document's id, or its number from 0."""
    out: Path | None = None
    """A .png or .html file; ID.png in the current folder if not given."""


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """Write a manifest from a CSV/TSV table, a transcript list, COCO, or other JSON that cannot be read directly."""

    path: tyro.conf.Positional[Path]
    """A table, a JSON file, or a folder of lists or classes."""
    root: Path | None = None
    """Root folder to search for media; the folder of PATH if not given."""
    out: str = ""
    """Name of the manifest; derived from neighbouring file names if not given."""


COMMANDS = {
    "check": CheckRequest,
    "build": BuildRequest,
    "filter": FilterRequest,
    "plan": DataPlanRequest,
    "show": ShowRequest,
    "convert": ConvertRequest,
}
