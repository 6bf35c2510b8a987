"""Needle cases are frozen as content, answered by whoever reads it, and latency is that of a process of its own."""

import json

import pytest

from brine.common.content_store import ContentStore
from brine.data.document import Text
from brine.evals.suites import answers, timing
from brine.evals.suites import measure as measuring
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.evals.suites.measure import measure_on_suite
from brine.evals.suites.suite import Suite
from brine.evals.suites.timing import time_model
from brine.inference.load import load
from tests.evals.suites.sources import make_model

pytestmark = pytest.mark.slow

LINES = "".join(f"value_{n} = compute(item, {n})\n" for n in range(40))
CONFIG = SuiteConfig(
    needle_lengths=(300, 500), needle_modalities=("text", "image"), needle_contexts=2, needles=3, timing=True,
    primary="needle.300.text", seed=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    base = tmp_path_factory.mktemp("needles")
    (base / "code").mkdir()
    (base / "code" / "module.py").write_text(LINES)
    config = SuiteConfig(**vars(CONFIG) | {"needle_source": base / "code"})
    return make_suite("needles", [], config, root=base)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("run") / "run")


def text_of(case):
    return "".join(part.text if isinstance(part, Text) else "\0" for part in case.parts)


def test_contexts_hold_their_answers(suite):
    names = [spec.name for spec in suite.measures]
    assert names == [
        "needle.300.image", "needle.300.text", "needle.500.image", "needle.500.text", "latency", "memory"
    ]  # fmt: skip
    for part in suite.parts:
        cases = suite.cases_in(part)
        assert len(cases) == 8 and all(len(case.needles.questions) == 3 for case in cases)
        for case in cases:
            assert not any(part.loss_mask for part in case.parts if isinstance(part, Text))
            for question in case.needles.questions:
                assert question.question.startswith("?")
                shown = question.answer if case.needles.modality == "text" else "\0"
                assert f"@{question.question[1:]}{shown}\n" in text_of(case)
            if case.needles.modality == "text":
                assert len(text_of(case)) + 4 == case.needles.length
    assert suite.verify() == []


def test_equal_settings_give_equal_contexts(suite, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "module.py").write_text(LINES)
    config = SuiteConfig(**vars(CONFIG) | {"needle_source": tmp_path / "code"})
    assert make_suite("needles", [], config, root=tmp_path).digest == suite.digest


def test_exact_answers_are_counted(suite, run, monkeypatch):
    """One who looks is right in text; the first question of each context is answered wrongly here."""

    def look(loaded, **_):
        def answer(haystack):
            text = loaded.tokenizer.decode(haystack.sequence.token_ids)
            found = []
            for question in haystack.questions:
                assert loaded.tokenizer.decode(question.prompt.token_ids) == question.key
                at = text.find(f"@{question.key[1:]}")
                found.append(text[at + 4 : at + 6])
            return ["no", *found[1:]]

        return answer

    monkeypatch.setattr(answers, "greedy_answer_fn", look)
    found = measure_on_suite(run, suite, timing=False, workers=1)
    for part in ("dev", "test"):
        for length in (300, 500):
            each = found[part][f"needle.{length}.text"]
            assert each.value == pytest.approx(2 / 3) and each.denominator.tolist() == [3, 3]
            # what stands in an image is not text
            assert found[part][f"needle.{length}.image"].value == 0


def test_a_model_answers_and_is_measured_alike_twice(suite, run, tmp_path):
    both = [measure_on_suite(run, suite, part="dev", timing=False, workers=1, out=tmp_path / str(n)) for n in range(2)]
    assert both[0]["dev"].keys() == {spec.name for spec in suite.measures[:4]}
    one, two = ((tmp_path / str(n) / "measurements.jsonl").read_bytes() for n in range(2))
    assert one == two and not (tmp_path / "0" / "timing.jsonl").exists()


def test_latency_and_memory_are_measured_once_for_a_machine(suite, run, tmp_path, monkeypatch):
    cache, out = ContentStore(tmp_path / "cache"), tmp_path / "out"
    found = measure_on_suite(run, suite, part="dev", cache=cache, out=out, workers=1)["dev"]
    assert len(found["latency"]) == len(found["memory"]) == timing.REPEATS
    assert (found["latency"].numerator > 0).all() and set(found["latency"].denominator) == {timing.ANSWER_TOKENS}
    # of a model of a few kilobytes: its cache and torch's own buffers
    assert 0 <= found["memory"].value < 500
    assert "latency" not in (out / "measurements.jsonl").read_text()
    assert {json.loads(text)["measure"] for text in (out / "timing.jsonl").open()} == {"latency", "memory"}
    monkeypatch.setattr(measuring, "time_model", lambda *_, **__: pytest.fail("it was timed again"))
    again = measure_on_suite(run, suite, part=("dev", "test"), cache=cache, workers=1)
    assert again["test"]["latency"].value == again["dev"]["latency"].value == found["latency"].value
    monkeypatch.setattr(measuring, "machine_name", lambda device: "another machine")
    with pytest.raises(pytest.fail.Exception, match="timed again"):
        measure_on_suite(run, Suite.open(suite.folder), part="dev", cache=cache)


def test_a_model_that_cannot_be_timed_says_why(run, tmp_path):
    folder = load(run).folder
    with pytest.raises(ValueError, match="could not be measured"):
        time_model(tmp_path, device=load(folder).model.head_weight.device, compute_dtype=None)
