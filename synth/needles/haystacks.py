"""Long contexts for evaluation: a haystack of an exact length, needles at known depths, and a question for each.

The haystack is source code from one position on, with media without a needle, or (`multikey`) nothing but needles of
text; one needle stands in each equal part of it. Context and longest question have exactly `num_tokens` tokens. Each
question is asked of the bare context, which is read once for all: 500 trials at 32,768 tokens are affordable, and not
independent, so intervals resample contexts. Keys that occur in the source are not sampled. A context is a function of
(seed, number, modality, length) and the tokenizer.
"""

import json
import random
import re
import tempfile
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from brine.data.config import EncodeConfig
from brine.data.document import Audio, Image, Video
from brine.data.encode import assemble_chunks
from brine.data.files.source_files import SourceFile
from brine.data.media.decode import Decoded, decode_part
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import Tokenizer
from brine.synth.config import INSTALL, SynthError
from brine.synth.needles import needle
from brine.synth.plan import first_names, media_path
from brine.synth.render_worker import Renderer

MULTIKEY = "multikey"
"""The task whose haystack is needles of text."""
TASKS = (*needle.NEEDLE_MODALITIES, MULTIKEY)
_SPEECH = ("espeakng_loader", "av", "soundfile")
LIBRARIES = {"image": ("pygments",), "audio": _SPEECH, "video": ("pygments", "av", "soundfile")}
LIBRARIES["chain"] = ("pygments", *_SPEECH)
"""What a task imports besides what text takes."""
NUM_DISTRACTORS = 120
VIDEOS_PER_VALUE = 3
MEDIA_FRACTION = 0.3
"""How often a chunk of the haystack is media instead of a line."""

TokensOrMedia = list[int] | tuple[str, Decoded]


@dataclass(frozen=True)
class NeedleQuestion:
    """One trial: the question, positioned to follow its context, what to say up to the line end, and the key.

    depth: where the needle begins, 0 (first token) to 1 (last before the question); for a chain its first statement.
    """

    prompt: EncodedDocument
    answer: str
    depth: float
    key: str


@dataclass(frozen=True)
class Haystack:
    """A haystack with its needles, and its questions in the order of their needles' depths."""

    sequence: EncodedDocument
    questions: tuple[NeedleQuestion, ...]


def check_dependencies(tasks: Iterable[str]) -> None:
    """Raises SynthError where a library that the media of these tasks need is missing."""
    missing = {task: [name for name in LIBRARIES.get(task, ()) if find_spec(name) is None] for task in tasks}
    idle = sorted((task for task in missing if missing[task]), key=TASKS.index)
    if idle:
        names = dict.fromkeys(name for task in missing for name in missing[task])
        raise SynthError(
            f"needles of {', '.join(idle)} take {', '.join(names)}, not installed here: {INSTALL} "
            f"or leave out {'these modalities' if len(idle) > 1 else 'this modality'}"
        )


class HaystackBuilder(AbstractContextManager):
    """Makes contexts for one tokenizer and encoder. Leave its `with` block to delete its media."""

    def __init__(self, files: list[SourceFile], *, tokenizer: Tokenizer, config: EncodeConfig, seed: int = 0):
        """files: the source; raises ValueError when it holds no line."""
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        texts = [item.text for item in files]
        self.lines = [f"{line}\n" for text in texts for line in text.split("\n") if line.strip()]
        if not self.lines:
            raise ValueError("the source has no lines for a haystack: give a folder with code")
        self.words = needle.haystack_words(texts) or ["word"]
        # a key that the source spells could be answered by what follows it there
        words = (word for text in texts for word in re.findall("[A-Z]{3,}", text))
        self.keys_in_source = {word[at : at + 3] for word in words for at in range(len(word) - 2)}
        self.folder = tempfile.TemporaryDirectory(prefix="needles-")
        self.root = Path(self.folder.name).resolve()
        (self.root / ".partial").mkdir()
        self.renderer = Renderer(self.root, utterance_timeout_s=20.0)
        self.decoded: dict[str, Decoded] = {}
        self._encode = cache(tokenizer.encode)
        self.pools: dict[tuple[str, str], list[dict]] = {}

    def __exit__(self, *_exc: object) -> None:
        self.renderer.close()
        self.folder.cleanup()

    def make(self, task: str, *, num_tokens: int, number: int, num_needles: int = 10) -> Haystack:
        """Haystack `number` of a task. Raises ValueError for an unknown task, and where the needles do not fit."""
        joined, needles, starts = self.chunks(task, num_tokens=num_tokens, number=number, num_needles=num_needles)
        sequence = assemble_chunks(joined, self.config)
        position = float(sequence.position[-1].max()) + 1
        questions = []
        for index, fact in enumerate(needles):
            ids = self.tokenizer.encode(needle.question(fact.key))
            prompt = assemble_chunks([ids], self.config, position_offset=position)
            questions.append(NeedleQuestion(prompt, fact.answer, starts[index] / len(sequence), fact.key))
        return Haystack(sequence, tuple(questions))

    def chunks(
        self, task: str, *, num_tokens: int, number: int, num_needles: int = 10
    ) -> tuple[list[TokensOrMedia], list[needle.Needle], dict[int, int]]:
        """The chunks of a haystack, its needles, and the token at which each begins. Raises as `make` does."""
        if task not in TASKS:
            raise ValueError(f"unknown modality {task!r}: choose from {', '.join(TASKS)}")
        if num_needles < 1:
            raise ValueError(f"num_needles = {num_needles}: a context needs at least one needle")
        rng = random.Random(f"needle/{self.seed}/{task}/{num_tokens}/{num_needles}/{number}")
        modality = "text" if task == MULTIKEY else task
        taken = set(self.keys_in_source)
        needles = [needle.draw_needle(modality, rng, taken=taken) for _ in range(num_needles)]
        chunks = [[[self._chunk(part, fact.value) for part in said] for said in fact.statements] for fact in needles]
        # a chain's second statement stands anywhere, and is part of the same budget
        first, rest = [one[0] for one in chunks], [said for one in chunks for said in one[1:]]
        question_ids = [self.tokenizer.encode(needle.question(fact.key)) for fact in needles]
        budget = num_tokens - max(map(len, question_ids)) - sum(map(_length, [*first, *rest]))
        if budget < 0:
            raise ValueError(
                f"{num_needles} needles of {task} and a question take {num_tokens - budget} tokens and do not fit into "
                f"{num_tokens}: ask for longer contexts, or fewer needles in each"
            )
        haystack = self._haystack(task, budget, rng, taken)
        depths = [(index + rng.random()) / num_needles for index in range(num_needles)]
        placed = [*zip(depths, first, range(num_needles), strict=True), *((rng.random(), said, -1) for said in rest)]
        joined, starts = _interleave(haystack, sorted(placed, key=lambda item: item[0]), budget)
        return joined, needles, starts

    def _haystack(self, task: str, num_tokens: int, rng: random.Random, taken: set[str]) -> list[TokensOrMedia]:
        """Lines from one position on, and media; for MULTIKEY needles that nobody asks for. The last line is cut."""
        haystack: list[TokensOrMedia] = []
        at = rng.randrange(len(self.lines)) if task != MULTIKEY else -1
        while num_tokens > 0:
            chunk: TokensOrMedia | None = None
            if task == MULTIKEY:
                fact = needle.draw_needle("text", rng, taken=taken)
                chunk = self.tokenizer.encode(fact.statements[0][0])[:num_tokens]
            elif rng.random() < MEDIA_FRACTION and (spec := needle.distractor(task, self.words, rng)) is not None:
                chunk = self._media(self._pooled(spec, "", NUM_DISTRACTORS, rng))
            if chunk is None or _length([chunk]) > num_tokens:
                chunk = self._encode(self.lines[at % len(self.lines)])[:num_tokens]
                at += 1
            haystack.append(chunk)
            num_tokens -= _length([chunk])
        return haystack

    def _chunk(self, part: dict | str, value: str) -> TokensOrMedia:
        if isinstance(part, str):
            return self.tokenizer.encode(part)
        if part["type"] == "video":
            rng = random.Random(f"{self.seed}/{json.dumps(first_names(part))}")
            part = self._pooled(part, value, VIDEOS_PER_VALUE, rng)
        return self._media(part)

    def _pooled(self, spec: dict, payload: str, most: int, rng: random.Random) -> dict:
        """A spec of a bounded pool, made from the seed alone, so that no context depends on another."""
        kind = spec["type"]
        if (kind, payload) not in self.pools:
            own = random.Random(f"pool/{self.seed}/{kind}/{payload}")
            self.pools[kind, payload] = [
                needle.media_spec(kind, payload, own) if payload else needle.distractor(kind, self.words, own)
                for _ in range(most)
            ]
        return rng.choice(self.pools[kind, payload])

    def _media(self, spec: dict) -> tuple[str, Decoded]:
        path, kind = media_path(spec), spec["type"]
        if path not in self.decoded:
            if reason := self.renderer.render(path, spec):
                raise SynthError(f"the {kind} for a haystack cannot be made: {reason}")
            part = {"image": Image, "audio": Audio, "video": Video}[kind](path)
            self.decoded[path] = decode_part(part, self.root, self.config)
        return kind, self.decoded[path]


def _length(chunks: list[TokensOrMedia]) -> int:
    return sum(
        len(chunk) if isinstance(chunk, list) else 2 + len(chunk[1].tokens if chunk[0] == "audio" else chunk[1].patches)
        for chunk in chunks
    )


def _interleave(
    haystack: list[TokensOrMedia], placed: list[tuple[float, list[TokensOrMedia], int]], num_tokens: int
) -> tuple[list[TokensOrMedia], dict[int, int]]:
    """Context and statements, each at the boundary nearest to its position, and where each needle begins.

    placed: (position 0 to 1, chunks, index of the needle or -1), ascending. num_tokens: of the haystack.
    """
    lengths = [_length([chunk]) for chunk in haystack]
    edges = list(accumulate(lengths, initial=0))
    middles = [edge + length / 2 for edge, length in zip(edges[:-1], lengths, strict=True)]
    joined: list[TokensOrMedia] = []
    starts: dict[int, int] = {}
    done = inserted = 0
    for position, statement, index in placed:
        at = bisect_left(middles, position * num_tokens)
        joined += [*haystack[done:at], *statement]
        if index >= 0:
            starts[index] = edges[at] + inserted
        done, inserted = at, inserted + _length(statement)
    return [*joined, *haystack[done:]], starts
