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
from dataclasses import dataclass, field
from pathlib import Path

from brine.data.formats.corpus_source import CorpusSource
from brine.pipeline.recipe import Recipe
from brine.salt.audit import AuditConfig
from brine.salt.collapse import CollapseConfig
from brine.salt.pseudo_label import PseudoLabelConfig
from brine.salt.self_play.config import SelfPlayConfig
from brine.training.config import TrainConfig

WORDS, FEEDBACK, PSEUDO, SELF_PLAY = "words", "feedback", "pseudo", "self-play"
"""Sources of a round: of people, of users, and of models."""


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
    """Documents of users who agreed to training, read anew in each round."""
    consent: str = "own"
    """Consent class of `words` (`brine.data.formats.corpus_source`)."""
    suite: str | None = None
    """Suite that rounds are compared on; None: one is made of the held-out documents of `words`, without a gate."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each round's trainings."""
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
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: give each seed of a round once")
        if not 0 <= self.pseudo_share < 1:
            raise ValueError(f"pseudo_share = {self.pseudo_share} must lie in [0, 1)")
        if self.patience < 1 or self.threads < 1:
            raise ValueError(f"patience = {self.patience}, threads = {self.threads}: give at least 1")
        if self.registry is not None and self.suite is None:
            raise ValueError("a registry's gate is asked on a suite: give suite as well, or no registry")
        if self.registry is not None and len(self.seeds) < 3:
            raise ValueError(f"seeds = {self.seeds}: a gate needs at least 3")
        if self.base.corpus.manifest is not None or self.base.corpus.sources:
            raise ValueError("the base recipe of a line names documents: give them as words, unlabelled and feedback")

    def recipe(self, name: str, sources: tuple[CorpusSource, ...], tokenizer: Path) -> Recipe:
        """The recipe of a training on these sources."""
        corpus = dataclasses.replace(self.base.corpus, source=None, sources=sources, tokenizer=str(tokenizer))
        return dataclasses.replace(self.base, name=name, corpus=corpus)

    def teacher_recipe(self, name: str, sources: tuple[CorpusSource, ...], tokenizer: Path) -> Recipe:
        """The recipe that trains the small model alone."""
        recipe = self.recipe(name, sources, tokenizer)
        small: TrainConfig = dataclasses.replace(recipe.small, keep_checkpoint_steps=())
        evals = dataclasses.replace(recipe.evals, transcripts_per_cell=0)
        runtime = dataclasses.replace(recipe.runtime, num_threads=self.threads)
        return dataclasses.replace(recipe, large=small, arms=("baseline",), evals=evals, runtime=runtime)
