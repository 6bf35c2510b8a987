"""`verify` names the file or the line in which a bit flipped, a line that is gone, a log that was cut."""

import json
import os
import random
import shutil

import pytest

from brine.common.files import read_json
from brine.registry.chained_log import ChainedLog
from brine.registry.registry import Registry
from brine.registry.verify import verify
from tests.registry.fakes import FAKE_GATE, SUITE, add_setting, make_run

FILES = {
    "weights": "models/{champion}/model/model.safetensors",
    "config": "models/{champion}/model/config.json",
    "tokenizer": "models/{other}/model/tokenizer.json",
    "recipe": "models/{champion}/recipe.json",
    "card": "models/{champion}/card.json",
    "measurements": "models/{other}/measured/{record}/measurements.jsonl",
    "record": "models/{other}/measured/{record}/record.json",
    "head": "head.json",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    registry = Registry(folder / "registry")
    registry.promote(add_setting(registry, folder / "runs", "base"), SUITE, gate=FAKE_GATE)
    deaf = add_setting(registry, folder / "runs", "deaf", learning_rate=2e-3, gain__audio=0.95, bits_per_byte=1.5)
    registry.promote(deaf, SUITE, gate=FAKE_GATE, force="a demonstration")
    registry.rollback(reason="enough")
    assert verify(registry.root) == []
    return registry


@pytest.fixture
def registry(whole, tmp_path):
    shutil.copytree(whole.root, tmp_path / "registry", symlinks=True)
    return Registry(tmp_path / "registry")


def flip(path, rng, position=None):
    """Flip one bit, of a drawn byte or of the one at `position`; returns its byte's position."""
    content = bytearray(path.read_bytes())
    position = rng.randrange(len(content)) if position is None else position
    content[position] ^= 1 << rng.randrange(8)
    # a file of its own: the original is linked
    path.unlink()
    path.write_bytes(content)
    return position


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_named_by_its_file(registry, name):
    rng = random.Random(name)
    other = next(model for model in registry.history.added if model != registry.champion)
    record = registry.history.measured[other][0]["folder"]
    path = registry.root / FILES[name].format(champion=registry.champion, other=other, record=record)
    content = path.read_bytes()
    for _ in range(20):
        flip(path, rng)
        found = verify(registry.root)
        assert any(str(path) in each for each in found), f"{path} is not named: {found}"
        assert len(found) == 1 or name in ("head", "weights"), found
        path.write_bytes(content)
    assert verify(registry.root) == []


def test_a_flipped_bit_of_the_log_is_named_by_its_line(registry):
    rng, path = random.Random(1), registry.root / "log.jsonl"
    content = path.read_bytes()
    breaks = [position for position, byte in enumerate(content) if byte == ord("\n")]
    for position in [None] * 60 + breaks:
        position = flip(path, rng, position)
        line = content[:position].count(b"\n") + 1
        (found, *_) = [each for each in verify(registry.root) if "log.jsonl" in each]
        if position == breaks[-1]:
            assert "log.jsonl is truncated" in found
        else:
            assert f"log.jsonl line {line} " in found, (line, found)
        with pytest.raises(ValueError, match=r"put the file back from a copy"):
            Registry(registry.root)
        path.write_bytes(content)


def test_lines_that_are_gone_doubled_or_swapped_are_named(registry):
    path = registry.root / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = {
        "line 5 is missing before its line 5": [*lines[:4], *lines[5:]],
        "lines 3 to 6 are missing before its line 3": [*lines[:2], *lines[6:]],
        "line 1 is missing": lines[1:],
        f"is truncated: it has {len(lines) - 1} of {len(lines)} lines": lines[:-1],
        f"is truncated: it has 2 of {len(lines)} lines": lines[:2],
        f"is truncated: it has {len(lines) - 1} of {len(lines)} lines (and its last": [*lines[:-1], lines[-1][:-9]],
        "line 5 has the number 4, not 5": [*lines[:4], lines[3], *lines[4:]],
        "line 7 has the number 8, not 7": [*lines[:6], lines[7], lines[6], *lines[8:]],
    }
    for said, content in spoilt.items():
        path.write_bytes(b"".join(content))
        found = verify(registry.root)
        assert any(said in each for each in found), (said, found)


def test_a_line_with_new_words_and_a_right_chain_up_to_it_is_named(registry):
    """Words that read well are no proof."""
    path = registry.root / "log.jsonl"
    lines = path.read_text().splitlines()
    entry = json.loads(lines[2]) | {"model": "0" * 64}
    path.write_text("\n".join([*lines[:2], json.dumps(entry), *lines[3:]]) + "\n")
    assert any("log.jsonl line 3 differs" in each for each in verify(registry.root))


def test_no_model_is_to_be_added_again_while_the_log_is_damaged(registry):
    path = registry.root / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "add")
    path.write_bytes(b"".join([*lines[:number], b"x" + lines[number], *lines[number + 1 :]]))
    found = verify(registry.root)
    assert any("in no line of the log: put the damaged log back from a copy first" in each for each in found)
    assert not any("add the model again" in each for each in found)


def test_a_torn_line_and_a_pointer_behind_the_log_are_repaired_and_said(registry, caplog):
    champion, path = registry.champion, registry.root / "log.jsonl"
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"line": 99, "previous": "abc", "event": "pro')
    other = next(model for model in registry.history.added if model != champion)
    (registry.root / "champion").unlink()
    os.symlink(f"models/{other}", registry.root / "champion")
    assert len(verify(registry.root)) == 2
    again = Registry(registry.root)
    assert again.champion == champion and os.readlink(registry.root / "champion") == f"models/{champion}"
    assert "cut off by a kill" in caplog.text and "the pointer led to" in caplog.text
    assert path.read_bytes() == whole and b'"event": "pro\n' in (registry.root / "log.torn").read_bytes()
    assert verify(registry.root) == []


def test_lines_that_were_not_applied_are_applied(registry, caplog):
    """A kill after the log was written and before cards and head were."""
    model = next(iter(registry.history.added))
    ChainedLog(registry.root).append(
        [{"event": "revoke", "digest": model, "models": [model], "reason": "x"}], ChainedLog(registry.root).scan()
    )
    assert "not applied" in verify(registry.root)[0]
    assert Registry(registry.root).card(model)["revoked"] == [f"{model[:12]} is revoked (x)"]
    assert "applied now: 1 line of the log" in caplog.text and verify(registry.root) == []


def test_an_add_that_was_interrupted_is_taken_over(registry, tmp_path):
    run = make_run(tmp_path / "runs", "new", seed=9)
    model = registry.add(run)
    # as if the kill had come before the log's line
    lines = (registry.root / "log.jsonl").read_bytes().splitlines(keepends=True)
    (registry.root / "log.jsonl").write_bytes(b"".join(lines[:-1]))
    ChainedLog(registry.root).write_head()
    assert verify(registry.root) == [f"{registry.folder_of(model)} is in no line of the log: add the model again"]
    assert Registry(registry.root).add(run) == model and verify(registry.root) == []


def test_a_missing_pointer_or_file_is_named(registry):
    (registry.root / "champion").unlink()
    path = registry.folder_of(registry.champion) / "model" / "tokenizer.json"
    path.unlink()
    found = verify(registry.root)
    assert any("champion leads to None" in each for each in found) and any(str(path) in each for each in found)
    assert read_json(registry.root / "head.json")["lines"] == len(registry._scan.entries)
