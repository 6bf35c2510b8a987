"""What a line of rounds is: a recipe, the documents of people, what may be labelled, and what a round must show.

    def reading() -> RoundLine:
        return RoundLine(
            base=demo(), words=Path("data/transcribed.jsonl"), unlabelled=Path("data/untranscribed.jsonl"),
            suite="reading@1", pseudo_share=0.4,
        )

Tokenizer, held-out documents and suite stay the same for the life of a line, so that all its rounds compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from brine.data.formats.corpus_source import CorpusSource
from brine.data.packing.mixture import Mixture, mean_weight
from brine.inference.registered import CHAMPION
from brine.pipeline.recipe import Recipe
from brine.registry.promotion import MIN_SEEDS
from brine.salt.audit import AuditConfig
from brine.salt.collapse import CollapseConfig
from brine.salt.pseudo_label import PseudoLabelConfig
from brine.salt.self_play.config import SelfPlayConfig
from brine.training.config import TrainConfig

WORDS, FEEDBACK, PSEUDO, SELF_PLAY = "words", "feedback", "pseudo", "self-play"
SOURCES = (WORDS, FEEDBACK, PSEUDO, SELF_PLAY)
"""Sources of a round: of people, of users, and of models; several pools of self-play are self-play-1, self-play-2, ...

`packing.mixture` of the base may weight them, also over the training: "source:pseudo=0:0,0.5:1"."""


@dataclass(frozen=True)
class RoundLine:
    """A line of rounds. Raises ValueError for settings that cannot work."""

    base: Recipe
    """Recipe of every round: `small` is the teacher, `large` what is compared; `corpus.filters`, packing, SALT and
    evaluation are as it says. Its documents are the line's."""
    words: Path
    """Documents whose words are known, of any format that `brine data check` reads; a tenth is audited, held out."""
    unlabelled: Path | None = None
    """Documents with media whose words are not known; None: nothing is labelled."""
    feedback: Path | None = None
    """Documents of users who agreed to training, read anew in each round; the arm without a round's new data trains on
    those of the round before."""
    consent: str = "own"
    """Consent class of `words` (`brine.data.formats.corpus_source`)."""
    suite: str | None = None
    """Suite that rounds are compared on; None: one is made of the held-out documents of `words`, without a gate."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each round's trainings, by which it is decided whether what a round brought stays."""
    confirm: tuple[int, ...] = (100, 101, 102)
    """With a registry: seeds of the trainings that its gate is asked about. The arm that `seeds` chose is trained again
    under them, since seeds that chose cannot confirm."""
    teacher: str | None = None
    """Model that labels and plays: "champion" (of `registry`; the small model until there is one), a run, a model
    folder, or a digest of a model of the registry; None: the small model, trained anew in each round. A given one must
    not have been trained on the audited words, or the audit measures memory."""
    pseudo_share: float = 0.4
    """Most targets that may be words of a model, of all."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """How pseudo-labels are audited."""
    label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    """How documents are labelled."""
    self_play: SelfPlayConfig | None = None
    """Questions that a rule can check, played by the teacher; None: none."""
    self_play_source: Path | None = None
    """Source tree that these questions are about; None: the interpreter's standard library."""
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    """When the words of a model are too uniform to be trained on."""
    patience: int = 2
    """Rounds without gain after which the line stops."""
    registry: Path | None = None
    """Registry whose gate is asked at the end of each round; needs a suite. None: no gate."""
    threads: int = 1
    """CPU threads of each training; they change the last bits."""

    def __post_init__(self):
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "confirm", tuple(self.confirm))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: give each seed of a round once")
        if not 0 <= self.pseudo_share < 1:
            raise ValueError(f"pseudo_share = {self.pseudo_share} must lie in [0, 1)")
        if self.patience < 1 or self.threads < 1:
            raise ValueError(f"patience = {self.patience}, threads = {self.threads}: give at least 1")
        if self.registry is not None and self.suite is None:
            raise ValueError("a registry's gate is asked on a suite: give suite as well, or no registry")
        if self.registry is not None and len(set(self.confirm) - set(self.seeds)) < max(MIN_SEEDS, len(self.confirm)):
            raise ValueError(
                f"confirm = {self.confirm}: a gate needs at least {MIN_SEEDS} different seeds that are none of seeds = "
                f"{self.seeds}, which choose what it is asked about"
            )
        if self.teacher == CHAMPION and self.registry is None:
            raise ValueError("the teacher is a registry's champion: give registry and suite as well")
        if self.base.corpus.manifest is not None or self.base.corpus.sources:
            raise ValueError("the base recipe of a line names documents: give them as words, unlabelled and feedback")

    def recipe(self, name: str, sources: tuple[CorpusSource, ...], tokenizer: Path) -> Recipe:
        """The recipe of a training on these sources."""
        corpus = dataclasses.replace(self.base.corpus, source=None, sources=sources, tokenizer=str(tokenizer))
        packing = dataclasses.replace(self.base.packing, mixture=self.mixture(sources))
        return dataclasses.replace(self.base, name=name, corpus=corpus, packing=packing)

    def mixture(self, sources: Sequence[CorpusSource]) -> tuple[str, ...]:
        """`packing.mixture` of the base without weights of a line's sources that are not among these."""
        names = [each.name for each in sources]
        return tuple(
            entry
            for entry in self.base.packing.mixture
            if (pattern := _source_pattern(entry)) is None
            or any(fnmatchcase(name, pattern) for name in names)
            or not any(fnmatchcase(f"{name}{end}", pattern) for name in SOURCES for end in ("", "-1"))
        )

    def sampling(self, source: str) -> float:
        """How often documents of a source are sampled in the mean over a training, by the weights and schedules of
        `packing.mixture` that name sources; weights of kinds are not counted."""
        found = [
            (len(pattern), entry)
            for entry in self.base.packing.mixture
            if (pattern := _source_pattern(entry)) is not None and fnmatchcase(source, pattern)
        ]
        if not found:
            return 1.0
        ((_, points),) = Mixture.parse([max(found)[1]]).weights
        return mean_weight((points,), 0.0, 1.0)

    def teacher_recipe(self, name: str, sources: tuple[CorpusSource, ...], tokenizer: Path) -> Recipe:
        """The recipe that trains the small model alone."""
        recipe = self.recipe(name, sources, tokenizer)
        small: TrainConfig = dataclasses.replace(recipe.small, keep_checkpoint_steps=())
        evals = dataclasses.replace(recipe.evals, transcripts_per_cell=0)
        runtime = dataclasses.replace(recipe.runtime, num_threads=self.threads)
        return dataclasses.replace(recipe, large=small, arms=("baseline",), evals=evals, runtime=runtime)


def _source_pattern(entry: str) -> str | None:
    """The pattern of names of sources that an entry of a mixture is for; None for one for kinds."""
    key = entry.rpartition("=")[0]
    return key.removeprefix("source:") if key.startswith("source:") else None
