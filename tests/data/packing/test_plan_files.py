"""Plans on disk and parts of plans: names, equal bytes, slices, and files that are no plans."""

import json
import zipfile

import numpy as np
import pytest

from brine.data.packing.plan import PackingPlan
from tests.data.packing.test_plan import BUDGET, synthetic


def test_names(tmp_path):
    """A name stands for one plan: another one needs another name, or has to be asked for."""
    corpus = synthetic(200)
    plan = PackingPlan.build(corpus, seq_len=200, num_sequences=20, name="round-1")
    path = plan.save(tmp_path)
    assert path == tmp_path / "plans" / "round-1.npz" and plan.info["name"] == "round-1"
    before = path.read_bytes()
    assert plan.save(tmp_path) == path and path.read_bytes() == before
    filtered = PackingPlan.build(corpus, seq_len=200, num_sequences=20, name="round-1", documents=range(100))
    with pytest.raises(ValueError, match="holds another plan: give this one another name"):
        filtered.save(tmp_path)
    assert path.read_bytes() == before
    filtered.save(tmp_path, overwrite=True)
    assert PackingPlan.load(path).digest() == filtered.digest() != plan.digest()
    for name in ("", "../x", "a/b", ".hidden", "x" * 101):
        with pytest.raises(ValueError, match="plain file name"):
            PackingPlan.build(corpus, seq_len=200, name=name)


@pytest.mark.slow
def test_the_same_bytes_for_the_same_arguments(tmp_path):
    # enough to be packed both ways
    corpus = synthetic(8_000)
    files = []
    for number, seed in enumerate((1, 1, 2)):
        plan = PackingPlan.build(corpus, seq_len=2000, media_budget=BUDGET, epochs=2, seed=seed)
        files.append(plan.save(tmp_path / f"{number}.npz").read_bytes())
    assert files[0] == files[1] != files[2]


def test_rows_are_slices():
    plan = PackingPlan.build(synthetic(30_000), seq_len=1000, epochs=1)
    generator = np.random.default_rng(0)
    for start, stop in np.sort(generator.integers(0, len(plan) + 1, (50, 2)), axis=1).tolist():
        part = plan.slice(start, stop)
        assert len(part) == stop - start
        for name in ("document", "start", "stop", "blank"):
            whole = getattr(plan, name)[plan.offset[start] : plan.offset[stop]]
            assert (getattr(part, name) == whole).all()
        if start < stop:
            number = int(generator.integers(start, stop))
            assert part.chunks(number - start) == plan.chunks(number)


def test_files_that_lie_are_no_plans(tmp_path):
    plan = PackingPlan.build(synthetic(100), seq_len=200, num_sequences=5)
    arrays = {name: getattr(plan, name) for name in ("document", "start", "stop", "blank", "offset")}
    meta = {"seq_len": 200, "media_budget": {}, "fingerprint": "f", "info": {}}
    for change in (
        {"offset": plan.offset[::-1].copy()},
        {"offset": plan.offset[:-1]},
        {"offset": np.array([0, len(plan.document)])},
        {"start": plan.stop},
        {"start": plan.start - 1},
        {"stop": plan.stop[:-1]},
        {"blank": plan.start},
        {"document": plan.document.astype(float)},
        {"meta": meta | {"seq_len": "200"}},
        {"meta": meta | {"more": 1}},
        {"meta": []},
    ):
        given = arrays | {"meta": meta} | change
        given["meta"] = np.frombuffer(json.dumps(given["meta"]).encode(), np.uint8)
        np.savez(tmp_path / "wrong.npz", **given)
        with pytest.raises(ValueError, match="not a packing plan"):
            PackingPlan.load(tmp_path / "wrong.npz")
    np.savez_compressed(tmp_path / "wrong.npz", **arrays, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    with pytest.raises(ValueError, match="compressed"):
        PackingPlan.load(tmp_path / "wrong.npz")
    with zipfile.ZipFile(tmp_path / "wrong.npz", "w") as archive:
        # an array that claims 8 TiB
        head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }"
        archive.writestr("meta.npy", head + text.ljust(117) + b"\n")
    with pytest.raises(ValueError, match="not a packing plan"):
        PackingPlan.load(tmp_path / "wrong.npz")


def test_save_load(tmp_path):
    plan = PackingPlan.build(synthetic(200), seq_len=200, media_budget=BUDGET, num_sequences=20, seed=1)
    plan.save(tmp_path / "plan.npz")
    again = PackingPlan.load(tmp_path / "plan.npz")
    assert [again.chunks(n) for n in range(20)] == [plan.chunks(n) for n in range(20)]
    assert (again.seq_len, again.media_budget, again.info) == (plan.seq_len, plan.media_budget, plan.info)
    (tmp_path / "plan.npz").write_bytes((tmp_path / "plan.npz").read_bytes()[:100])
    for name in ("plan.npz", "none.npz"):
        with pytest.raises(ValueError, match="not a packing plan"):
            PackingPlan.load(tmp_path / name)
    np.savez(tmp_path / "object.npz", document=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="not a packing plan"):
        PackingPlan.load(tmp_path / "object.npz")


def test_part_of_a_plan():
    plan = PackingPlan.build(synthetic(200), seq_len=200, num_sequences=20)
    part = plan.slice(5, 9)
    assert len(part) == 4 and [part.chunks(n) for n in range(4)] == [plan.chunks(n) for n in range(5, 9)]
