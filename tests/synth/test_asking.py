"""Kinds that ask: documents, balance, leaks between splits, and the bytes of corpora with and without them."""

import hashlib
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from brine.data.config import EncodeConfig
from brine.data.document import parse_document
from brine.data.encode import assemble
from brine.data.media.decode import DecodedImage
from brine.evals.transcribe import transcription_task_of
from brine.synth import SynthConfig, SynthCounts, SynthError, build_synth_corpus
from brine.synth.kinds.data_tables import AnswerBalancer
from brine.synth.kinds.levels import MAX_PIXELS
from brine.synth.plan import media_path, plan_corpus
from brine.synth.sources.code_metrics import line_numbers, measure_code
from brine.synth.sources.code_regions import SplitSampler
from tests.synth.planned_corpus import CONFIG, HELD_OUT, LEVELS, token_texts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_source(workbench_source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("asking-source")
    for name in ("argparse", "ast", "calendar", "configparser", "dataclasses", "mailbox", "optparse", "tarfile"):
        shutil.copy(workbench_source / f"{name}.py", folder / f"{name}.py")
    return folder


@pytest.fixture(scope="module")
def built(small_source, tmp_path_factory):
    """(config, folder, summary, documents) of a small corpus, rendered by two processes."""
    some = SynthCounts(table=(8, 4, 4, 4), chart=(6, 3, 3, 3), screen=(8, 4, 4, 4))
    few = SynthCounts(table=(2, 1, 1, 1), chart=(1, 1, 1, 1), screen=(2, 1, 1, 1))
    config = replace(CONFIG, source=small_source, train=some, validation=few, test=few)
    folder = tmp_path_factory.mktemp("asking-corpus")
    summary = build_synth_corpus(config, folder, progress=False)
    documents = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return config, folder, summary, documents


def digest(folder) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


SOURCE = """
import os, sys
from re import compile
LIMIT = 40
class PrefixDecoder(Base):
    SIZE = 12
    def read(self, count, *rest, deep=True):
        # a comment
        if count > LIMIT:
            return self.more(count) if deep else other(count)
        for item in rest:
            try:
                use(item)
            except OSError:
                pass
        return None
    def close(self): pass
def outer():
    def inner():
        return call()
    return inner
"""


def test_measure_counts_what_is_there():
    found = measure_code(SOURCE, language="python")
    assert found.file | {"words": 0, "longest": 0} == {
        "lines": 21, "words": 0, "longest": 0, "blank": 1, "comments": 1,
        "functions": 4, "classes": 1, "imports": 2, "branches": 4,
    }  # fmt: skip
    read, close, outer = found.functions
    assert (read.name, read.parent, read.line, outer.parent) == ("read", "PrefixDecoder", 7, "")
    assert read.numbers == {"lines": 10, "arguments": 4, "branches": 4, "calls": 3, "returns": 2, "names": 9}
    assert close.numbers == {"lines": 1, "arguments": 1, "branches": 0, "calls": 0, "returns": 0, "names": 0}
    assert outer.numbers["returns"] == 2 and outer.numbers["calls"] == 1
    (reader,) = found.classes
    assert reader.numbers == {"lines": 13, "methods": 2, "calls": 3, "branches": 4}
    assert found.constants == (("LIMIT", 40), ("SIZE", 12))


def test_measure_takes_any_text():
    go = measure_code("// a comment\nconst MAX_SIZE = 64\nfunc f() {\n\treturn 1\n}\n", language="go")
    assert go.file == {"lines": 5, "words": 13, "longest": 19, "blank": 0, "comments": 1}
    assert (go.functions, go.classes, go.constants) == ((), (), (("MAX_SIZE", 64),))
    assert measure_code("print 'old syntax'\n", language="python").functions == ()
    assert measure_code("", language="text").file["lines"] == 1
    # a deep tree must not end the build
    assert measure_code("x = " + "-" * 100_000 + "1\n", language="python").file["lines"] == 1
    assert line_numbers("    return f(x, 1)") == {"characters": 18, "indent": 4, "words": 4, "symbols": 3}


def test_counts_of_the_new_kinds_are_zero_unless_asked_for():
    assert SynthCounts().by_level("table") == SynthCounts().by_level("chart") == SynthCounts().by_level("screen") == {}
    assert not SynthConfig().needs_code_metrics and CONFIG.needs_code_metrics
    with pytest.raises(SynthError, match=r"SynthCounts\.chart .* four numbers"):
        SynthCounts(chart=(1, 2))


def test_media_path_of_other_kinds_is_what_it_was():
    """Corpora of finished runs are found again by these names: new kinds must not rename the old ones' files."""
    spec = {"type": "image", "language": "python", "lines": ["x = 1"], "style": "bw", "size": 13, "left": 0}
    stamp = json.dumps([1, spec, [version("pillow"), version("pygments")]], sort_keys=True)
    name = hashlib.sha256(stamp.encode()).hexdigest()[:32]
    assert media_path(spec) == f"media/{name[:2]}/{name}.png"


def test_new_kinds_leave_the_others_as_they_were(planned):
    """Train documents to the letter; held-out ones are drawn around what train shows, which is now more."""
    both = replace(
        CONFIG,
        train=replace(CONFIG.train, screenshot=(20, 4, 4, 4), page=(2, 2, 2, 2), text=5),
        validation=SynthCounts(),
        test=SynthCounts(),
    )
    without = replace(both, train=replace(both.train, table=(0,) * 4, chart=(0,) * 4, screen=(0,) * 4))
    common = {"files": planned.files, "features": planned.features, "splits": planned.splits}
    old = plan_corpus(without, **common).documents
    assert len(old) == 45
    assert planned.again(both).documents[: len(old)] == old


@pytest.mark.parametrize("kind", ["table", "chart", "screen"])
def test_documents_ask_after_the_picture(planned, kind):
    """Image, question, answer; only the answer is learned, so a gain counts nothing that stands before it."""
    assert planned.plan.shortfalls() == []
    for _recipe, question, answer, item in planned.of(kind):
        parts = parse_document(item).parts
        assert [type(part).__name__ for part in parts] == ["Image", "Text", "Text"]
        assert [part["type"] for part in item["content"]] == ["image", "text", "text"]
        assert (parts[1].loss_mask, parts[2].loss_mask) == (False, True)
        assert parts[1].text.endswith("\n") and question and answer == answer.strip() != ""
        assert item["source"] in planned.text


def test_questions_do_not_repeat(planned):
    asked = Counter(
        json.dumps([planned.plan.specs[item["content"][0]["image"]], item["content"][1]["text"]])
        for item in planned.plan.documents
    )
    assert set(asked.values()) == {1}


def test_guessable_answers_are_dealt_evenly(planned):
    ticked = Counter(
        a for _r, question, a, _i in planned.of("screen") if question.endswith(" ticked?") and a in ("yes", "no")
    )
    trends = Counter(a for _r, question, a, _i in planned.of("chart") if "rises, falls" in question)
    assert min(ticked.values()) >= 5 and abs(ticked["yes"] - ticked["no"]) <= len(LEVELS)
    assert min(trends["rises"], trends["falls"]) >= 5 and abs(trends["rises"] - trends["falls"]) <= 2 * len(LEVELS)
    # the same pair of series is won by either
    larger: dict[str, Counter] = {}
    for _recipe, question, answer, _item in planned.of("chart", 4):
        if match := re.fullmatch(r"Which is larger at .*, (\w+ or \w+)\?", question):
            larger.setdefault(match[1], Counter())[answer] += 1
    assert larger and all(abs(won.most_common()[0][1] * 2 - sum(won.values())) <= 2 for won in larger.values())


def test_balance_gives_what_was_given_least():
    balance, rng = AnswerBalancer(), random.Random(0)
    assert Counter(balance.pick(("yes", "no"), rng=rng) for _ in range(41)).most_common()[1][1] == 20
    assert [balance.pick(("only",), rng=rng) for _ in range(3)] == ["only"] * 3


def test_documents_come_from_their_split(planned):
    split_of = {planned.files[index].path: split for split, chosen in planned.splits.items() for index in chosen}
    for item in planned.plan.documents:
        assert split_of[item["source"]] == item["split"]


def train_of(planned) -> SplitSampler:
    chosen = planned.splits["train"]
    return SplitSampler([planned.files[i] for i in chosen], features=[planned.features[i] for i in chosen])


def test_held_out_tables_and_charts_show_no_number_that_train_has(planned):
    facts = set()
    for index in planned.splits["train"]:
        found = planned.code_metrics[index]
        facts |= {(item.name, *pair) for item in (*found.functions, *found.classes) for pair in item.numbers.items()}
        facts |= {(planned.files[index].path.split("/")[-1], *pair) for pair in found.file.items()}
        facts |= {(name, "value", number) for name, number in found.constants}
    names = {name for item in train_of(planned).features for name in item.names}
    rows = 0
    for split in HELD_OUT:
        for spec, *_ in planned.of("table", split=split):
            for label, *numbers in spec["rows"]:
                rows += 1
                assert spec["header"][0] != "name" or label not in names
                for column, number in zip(spec["header"][1:], map(int, numbers), strict=True):
                    assert (label, column, number) not in facts
        for spec, *_ in planned.of("chart", split=split):
            for column, numbers in zip(spec["names"], spec["values"], strict=True):
                for label, number in zip(spec["labels"], numbers, strict=True):
                    rows += 1
                    assert (label, column, number) not in facts
    assert rows > 200


def test_held_out_screens_show_no_word_and_no_line_of_train(planned):
    train = train_of(planned)
    names = {name for item in train.features for name in item.names}
    lines = {line.strip() for item in train.lines for line in item}
    shown = 0
    for split in HELD_OUT:
        for spec, *_ in planned.of("screen", split=split):
            for panel in spec["panels"]:
                words = token_texts(panel)
                shown += len(words)
                if panel["panel"] == "terminal":
                    printed = {line for _command, out in panel["runs"] for line in out}
                    printed |= {re.sub(r"^\d+:", "", line) for line in printed}
                    assert not {line.strip() for line in printed if not line.isdigit()} & lines
                    assert not {command.split()[2] for command, _out in panel["runs"] if "grep" in command} & names
                else:
                    assert not set(words) & names
    assert shown > 200


def test_held_out_pictures_are_new(planned):
    pictures = {split: set() for split in ("train", *HELD_OUT)}
    for item in planned.plan.documents:
        pictures[item["split"]].add(item["content"][0]["image"])
    assert not pictures["train"] & (pictures["validation"] | pictures["test"])
    assert not pictures["validation"] & pictures["test"]


def test_build_makes_what_was_asked(built):
    config, folder, summary, documents = built
    assert summary["failed"] == {} and summary["shortfalls"] == []
    assert len(documents) == sum(
        sum(sum(config.counts(split).by_level(kind).values()) for kind in ("table", "chart", "screen"))
        for split in ("train", *HELD_OUT)
    )
    for item in documents:
        with Image.open(folder / item["content"][0]["image"]) as image:
            assert image.width % 16 == image.height % 16 == 0
            assert image.width * image.height <= MAX_PIXELS


def test_build_does_not_depend_on_workers(built, tmp_path):
    config, folder, _summary, _documents = built
    build_synth_corpus(replace(config, workers=1), tmp_path, progress=False)
    assert digest(tmp_path) == digest(folder)


def test_build_counts_what_cannot_be_drawn(small_source, tmp_path):
    """A style that does not exist costs the tables that need it, not the charts."""
    config = SynthConfig(
        source=small_source,
        train=SynthCounts(table=(2, 0, 0, 0), chart=(2, 0, 0, 0)),
        validation=SynthCounts(),
        test=SynthCounts(),
        level1_style="no-such",
        workers=1,
    )
    summary = build_synth_corpus(config, tmp_path, progress=False)
    assert list(summary["failed"].values()) == [2] and "no style 'no-such'" in next(iter(summary["failed"]))
    assert summary["documents"] == {"train": {"chart": {"1": 2}}}


def test_task_of_asks_for_the_answer_alone(planned):
    """The prompt ends with the question, the truth is the answer."""

    class Letters:
        def encode(self, text: str) -> list[int]:
            return [1000 + ord(char) for char in text]

    _recipe, question, answer, item = planned.of("table", 2)[0]
    config = EncodeConfig()
    medium = DecodedImage((2, 3), np.zeros((6, config.dims["image"]), np.uint8))
    task = transcription_task_of(assemble(parse_document(item), [medium], Letters(), config), max_new_tokens=200)
    assert "".join(chr(token - 1000) for token in task.reference) == answer
    prompt = [int(token) for token in task.prompt.token_ids][-len(question) - 1 :]
    assert "".join(chr(token - 1000) for token in prompt) == question + "\n"
    assert task.modality == "image"
