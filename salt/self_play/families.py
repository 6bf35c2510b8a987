"""Families of scenes whose answers are known by construction; levels 1 to 3 are longer and more crowded.

    needle          keys and values among lines of code, as text           ?QKR           47
    needle_image    the same, each value drawn                             ?QKR           47
    definition      heads of definitions under the paths of their files    from .x import  Name
    table           a table as CSV, numbers drawn at random                lines of key?  35
    table_image     the same as an image                                   lines of key?  35
    read_image      a line that the model wrote, drawn                                    the line
    read_audio      words that the model wrote, spoken                                    the words

Forms are those of `brine.synth` and of `brine.evals.repository`, so that a model that was trained on the synthetic
corpus knows them. A scene holds no second answer to a question: keys are not those that the lines spell, names are
defined in one file, labels come once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import PurePosixPath

from brine.salt.self_play.scene import ContextPart, Scene, SceneQuestion, distinct_questions
from brine.salt.self_play.source_text import SourceText, keys_spelled
from brine.synth.config import INSTALL, SynthError
from brine.synth.kinds.data_tables import DataTable, ask_table
from brine.synth.needles.haystacks import LIBRARIES
from brine.synth.needles.needle import audio_spec, draw_needle, image_spec, question

LEVELS = (1, 2, 3)
NEEDLES = {1: (2, 4), 2: (4, 12), 3: (8, 32)}
"""Level -> needles and lines of code of a scene."""
DEFINITIONS = {1: (2, 0), 2: (4, 2), 3: (8, 4)}
"""Level -> files, and lines behind the head of each definition."""
TABLES = {1: ((2, 3), 1, 100), 2: ((3, 5), 2, 1000), 3: ((5, 8), 3, 10_000)}
"""Level -> rows, columns, and the bound of the numbers."""
TEXT_CHARS = {1: (4, 12), 2: (8, 24), 3: (16, 40)}
"""Level -> characters of a line that the model writes for itself, at least and at most."""
SPOKEN_WORDS = {1: 1, 2: 2, 3: 3}
"""Level -> most words of an utterance that the model writes for itself."""
LEVEL1_LOOK = {"style": "bw", "size": 13, "left": 0, "top": 0, "leading": -1}

WriteFn = Callable[[str], str]
"""The model continues a lead up to the end of the line -> the continuation."""


def needle_scene(rng: random.Random, level: int, source: SourceText, *, image: bool = False) -> Scene:
    """Needles between lines of code; any key may be asked for."""
    num_needles, num_lines = NEEDLES[level]
    first = rng.randrange(len(source.lines))
    lines = [source.lines[(first + n) % len(source.lines)] for n in range(num_lines)]
    taken = keys_spelled(lines)
    needles = [draw_needle("image" if image else "text", rng, taken=taken) for _ in range(num_needles)]
    parts: list[tuple[ContextPart, ...]] = [(f"{line}\n",) for line in lines]
    for fact in needles:
        (statement,) = fact.statements
        parts.insert(rng.randint(0, len(parts)), statement)
    questions = tuple(SceneQuestion(question(fact.key), fact.answer) for fact in needles)
    return Scene("needle_image" if image else "needle", level, tuple(p for said in parts for p in said), questions)


def definition_scene(rng: random.Random, level: int, source: SourceText) -> Scene:
    """Heads of definitions of several files of a folder; asked is the name that a file defines. ValueError where no
    folder has two files with definitions."""
    num_files, num_lines = DEFINITIONS[level]
    if not source.packages:
        raise ValueError("definitions take a folder of two or more Python files: give --source, or leave them out")
    members = rng.choice(list(source.packages.values()))
    chosen = rng.sample(members, min(num_files, len(members)))
    context, questions = "", []
    for path, definitions in chosen:
        definition = rng.choice(definitions)
        context += "\n".join((path, *definition.lines[: 1 + num_lines])) + "\n\n"
        questions.append(SceneQuestion(f"from .{PurePosixPath(path).stem} import", definition.name))
    return Scene("definition", level, (context,), distinct_questions(questions), lead=" ")


def table_scene(rng: random.Random, level: int, source: SourceText, *, image: bool = False) -> Scene:
    """A table of random numbers under words of the source; asked are its cells. ValueError for too few words."""
    bounds, num_columns, most = TABLES[level]
    num_rows = rng.randint(*bounds)
    if len(source.words) < num_rows + num_columns + 1:
        raise ValueError(f"a table takes {num_rows + num_columns + 1} words of 4 to 8 letters: give a larger --source")
    label, *words = rng.sample(source.words, num_rows + num_columns + 1)
    columns, labels = tuple(words[:num_columns]), words[num_columns:]
    rows = tuple((name, tuple(rng.randrange(most) for _ in columns)) for name in labels)
    table = DataTable(-1, "", label, columns, rows)
    questions = table_questions(table)
    if image:
        spec: dict = {
            "type": "image",
            "renderer": "table",
            "title": "",
            "header": table.cells[0],
            "rows": table.cells[1:],
        }
        spec |= {"rules": "none", "align": "left", **LEVEL1_LOOK}
        return Scene("table_image", level, (spec,), questions, end="")
    asked = ask_table(table, "csv", rng)
    assert asked is not None
    return Scene("table", level, (f"{asked[1]}\n",), questions, end="")


def table_questions(table: DataTable) -> tuple[SceneQuestion, ...]:
    """A question for each cell, in the words of `ask_table`."""
    return tuple(
        SceneQuestion(f"{column} of {label}?\n", str(number))
        for label, numbers in table.rows
        for column, number in zip(table.columns, numbers, strict=True)
    )


def reading_scene(
    rng: random.Random, level: int, source: SourceText, write: WriteFn, *, audio: bool = False
) -> Scene | None:
    """What the model writes behind a few characters of the source, drawn or spoken; None where it wrote nothing of
    use."""
    if audio:
        if not source.words:
            raise ValueError("utterances take words of 4 to 8 letters: give a larger --source")
        lead = rng.choice(source.words)
        text = spoken_text(lead + write(lead), num_words=SPOKEN_WORDS[level])
        return (
            Scene("read_audio", level, (audio_spec(text, rng),), (SceneQuestion("", text),), end="") if text else None
        )
    least, most = TEXT_CHARS[level]
    lead = rng.choice(source.lines).strip()[: rng.randint(2, least)]
    text = written_line(lead + write(lead), least=least, most=most)
    spec = image_spec(text, style=rng.choice(("bw", "monokai"))) if text else {}
    return Scene("read_image", level, (spec,), (SceneQuestion("", text),), end="") if text else None


def written_line(text: str, *, least: int, most: int) -> str:
    """The first line of a text as it can be drawn: printable ASCII, single blanks, cut at `most`; "" for less than
    `least` characters or no letter or digit."""
    line = re.sub(r"[ \t]+", " ", text.split("\n", 1)[0])[:most].strip()
    usable = len(line) >= least and line.isascii() and line.isprintable() and re.search("[A-Za-z0-9]", line)
    return line if usable else ""


def spoken_text(text: str, *, num_words: int) -> str:
    """The first words of a text as they can be said: up to `num_words` of 3 to 12 lower-case letters, one blank
    between."""
    words = re.findall(r"\b[a-z]{3,12}\b", text.split("\n", 1)[0])
    return " ".join(words[:num_words])


SceneFn = Callable[[random.Random, int, SourceText, WriteFn], Scene | None]

FAMILIES: dict[str, SceneFn] = {
    "needle": lambda rng, level, source, write: needle_scene(rng, level, source),
    "needle_image": lambda rng, level, source, write: needle_scene(rng, level, source, image=True),
    "definition": lambda rng, level, source, write: definition_scene(rng, level, source),
    "table": lambda rng, level, source, write: table_scene(rng, level, source),
    "table_image": lambda rng, level, source, write: table_scene(rng, level, source, image=True),
    "read_image": lambda rng, level, source, write: reading_scene(rng, level, source, write),
    "read_audio": lambda rng, level, source, write: reading_scene(rng, level, source, write, audio=True),
}
"""Name -> a function that makes a scene; None where the model's own text is of no use."""
LIBRARIES_OF = {"needle_image": "image", "table_image": "image", "read_image": "image", "read_audio": "audio"}
"""Family -> the modality that its media are of."""
WRITING = {
    "read_image": "the model wrote no line that can be drawn (printable ASCII with a letter or digit, at least "
    f"{' to '.join(str(TEXT_CHARS[level][0]) for level in (LEVELS[0], LEVELS[-1]))} characters by level)",
    "read_audio": "the model wrote no words that can be spoken (3 to 12 lower-case letters)",
}
"""Family whose text the model writes itself -> why a case of it is unusable."""


def check_libraries_of(families: Iterable[str]) -> None:
    """Raises SynthError naming the family and the libraries that its media need and that are missing."""
    for family in families:
        needed = LIBRARIES.get(LIBRARIES_OF.get(family, ""), ())
        if missing := [name for name in needed if find_spec(name) is None]:
            raise SynthError(
                f"{family} takes {', '.join(missing)}, not installed here: {INSTALL} or leave out {family}"
            )
