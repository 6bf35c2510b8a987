"""Batches: contents, shapes, ranks, resuming, cache against decoding, damaged documents."""

import dataclasses
import os
import pickle
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brine.data.batch import CACHED_STATS, TENSOR_FIELDS, Batch, make_batch
from brine.data.corpus.store import DecodingCorpus, EncodedCorpus
from brine.data.document import MODALITIES
from brine.data.loader import Loader, batch_bytes, default_loader_workers
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import MEDIA_TOKEN_ID, PAD_ID
from brine.model.embed import floats
from brine.model.inputs import TENSORS
from tests.batches import field
from tests.data.media_files import targets
from tests.data.resume_worker import Speckle, alive, descendants, row_hashes

pytestmark = pytest.mark.slow

BUDGET = {"image": 128, "audio": 160, "video": 256}
ROW = 400


@pytest.fixture(scope="module")
def plan(corpus) -> PackingPlan:
    return PackingPlan.build(corpus, seq_len=ROW, media_budget=BUDGET, num_sequences=25, seed=4, blank_fraction=0.3)


def same(left, right) -> bool:
    names = ("token_ids", "position", "document", "block", "labels", "kind", "modality_context")
    pairs = [(field(left, name), field(right, name)) for name in names]
    pairs += [
        (a, b) for name in MODALITIES for a, b in zip(left.inputs.media[name], right.inputs.media[name], strict=True)
    ]
    same = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    return same and left.sequence_index == right.sequence_index


def test_batch_holds_what_the_plan_says(corpus, plan):
    assert plan.blank.any() and not plan.blank.all()
    for first in range(0, 24, 3):
        batch = make_batch(corpus, plan, range(first, first + 3))
        shapes = {
            "token_ids": torch.int64,
            "document": torch.int32,
            "block": torch.int32,
            "labels": torch.int64,
            "kind": torch.int16,
            "modality_context": torch.uint8,
        }
        for name, dtype in shapes.items():
            assert field(batch, name).shape == (3, ROW) and field(batch, name).dtype == dtype
        assert batch.inputs.position.shape == (3, ROW, 3) and batch.inputs.position.dtype == torch.float32
        used = dict.fromkeys(MODALITIES, 0)
        for row in range(3):
            column = 0
            for document, start, stop, blank in plan.chunks(first + row):
                sequence = corpus.encoded_document(document).slice(start, stop)
                sequence = sequence.with_blank_media() if blank else sequence
                place = (row, slice(column, column + stop - start))
                assert (batch.inputs.token_ids[place].numpy() == sequence.token_ids).all()
                assert (batch.inputs.position[place].numpy() == sequence.position).all()
                assert (batch.document[place] == document).all() and (batch.kind[place] == corpus.kind[document]).all()
                for name in MODALITIES:
                    patches, media_index = batch.inputs.media[name]
                    own = slice(used[name], used[name] + len(getattr(sequence, name)))
                    assert (patches[own].numpy() == getattr(sequence, name)).all()
                    assert (media_index[own].numpy() == row * ROW + column + sequence.media_positions(name)).all()
                    used[name] = own.stop
                column += stop - start
            assert (batch.inputs.token_ids[row, column:] == PAD_ID).all() and (batch.document[row, column:] == -1).all()
            assert (batch.kind[row, column:] == -1).all() and (batch.labels[row, column:] == -100).all()
        for name in MODALITIES:
            patches, media_index = batch.inputs.media[name]
            assert patches.shape == (3 * BUDGET[name], corpus.config.dims[name])
            assert patches.dtype == (torch.float16 if name == "audio" else torch.uint8)
            assert floats(patches).abs().max() <= 1.01
            assert (media_index[used[name] :] == 3 * ROW).all() and not patches[used[name] :].any()
            assert (batch.inputs.token_ids.reshape(-1)[media_index[: used[name]]] == MEDIA_TOKEN_ID[name]).all()


def test_stored_values_as_floats():
    """Every byte as numpy's float32 has it, and halves and floats as they are."""
    every = np.arange(256, dtype=np.uint8)
    expected = every.astype(np.float32) / np.float32(127.5) - np.float32(1)
    found = floats(torch.from_numpy(every).view(16, 16))
    assert found.dtype == torch.float32 and found.flatten().numpy().tobytes() == expected.tobytes()
    assert found[0, 0] == -1 and found[-1, -1] == 1
    for dtype in (torch.float16, torch.float32, torch.float64):
        given = torch.randn(3, 5).to(dtype)
        assert floats(given) is given


def test_counts_of_a_batch(corpus, plan):
    """They follow from the tensors, go along with them, and never from an old batch into a changed one."""
    batch = make_batch(corpus, plan, range(5))
    target = batch.labels.flatten() >= 0
    assert torch.equal(batch.target_index, target.nonzero().flatten()) and batch.num_targets == int(target.sum()) > 0
    ids = batch.inputs.token_ids.flatten()
    assert batch.mixture == {
        "text": int((batch.document >= 0).sum()) - sum(int((ids == MEDIA_TOKEN_ID[name]).sum()) for name in MODALITIES),
        **{name: int((ids == MEDIA_TOKEN_ID[name]).sum()) for name in MODALITIES},
        "padding": int((batch.document < 0).sum()),
    }
    assert all(batch.mixture.values()) and sum(batch.mixture.values()) == 5 * ROW
    known = pickle.loads(pickle.dumps(batch))
    # counted where the batch was made: neither a worker's batch nor one on a device is looked at again
    assert all(name in known.__dict__ for name in CACHED_STATS)
    away = batch.to("meta")
    assert away.target_index.is_meta and away.target_index.shape == batch.target_index.shape
    assert (away.num_targets, away.mixture) == (batch.num_targets, batch.mixture)

    labels = batch.labels.clone()
    labels[0] = -100
    changed = replace(batch, labels=labels)
    assert changed.num_targets == int((batch.labels[1:] >= 0).sum()) < batch.num_targets
    # as somebody makes one by hand, with fewer media
    inputs = dataclasses.replace(batch.inputs, media={"image": batch.inputs.media["image"]})
    own = Batch(inputs, **{name: getattr(batch, name) for name in TENSOR_FIELDS})
    assert own.to("cpu").num_targets == batch.num_targets and own.mixture["audio"] == 0


def test_labels(corpus, plan):
    for number in range(len(plan)):
        batch = make_batch(corpus, plan, [number])
        labels, ids = batch.labels[0], batch.inputs.token_ids[0]
        documents, block = batch.document[0], batch.inputs.block[0]
        has = torch.nonzero(labels >= 0)[:, 0]
        assert (labels[has] == ids[has + 1]).all() and (documents[has] == documents[has + 1]).all()
        # no row with a label sees past itself, and no label is a slot or a boundary token
        assert not ((block[has] > 0) & (block[has] == block[has + 1])).any()
        assert (labels[has] == 1).logical_or(labels[has] > 10).all()
        assert len(has) == sum(targets(corpus, plan.chunks(number)).values())
        # blocks of neighbours have different numbers, so that runs of equal numbers are blocks
        runs = block[torch.nonzero(torch.diff(block, prepend=torch.zeros(1, dtype=block.dtype)))[:, 0]]
        runs = runs[runs > 0].tolist()
        assert len(set(runs)) == len(runs)


def test_context_is_that_of_the_target(corpus, plan):
    batch = make_batch(corpus, plan, [0])
    column = 0
    for document, start, stop, _ in plan.chunks(0):
        modality_context = corpus.tokens(document).modality_context[start:stop]
        assert (batch.modality_context[0, column : column + stop - start - 1].numpy() == modality_context[1:]).all()
        column += stop - start


def test_blanking_and_transform(corpus, plan):
    blank = replace(plan, blank=np.ones_like(plan.blank))
    number = next(
        n for n in range(len(plan)) if (make_batch(corpus, plan, [n]).inputs.token_ids == MEDIA_TOKEN_ID["video"]).any()
    )
    own = make_batch(corpus, replace(plan, blank=np.zeros_like(plan.blank)), [number])
    frames = make_batch(corpus, blank, [number])
    frame_patches, media_index = frames.inputs.media["video"]
    grey = frame_patches[media_index < ROW]
    assert len(grey) and (grey == 128).all()
    assert torch.equal(own.labels, frames.labels)

    def invert(document, sequence, row):
        return replace(sequence, video=255 - sequence.video)

    inverted = make_batch(corpus, replace(plan, blank=np.zeros_like(plan.blank)), [number], transform=invert)
    real = own.inputs.media["video"][1] < ROW
    films = [floats(batch.inputs.media["video"][0][real]) for batch in (inverted, own)]
    torch.testing.assert_close(films[0], -films[1], atol=1e-6, rtol=0)


def rows_of(loader) -> list:
    return list(loader)


def test_ranks_share_the_same_rows(corpus, plan):
    alone = rows_of(Loader(corpus, plan, local_batch_size=4))
    assert len(alone) == 6 and [batch.sequence_index for batch in alone[:2]] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    ranks = [rows_of(Loader(corpus, plan, local_batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    for step, whole in enumerate(alone):
        assert ranks[0][step].sequence_index + ranks[1][step].sequence_index == whole.sequence_index
        for name in ("token_ids", "position"):
            assert torch.equal(
                torch.cat([field(ranks[0][step], name), field(ranks[1][step], name)]), field(whole, name)
            )


def test_resume_is_one_integer_at_any_world_size(corpus, plan):
    whole = [row for batch in Loader(corpus, plan, local_batch_size=4) for row in batch.sequence_index]
    seen, state = [], 0
    for world_size, steps in ((1, 2), (2, 1), (4, 2), (1, 1)):
        loaders = [
            Loader(
                corpus, plan, local_batch_size=4 // world_size, start_sequence=state, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        iterators = [iter(loader) for loader in loaders]
        for _ in range(steps):
            for iterator in iterators:
                seen += next(iterator).sequence_index
        assert len({loader.state for loader in loaders}) == 1
        state = loaders[0].state
    assert seen == whole and state == 24
    left = Loader(corpus, plan, local_batch_size=4, start_sequence=24)
    assert len(left) == 0 and not rows_of(left)


def test_rows_past_the_plan_are_padding(corpus, plan):
    last = make_batch(corpus, plan, range(24, 28))
    assert last.sequence_index == (24, -1, -1, -1)
    assert (last.document[1:] == -1).all() and (last.labels[1:] == -100).all()


def test_global_random_state_is_left_alone(corpus, plan):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    rows_of(Loader(corpus, plan, local_batch_size=8))
    assert torch.equal(torch.rand(3), expected)


def test_cache_and_decoding_give_equal_batches_and_so_do_workers(corpus, plan):
    """Bit for bit, with the decoding servers running under a spawned DataLoader worker, and ending with it."""
    cached = rows_of(Loader(corpus, plan, local_batch_size=5))
    before = descendants(os.getpid())
    batches = iter(Loader(DecodingCorpus(corpus.folder), plan, local_batch_size=5, num_workers=1))
    decoded = [next(batches)]
    started = descendants(os.getpid()) - before
    decoded += batches
    assert len(cached) == len(decoded) == 5
    assert all(same(left, right) for left, right in zip(cached, decoded, strict=True))
    assert not any(batch.failures for batch in decoded)
    if Path("/proc/self/stat").exists():
        # the worker, its decoding server, and the tracker that spawning brings once, which stays
        assert len(started) >= 2
        until = time.monotonic() + 20
        while len([pid for pid in started if alive(pid)]) > 1:
            assert time.monotonic() < until, "decoding servers outlive their loader"
            time.sleep(0.05)


@dataclass(frozen=True)
class Marks:
    """A transform that notes the rows it was asked for, as files."""

    folder: Path

    def __call__(self, document, sequence, row):
        (self.folder / str(row)).touch()
        return sequence

    def rows(self) -> int:
        return len(list(self.folder.iterdir()))


def test_workers_run_ahead_no_further_than_asked_and_draw_what_one_process_draws(corpus, plan, tmp_path):
    loader = Loader(corpus, plan, local_batch_size=2, num_workers=2, prefetch_batches=1, transform=Marks(tmp_path))
    batches = iter(loader)
    next(batches)
    # one batch is here; each worker makes one more, and then all is still
    until = time.monotonic() + 20
    while Marks(tmp_path).rows() < 6:
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.3)
    assert Marks(tmp_path).rows() == 6 and loader.state == 2
    batches.close()

    def drawn(num_workers: int, seed: int) -> dict[int, str]:
        found = {}
        for batch in Loader(corpus, plan, local_batch_size=4, num_workers=num_workers, transform=Speckle(seed)):
            found |= row_hashes(batch)
        return found

    alone = drawn(0, seed=5)
    # one worker stands in the test above
    assert alone == drawn(3, seed=5)
    assert alone != drawn(0, seed=6)


def test_workers_that_shared_memory_has_no_room_for_are_left_out(corpus, plan, monkeypatch, caplog):
    """A container of 64 MiB of it once ended such runs with a bus error."""
    size = batch_bytes(plan, corpus.config.dims, 5)
    batch = make_batch(corpus, plan, range(5))
    tensors = [getattr(batch, name) for name in (*TENSOR_FIELDS, "target_index")]
    tensors += [getattr(batch.inputs, name) for name in TENSORS]
    tensors += [tensor for pair in batch.inputs.media.values() for tensor in pair]
    assert 0.9 * size < sum(tensor.nbytes for tensor in tensors) <= size

    monkeypatch.setattr("brine.data.loader.SHARED_MEMORY", str(corpus.folder))
    loader = Loader(corpus, plan, local_batch_size=5, num_workers=3)
    for batches, fitting in ((8, 3), (6, 2), (2, 0), (0, 0)):
        usage = shutil._ntuple_diskusage(0, 0, batches * size / 0.9)
        monkeypatch.setattr("brine.data.loader.shutil.disk_usage", lambda _, usage=usage: usage)
        caplog.clear()
        assert loader._workers_that_fit() == fitting
        assert (f"{fitting} of 3 loader workers" in caplog.text) == (fitting < 3)
    assert all(same(*pair) for pair in zip(loader, Loader(corpus, plan, local_batch_size=5), strict=True))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("brine.data.loader.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 15.5 * size))
    assert loader._workers_that_fit() == 2


def test_default_workers(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    assert default_loader_workers("cpu") == 0
    found = [default_loader_workers(torch.device("cuda", 0), local_world_size=ranks) for ranks in (1, 4, 8, 16, 32)]
    assert found == [4, 3, 1, 0, 0]


def test_memory_does_not_grow(corpus, plan):
    """A hundred steps hold what one holds: nothing of a batch stays behind in the loader or the corpus."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads /proc/self/statm")

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    batch_mib = sum(patches.nbytes for patches, _ in make_batch(corpus, plan, range(24)).inputs.media.values()) / 2**20

    def go(epochs: int) -> None:
        for _ in range(epochs):
            for _ in Loader(corpus, plan, local_batch_size=24):
                pass

    go(10)
    before = resident_mib()
    go(100)
    assert batch_mib > 10
    # one batch that stayed in twenty steps would show
    assert resident_mib() - before < 5 * batch_mib


def test_transform_must_keep_length_and_slots(corpus, plan):
    for change in (lambda d, s, r: s.slice(0, len(s) - 1), lambda d, s, r: s.slice(1, len(s))):
        with pytest.raises(ValueError, match="transform changed the length"):
            make_batch(corpus, plan, range(3), transform=change)


def test_damaged_document_is_padding_and_recorded_first(corpus, plan, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder, folder)
    document = plan.chunks(2)[0][0]
    shard = EncodedCorpus.open(folder)._index["shard"][document]
    path = folder / "shards" / f"{shard:05d}" / "position.npy"
    start = EncodedCorpus.open(folder)._index["start_position"][document]
    array = np.load(path)
    array[start] += 1
    np.save(path, array)
    damaged = EncodedCorpus.open(folder)
    reasons = {}
    loaders = (Loader(each, plan, local_batch_size=3) for each in (damaged, corpus))
    for batch, whole in zip(*loaders, strict=True):
        gone = whole.document == document
        assert bool(batch.failures) == bool(gone.any())
        reasons |= dict(batch.failures)
        assert (batch.document[gone] == -1).all() and (batch.inputs.token_ids[gone] == PAD_ID).all()
        assert (batch.labels[gone] == -100).all() and not batch.inputs.block[gone].any()
        for name in ("token_ids", "document", "labels", "position"):
            assert torch.equal(field(batch, name)[~gone], field(whole, name)[~gone])
    assert reasons.keys() == {document} and "checksum" in reasons[document]


def test_wrong_arguments(corpus, plan):
    with pytest.raises(ValueError, match="another corpus"):
        Loader(corpus, replace(plan, fingerprint="x"), local_batch_size=1)
    for options in ({"num_workers": -1}, {"prefetch_batches": 0}):
        with pytest.raises(ValueError, match="num_workers="):
            Loader(corpus, plan, **{"local_batch_size": 1, **options})
    for options in ({"local_batch_size": 0}, {"rank": 2, "world_size": 2}, {"start_sequence": 26}):
        with pytest.raises(ValueError, match="local_batch_size="):
            Loader(corpus, plan, **{"local_batch_size": 1, **options})


def test_corpus_reopens_in_another_process(corpus):
    again = pickle.loads(pickle.dumps(corpus))
    assert again.fingerprint == corpus.fingerprint and again.ids == corpus.ids
