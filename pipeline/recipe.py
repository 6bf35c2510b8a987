"""A whole run as one frozen record, from corpus to report.

A recipe is a Python value: `recipes/demo.py` and its neighbours are functions that return one, often by
`dataclasses.replace` of another, and the command line overrides single fields (`--large.learning-rate 1e-3`). Each
component keeps its configuration beside itself; this file puts them together. Vocabulary and patch widths of both
models follow from `corpus`; the large model is one setting for SALT and baseline.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from brine.common.config_fields import operational
from brine.data.config import EncodeConfig
from brine.data.filters.registry import check_filter_names
from brine.data.formats.corpus_source import CorpusSource, check_sources
from brine.data.packing.length_schedule import LengthSchedule
from brine.data.packing.mixture import Mixture
from brine.evals.config import EvalConfig
from brine.model.config import ModelConfig
from brine.salt.config import SaltConfig
from brine.synth import SynthConfig
from brine.training.config import RuntimeConfig, TrainConfig

MODEL_STAGES = ("small", "large_salt", "large_baseline")
MANIFEST_REQUIRED = Path("PATH")
"""`corpus.manifest` of a recipe without documents: whoever runs it must name some."""


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents come from, and how they become tokens."""

    source: Path | None = None
    """Source tree that the synthetic corpus is made from; None: the running interpreter's standard library."""
    manifest: Path | None = None
    """Documents to train on instead of a synthetic corpus: a folder, manifest, tar or Parquet file of any format that
    `brine.data.formats` reads, or a corpus written by `brine data build`, with its filter passes."""
    sources: tuple[CorpusSource, ...] = ()
    """Several sources instead of `manifest`, mixed into one corpus: NAME=PATH, with ,weight=W ,consent=CLASS
    ,format=FORMAT after it where needed; `synth` is the synthetic corpus (`brine.data.formats.corpus_source`)."""
    tokenizer: str | None = None
    """Tokenizer to use instead of one trained on the documents: a tokenizer.json, a built corpus, a run, a model
    folder, or a model of a registry ("champion", or a digest). `vocab_size` follows from it."""
    filters: tuple[str, ...] = ()
    """Filters that leave documents out of training, in this order: exact_duplicates, near_duplicates, text_quality,
    media_quality (`brine.data.filters`)."""
    vocab_size: int = 384
    """Size of the byte-level BPE vocabulary, special tokens and 256 bytes included."""
    synth: SynthConfig = field(default_factory=SynthConfig)
    """Kinds, levels and counts of the synthetic corpus."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How media become patches."""

    def __post_init__(self):
        sources = (CorpusSource.parse(each) if isinstance(each, str) else each for each in self.sources)
        object.__setattr__(self, "sources", tuple(sources))
        object.__setattr__(self, "tokenizer", None if self.tokenizer is None else str(self.tokenizer))
        if self.sources and self.manifest == MANIFEST_REQUIRED:
            object.__setattr__(self, "manifest", None)
        if self.source is not None and self.manifest is not None:
            raise ValueError("corpus.source and corpus.manifest exclude each other: give one of the two")
        if self.sources and self.manifest is not None:
            raise ValueError("corpus.sources and corpus.manifest exclude each other: make the manifest a source")
        if self.sources and self.source is not None and not self.uses_synth:
            raise ValueError("corpus.source has no effect without the source `synth` in corpus.sources: add it")
        check_sources(self.sources)
        check_filter_names(self.filters)
        if self.vocab_size < 267:
            raise ValueError(f"corpus.vocab_size = {self.vocab_size}: 256 bytes and 11 special tokens need 267 or more")

    @property
    def source_weights(self) -> dict[str, float]:
        """Weight of each source whose weight is not 1; a training stage's settings hold them."""
        return {source.name: source.weight for source in self.sources if source.weight != 1}

    @property
    def uses_synth(self) -> bool:
        """Whether documents are made by rule, all or some of them."""
        given = any(source.path is None for source in self.sources)
        return given if self.sources else self.manifest is None


@dataclass(frozen=True)
class PackingConfig:
    """How documents are packed into sequences; media budgets count tokens (one per patch) per sequence, since
    batches have a fixed shape."""

    seq_len: int = 512
    """Tokens per packed sequence."""
    image_budget: int = 384
    """Maximum number of image tokens per packed sequence."""
    audio_budget: int = 384
    """Maximum number of audio tokens per packed sequence."""
    video_budget: int = 384
    """Maximum number of video tokens per packed sequence."""
    blank_fraction: float = 0.1
    """Fraction of media documents blanked in training (grey, silence), as in the blank condition of the evaluation."""
    mixture: tuple[str, ...] = ()
    """Sampling weights by kind or source: "kind:page=2", "kind:page/1=2", "source:wikitext*=0.1"; a weight may vary
    over the run by points progress:weight ("kind:page=0:0.5,0.5:2"). Default weight 1; kinds not in the corpus are
    ignored and logged. The name of one of `corpus.sources` stands for all of its documents, and multiplies its weight.
    """
    max_excluded_fraction: float = operational(0.5)
    """Maximum fraction of training documents that may be excluded as too long; above it the run stops with an error."""
    length_schedule: tuple[str, ...] = ()
    """Attention-length schedule, progress:tokens pairs such as "0:2048" "0.5:8192": attention spans at most 2,048
    tokens of a document, from half of the run on 8,192 (`brine.data.packing.length_schedule`). Empty: no limit."""

    def __post_init__(self):
        longest = max((tokens for _, tokens in LengthSchedule.parse(self.length_schedule).steps), default=0)
        if longest > self.seq_len:
            raise ValueError(
                f"packing.length_schedule goes to {longest}: raise packing.seq_len, which is {self.seq_len}"
            )
        Mixture.parse(self.mixture)
        if self.seq_len < 16:
            raise ValueError(f"packing.seq_len = {self.seq_len} is too short for a document: give 16 or more")
        for name in ("image_budget", "audio_budget", "video_budget"):
            if not 0 <= getattr(self, name) <= self.seq_len:
                raise ValueError(f"packing.{name} = {getattr(self, name)}: give 0 up to packing.seq_len {self.seq_len}")
        if not 0 <= self.max_excluded_fraction <= 1:
            raise ValueError(f"packing.max_excluded_fraction = {self.max_excluded_fraction} must lie in [0, 1]")
        if not 0 <= self.blank_fraction < 1:
            raise ValueError(f"packing.blank_fraction = {self.blank_fraction} must lie in [0, 1)")

    @property
    def media_budget(self) -> dict[str, int]:
        """Maximum number of media tokens per packed sequence, by modality."""
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
    packing: PackingConfig = field(default_factory=PackingConfig)
    """How documents are packed."""
    small: TrainConfig = field(default_factory=TrainConfig)
    """The small model, teacher of the large one; trained only where `arms` holds "salt"."""
    large: TrainConfig = field(default_factory=TrainConfig)
    """The large model: the same data, seed and schedule with SALT and without."""
    salt: SaltConfig = field(default_factory=SaltConfig)
    """How the small model helps."""
    arms: tuple[str, ...] = ("salt", "baseline")
    """Large models to train: "salt", "baseline", or both for the paired comparison."""
    evals: EvalConfig = field(default_factory=EvalConfig)
    """The evaluation on held-out documents."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Threads, precision and compilation; resolved once per run folder."""

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

    def resolved(self, vocab_size: int) -> "Recipe":
        """The recipe with both models' vocabulary and patch widths filled in."""
        small, large = (
            dataclasses.replace(train, model=self.model(train.model, vocab_size)) for train in (self.small, self.large)
        )
        return dataclasses.replace(self, small=small, large=large)
