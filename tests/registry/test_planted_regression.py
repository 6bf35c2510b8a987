"""A regression that is really there: a candidate trained on silenced audio, better in everything else, is refused by
the name of what it lost."""

from importlib.util import find_spec

import pytest

from brine.registry.registry import Registry, the_gate
from tests.registry.fakes import FAKE_GATE
from tests.registry.tones import SUITE, measure_tones, train_tones, write_corpus

SEEDS = (0, 1, 2)


@pytest.mark.acceptance
def test_a_model_that_lost_its_hearing_is_refused_although_it_is_better(tmp_path, monkeypatch):
    monkeypatch.setenv("BRINE_COMMIT", "0123456789ab")
    gate = the_gate() if find_spec("brine.registry.gate") else FAKE_GATE
    runs, registry = tmp_path / "runs", Registry(tmp_path / "registry")
    heard, silenced = write_corpus(tmp_path / "heard"), write_corpus(tmp_path / "silenced", silent=True)
    held_out = write_corpus(tmp_path / "held_out", part="test", count=128, seed=1)

    def setting(name, manifest, num_steps):
        models = []
        for seed in SEEDS:
            run = train_tones(runs, f"{name}-{seed}", manifest, seed=seed, num_steps=num_steps)
            models.append(registry.add(run))
            registry.measure(models[-1], measure_tones(run, held_out, tmp_path / "measured" / run.name), SUITE)
        return models

    champion = registry.promote(setting("base", heard, 20), SUITE, gate=gate)
    assert champion.model is not None, champion.answer.reasons
    deaf = registry.promote(setting("deaf", silenced, 60), SUITE, gate=gate)
    print("deaf", deaf.answer)
    assert deaf.model is None and registry.champion == champion.model
    assert all("gain.audio" in reason for reason in deaf.answer.reasons) and deaf.answer.reasons
    # the same training with its hearing passes
    better = registry.promote(setting("better", heard, 40), SUITE, gate=gate)
    print("better", better.answer)
    assert better.model is not None, better.answer.reasons
