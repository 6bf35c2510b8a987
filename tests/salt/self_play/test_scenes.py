"""Scenes: their answers against a solver that only reads what is shown, and the rule that checks answers."""

import random
import string

import pytest

from brine.data.document import Image, Text
from brine.data.files.source_files import SourceFile, read_source
from brine.salt.self_play.families import (
    FAMILIES,
    LEVELS,
    check_libraries_of,
    definition_scene,
    needle_scene,
    reading_scene,
    spoken_text,
    table_questions,
    table_scene,
    written_line,
)
from brine.salt.self_play.scene import Scene, SceneQuestion, distinct_questions, matches_answer, normalise_answer
from brine.salt.self_play.source_text import SourceText
from brine.synth.config import SynthError
from brine.synth.kinds.data_tables import DataTable, ask_table
from brine.synth.plan import media_path
from tests.paths import ROOT
from tests.salt.self_play.solver import shown_text, solve

TEXT_FAMILIES = ("needle", "definition", "table")


@pytest.fixture(scope="module")
def source() -> SourceText:
    return SourceText(read_source(ROOT / "data")[0])


def made(family: str, level: int, seed: int, source: SourceText) -> Scene:
    return FAMILIES[family](random.Random(seed), level, source, lambda lead: " and more words here")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_every_question_has_the_one_answer_that_is_shown(family, level, source):
    for seed in range(60):
        scene = made(family, level, seed, source)
        assert scene.level == level and scene.questions
        for question in scene.questions:
            prompt = scene.prompt(question)
            (part,) = prompt
            assert not part.loss_mask and solve(shown_text(prompt)) == [question.answer], (part.text, question)
            document = scene.document(question, name="x")
            assert document.parts[:-1] == prompt and document.kind == f"self-play-{family}"
            assert document.parts[-1].loss_mask and matches_answer(document.parts[-1].text, question)


@pytest.mark.parametrize("level", LEVELS)
def test_media_show_what_is_asked(level, source):
    """Specs hold the truth: digits of a needle, cells of a table, the text that is read back."""
    for seed in range(30):
        scene = made("needle_image", level, seed, source)
        flat = "".join(part if isinstance(part, str) else f"<{part['lines'][0]}>" for part in scene.context)
        for question in scene.questions:
            assert flat.count(f"@{question.text[1:]}<") == 1 and f"@{question.text[1:]}<{question.answer}>\n" in flat
        (spec,) = made("table_image", level, seed, source).context
        for question in made("table_image", level, seed, source).questions:
            column, label = question.text.removesuffix("?\n").split(" of ")
            (row,) = [row for row in spec["rows"] if row[0] == label]
            assert row[spec["header"].index(column)] == question.answer and spec["header"].count(column) == 1
        scene = made("read_image", level, seed, source)
        assert scene.context[0]["lines"] == [scene.questions[0].answer] and scene.questions[0].text == ""
        scene = made("read_audio", level, seed, source)
        assert scene.context[0]["text"] == scene.questions[0].answer


def test_prompt_is_text_and_media_in_order(source):
    scene = made("needle_image", 1, 0, source)
    parts = scene.prompt(scene.questions[0])
    assert [type(part) for part in parts] == [Text, Image] * 2 + [Text]
    paths = [media_path(part) for part in scene.context if isinstance(part, dict)]
    assert [part.path for part in parts if isinstance(part, Image)] == paths
    assert parts[-1].text.endswith(scene.questions[0].text)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_make_equal_scenes(family, source):
    assert made(family, 2, 7, source) == made(family, 2, 7, source)
    assert len({repr(made(family, 2, seed, source)) for seed in range(20)}) > 15


@pytest.mark.parametrize("family", FAMILIES)
def test_no_wrong_answer_passes(family, source):
    """All single edits of the right answer, the answers to the other questions, parts of it, and forms of it."""
    chars = string.ascii_letters + string.digits + "_.-,' \n"
    for seed in range(5):
        scene = made(family, 2, seed, source)
        for question in scene.questions:
            right = question.answer
            others = {one.answer for one in scene.questions} - {right}
            wrong = {right[:at] + char + right[at:] for at in range(len(right) + 1) for char in chars}
            wrong |= {right[:at] + char + right[at + 1 :] for at in range(len(right)) for char in chars}
            wrong |= {right[:at] + right[at + 1 :] for at in range(len(right))} | others
            wrong |= {right[:at] for at in range(len(right))} | {right.swapcase(), f"0{right}", f"{right}.0", right * 2}
            wrong |= {f'"{right}"', f"the answer is {right}", f"{right} {right}", f"\n{right}", "", "\ufffd"}
            # what differs in white space at the ends, or in runs of blanks, is the same answer
            wrong = {one for one in wrong if " ".join(one.split("\n")[0].split(" ")).strip() != right}
            wrong = {one for one in wrong if " ".join(one.split("\n")[0].split()) != right}
            assert len(wrong) > 50
            passed = [one for one in wrong if matches_answer(one, question)]
            assert not passed, (right, passed)
            for same in (right, f" {right}", f"{right}\n", f"{right} \nmore", f"\t{right}", right.replace(" ", "  ")):
                assert matches_answer(same, question), same


def test_every_value_of_a_needle_is_told_from_every_other():
    for right in range(100):
        question = SceneQuestion("?ABC", f"{right:02d}")
        assert [n for n in range(1000) if matches_answer(str(n), question)] == ([right] if right > 9 else [])
        assert [n for n in range(100) if matches_answer(f"{n:02d}\n", question)] == [right]


@pytest.mark.parametrize(
    "text,normal",
    [
        ("  a\tb \n c", "a b"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u00a0b", "a\u00a0b"),
        ("A", "A"),
        ("\n", ""),
        ("a\rb", "a b"),
    ],
)
def test_normal_form(text, normal):
    assert normalise_answer(text) == normal and normalise_answer(normal) == normal


def test_questions_with_two_answers_are_dropped():
    one, other, clear = SceneQuestion("a?", "1"), SceneQuestion("a?", "2"), SceneQuestion("b?", "1")
    assert distinct_questions([one, other, clear, clear]) == (clear,)
    with pytest.raises(ValueError, match="one question twice"):
        Scene("x", 1, ("text",), (one, other))
    with pytest.raises(ValueError, match="normal form"):
        Scene("x", 1, ("text",), (SceneQuestion("a?", " 1"),))
    with pytest.raises(ValueError, match="asks nothing"):
        Scene("x", 1, ("text",), ())


def test_tables_are_asked_in_the_words_of_the_corpus():
    table = DataTable(0, "", "name", ("lines", "first"), (("one", (3, 14)), ("two", (5, 9))))
    known = {(question.text, question.answer) for question in table_questions(table)}
    asked = {ask_table(table, "cell", random.Random(seed)) for seed in range(60)}
    assert {(f"{text}\n", answer) for text, answer in asked} == known and len(known) == 4


def test_definitions_are_clear():
    """Not asked for: a name that two files define, and a file whose stem another one has."""
    texts = {
        "p/one.py": "def alpha():\n    pass\n\n\ndef shared():\n    pass\n",
        "p/two.py": "class Beta:\n    pass\n\n\ndef shared():\n    pass\n",
        "p/three.py": "gamma = 3\ngamma = 4\n",
        "p/four.py": "def broken(:\n",
        "q/alone.py": "def lonely():\n    pass\n",
    }
    source = SourceText([SourceFile(path, "python", text) for path, text in texts.items()])
    assert list(source.packages) == ["p"]
    scenes = [definition_scene(random.Random(seed), 3, source) for seed in range(30)]
    found = {question.answer for scene in scenes for question in scene.questions}
    assert found == {"alpha", "Beta"}
    with pytest.raises(ValueError, match="two or more Python files"):
        definition_scene(random.Random(0), 1, SourceText([SourceFile("a.py", "python", "lonely = 1\n" * 9)]))
    with pytest.raises(ValueError, match="words"):
        table_scene(random.Random(0), 1, SourceText([SourceFile("a.py", "python", "some = 1\n" * 9)]))
    with pytest.raises(ValueError, match="no line"):
        SourceText([SourceFile("a.py", "python", "x\n")])


def test_keys_that_the_lines_spell_are_not_drawn():
    lines = "".join(f"{a}{b}C = 1\n" for a in string.ascii_uppercase for b in string.ascii_uppercase)
    source = SourceText([SourceFile("a.py", "python", lines)])
    for seed in range(40):
        scene = needle_scene(random.Random(seed), 3, source)
        text = shown_text(scene.context)
        for question in scene.questions:
            assert text.count(question.text[1:]) == 1


def test_texts_that_a_model_writes(source):
    assert written_line("a  b\tc\nd", least=3, most=9) == "a b c" and written_line("abcdef", least=1, most=3) == "abc"
    for useless in ("", "\n", "ab", "....", "caf\u00e9 noir", "a\x07bcd", "\ufffd\ufffd\ufffd"):
        assert written_line(useless, least=3, most=9) == ""
    assert spoken_text("the Words of_a model 12 run on", num_words=3) == "the model run"
    assert spoken_text("A 1 _", num_words=3) == ""
    assert reading_scene(random.Random(0), 1, source, lambda lead: "\x00") is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("brine.salt.self_play.families.find_spec", lambda name: None)
    check_libraries_of(TEXT_FAMILIES)
    with pytest.raises(SynthError, match="read_audio takes espeakng_loader"):
        check_libraries_of(["needle", "read_audio"])
