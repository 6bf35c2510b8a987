"""What a whole run is: one frozen record from corpus to report.

A recipe is a Python value. `recipes/demo.py` and its neighbours are functions that return one, usually by
`dataclasses.replace` of another, and the command line overrides single fields (`--large.learning-rate 1e-3`). Each
component keeps its own configuration beside itself (`model/config.py`, `training/config.py`, ...); this file only
puts them together and checks what no component can see alone, such as a document budget larger than a row.

Three numbers are never given twice: the vocabulary and the patch widths of both models follow from `corpus`, and the
schedules of large and baseline are one and the same `large`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from data.config import EncodeConfig
from data.deciding import aside
from data.filters.rules import check_names
from data.length_schedule import LengthSchedule
from data.mixture import Mixture
from data.workbench import WorkbenchConfig
from evals.config import EvalConfig
from model.config import ModelConfig
from salt.config import SaltConfig
from training.config import RuntimeConfig, TrainConfig

TRAINED = ("small", "large_salt", "large_baseline")
"""The stages of the line that train a model, in order."""


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents come from, and how they become tokens."""

    source: Path | None = None
    """Source tree that the workbench corpus is made from; None: the running interpreter's standard library."""
    manifest: Path | None = None
    """Documents to train on instead of a workbench corpus: a folder, manifest, tar or table of any format that
    `data.formats` reads, or a corpus that `python -m data build` wrote, with its filter rounds."""
    filters: tuple[str, ...] = ()
    """Rules that leave documents out of training, in this order: exact_duplicates, near_duplicates, text_quality,
    media_quality (`data.filters`)."""
    vocab_size: int = 384
    """Size of the byte-level BPE vocabulary, special tokens and 256 bytes included."""
    workbench: WorkbenchConfig = field(default_factory=WorkbenchConfig)
    """Kinds, levels and counts of the workbench corpus."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How media become patches."""

    def __post_init__(self):
        if self.source is not None and self.manifest is not None:
            raise ValueError("corpus.source and corpus.manifest exclude each other: give one of the two")
        check_names(self.filters)
        if self.vocab_size < 267:
            raise ValueError(f"corpus.vocab_size = {self.vocab_size}: 256 bytes and 11 special tokens need 267 or more")


@dataclass(frozen=True)
class RowsConfig:
    """How documents are packed into rows; media budgets are patches per row, since batches have one fixed shape."""

    row_tokens: int = 512
    """Tokens of a row."""
    image_budget: int = 384
    """Most picture patches in a row."""
    audio_budget: int = 384
    """Most audio tokens in a row."""
    video_budget: int = 384
    """Most video patches in a row."""
    blank_fraction: float = 0.1
    """Training documents whose media are replaced by grey or silence, so that a blank is no surprise in evaluation."""
    kind_weights: tuple[tuple[str, float], ...] = ()
    """How often documents of a kind appear in an epoch, as (kind, weight) pairs; kinds not named appear once."""
    mixture: tuple[str, ...] = ()
    """Weights by source too, and schedules along the rows: "source:wikitext*=0.1", "kind:page=0:0.5,0.5:2" (points
    progress:weight), "kind:page/1=2"; a document's is that of its kind, here or in kind_weights, times its source's."""
    max_left_out: float = aside(0.5)
    """Share of the training documents that may fit no row and are left out; training refuses above it, which decides
    whether there are rows, and not which."""
    length_schedule: tuple[str, ...] = ()
    """Train short, extend: how many tokens of a document attention may see together, from which progress on, as
    "0:2048", "0.5:8192" (progress:tokens; `data.length_schedule`); empty: all of it."""

    def __post_init__(self):
        longest = max((tokens for _, tokens in LengthSchedule.parse(self.length_schedule).steps), default=0)
        if longest > self.row_tokens:
            raise ValueError(
                f"rows.length_schedule goes to {longest} tokens, a row has {self.row_tokens}: raise rows.row_tokens"
            )
        named = {key for key, _ in Mixture.parse(self.mixture).weights}
        twice = [kind for kind, _ in self.kind_weights if f"kind:{kind}" in named]
        if twice:
            raise ValueError(f"rows.mixture and rows.kind_weights both name {twice[0]!r}: give it in one of the two")
        if self.row_tokens < 16:
            raise ValueError(f"rows.row_tokens = {self.row_tokens} is too short for a document: give 16 or more")
        for name in ("image_budget", "audio_budget", "video_budget"):
            if not 0 <= getattr(self, name) <= self.row_tokens:
                raise ValueError(f"rows.{name} = {getattr(self, name)}: give 0 up to rows.row_tokens {self.row_tokens}")
        if not 0 <= self.max_left_out <= 1:
            raise ValueError(f"rows.max_left_out = {self.max_left_out} must lie in [0, 1]")
        if not 0 <= self.blank_fraction < 1:
            raise ValueError(f"rows.blank_fraction = {self.blank_fraction} must lie in [0, 1)")

    @property
    def media_budget(self) -> dict[str, int]:
        """Patches per row and modality, as the planner takes them."""
        return {"image": self.image_budget, "audio": self.audio_budget, "video": self.video_budget}


@dataclass(frozen=True)
class Recipe:
    """A whole run, from corpus to report."""

    name: str = "demo"
    """Name of the run: its folder under runs/."""
    seed: int = 0
    """Seed of packing, blanking and evaluation; both models' initial weights have theirs in `small` and `large`."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Where documents come from."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    """How documents are packed."""
    small: TrainConfig = field(default_factory=TrainConfig)
    """The small model, teacher of the large one; trained only where `arms` holds "salt" or selection needs it."""
    large: TrainConfig = field(default_factory=TrainConfig)
    """The large model: the same rows, seed and schedule with SALT and without."""
    salt: SaltConfig = field(default_factory=SaltConfig)
    """The small model's help."""
    arms: tuple[str, ...] = ("salt", "baseline")
    """Large models to train: "salt", "baseline", or both for the paired comparison."""
    evals: EvalConfig = field(default_factory=EvalConfig)
    """What is measured on held-out documents."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Threads, precision and compilation; settled once per run folder."""

    def __post_init__(self):
        if not self.name or set(self.name) & set("/\\") or self.name.startswith("."):
            raise ValueError(f"name = {self.name!r} must be a plain folder name")
        unknown = sorted(set(self.arms) - {"salt", "baseline"})
        if unknown or not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f'arms = {self.arms}: give "salt", "baseline", or both')

    def model(self, config: ModelConfig, vocab_size: int) -> ModelConfig:
        """`config` with the vocabulary and patch widths that the corpus dictates."""
        dims = self.corpus.encode
        return dataclasses.replace(
            config, vocab_size=vocab_size, image_dim=dims.image_dim, audio_dim=dims.audio_dim, video_dim=dims.video_dim
        )

    def resolved(self, vocab_size: int) -> Recipe:
        """The recipe with both models' vocabulary and patch widths filled in."""
        small, large = (
            dataclasses.replace(train, model=self.model(train.model, vocab_size)) for train in (self.small, self.large)
        )
        return dataclasses.replace(self, small=small, large=large)
