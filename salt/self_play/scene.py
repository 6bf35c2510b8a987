"""A scene: a context, the questions that may be asked about it with their right answers, and the rule that checks.

Right means equal after normalisation, and nothing else: no number is parsed, no case folded, no prefix accepted. What
`normalise_answer` removes are the differences that a form may have and a fact cannot: composition of characters (NFC),
what stands behind the first line end, and white space at the ends; runs of blanks count as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from brine.data.document import Audio, Document, Image, Part, Text, Video
from brine.synth.plan import media_path

ContextPart = str | dict
"""Text, or the render spec of media (`brine.synth`)."""
MEDIA_PARTS = {"image": Image, "audio": Audio, "video": Video}


@dataclass(frozen=True)
class SceneQuestion:
    """A question and the right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """What may be asked about one context.

    lead and end: text of the target before and behind the answer; an empty end means that the document ends there.
    Raises ValueError for a scene without a question, or two answers to one.
    """

    family: str
    level: int
    context: tuple[ContextPart, ...]
    questions: tuple[SceneQuestion, ...]
    lead: str = ""
    end: str = "\n"

    def __post_init__(self):
        if not self.questions:
            raise ValueError(f"a scene of {self.family} asks nothing")
        if len({question.text for question in self.questions}) < len(self.questions):
            raise ValueError(f"a scene of {self.family} asks one question twice")
        for question in self.questions:
            if normalise_answer(question.answer) != question.answer or not question.answer:
                raise ValueError(f"{self.family}: the answer {question.answer!r} is not in its normal form")

    def prompt(self, question: SceneQuestion) -> tuple[Part, ...]:
        """The parts before the answer, none a target; neighbouring texts are one."""
        return tuple(merge_parts((*self.context, question.text)))

    def target(self, question: SceneQuestion) -> str:
        """The text to learn."""
        return f"{self.lead}{question.answer}{self.end}"

    def document(self, question: SceneQuestion, *, name: str) -> Document:
        """The training document of a question; media as the paths that their specs have (`media_path`)."""
        parts = (*self.prompt(question), Text(self.target(question)))
        return Document(name, parts, f"self-play-{self.family}", self.level, "train", "self-play")

    @property
    def specs(self) -> list[dict]:
        """The media to be rendered."""
        return [part for part in self.context if isinstance(part, dict)]


def normalise_answer(text: str) -> str:
    """The form in which answers are compared."""
    line = unicodedata.normalize("NFC", text).split("\n", 1)[0]
    return re.sub(r"[ \t\r]+", " ", line).strip(" ")


def matches_answer(response: str, question: SceneQuestion) -> bool:
    """Whether a response is the answer."""
    return normalise_answer(response) == question.answer


def merge_parts(parts: Iterable[ContextPart]) -> list[Part]:
    """Document parts without loss: texts joined, empty ones dropped, specs as media."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, dict):
            found.append(MEDIA_PARTS[part["type"]](media_path(part)))
        elif part and found and isinstance(found[-1], Text):
            found[-1] = Text(found[-1].text + part, loss_mask=False)
        elif part:
            found.append(Text(part, loss_mask=False))
    return found


def distinct_questions(questions: Sequence[SceneQuestion]) -> tuple[SceneQuestion, ...]:
    """Questions whose text comes once; of one with several answers nothing is kept."""
    answers: dict[str, set[str]] = {}
    for question in questions:
        answers.setdefault(question.text, set()).add(question.answer)
    clear = {question.text: question for question in questions if len(answers[question.text]) == 1}
    return tuple(clear.values())
