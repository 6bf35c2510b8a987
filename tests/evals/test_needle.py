"""Needles are counted right for one who looks, near chance for one who guesses, and a model reads as it would alone."""

import json
import random
import re

import numpy as np
import pytest
import torch

from benchmarks.context import needle_image
from brine.data.config import EncodeConfig
from brine.data.encode import assemble_chunks
from brine.data.files.source_files import SourceFile
from brine.data.tokenizer import MEDIA_START_ID, train_tokenizer
from brine.evals.needle import run as needle
from brine.evals.needle.prefix_decoder import PrefixDecoder
from brine.evals.needle.table import console_table, summarize_trials
from brine.evals.report.page import render
from brine.evals.repository import run as repository
from brine.evals.repository.cases import CompletionPrompts, defined_in, find_cases
from brine.inference.decode import generate_batch
from brine.inference.load import load, save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.synth.needles import haystacks as needle_contexts
from brine.synth.needles.haystacks import HaystackBuilder
from brine.synth.needles.needle import CHANCE

pytestmark = pytest.mark.slow

LINES = "".join(f"value_{n} = compute(item, {n})\n" for n in range(40))
SOURCE = [SourceFile("module.py", "python", LINES)]
ENCODE = EncodeConfig(tubelet_frames=1)
PACKAGE = [
    SourceFile("cook/__init__.py", "python", "from .oven import roast\n"),
    SourceFile("cook/oven.py", "python", "DEGREES = 200\n\n\ndef roast(meal):\n    return meal, DEGREES\n"),
    SourceFile("cook/menu.py", "python", "from . import oven\n\n\ndef serve():\n    return oven.DEGREES\n"),
    SourceFile("sail/boat.py", "python", "def hoist():\n    return 'sail'\n" * 20),
    SourceFile("sail/wind.py", "python", "def blow():\n    return 'wind'\n" * 20),
]


@pytest.fixture(scope="module")
def tokenizer():
    """A plain byte model: ids and characters are the same thing."""
    return train_tokenizer(["ab"], 267)


@pytest.fixture(scope="module")
def haystacks(tokenizer):
    with HaystackBuilder(SOURCE, tokenizer=tokenizer, config=ENCODE) as made:
        yield made


@pytest.fixture(scope="module")
def model_folder(tokenizer, tmp_path_factory):
    """A random model with a window far shorter than the contexts."""
    config = ModelConfig(
        vocab_size=267, dim=32, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, window=24,
        global_every=2, image_dim=ENCODE.image_dim, audio_dim=ENCODE.audio_dim, video_dim=ENCODE.video_dim,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "large_baseline" / "model"
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    save_model(folder, model, encode_config=ENCODE, tokenizer=tokenizer)
    return folder


class Oracle:
    """Answers by looking: finds the key in the context and compares what stands there with all that it may be."""

    def __init__(self, haystacks, tokenizer):
        self.tokenizer = tokenizer
        self.pictures = {}

    def __call__(self, context):
        ids = context.sequence.token_ids
        text = "".join(self.tokenizer.decode([token]) if token > 10 else "\0" for token in ids.tolist())
        return [self.look(context.sequence, text, question.key) for question in context.questions]

    def look(self, sequence, text, key):
        place = text.index(f"@{key}") + 4
        if sequence.token_ids[place] == MEDIA_START_ID["image"]:
            first = int((sequence.media_positions("image") < place).sum())
            return self.pictures[sequence.image[first].tobytes()]
        return text[place : text.index("\n", place)]


@pytest.mark.slow
def test_one_who_looks_is_right_and_one_who_guesses_is_right_by_chance(haystacks, tokenizer):
    from brine.synth.needles import needle as needles

    oracle = Oracle(haystacks, tokenizer)
    for value in range(100):
        for style in needles.STYLES:
            _, decoded = haystacks._media(needles.image_spec(f"{value:02d}", style=style))
            oracle.pictures[decoded.patches[0].tobytes()] = f"{value:02d}"
    config = needle.NeedleConfig(("text", "image"), (600,), trials=500)
    for task in ("text", "image", "multikey"):
        cell = summarize_trials(needle.run_trials(haystacks, oracle, task, 600, config))
        assert cell["trials"] == 500 and cell["exact"] == cell["high"] == 1.0 and 0.9 < cell["low"] < 1
    rng = random.Random(0)
    trials = needle.run_trials(
        haystacks, lambda context: [f"{rng.randrange(100):02d}" for _ in context.questions], "text", 600, config
    )
    cell = summarize_trials(trials)
    assert cell["low"] <= CHANCE <= cell["high"] and cell["exact"] < 0.03


def test_a_reader_answers_as_the_model_does_alone(haystacks, tokenizer, model_folder):
    """One context read once for all questions gives what each prompt gives by itself, in answers and in likelihood."""
    model = load(model_folder).model.double()
    context = haystacks.make("image", num_tokens=500, number=0, num_needles=5)
    prompts = [question.prompt for question in context.questions]
    reader = PrefixDecoder(model, context.sequence, vocab_size=267)
    said = reader.generate_greedy(prompts, max_tokens=6)
    joined = [_joined(context.sequence, prompt) for prompt in prompts]
    assert said == generate_batch(model, joined, 6, vocab_size=267)
    assert len({tuple(ids) for ids in said}) > 1
    answers = [tokenizer.encode("47"), tokenizer.encode("ABC99")]
    found = reader.log_likelihood(prompts[:2], answers)
    for prompt, answer, value in zip(joined[:2], answers, found, strict=True):
        assert value == pytest.approx(_alone(model, prompt, answer), abs=1e-5)


def _joined(first, second):
    """Two sequences as one; the second has no media."""
    fields = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in first.__dataclass_fields__
    }
    return type(first)(**fields).validate()


def _alone(model, prompt, answer):
    from brine.inference.prompt import batch_prompts

    place = float(prompt.position[-1].max()) + 1
    fits_full_package = _joined(prompt, assemble_chunks([answer], ENCODE, position_offset=place))
    with torch.no_grad():
        hidden = model(batch_prompts([fits_full_package]))[0, -len(answer) - 1 : -1]
    scores = torch.nn.functional.linear(hidden, model.head_weight).log_softmax(-1)
    return float(scores[torch.arange(len(answer)), torch.tensor(answer)].detach().sum())


def test_a_reader_stops_at_a_line_end(haystacks, tokenizer, model_folder):
    context = haystacks.make("text", num_tokens=300, number=0, num_needles=2)
    reader = PrefixDecoder(load(model_folder).model, context.sequence)
    prompts = [question.prompt for question in context.questions]
    free = reader.generate_greedy(prompts, max_tokens=5)
    stops = [ids[2] for ids in free]
    assert [ids[: ids.index(stop)] for ids, stop in zip(free, stops, strict=True)] == [
        reader.generate_greedy([prompt], max_tokens=5, stop=[stop])[0]
        for prompt, stop in zip(prompts, stops, strict=True)
    ]
    with pytest.raises(ValueError, match="no token"):
        reader.generate_greedy([prompts[0].slice(0, 0)], max_tokens=2)


def trial(context, depth, is_exact, modality="text"):
    return {"modality": modality, "length": 64, "haystack": context, "depth": depth, "is_exact": is_exact}


def test_intervals_resample_contexts_and_depths_are_tenths():
    # all or nothing in a context: resampling trials would give a far narrower interval
    trials = [trial(number, place / 10, number < 10) for number in range(20) for place in range(10)]
    cell = summarize_trials(trials)
    assert cell["exact"] == 0.5 and cell["high"] - cell["low"] > 0.35
    assert [part["trials"] for part in cell["depths"]] == [20] * 10
    assert summarize_trials([trial(0, 1.0, True)])["depths"][-1] == {"depth": 0.9, "trials": 1, "is_exact": 1}
    with pytest.raises(ValueError, match="one modality"):
        summarize_trials([trial(0, 0, True), trial(0, 0, True, "image")])
    assert "0.500" in console_table([cell])
    # ten haystacks without one right answer, by the exact interval; a single haystack has none
    none = summarize_trials([trial(number, 0.5, False) for number in range(10)])
    assert (none["exact"], none["low"]) == (0, 0) and none["high"] == pytest.approx(0.3085, abs=1e-4)
    one = summarize_trials([trial(0, 0.5, True), trial(0, 0.5, False)])
    assert (one["exact"], one["low"]) == (0.5, None) and " - " in console_table([one])


@pytest.fixture
def small_source(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "module.py").write_text(LINES)
    return tmp_path / "source"


@pytest.mark.slow
def test_the_command_measures_keeps_and_adds(model_folder, small_source, tmp_path, capsys):
    run = model_folder.parents[1]
    (run / "report.html").write_text("old")
    (run / "recipe.json").write_text(json.dumps({"packing": {"seq_len": 200}}))
    line = [str(run), "--trials", "4", "--needles", "2", "--source", str(small_source)]
    assert needle.main([*line, "--lengths", "200", "--modality", "text,multikey"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"text +200 +4 ", printed) and "chance 0.01" in printed
    first = json.loads((run / "needle" / "results.json").read_text())
    assert needle.main([*line, "--lengths", "200,300", "--modality", "text"]) == 0
    second = json.loads((run / "needle" / "results.json").read_text())
    # what was there is kept to the second of its wall clock
    assert second["cells"][:2] == first["cells"]
    assert [(cell["modality"], cell["length"]) for cell in second["cells"][2:]] == [("text", 300)]
    trials = [json.loads(text) for text in (run / "needle" / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 12 and all(len(one["answer"]) == 2 for one in trials)
    page = (run / "report.html").read_text()
    assert 'id="needles"' in page and page.count('class="heat"') >= 4 and "<script" not in page
    picture = tmp_path / "needle.png"
    assert needle_image.main([str(run / "needle" / "results.json"), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modality", "smell"], "unknown modality"),
        (["--lengths", "40"], "do not fit into 40"),
        (["--lengths", ""], "give numbers of tokens"),
        (["--trials", "0"], "give 1 or more"),
    ],
)
def test_mistakes_end_in_one_line(model_folder, small_source, capsys, arguments, message):
    assert needle.main([str(model_folder), "--source", str(small_source), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_library_that_is_missing_is_named_at_once(model_folder, small_source, capsys, monkeypatch):
    """The default modalities ended in a traceback where nothing reads sound, after those before it."""
    monkeypatch.setattr(needle_contexts, "find_spec", lambda name: None if name in ("av", "soundfile") else True)
    assert needle.main([str(model_folder), "--source", str(small_source)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: needles of audio, video take av, soundfile, not installed here: run `uv sync")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [needle.main, repository.main])
def test_lengths_that_are_no_numbers_are_named(capsys, command):
    assert command(["run", "--lengths", "2k"]) == 2
    assert "'2k': give whole numbers such as 2048,4096" in capsys.readouterr().err


@pytest.mark.parametrize("command", [needle.main, repository.main])
def test_a_run_without_a_model_is_named(tmp_path, capsys, command):
    assert command([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_report_without_needles_has_no_such_section(tmp_path):
    from brine.evals.config import EvalConfig

    assert 'id="needles"' not in render(tmp_path, config=EvalConfig())
    assert needle_image.main([str(tmp_path / "none.json"), str(tmp_path / "x.png")]) == 2


def test_cases_are_names_of_other_files():
    cases = {(case.path, case.answer): case for case in find_cases(PACKAGE)}
    assert set(cases) == {("cook/__init__.py", "roast"), ("cook/menu.py", "DEGREES")}
    texts = {item.path: item.text for item in PACKAGE}
    for case in cases.values():
        assert texts[case.path][case.offset :].startswith(case.answer)
        assert case.answer not in texts[case.path][: case.offset]
        assert case.answer in defined_in(texts[case.defined_in])
    assert find_cases(PACKAGE, completed={"cook/oven.py"}) == []


def test_windows_hold_the_definition_only_where_they_should(tokenizer):
    windows = CompletionPrompts(PACKAGE, tokenizer=tokenizer)
    for case in find_cases(PACKAGE):
        shown = {}
        for condition in ("with_package", "without_package", "other_package"):
            ids, answer = windows.window(case, condition, num_tokens=400)
            shown[condition] = tokenizer.decode(ids)
            assert len(ids) <= 400 and tokenizer.decode(answer).strip() == case.answer
        assert case.answer in shown["with_package"]
        assert case.answer not in shown["without_package"] and case.answer not in shown["other_package"]
        assert shown["with_package"].endswith(shown["without_package"]) and "sail/" in shown["other_package"]
        assert windows.fits_full_package(case, num_tokens=400) and not windows.fits_full_package(case, num_tokens=64)
    with pytest.raises(ValueError, match="64 or more"):
        windows.window(case, "with_package", num_tokens=10)


def test_a_window_too_short_for_the_defining_file_holds_the_definition(tokenizer):
    filler = "".join(f"def other_{number}():\n    return {number}\n\n\n" for number in range(100))
    long = SourceFile("cook/oven.py", "python", filler + PACKAGE[1].text + filler.replace("other", "more"))
    files = [PACKAGE[0], long, *PACKAGE[2:]]
    windows = CompletionPrompts(files, tokenizer=tokenizer)
    cases = find_cases(files)
    assert {case.answer for case in cases} == {"roast", "DEGREES"}
    for case in cases:
        text = tokenizer.decode(windows.window(case, "with_package", num_tokens=300)[0])
        assert text.startswith("cook/oven.py\n") and re.search(rf"(def {case.answer}|{case.answer} = )", text)


def test_one_who_looks_completes_with_the_package_alone(tokenizer):
    """It says the first capital or defined name that it can find; without the package there is none to find."""

    def complete(prompt, answer):
        text = tokenizer.decode(prompt)
        known = re.findall(r"^(?:def )?(\w+)(?= = |\()", text, re.M)
        wanted = tokenizer.decode(answer).strip()
        said = wanted if wanted in known else "unknown"
        return f" {said}(", -1.0 if said == wanted else -9.0

    lines = repository.complete_cases(
        CompletionPrompts(PACKAGE, tokenizer=tokenizer), find_cases(PACKAGE), complete, 400
    )
    row = repository.summarize_cases(lines)
    assert row["with_package"]["exact"]["value"] == 1.0
    assert row["without_package"]["exact"]["value"] == row["other_package"]["exact"]["value"] == 0.0
    assert row["gain_over_without_package"] == {"value": 8.0, "low": 8.0, "high": 8.0}
    assert not repository.is_exact_match("roaster(", "roast") and repository.is_exact_match(" roast(x", "roast")


@pytest.mark.slow
def test_the_repository_command_runs(model_folder, tmp_path, capsys):
    for item in PACKAGE:
        path = tmp_path / "source" / item.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(item.text + "# more to read, so that the file is large enough\n" * 3)
    run = model_folder.parents[1]
    assert repository.main([str(run), "--lengths", "256", "--source", str(tmp_path / "source")]) == 0
    assert "cases from: any file" in capsys.readouterr().out
    results = json.loads((run / "repository" / "results.json").read_text())
    assert results["held_out"] is False and results["by_length"][0]["cases"] == 2
    assert len((run / "repository" / "cases.jsonl").read_text().splitlines()) == 2
