"""What CONTRIBUTING says of adding things: a package made of its blocks is installed, and each seam takes it."""

import ast
import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from brine.common.plugins import load_plugin, plugins
from brine.data.corpus.store import EncodedCorpus, build_corpus
from brine.data.filters.filter_log import FilterError
from brine.data.filters.registry import run_filters
from brine.data.formats.open import open_source
from brine.data.tokenizer import train_tokenizer
from brine.evals.config import EvalConfig
from brine.evals.evaluate import evaluate
from brine.evals.run_files import build_summary
from brine.experiments.cli import main as experiments_command
from brine.experiments.planning.plan import load_plan
from brine.kernels.attention import Spans, attention
from brine.model.transformer import Transformer
from brine.recipes.launch import parse
from brine.recipes.registry import find_recipe, recipe_names
from brine.training.config import RuntimeConfig
from brine.training.logging.metrics import RunLog, make_sinks, sink_names
from tests.conftest import CONFIG, ENCODE
from tests.paths import ROOT
from tests.test_structure import SOURCES

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def install(folder, name, entry_points, files):
    """Lay a package out as an installer would."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The blocks of CONTRIBUTING's section, installed as `my-package`."""
    files = {}
    for path, text in re.findall(r"```python\n# (\S+)\n(.*?)```", CONTRIBUTING, re.S):
        files[path] = files.get(path, "") + text + "\n\n"
    entries = re.search(r"```toml\n(.*?)```", CONTRIBUTING, re.S).group(1)
    entries = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", entries).replace('"', "")
    install(tmp_path / "site", "my-package", entries, files)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield files
    for name in ("my_package", "my_attention", "my_attention.backend"):
        sys.modules.pop(name, None)


def test_a_recipe_of_a_package(package, tmp_path):
    assert "mine" in recipe_names() and find_recipe("mine")().large.num_steps == 2000
    assert parse(["mine", "--large.num-steps", "90"]).recipe.large.num_steps == 90


def corpus_of_notes(folder):
    (folder / "notes.txt").write_text(
        "a short one\n" + "\n".join(f"note {n} of some words" for n in range(6)) + "\nx\n"
    )
    source = open_source(folder / "notes.txt", format="notes")
    return build_corpus(source, folder / "corpus", tokenizer=train_tokenizer(["ab"], 267), config=ENCODE, num_workers=1)


def test_a_format_of_a_package(package, tmp_path):
    assert corpus_of_notes(tmp_path).num_documents == 8
    source = open_source(tmp_path / "notes.txt", format="notes")
    before = source.fingerprint()
    assert [item.parts[0].text for item in source.documents()][::7] == ["a short one", "x"]
    (tmp_path / "notes.txt").write_text("other\n")
    assert source.fingerprint() != before
    with pytest.raises(ValueError, match=r"format 'odd' is none of .*, notes"):
        open_source(tmp_path / "notes.txt", format="odd")


def test_a_filter_of_a_package(package, tmp_path):
    log = run_filters(corpus_of_notes(tmp_path), ("short_documents",))
    assert [(line["id"], line["reason"]) for line in log.dropped(1)] == [("notes.txt:7", "2 tokens")]
    # a second call finds the pass
    assert len(run_filters(EncodedCorpus.open(tmp_path / "corpus"), ("short_documents",))) == 1
    with pytest.raises(FilterError, match=r"unknown filter 'odd': there are .*, short_documents"):
        run_filters(EncodedCorpus.open(tmp_path / "corpus"), ("odd",))


def test_a_metric_of_a_package(package, tmp_path):
    tokenizer = train_tokenizer(["ab"], 267)
    lines = [
        {"id": f"{split}{n}", "split": split, "content": [{"type": "text", "text": f"text {n}"}]}
        for split in ("train", "test")
        for n in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = build_corpus(tmp_path / "a.jsonl", tmp_path / "corpus", tokenizer=tokenizer, config=ENCODE, num_workers=1)
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0)).eval()
    config = EvalConfig(transcripts_per_cell=0, seq_len=64, bootstrap_resamples=100)
    models = {"small": SimpleNamespace(model=model, tokenizer=tokenizer)}
    results = evaluate(tmp_path / "run" / "evaluate", corpus=corpus, models=models, config=config)
    found = results["metrics"]["worst_document"]["small"]
    assert found >= results["models"]["small"]["loss"] > 0
    assert build_summary(tmp_path / "run")["metrics"] == results["metrics"]


def test_an_experiment_of_a_package(package, tmp_path, capsys):
    assert experiments_command(["plan", "rates", "--runs", str(tmp_path)]) == 0
    plan = load_plan(tmp_path / "rates")
    assert [trial.name for trial in plan.trials][::3] == ["01-seed0", "02-seed0"]
    assert "Is a higher rate better?" in capsys.readouterr().out
    assert experiments_command(["plan", "rate", "--runs", str(tmp_path)]) == 2
    assert "did you mean rates?" in capsys.readouterr().err


def test_a_sink_of_a_package(package, tmp_path):
    assert "losses" in sink_names() and parse(["demo", "--tracker", "losses"]).tracker == "losses"
    record = RunLog(tmp_path, sinks=make_sinks(tmp_path, "losses"))
    for step in (1, 2, 3, 4):
        record.metrics({"step": step, "loss": 5.0 - step})
    record.truncate(2)
    record.metrics({"step": 3, "loss": 9.0})
    record.finish()
    assert (tmp_path / "losses" / "losses.txt").read_text() == "1 4.0\n2 3.0\n3 9.0\n"
    # a resume keeps a sink that was there before, whether or not it is asked for
    assert [type(sink).__name__ for sink in make_sinks(tmp_path, None)] == ["LossFile"]
    with pytest.raises(ValueError, match="tracker = 'odd' is unknown: choose one of tensorboard, losses"):
        make_sinks(tmp_path, "odd")


def test_an_attention_backend_of_a_package(package):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 5, 2, 8, generator=generator, requires_grad=True) for _ in range(3))
    spans = Spans.packed(torch.zeros(1, 5, dtype=torch.int32))
    out = attention(q, k, v, spans, backend="my_attention.backend")
    assert torch.equal(out, attention(q, k, v, spans, backend="reference"))
    out.sum().backward()
    assert q.grad.abs().sum() > 0
    long = torch.zeros(1, 4097, 2, 8)
    with pytest.raises(ValueError, match="4,096 queries at most"):
        attention(
            long, long, long, Spans.packed(torch.zeros(1, 4097, dtype=torch.int32)), backend="my_attention.backend"
        )
    with pytest.raises(ValueError, match=r'backend "no_package\.backend" needs a package that is not here'):
        attention(q, k, v, spans, backend="no_package.backend")
    runtime = parse(["demo", "--runtime.attention-backend", "my_attention.backend"]).recipe.runtime
    assert runtime.attention_backend == "my_attention.backend"
    with pytest.raises(ValueError, match="attention_backend = 'mine' is unknown"):
        RuntimeConfig(attention_backend="mine")


@pytest.mark.parametrize("group", ["recipes", "formats", "filters", "metrics", "experiments", "sinks"])
def test_a_broken_package_is_named(group, tmp_path, monkeypatch):
    install(tmp_path, "broken-package", f"[brine.{group}]\nodd = broken_module:odd\n", {"broken_module.py": "1 / 0\n"})
    monkeypatch.syspath_prepend(tmp_path)
    said = rf"'odd' of brine\.{group} cannot be loaded from the package broken-package \(ZeroDivisionError"
    with pytest.raises(ValueError, match=said):
        load_plugin(plugins(f"brine.{group}")["odd"])
    if group == "recipes":
        # it is no trouble to others
        assert find_recipe("demo")().name == "demo"
        with pytest.raises(ValueError, match=said):
            find_recipe("odd")


def modalities_named(path, matches):
    """Which of audio and video a file's code names, docstrings apart."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    words = [getattr(node, name, None) for node in nodes for name in ("id", "attr", "name", "arg")]
    words += [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docs]
    return {found[1].lower() for word in words if isinstance(word, str) and (found := matches(word))}


@pytest.mark.slow
def test_the_files_that_a_modality_touches_are_listed():
    """Each file whose code names both audio and video is listed, or its folder; and all that are listed name them."""
    table = re.search(r"^\*\*A modality\*\*.*?^(\|.*?)\n\n", CONTRIBUTING, re.S | re.M).group(1)
    listed = [path for line in table.splitlines()[2:] for path in re.findall(r"`([\w/.]+)`", line.split("|")[1])]
    exactly = re.compile(r"(audio|video)(_dim|_budget)?", re.I).fullmatch
    loosely = re.compile(r"(audio|video)", re.I).search
    names = {path.relative_to(ROOT).as_posix(): path for path in SOURCES}
    named = {name for name, path in names.items() if modalities_named(path, exactly) == {"audio", "video"}}
    unlisted = [
        name for name in named if not any(name == one or (one[-1] == "/" and name.startswith(one)) for one in listed)
    ]
    assert not unlisted, f"CONTRIBUTING's list of what a modality touches lacks {sorted(unlisted)}"
    for one in listed:
        inside = [path for name, path in names.items() if name == one or (one[-1] == "/" and name.startswith(one))]
        assert any(modalities_named(path, loosely) == {"audio", "video"} for path in inside), f"{one} names no modality"


def test_a_backend_of_ones_own_is_where_contributing_says():
    module = importlib.import_module("brine.kernels.attention.select_backend")
    assert {"_LAZY", "BACKENDS", "default_backend_order"} <= vars(module).keys()
