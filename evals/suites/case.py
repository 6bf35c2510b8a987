"""One case of a suite: content parts whose media are files named by their SHA-256, and what is asked besides the loss.

    id      SHA-256 of the content: text with its loss_mask, the hashes of media, the questions of a needle case
    part    by the id alone (`part_of_id`): a case is in the same part of every suite, whatever else is there
    rank    by the id and the suite's seed (`rank_of_id`): the lowest of a cell and part are chosen

Path, id, split, source, kind and level of the document that it came from do not enter, so equal content is one case.
A line of cases.jsonl is a document of the native form (`brine.data.document`) with these fields and, where they apply,
`transcription` and `needle`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brine.data.document import MODALITIES, Document, DocumentError, Part, Text, Video, modality_of, parse_document

PARTS = ("dev", "test", "gate")
"""dev: to choose by; test: shown beside it; gate: asked by the registry alone."""
MEDIA_PATH = re.compile(r"media/(?P<sha256>[0-9a-f]{64})(?:\.[a-z0-9]{1,5})?")
"""Path of a media file in a suite's folder; nothing else is ever opened."""
HEX_DIGITS = 64


@dataclass(frozen=True)
class SuiteTranscription:
    """The text that follows a case's single image, audio or video. reference: all target text after it."""

    modality: str
    reference: str


@dataclass(frozen=True)
class SuiteQuestion:
    """A question to the whole context of a needle case, and its exact answer. depth: of the needle, 0 to 1."""

    question: str
    answer: str
    depth: float


@dataclass(frozen=True)
class SuiteNeedles:
    """What makes a case a context with needles. length: its tokens as bytes and default patches; modality: the task."""

    length: int
    modality: str
    questions: tuple[SuiteQuestion, ...]


@dataclass(frozen=True)
class SuiteCase:
    """One case. parts: content, media by `MEDIA_PATH`; kind, level: the cell that it was chosen for."""

    id: str
    part: str
    kind: str
    level: int
    parts: tuple[Part, ...]
    transcription: SuiteTranscription | None = None
    needles: SuiteNeedles | None = None

    def document(self) -> Document:
        """The case as a held-out document."""
        return Document(self.id, self.parts, self.kind, self.level, "test")

    def to_json(self) -> dict[str, Any]:
        """A line of cases.jsonl; `parse_case` is its inverse."""
        line = {"part": self.part, **self.document().to_json()}
        del line["source"]
        if self.transcription is not None:
            line["transcription"] = vars(self.transcription)
        if self.needles is not None:
            questions = [vars(question) for question in self.needles.questions]
            line["needle"] = {**vars(self.needles), "questions": questions}
        return line


def media_sha256(path: str) -> str:
    """The SHA-256 in the name of a suite's media file. Raises ValueError for any other path."""
    if (match := MEDIA_PATH.fullmatch(path)) is None:
        raise ValueError(f"media path {path[:120]!r} is not media/<SHA-256>.<extension>")
    return match["sha256"]


def content_id(parts: tuple[Part, ...], questions: tuple[SuiteQuestion, ...] = ()) -> str:
    """SHA-256 of a content whose media have paths in a suite, 64 hexadecimal digits."""
    content: list[list[Any]] = []
    for part in parts:
        if isinstance(part, Text):
            content.append(["text", part.text, part.loss_mask])
        else:
            audio = [part.use_audio] if isinstance(part, Video) else []
            content.append([modality_of(part), media_sha256(part.path), *audio])
    content += [["question", each.question, each.answer] for each in questions]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def part_of_id(name: str) -> str:
    """The part of a case: a third of all ids each, by a hash of the id, whatever the suite and its seed."""
    return PARTS[int.from_bytes(hashlib.sha256(f"part/{name}".encode()).digest()[:8], "big") % len(PARTS)]


def rank_of_id(name: str, seed: int) -> str:
    """The keyed hash that cases of a cell are ordered by, 64 hexadecimal digits."""
    return hashlib.sha256(f"rank/{seed}/{name}".encode()).hexdigest()


def transcription_in(parts: tuple[Part, ...]) -> SuiteTranscription | None:
    """The transcription of a content whose target text follows a single media part, with no media behind it."""
    targets = [number for number, part in enumerate(parts) if isinstance(part, Text) and part.loss_mask and part.text]
    media = [number for number, part in enumerate(parts) if not isinstance(part, Text)]
    if len(media) != 1 or not (after := [number for number in targets if number > media[0]]):
        return None
    reference = ""
    for part in parts[after[0] :]:
        if not (isinstance(part, Text) and part.loss_mask):
            break
        reference += part.text
    return SuiteTranscription(modality_of(parts[media[0]]), reference)


def parse_case(line: Mapping[str, Any]) -> SuiteCase:
    """A case from a line of cases.jsonl. Raises ValueError for a wrong field, a media path that is not in the suite,
    and an id or part that is not its content's."""
    try:
        document = parse_document({**line, "split": "test"})
    except DocumentError as error:
        raise ValueError(str(error)) from None
    questions, needles, transcription = (), None, None
    if (said := line.get("needle")) is not None:
        _require(said, {"length": int, "modality": str, "questions": list}, "needle")
        for question in said["questions"]:
            _require(question, {"question": str, "answer": str, "depth": float}, "a question")
        questions = tuple(SuiteQuestion(each["question"], each["answer"], each["depth"]) for each in said["questions"])
        needles = SuiteNeedles(said["length"], said["modality"], questions)
    if (said := line.get("transcription")) is not None:
        _require(said, {"modality": str, "reference": str}, "transcription")
        if said["modality"] not in MODALITIES:
            raise ValueError(f"transcription of {said['modality'][:40]!r}, which is none of {', '.join(MODALITIES)}")
        transcription = SuiteTranscription(said["modality"], said["reference"])
    if document.id != content_id(document.parts, questions):
        raise ValueError(f"its id {document.id[:80]!r} is not the hash of its content")
    part = line.get("part")
    if part != part_of_id(document.id):
        raise ValueError(f"it stands in the part {part!r}, but its id says {part_of_id(document.id)}")
    return SuiteCase(document.id, part, document.kind, document.level, document.parts, transcription, needles)


def _require(value: Any, fields: Mapping[str, type], what: str) -> None:
    if not isinstance(value, dict) or {name: type(item) for name, item in value.items()} != dict(fields):
        raise ValueError(f"{what} must be an object of {', '.join(f'{n} ({t.__name__})' for n, t in fields.items())}")
