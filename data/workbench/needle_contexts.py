"""Long contexts for evaluation: a haystack of an exact length, needles at known depths, and a question for each.

    haystack   source code of the standard library from one place on, between its lines media without a needle for those
               modalities that have any; or (`multikey`) nothing but needles of text, whose keys all look alike
    needles    `num_needles` in each context, one in each equal part of it, at a random place of that part
    questions  one for each needle, each asked of the bare context: no question sees another, nor its answer

Several needles in one context are each other's distractors (RULER's multi-key; `num_needles=1` is the single
needle), and a context is read once for all its questions, which is what makes 500 trials at 32,768 tokens bearable.
Trials of one context are not independent: intervals resample contexts.

Lengths are exact: context and question together have `num_tokens` tokens (questions that a tokenizer cuts shorter
than others have fewer). Keys that happen to stand in the source are not drawn, so no answer can be read anywhere
else. A context is a function of (seed, number, modality, length) and the tokenizer. Media are rendered once into a
temporary folder and kept decoded: a thousand contexts share some hundreds of media.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from data.config import EncodeConfig
from data.decode import Decoded, decode_part
from data.document import Audio, Image, Video
from data.encode import assemble_runs
from data.sequence import Sequence
from data.tokenizer import Tokenizer
from data.workbench import needle
from data.workbench.config import WorkbenchError
from data.workbench.plan import media_path
from data.workbench.source import SourceFile
from data.workbench.worker import Renderer

MULTIKEY = "multikey"
"""The task whose haystack is needles of text."""
TASKS = (*needle.MODALITIES, MULTIKEY)
"""What can be asked for: a modality, with source code as its haystack, or MULTIKEY."""
LIBRARIES = {
    "image": ("pygments",),
    "audio": ("espeakng_loader", "av", "soundfile"),
    "video": ("pygments", "av", "soundfile"),
    "chain": ("pygments", "espeakng_loader", "av", "soundfile"),
}
"""What a task imports besides what text takes."""
NUM_DISTRACTORS = 120
"""Media without a needle that are made of each modality."""
FILMS_PER_VALUE = 3
"""Films that are made for each value."""
MEDIA_SHARE = 0.3
"""How often a stretch of the haystack is a medium instead of a line."""

Run = list[int] | tuple[str, Decoded]


@dataclass(frozen=True)
class Question:
    """One trial."""

    prompt: Sequence
    """The question, placed to follow its context."""
    answer: str
    """What to say, up to the line end."""
    depth: float
    """Where the needle begins, 0 (first token) to 1 (last before the question); for a chain its first piece."""
    key: str
    """The key asked for."""


@dataclass(frozen=True)
class Context:
    """A haystack with its needles, and its questions in the order of their needles' depths."""

    sequence: Sequence
    questions: tuple[Question, ...]


def check_libraries(tasks: Iterable[str]) -> None:
    """Raises WorkbenchError where something is not installed that makes the media of these tasks, or reads them."""
    missing: dict[str, list[str]] = {}
    for task in tasks:
        for name in LIBRARIES.get(task, ()):
            if find_spec(name) is None:
                missing.setdefault(name, []).append(task)
    if missing:
        idle = sorted({task for tasks in missing.values() for task in tasks}, key=TASKS.index)
        raise WorkbenchError(
            f"needles of {', '.join(idle)} take {', '.join(missing)}, not installed here: run `uv sync --group corpus` "
            f"or leave out {'these modalities' if len(idle) > 1 else 'this modality'}"
        )


class Contexts:
    """Makes contexts for one tokenizer and encoder. Close it, or leave its `with` block, to drop its media."""

    def __init__(self, files: list[SourceFile], *, tokenizer: Tokenizer, config: EncodeConfig, seed: int = 0):
        """files: the source; raises ValueError when it holds no line."""
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        texts = [item.text for item in files]
        self.lines = [f"{line}\n" for text in texts for line in text.split("\n") if line.strip()]
        if not self.lines:
            raise ValueError("the source has no line to make a haystack of: give a folder with code")
        self.words = needle.haystack_words(texts) or ["word"]
        # a key that the source spells could be answered by what follows it there
        self.spelt = {word[at : at + 3] for text in texts for word in re.findall("[A-Z]{3,}", text)
                      for at in range(len(word) - 2)}  # fmt: skip
        self.folder = tempfile.TemporaryDirectory(prefix="needles-")
        self.root = Path(self.folder.name).resolve()
        (self.root / ".partial").mkdir()
        self.renderer = Renderer(self.root, utterance_timeout_s=20.0)
        self.decoded: dict[str, Decoded] = {}
        self.ids: dict[str, list[int]] = {}
        self.pools: dict[tuple[str, str], list[dict]] = {}

    def __enter__(self) -> Contexts:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the speaker and removes the media files."""
        self.renderer.close()
        self.folder.cleanup()

    def make(self, task: str, *, num_tokens: int, number: int, num_needles: int = 10) -> Context:
        """Context `number` of a task at a length.

        Raises ValueError for an unknown task, and for a length into which the needles and a question do not fit.
        """
        if task not in TASKS:
            raise ValueError(f"unknown modality {task!r}: choose from {', '.join(TASKS)}")
        if num_needles < 1:
            raise ValueError(f"num_needles = {num_needles}: a context needs at least one needle")
        rng = random.Random(f"needle/{self.seed}/{task}/{num_tokens}/{num_needles}/{number}")
        modality = "text" if task == MULTIKEY else task
        taken = set(self.spelt)
        needles = [needle.draw_needle(modality, rng, taken=taken) for _ in range(num_needles)]
        # a chain's second piece stands anywhere, and is part of the same budget
        first = [[self._run(part, fact.value) for part in fact.pieces[0]] for fact in needles]
        rest = [[self._run(part, fact.value) for part in piece] for fact in needles for piece in fact.pieces[1:]]
        asked = [self.tokenizer.encode(needle.question(fact.key)) for fact in needles]
        room = num_tokens - max(map(len, asked)) - sum(_length(runs) for runs in [*first, *rest])
        if room < 0:
            raise ValueError(
                f"{num_needles} needles of {task} and a question take {num_tokens - room} tokens and do not fit into "
                f"{num_tokens}: ask for longer contexts, or fewer needles in each"
            )
        hay = self._needle_hay(room, rng, taken) if task == MULTIKEY else self._source_hay(modality, room, rng)
        places = [(number + rng.random()) / num_needles for number in range(num_needles)]
        stretches = [*zip(places, first, range(num_needles), strict=True), *((rng.random(), runs, -1) for runs in rest)]
        runs, starts = _interleave(hay, sorted(stretches, key=lambda item: item[0]), room)
        sequence = assemble_runs(runs, self.config)
        place = float(sequence.position[-1].max()) + 1
        questions = tuple(
            Question(
                assemble_runs([ids], self.config, place=place), fact.answer, starts[index] / len(sequence), fact.key
            )
            for index, (fact, ids) in enumerate(zip(needles, asked, strict=True))
        )
        return Context(sequence, questions)

    def _source_hay(self, modality: str, num_tokens: int, rng: random.Random) -> list[list[Run]]:
        """Stretches of a haystack, together exactly `num_tokens`: lines from one place on, and media."""
        stretches: list[list[Run]] = []
        at = rng.randrange(len(self.lines))
        while num_tokens > 0:
            recipe = needle.distractor(modality, self.words, rng) if rng.random() < MEDIA_SHARE else None
            if recipe is not None:
                run = self._medium(self._pooled(recipe, "", NUM_DISTRACTORS, rng))
                if _length([run]) <= num_tokens:
                    stretches.append([run])
                    num_tokens -= _length([run])
                    continue
            ids = self._encode(self.lines[at % len(self.lines)])[:num_tokens]
            at += 1
            stretches.append([ids])
            num_tokens -= len(ids)
        return stretches

    def _needle_hay(self, num_tokens: int, rng: random.Random, taken: set[str]) -> list[list[Run]]:
        """Needles of text that nobody asks for, the last one cut so that all are exactly `num_tokens`."""
        stretches: list[list[Run]] = []
        while num_tokens > 0:
            fact = needle.draw_needle("text", rng, taken=taken)
            ids = self.tokenizer.encode(fact.pieces[0][0])[:num_tokens]
            stretches.append([ids])
            num_tokens -= len(ids)
        return stretches

    def _run(self, part: dict | str, value: str) -> Run:
        if isinstance(part, str):
            return self.tokenizer.encode(part)
        if part["type"] == "video":
            part = self._pooled(part, value, FILMS_PER_VALUE, random.Random(f"{self.seed}/{json.dumps(part)}"))
        return self._medium(part)

    def _pooled(self, recipe: dict, shown: str, most: int, rng: random.Random) -> dict:
        """A recipe of a bounded pool, made from the seed alone, so that no context depends on another."""
        pool = self.pools.setdefault((recipe["type"], shown), [])
        if not pool:
            own = random.Random(f"pool/{self.seed}/{recipe['type']}/{shown}")
            pool += [
                needle.recipe_of(recipe["type"], shown, own)
                if shown
                else needle.distractor(recipe["type"], self.words, own)
                for _ in range(most)
            ]
        return rng.choice(pool)

    def _encode(self, line: str) -> list[int]:
        if line not in self.ids:
            self.ids[line] = self.tokenizer.encode(line)
        return self.ids[line]

    def _medium(self, recipe: dict) -> tuple[str, Decoded]:
        """A medium as the encoder takes it. Raises WorkbenchError when it cannot be rendered."""
        path, kind = media_path(recipe), recipe["type"]
        if path not in self.decoded:
            reason = self.renderer.render(path, recipe)
            if reason is not None:
                raise WorkbenchError(f"a {kind} for the haystack cannot be made: {reason}")
            part = {"image": Image, "audio": Audio, "video": Video}[kind](path)
            self.decoded[path] = decode_part(part, self.root, self.config)
        return kind, self.decoded[path]


def _length(runs: list[Run]) -> int:
    """Tokens of runs, with the tokens that open and close each medium."""
    total = 0
    for run in runs:
        if isinstance(run, list):
            total += len(run)
        elif run[0] == "audio":
            total += 2 + len(run[1].tokens)
        else:
            total += 2 + len(run[1].patches)
    return total


def _interleave(
    hay: list[list[Run]], stretches: list[tuple[float, list[Run], int]], room: int
) -> tuple[list[Run], dict[int, int]]:
    """Runs of haystack and needles, each needle at the boundary nearest to its place; and where each one begins.

    stretches: (place 0 to 1, runs, index of the needle or -1), ascending.
    """
    runs: list[Run] = []
    starts: dict[int, int] = {}
    used = placed = 0
    waiting: Iterator = iter([*stretches, (2.0, [], -1)])
    place, inserted, index = next(waiting)
    for stretch in [*hay, []]:
        # the nearer boundary of the stretch that holds the place; all that is left stands at the end
        while place <= 1 and (place * room <= used + _length(stretch) / 2 or not stretch):
            if index >= 0:
                starts[index] = used + placed
            runs += inserted
            placed += _length(inserted)
            place, inserted, index = next(waiting)
        runs += stretch
        used += _length(stretch)
    return runs, starts
