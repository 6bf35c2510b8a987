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


def _count(words: list[str]) -> int:
    if not words[0].isdecimal() or int(words[0]) < 1:
        raise ValueError(f"must be a whole number from 1, not {words[0]!r}")
    return int(words[0])


_COUNT = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="N",
    instance_from_str=_count,
    is_instance=lambda value: value is None or isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)
Count = Annotated[int | None, _COUNT]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What `check`, `build` and `show` have in common."""

    path: tyro.conf.Positional[Path]
    """A folder, a tar, a Parquet file or a manifest; `show` also takes a corpus that `build` wrote."""
    format: str | None = None
    """Format of PATH; detected where not given."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a folder that holds one."""
    workers: Count = None
    """Decoding processes; one a core, at most 8, where not given."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=EncodeConfig)
    """How media become tokens."""


@dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """What `check` and `plan` have in common."""

    seq_len: Count = None
    """Tokens in a packed sequence."""
    image_budget: int | None = None
    """Most image tokens in a sequence."""
    audio_budget: int | None = None
    """Most audio tokens in a sequence."""
    video_budget: int | None = None
    """Most video tokens in a sequence."""

    @property
    def media_budget(self) -> dict[str, int]:
        """The budgets that were given, by modality."""
        given = {name: getattr(self, f"{name}_budget") for name in ("image", "audio", "video")}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class CheckRequest(SourceOptions, PackingOptions):
    """Read and decode everything, count it, and say what cannot be used and why. Nothing is written unless asked for.

    With --seq-len or --recipe it also says which documents of the train split do not fit a packed sequence."""

    recipe: str | None = None
    """Packing and encoding of a recipe of train.py, where not given here."""
    limit: Count = None
    """Look at the first N documents only."""
    retry: Path | None = None
    """Look only at the documents that this quarantine file names."""
    quarantine: Path | None = None
    """Write what is quarantined to this file, as JSON lines."""
    plot: Path | None = None
    """Draw lengths and tokens to this PNG file."""
    out: Path | None = None
    """Write quarantine.jsonl, check.png and check.json to this folder."""
    max_excluded_fraction: tyro.conf.Suppress[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class BuildRequest(SourceOptions):
    """Encode everything in PATH into a corpus in FOLDER. The same command resumes a build that was stopped."""

    folder: tyro.conf.Positional[Path]
    """Where the corpus goes: new, empty, or begun before."""
    vocab_size: Count = 512
    """Ids of the tokenizer that is trained on the training split."""
    no_media: bool = False
    """Store no patches: media are decoded again when used."""


@dataclass(frozen=True, kw_only=True)
class FilterRequest:
    """Leave documents of a corpus out of training, filter by filter, or undo that. Without filters: show what is there.

    What is dropped and why is written below FOLDER; `plan` and training then leave it out."""

    folder: tyro.conf.Positional[Path]
    """A corpus that `build` wrote."""
    filters: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[FILTER ...]", help=f"In the order to be applied: {', '.join(FILTERS)}."),
    ] = ()
    undo: Count = None
    """Remove the last N filter passes first."""
    workers: Count = None
    """Processes; one a core, at most 8, where not given."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest(PackingOptions):
    """Show how a corpus is packed into sequences. Nothing is written without --out."""

    folder: tyro.conf.Positional[Path]
    """A corpus that `build` wrote."""
    seq_len: Count = 2048
    """Tokens in a packed sequence."""
    num_sequences: Count = None
    """Plan this many sequences."""
    epochs: Count = None
    """Plan as many sequences as N epochs fill; one epoch where neither is given."""
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
    """Draw sequences and mixture to this PNG file."""


@dataclass(frozen=True, kw_only=True)
class ShowRequest(SourceOptions):
    """Draw one document as the model will see it: patches, mel, frames, tokens, position ids and the mask."""

    id: tyro.conf.Positional[str]
    """The document's id, or its number from 0."""
    out: Path | None = None
    """A .png or .html file; ID.png in this folder where not given."""


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """Write a manifest from a table or list of words, COCO or other JSON that is not read as it is."""

    path: tyro.conf.Positional[Path]
    """A table, a JSON file, or a folder of lists or classes."""
    root: Path | None = None
    """Look for media below this folder; below that of PATH where not given."""
    out: str = ""
    """Name of the manifest; chosen by the names beside it where not given."""


COMMANDS = {
    "check": CheckRequest,
    "build": BuildRequest,
    "filter": FilterRequest,
    "plan": PlanRequest,
    "show": ShowRequest,
    "convert": ConvertRequest,
}
