"""Self-play as a whole: what is kept and counted, determinism, resumption after a kill, caps, held-out content."""

import dataclasses
import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from brine.common.files import read_jsonl
from brine.data.config import EncodeConfig
from brine.data.corpus.readers import read_manifest
from brine.data.document import Document, Text, media_paths
from brine.data.files.source_files import read_source
from brine.data.tokenizer import train_tokenizer
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.inference.load import load, save_model
from brine.model.config import ModelConfig
from brine.model.transformer import Transformer
from brine.salt.content import ContentHasher
from brine.salt.pseudo_pool import read_pool
from brine.salt.self_play import play
from brine.salt.self_play.block import PlayedCase, level_weights
from brine.salt.self_play.command import held_out_digests, main
from brine.salt.self_play.config import SelfPlayConfig
from brine.salt.self_play.play import question_and_answer, self_play, table_of
from brine.salt.self_play.source_text import SourceText
from tests.forked import Command
from tests.paths import ROOT
from tests.salt.self_play.solver import ScriptedAnswers, shown_text, solve
from tests.salt.test_pseudo_label import one_thread  # noqa: F401

TEXT_FAMILIES = ("needle", "definition", "table")
CONFIG = SelfPlayConfig(families=TEXT_FAMILIES, num_cases=40, block_size=8, seed=3)


@pytest.fixture(scope="module")
def source() -> SourceText:
    return SourceText(read_source(ROOT / "salt")[0])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A random model."""
    folder = tmp_path_factory.mktemp("model") / "small"
    encode = EncodeConfig(patch_size=16, mel_bins=16)
    config = ModelConfig(
        vocab_size=290, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, window=16,
        global_every=2, image_dim=encode.image_dim, audio_dim=encode.audio_dim, video_dim=encode.video_dim,
    )  # fmt: skip
    tokenizer = train_tokenizer(["the words of a model that knows nothing\n"] * 3, 280)
    model = Transformer(config, generator=torch.Generator().manual_seed(7))
    save_model(folder, model, encode_config=encode, tokenizer=tokenizer)
    return load(folder)


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(play, "ModelAnswers", ScriptedAnswers)


def files_of(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }  # fmt: skip


def quiet(*_said):
    pass


def test_right_and_unsure_is_kept_and_the_rest_is_counted(scripted, loaded, source, tmp_path):
    result = self_play(loaded, tmp_path, CONFIG, source=source, say=quiet)
    entries = read_pool(tmp_path)
    documents = list(read_manifest(tmp_path / "pool.jsonl"))
    assert documents == [entry.document for entry in entries] and len(documents) == result["entries"] > 20
    for document in documents:
        *prompt, target = document.parts
        assert all(not part.loss_mask for part in prompt) and target.loss_mask and document.split == "train"
        assert solve(shown_text(prompt)) == [target.text.strip()], "only right answers are learned"
        assert ScriptedAnswers.skill(None, tuple(prompt)) == 1, "neither what is never nor what is always right"
        assert document.kind.removeprefix("self-play-") in TEXT_FAMILIES
    for family in TEXT_FAMILIES:
        counts = result["counts"][family]
        cases = [
            json.loads(line)
            for path in sorted((tmp_path / "blocks").glob(f"{family}-*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        assert counts["proposed"] == 40 == len(cases) == counts["never"] + counts["certain"] + counts["uncertain"]
        assert counts["right"] == counts["certain"] + counts["uncertain"] == sum(c["num_right"] > 0 for c in cases)
        assert counts["uncertain"] == counts["kept"] + counts["repeated"] and min(counts["never"], counts["certain"])
        assert counts["kept"] == sum(one.kind == f"self-play-{family}" for one in documents)
        by_level = result["by_level"][family].values()
        assert sum(level["proposed"] for level in by_level) == 40
    assert all(json.loads(line)["consent"] == "pseudo" for line in (tmp_path / "pool.jsonl").read_text().splitlines())
    table = table_of(result).splitlines()
    assert table[0].split()[:5] == ["family", "proposed", "right", "uncertain", "kept"] and len(table) == 4
    assert json.loads((tmp_path / "self_play.json").read_text())["counts"] == result["counts"]


def test_sure_answers_that_agree_are_certain_and_unsure_ones_are_kept(scripted, loaded, source, tmp_path, monkeypatch):
    """Agreement or the mean log-probability alone makes a case uncertain."""
    monkeypatch.setattr(ScriptedAnswers, "sure", -0.2)
    result = self_play(loaded, tmp_path, CONFIG, source=source, say=quiet)
    assert all(counts["certain"] == 0 for counts in result["counts"].values())
    assert {ScriptedAnswers.skill(None, entry.document.parts[:-1]) for entry in read_pool(tmp_path)} == {1, 2}


def test_equal_settings_give_equal_bytes(scripted, loaded, source, tmp_path):
    self_play(loaded, tmp_path / "one", CONFIG, source=source, say=quiet)
    self_play(loaded, tmp_path / "two", CONFIG, source=source, say=quiet)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    # again in the same folder: nothing is played
    before = (tmp_path / "one/blocks/table-00000.jsonl").stat()
    self_play(loaded, tmp_path / "one", CONFIG, source=source, say=quiet)
    assert (tmp_path / "one/blocks/table-00000.jsonl").stat() == before
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    self_play(loaded, tmp_path / "three", dataclasses.replace(CONFIG, seed=4), source=source, say=quiet)
    assert not {e.key for e in read_pool(tmp_path / "one")} & {e.key for e in read_pool(tmp_path / "three")}
    with pytest.raises(ValueError, match=r"other settings .*seed: 3 -> 4.* another --out"):
        self_play(loaded, tmp_path / "one", dataclasses.replace(CONFIG, seed=4), source=source)


@pytest.mark.parametrize("after", [1, 4, 14])
def test_interrupted_play_resumes_with_equal_bytes(scripted, loaded, source, tmp_path, after):
    self_play(loaded, tmp_path / "whole", CONFIG, source=source, say=quiet)
    said = []

    def interrupt(text):
        said.append(text)
        if len(said) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        self_play(loaded, tmp_path / "cut", CONFIG, source=source, say=interrupt)
    assert not (tmp_path / "cut/pool.jsonl").exists()
    said = []
    self_play(loaded, tmp_path / "cut", CONFIG, source=source, say=said.append)
    assert len(said) == 15 - after, "what was played is not played again"
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_cap_in_tokens_is_kept(scripted, loaded, source, tmp_path):
    whole = self_play(loaded, tmp_path / "whole", CONFIG, source=source, say=quiet)
    everything = {entry.key for entry in read_pool(tmp_path / "whole")}
    for number, most in enumerate((0, 50, 120, 10**6)):
        config = dataclasses.replace(CONFIG, max_targets=most)
        result = self_play(loaded, tmp_path / str(number), config, source=source, say=quiet)
        entries = read_pool(tmp_path / str(number))
        assert result["num_targets"] == sum(entry.num_targets for entry in entries) <= most
        for entry in entries:
            assert entry.num_targets == len(loaded.tokenizer.encode(entry.document.parts[-1].text))
        assert {entry.key for entry in entries} <= everything
        capped = sum(counts["capped"] for counts in result["counts"].values())
        assert capped == whole["entries"] - len(entries)
    assert capped == 0


def test_held_out_cases_never_become_documents(scripted, loaded, source, tmp_path):
    """Neither the whole case, nor its question with another answer, nor under another id and kind."""
    self_play(loaded, tmp_path / "one", CONFIG, source=source, say=quiet)
    entries = read_pool(tmp_path / "one")
    whole, asked = entries[:5], entries[5:9]
    lines = [Document(f"t{n}", e.document.parts, "case", split="test").to_json() for n, e in enumerate(whole)]
    lines += [Document(f"q{n}", (*e.document.parts[:-1], Text("?"))).to_json() for n, e in enumerate(asked)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    held_out = held_out_digests([tmp_path / "cases.jsonl"])
    result = self_play(loaded, tmp_path / "two", CONFIG, source=source, held_out=held_out, say=quiet)
    assert {e.key for e in read_pool(tmp_path / "two")} == {e.key for e in entries[9:]}
    assert sum(counts["held_out"] for counts in result["counts"].values()) == 9
    (tmp_path / "cases.jsonl").write_text('{"id": 7, "content": []}\n')
    with pytest.raises(ValueError, match="cannot be held out"):
        held_out_digests([tmp_path / "cases.jsonl"])


def test_a_suite_is_held_out_as_its_cases_are(tmp_path, monkeypatch):
    colours = ("red", "green", "blue", "white", "black", "pink")
    for number, colour in enumerate(colours):
        Image.new("RGB", (16, 8), colour).save(tmp_path / f"{number}.png")
    lines = [
        {
            "id": f"i{n}",
            "split": "test",
            "content": [{"type": "image", "image": f"{n}.png"}, {"type": "text", "text": c}],
        }
        for n, c in enumerate(colours)
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = SuiteConfig(transcripts_per_cell=0, timing=False)
    suite = make_suite("colours", [tmp_path / "manifest.jsonl"], config, root=tmp_path / "runs/suites", workers=1)
    found = held_out_digests([suite.folder])
    # media by their hash, whatever their path is
    assert found == held_out_digests([tmp_path / "manifest.jsonl"]) and len(found) == 3 * len(colours)
    monkeypatch.chdir(tmp_path)
    assert held_out_digests([Path("colours@1")]) == found
    with pytest.raises(ValueError, match="is no suite: give a manifest"):
        held_out_digests([tmp_path / "runs"])
    (suite.folder / "cases.jsonl").chmod(0o644)
    (suite.folder / "cases.jsonl").write_text("")
    with pytest.raises(ValueError, match="was changed"):
        held_out_digests([suite.folder])


def test_what_earlier_rounds_have_is_not_made_again(scripted, loaded, source, tmp_path):
    self_play(loaded, tmp_path / "one", CONFIG, source=source, say=quiet)
    result = self_play(loaded, tmp_path / "two", CONFIG, source=source, earlier=[tmp_path / "one"], say=quiet)
    assert result["entries"] == 0 and read_pool(tmp_path / "two") == []
    assert all(counts["repeated"] == counts["uncertain"] for counts in result["counts"].values())


def test_a_family_that_collapses_is_stopped(scripted, loaded, source, tmp_path, monkeypatch):
    """A model that always asks for what it was asked before: nothing of that family is written."""
    config = dataclasses.replace(CONFIG, num_cases=400, families=("table",), block_size=100)
    first = self_play(loaded, tmp_path / "one", config, source=source, say=quiet)
    assert first["watch"]["table"]["outcome"] == "ok" and not first["stopped"]
    original = play.play_block

    def narrow(*args, **options):
        return [
            dataclasses.replace(case, question=f"lines of alpha {n % 3}?")
            for n, case in enumerate(original(*args, **options))
        ]

    monkeypatch.setattr(play, "play_block", narrow)
    config = dataclasses.replace(config, seed=5)
    found = self_play(loaded, tmp_path / "two", config, source=source, earlier=[tmp_path / "one"], say=quiet)
    assert found["stopped"] == ["table"] and found["entries"] == 0 == found["counts"]["table"]["kept"]
    assert found["counts"]["table"]["collapsed"] > 0 and "table is stopped: distinct 1-grams" in table_of(found)
    assert any("of the first round" in one for one in found["watch"]["table"]["breaches"])


def test_levels_follow_what_is_learned():
    cases = [PlayedCase("table", 1, "certain")] * 30 + [PlayedCase("table", 3, "never")] * 30
    cases += [PlayedCase("table", 2, "uncertain")] * 10 + [PlayedCase("table", 2, "never")] * 10
    weights = level_weights(cases)
    assert weights[2] > 10 * weights[1] > 0 and weights[1] == weights[3]
    assert len(set(level_weights([]).values())) == 1


def test_cases_survive_their_files():
    document = Document("d", (Text("q", loss_mask=False), Text("a")), "self-play-table")
    case = PlayedCase("table", 2, "uncertain", "q?", "a", "r?", ("a", "b"), 1, -0.5, 2, document)
    assert PlayedCase.from_json(json.loads(json.dumps(case.to_json()))) == case
    assert question_and_answer(Document("d", (Text("x,y\n1,2\ny of 1?\n", loss_mask=False), Text("2")))) == "y of 1? 2"


@pytest.mark.parametrize(
    "settings",
    [{"families": ()}, {"families": ("needle", "needle")}, {"families": ("poker",)}, {"num_answers": 0},
     {"temperature": 0.0}, {"certain_confidence": 0.1}, {"certain_agreement": 0.0}, {"max_targets": -1}],
)  # fmt: skip
def test_settings_that_cannot_work(settings):
    with pytest.raises(ValueError):
        SelfPlayConfig(**settings)


def test_unusable_cases_have_their_reason_in_one_line():
    counts = {"read_image": {"proposed": 12, "unusable": 4}, "read_audio": {"proposed": 12, "unusable": 0}}
    result = {"counts": {name: dict.fromkeys(play.COUNTS, 0) | some for name, some in counts.items()}, "stopped": []}
    reasons = [line for line in table_of(result).splitlines() if "unusable, since" in line]
    assert len(reasons) == 1 and reasons[0].startswith("read_image: 4 of 12 unusable, since the model wrote no line")


@pytest.mark.slow
def test_real_model_reads_back_what_it_wrote(loaded, source, tmp_path):
    """A model that is random: media are rendered, rules check, files are whole, twice the same."""
    config = SelfPlayConfig(
        families=("read_image", "table_image", "needle"), num_cases=12, block_size=6, max_tokens=6, num_answers=2,
        temperature=3.0,
    )  # fmt: skip
    result = self_play(loaded, tmp_path / "one", config, source=source, say=quiet)
    again = self_play(loaded, tmp_path / "two", config, source=source, say=quiet)
    assert result == again and files_of(tmp_path / "one") == files_of(tmp_path / "two")
    counts = result["counts"]
    assert counts["table_image"]["never"] + counts["table_image"]["right"] == 12
    assert sum(counts["read_image"][name] for name in ("unusable", "never", "right")) == 12
    for case in read_jsonl(tmp_path / "one/blocks/needle-00000.jsonl"):
        assert len(case["responses"]) == 2 and case["confidence"] < 0
        right = sum(response.split("\n")[0].strip() == case["answer"] for response in case["responses"])
        assert case["num_right"] == right


@pytest.mark.slow
def test_media_of_kept_documents_are_beside_the_manifest(loaded, source, tmp_path, monkeypatch):
    class Reads(ScriptedAnswers):
        """Says what it is to say half of the time: any document is kept."""

        def sample(self, prompts, *, num_answers, max_tokens, seed):
            return [["no"] * num_answers for _ in prompts]

    monkeypatch.setattr(play, "ModelAnswers", Reads)
    monkeypatch.setattr("brine.salt.self_play.block.matches_answer", lambda response, question: True)
    config = SelfPlayConfig(families=("table_image", "read_image", "needle_image"), num_cases=6, certain_confidence=0.0)
    result = self_play(loaded, tmp_path, config, source=source, say=quiet)
    documents = list(read_manifest(tmp_path / "pool.jsonl"))
    assert len(documents) == result["entries"] > 10
    hasher = ContentHasher(tmp_path)
    for document in documents:
        assert media_paths(document) and document.id.endswith(hasher.content(document)[:16])
    assert Counter(d.kind for d in documents)["self-play-table_image"] == 6


def test_command(loaded, tmp_path, capsys):
    arguments = [str(loaded.folder), "--out", str(tmp_path / "out"), "--source", str(ROOT / "salt")]
    arguments += ["--dtype", "float32", "--families", "needle", "--num-cases", "4", "--max-tokens", "3"]
    arguments += ["--num-answers", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out.splitlines()[-1])
    assert said["counts"]["needle"]["proposed"] == 4 and (tmp_path / "out/pool.jsonl").is_file()
    assert main([*arguments, "--seed", "1"]) == 2 and "another --out" in capsys.readouterr().err
    assert main([*arguments[:1], "--out", str(tmp_path / "new"), "--families", "chess"]) == 2
    assert "choose from needle" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 2
    assert main([*arguments, "--earlier", str(tmp_path / "none")]) == 2 and "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_resumes_with_equal_bytes(loaded, tmp_path):
    """SIGKILL at several moments of a real play, each time resumed."""
    command = [
        "-m", "brine.self_play", str(loaded.folder), "--source", str(ROOT / "salt"), "--families",
        "needle,table_image", "--num-cases", "20", "--block-size", "4", "--max-tokens", "4", "--threads", "1",
        "--dtype", "float32",
    ]  # fmt: skip

    def blocks(folder) -> int:
        return len(list(folder.glob("blocks/*.jsonl")))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Command([*command, "--out", str(whole)]).wait(timeout=120) == 0
    for until in (1, 6):
        process = Command([*command, "--out", str(cut)])
        deadline = time.monotonic() + 60
        while blocks(cut) < until and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        assert blocks(cut) >= until
    assert not (cut / "self_play.json").exists()
    assert Command([*command, "--out", str(cut)]).wait(timeout=120) == 0
    left = [path for path in files_of(cut) if path.endswith(".tmp")]
    for path in left:
        (cut / path).unlink()
    assert files_of(cut) == files_of(whole)
    shutil.rmtree(cut)
