"""A promotion that is killed anywhere leaves the old champion or the new one, and log and pointer that agree."""

import os
import shutil
import time

import pytest

from brine.inference.registered import resolve_registered
from brine.registry.registry import Registry
from brine.registry.verify import verify
from tests.registry.fakes import FAKE_GATE, SUITE, add_setting, make_run, write_measured
from tests.registry.kill_points import count_steps, promote, run_and_die

FRACTIONS = [number / 36 for number in range(36)]
"""Of the bytes of the log's new lines, after which a write is cut."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(a registry with a champion and three candidates, these candidates, steps of their promotion)."""
    folder = tmp_path_factory.mktemp("kills")
    registry = Registry(folder / "registry")
    promote(registry.root, add_setting(registry, folder / "runs", "base"))
    new = add_setting(registry, folder / "runs", "new", learning_rate=2e-3, bits_per_byte=1.5)
    shutil.copytree(registry.root, folder / "whole", symlinks=True)
    return registry.root, new, count_steps(lambda: promote(folder / "whole", new))


def check_killed(prepared, root, *, point, fraction=None):
    template, new, steps = prepared
    shutil.copytree(template, root, symlinks=True)
    before = Registry(root).champion
    assert run_and_die(lambda: promote(root, new), point, fraction) == (fraction is not None or point < steps)
    # a reader that knows names of folders alone
    pointed = resolve_registered("champion", root=root).name
    registry = Registry(root)
    assert registry.champion in (before, *new) and pointed in (before, registry.champion)
    assert os.readlink(root / "champion") == f"models/{registry.champion}"
    assert verify(root) == []
    if registry.champion == before:
        assert promote(root, new).model in new
    assert verify(root) == [] and Registry(root).champion in new
    shutil.rmtree(root)
    return registry.champion != before


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.85], ids=["early", "half", "late", "last"])
def test_killed_at_a_step(prepared, tmp_path, share):
    check_killed(prepared, tmp_path / "registry", point=int(prepared[2] * share))


def test_killed_in_a_write(prepared, tmp_path, caplog):
    assert not check_killed(prepared, tmp_path / "registry", point=-1, fraction=0.6)
    assert "its last line was cut off by a kill" in caplog.text


@pytest.mark.acceptance
def test_killed_at_every_step(prepared, tmp_path):
    """At least 50 points: before every step, and within the write of the log's lines."""
    steps = prepared[2]
    outcomes = [check_killed(prepared, tmp_path / "registry", point=point) for point in range(steps + 1)]
    outcomes += [check_killed(prepared, tmp_path / "registry", point=-1, fraction=each) for each in FRACTIONS]
    assert len(outcomes) >= 50 and True in outcomes and False in outcomes
    # what has happened does not unhappen at a later point
    assert outcomes[: steps + 1] == sorted(outcomes[: steps + 1])
    print(f"{len(outcomes)} points, {sum(outcomes)} with the new champion")


ACTIONS = {
    "add": lambda root, runs: Registry(root).add(runs / "more"),
    "measure": lambda root, runs: Registry(root).measure(
        Registry(root).champion, runs / "base-1" / "suites" / "again", SUITE
    ),
    "force": lambda root, runs: Registry(root).promote(
        [Registry(root).digest_of(name) for name in DEAF], SUITE, gate=FAKE_GATE, force="a demonstration"
    ),
    "rollback": lambda root, runs: Registry(root).rollback(reason="x"),
    "revoke": lambda root, runs: Registry(root).revoke("champion", reason="x", rollback=True),
}
DEAF: list[str] = []


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ACTIONS)
def test_any_change_that_is_killed_is_whole_or_absent_and_can_be_made_again(tmp_path, name):
    """The repair after the kill is killed too, once at each of its steps in turn."""
    runs, action = tmp_path / "runs", ACTIONS[name]
    registry = Registry(tmp_path / "template")
    promote(registry.root, add_setting(registry, runs, "base"))
    promote(registry.root, add_setting(registry, runs, "new", learning_rate=2e-3, bits_per_byte=1.5))
    champion = Registry(registry.root).champion
    DEAF[:] = add_setting(registry, runs, "deaf", learning_rate=3e-3, bits_per_byte=1.2, gain__audio=0.95)
    seed = registry.card(champion)["seeds"]["seed"]
    write_measured(runs / "base-1" / "suites" / "again", champion, seed=seed, result={"machine": "m2"})
    make_run(runs, "more", seed=9)
    shutil.copytree(registry.root, tmp_path / "whole", symlinks=True)
    steps = count_steps(lambda: action(tmp_path / "whole", runs))
    done = Registry(tmp_path / "whole")
    wanted, before = done.history, registry.log.scan().entries
    for point in range(steps):
        root = tmp_path / "registry"
        shutil.copytree(registry.root, root, symlinks=True)
        assert run_and_die(lambda root=root: action(root, runs), point)
        run_and_die(lambda root=root: Registry(root), point % 12)
        again = Registry(root)
        assert os.readlink(root / "champion") == f"models/{again.champion}"
        found = [line["event"] for line in again.log.scan().entries]
        if len(found) == len(before):
            # absent, but for a folder that is taken over by the same command
            assert all("is in no line of the log" in each for each in verify(root))
            action(root, runs)
            again = Registry(root)
        assert verify(root) == [] and again.champion == wanted.champion
        assert again.history.added.keys() == wanted.added.keys() and again.history.revoked == wanted.revoked
        assert again.history.forced.keys() == wanted.forced.keys()
        shutil.rmtree(root)


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.acceptance)], ids=["2", "30"])
def test_of_two_promoters_one_wins_and_one_is_told(prepared, tmp_path, rounds):
    template, new, _ = prepared
    for number in range(rounds):
        root = tmp_path / f"registry-{number}"
        shutil.copytree(template, root, symlinks=True)
        registry = Registry(root)
        other = add_setting(registry, tmp_path / "runs", "other", learning_rate=3e-3, bits_per_byte=1.4)
        said = [race(root, models) for models in (new, other)]
        said = [reader() for reader in said]
        won = [text.removeprefix("promoted ") for text in said if text.startswith("promoted ")]
        told = [text for text in said if "while this was decided" in text or "process" in text]
        # one that began after the other had ended was compared with it
        late = [text for text in said if text.startswith("refused")]
        assert len(won) == 1 and len(told) + len(late) == 1, said
        assert Registry(root).champion == won[0] and verify(root) == []


def race(root, models):
    """Promote in a child that decides for a moment; returns a function that waits for what it says."""

    class Gate:
        median_seed, calibrate_margins = FAKE_GATE.median_seed, FAKE_GATE.calibrate_margins

        @staticmethod
        def decide(*sides, **options):
            time.sleep(0.3)
            return FAKE_GATE.decide(*sides, **options)

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = Registry(root).promote(models, SUITE, gate=Gate)
            said = f"promoted {found.model}" if found.model else f"refused: {found.answer.reasons}"
        except Exception as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)

    def wait():
        os.waitpid(child, 0)
        with os.fdopen(reading) as file:
            return file.read()

    return wait
