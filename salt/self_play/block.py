"""One block of scenes of a family: proposed, answered, checked.

The model proposes in three ways. It chooses the question: of a few that a scene allows, one is sampled in proportion to
the entropy of the model's first answer token. It chooses the difficulty: levels are sampled in proportion to how often
it was right and unsure there before (with a count of one, so that no level dies out). And it writes the texts that it
reads back. The rule knows the answers, since the scenes are made from them. Everything is a function of (seed, family,
block, what the blocks before found), the weights and the source.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brine.data.document import Document, parse_document
from brine.salt.self_play.config import SelfPlayConfig
from brine.salt.self_play.families import FAMILIES, LEVELS, WRITING, Scene
from brine.salt.self_play.model_answers import ModelAnswers
from brine.salt.self_play.scene import SceneQuestion, matches_answer
from brine.salt.self_play.source_text import SourceText, seed_of
from brine.synth.config import SynthError
from brine.synth.plan import media_path
from brine.synth.render_worker import Renderer

CaseOutcome = Literal["unusable", "never", "uncertain", "certain"]


@dataclass(frozen=True)
class PlayedCase:
    """One case as it was played.

    outcome: "unusable" (the model wrote nothing that can be rendered), "never" right, "uncertain" (right, and to be
    learned) or "certain"; document: the training document where uncertain; random_question: one that chance asks of
    the same scene, which the collapse watch compares with what the model chose.
    """

    family: str
    level: int
    outcome: CaseOutcome
    question: str = ""
    answer: str = ""
    random_question: str = ""
    responses: tuple[str, ...] = ()
    num_right: int = 0
    confidence: float | None = None
    num_targets: int = 0
    document: Document | None = None

    def to_json(self) -> dict[str, Any]:
        """One line of a block."""
        fields = {name: value for name, value in vars(self).items() if name != "document"}
        return fields | {"document": None if self.document is None else self.document.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PlayedCase:
        """The inverse of `to_json`."""
        document = None if fields["document"] is None else parse_document(fields["document"])
        return cls(**{**fields, "responses": tuple(fields["responses"]), "document": document})


def level_weights(played: Sequence[PlayedCase]) -> dict[int, float]:
    """Level -> weight: the share of its cases that the model was right and unsure in, with one such case added."""
    cases = Counter(case.level for case in played if case.outcome != "unusable")
    useful = Counter(case.level for case in played if case.outcome == "uncertain")
    return {level: (useful[level] + 1) / (cases[level] + 1) for level in LEVELS}


def play_block(
    model: ModelAnswers, source: SourceText, renderer: Renderer, config: SelfPlayConfig, *, family: str, number: int,
    size: int, before: Sequence[PlayedCase],
) -> list[PlayedCase]:  # fmt: skip
    """Play block `number` of a family; before: the cases of its blocks before. Media are written by the renderer.

    Raises ValueError (SynthError) where the source or a library cannot make the family's scenes.
    """
    rng = random.Random(f"{config.seed}/{config.round_number}/{family}/{number}")
    weights = level_weights(before)
    levels = rng.choices(list(weights), list(weights.values()), k=size)
    scenes = _scenes(model, source, config, family, number, levels, rng)
    usable = [scene for scene in scenes if scene is not None]
    for scene in usable:
        for spec in scene.specs:
            if reason := renderer.render(media_path(spec), spec):
                raise SynthError(f"the {spec['type']} of a scene of {family} cannot be made: {reason}")
    asked = _choose_questions(model, usable, config, rng)
    prompts = [model.encode(scene.prompt(question)) for scene, question, _ in asked]
    targets = [scene.target(question) for scene, question, _ in asked]
    seed = seed_of("answers", config.seed, config.round_number, family, number)
    answers, scores = [], []
    if asked:
        answers = model.sample(prompts, num_answers=config.num_answers, max_tokens=config.max_tokens, seed=seed)
        scores = model.confidence(prompts, targets).tolist()
    model.forget()
    checked = [
        _check(*case, said, float(score), len(model.target_ids(target)), config)
        for case, said, score, target in zip(asked, answers, scores, targets, strict=True)
    ]
    unusable = (PlayedCase(family, level, "unusable") for level, scene in zip(levels, scenes, strict=True) if not scene)
    return [*checked, *unusable]


def _scenes(
    model: ModelAnswers, source: SourceText, config: SelfPlayConfig, family: str, number: int, levels: Sequence[int],
    rng: random.Random,
) -> list[Scene | None]:  # fmt: skip
    make, seeds = FAMILIES[family], [rng.getrandbits(63) for _ in levels]
    written = [""] * len(levels)
    if family in WRITING:
        # made twice: first to see what the model is to continue, then with what it wrote
        leads: list[str] = []

        def note(lead: str) -> str:
            leads.append(lead)
            return ""

        for level, seed in zip(levels, seeds, strict=True):
            make(random.Random(seed), level, source, note)
        seed = seed_of("written", config.seed, config.round_number, family, number)
        written = model.write(leads, max_tokens=config.max_tokens, seed=seed)
    scenes = []
    for level, seed, text in zip(levels, seeds, written, strict=True):

        def say(_lead: str, text: str = text) -> str:
            return text

        scenes.append(make(random.Random(seed), level, source, say))
    return scenes


def _choose_questions(
    model: ModelAnswers, scenes: Sequence[Scene], config: SelfPlayConfig, rng: random.Random
) -> list[tuple[Scene, SceneQuestion, SceneQuestion]]:
    """(scene, the model's question, one by chance) of each scene."""
    candidates = [
        rng.sample(scene.questions, min(len(scene.questions), config.num_candidates)) for scene in scenes
    ]  # fmt: skip
    several = [
        model.encode(scene.prompt(one))
        for scene, some in zip(scenes, candidates, strict=True) if len(some) > 1 for one in some
    ]  # fmt: skip
    entropy = iter(model.entropy(several).tolist() if several else ())
    asked = []
    for scene, some in zip(scenes, candidates, strict=True):
        # a model that is sure of everything still asks something
        weights = [next(entropy) + 1e-3 for _ in some] if len(some) > 1 else [1.0]
        chosen = rng.choices(some, weights)[0]
        asked.append((scene, chosen, some[0]))
    return asked


def _check(
    scene: Scene, question: SceneQuestion, random_question: SceneQuestion, responses: Sequence[str], confidence: float,
    num_targets: int, config: SelfPlayConfig,
) -> PlayedCase:  # fmt: skip
    """The rule: right answers are counted, and what is right and not certain becomes a document."""
    num_right = sum(matches_answer(response, question) for response in responses)
    agrees = num_right >= config.certain_agreement * len(responses)
    outcome: CaseOutcome = "uncertain"
    if not num_right or confidence != confidence:
        outcome = "never"
    elif agrees and confidence >= config.certain_confidence:
        outcome = "certain"
    said = f"{question.text.strip()} {question.answer}".strip()
    other = f"{random_question.text.strip()} {random_question.answer}".strip()
    return PlayedCase(
        scene.family, scene.level, outcome, said, question.answer, other, tuple(responses), num_right,
        None if confidence != confidence else round(confidence, 6), num_targets,
        scene.document(question, name="self-play") if outcome == "uncertain" else None,
    )  # fmt: skip
