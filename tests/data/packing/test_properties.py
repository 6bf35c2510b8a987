"""A plan of any corpus loses nothing and keeps every budget: generated corpora, the same ones on every run."""

import itertools
from collections import Counter, defaultdict
from types import SimpleNamespace
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brine.data.batch import Batch
from brine.data.config import EncodeConfig
from brine.data.document import MODALITIES
from brine.data.loader import Loader
from brine.data.packing import extendable_plan
from brine.data.packing.plan import PackingPlan
from brine.data.sequence import FIELDS, EncodedDocument
from brine.data.tokenizer import MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID

FEW = settings(derandomize=True, max_examples=40, deadline=None, database=None)
CONFIG = EncodeConfig(patch_size=4, mel_bins=16)
SEQ_LENS = st.integers(16, 64)


def encoded(parts: list[tuple[str, int]]) -> EncodedDocument:
    """A document of ("text" or a modality, tokens) parts; every text token is a target."""
    token_ids, targets, blocks = [], [], []
    for number, (name, count) in enumerate(parts, 1):
        medium = name != "text"
        token_ids += (
            [MEDIA_START_ID[name], *[MEDIA_TOKEN_ID[name]] * count, MEDIA_END_ID[name]] if medium else [65] * count
        )
        targets += [0] * (count + 2) if medium else [1] * count
        blocks += [0, *[number] * count, 0] if medium else [0] * count
    size = len(token_ids)
    values = {"token_ids": token_ids, "loss_mask": targets, "block": blocks, "modality_context": [0] * size,
              "position": np.repeat(np.arange(size)[:, None], 3, axis=1)}  # fmt: skip
    for name in MODALITIES:
        # every patch is different, so that one that is lost or exchanged shows
        patches = np.arange(token_ids.count(MEDIA_TOKEN_ID[name]))[:, None] % 251 + np.zeros(CONFIG.dims[name])
        values[name] = patches / 256 if name == "audio" else patches
    return EncodedDocument(**{name: np.asarray(value, dtype=FIELDS[name]) for name, value in values.items()})


def corpus_of(documents: list[list[tuple[str, int]]]) -> SimpleNamespace:
    """What plans and loaders ask of a corpus, all in memory and for training; the first document fits any sequence."""
    documents = [[("text", 5)], *documents]
    sequences = [encoded(parts) for parts in documents]
    count = len(sequences)
    return SimpleNamespace(
        num_documents=count,
        kinds=["text"],
        sources=[""],
        kind=np.zeros(count, dtype=np.int16),
        source=np.zeros(count, dtype=np.int16),
        level=np.zeros(count, dtype=np.int64),
        split=np.zeros(count, dtype=np.int8),
        num_tokens=np.array([len(each) for each in sequences]),
        num_media={name: np.array([len(getattr(each, name)) for each in sequences]) for name in MODALITIES},
        fingerprint="generated",
        config=CONFIG,
        encoded_documents=lambda numbers: {number: sequences[number] for number in numbers},
        tokens=sequences.__getitem__,
    )


PARTS = st.tuples(st.just("text"), st.integers(1, 90)) | st.tuples(st.sampled_from(MODALITIES), st.integers(1, 12))
CORPORA = st.lists(st.lists(PARTS, min_size=1, max_size=4), max_size=12).map(corpus_of)
BUDGETS = st.fixed_dictionaries({name: st.integers(2, 20) for name in MODALITIES})


def media_in(corpus, document: int, start: int, stop: int, name: str) -> int:
    return int((corpus.tokens(document).token_ids[start:stop] == MEDIA_TOKEN_ID[name]).sum())


@FEW
@given(CORPORA, SEQ_LENS, BUDGETS, st.integers(1, 3), st.integers(0, 99))
def test_every_token_lies_in_one_chunk_of_each_epoch(corpus, seq_len, budget, epochs, seed):
    """But for a text token that a chunk repeats, so that its successor is predicted; what is left out is counted."""
    plan = PackingPlan.build(corpus, seq_len=seq_len, media_budget=budget, epochs=epochs, seed=seed)
    chunks = Counter(zip(plan.document.tolist(), plan.start.tolist(), plan.stop.tolist(), strict=True))
    assert set(chunks.values()) <= {epochs}
    parts = defaultdict(list)
    for document, start, stop in sorted(chunks):
        parts[document].append((start, stop))
    for document, found in parts.items():
        cut = 0
        for start, stop in found:
            assert start == cut or (start == cut - 1 and corpus.tokens(document).loss_mask[cut])
            assert stop > cut
            cut = stop
        assert cut == corpus.num_tokens[document]
    excluded = {int(number) for number in plan.info["excluded_reasons"]}
    assert excluded == set(range(corpus.num_documents)) - set(parts) and plan.info["excluded"] == len(excluded)


@FEW
@given(CORPORA, SEQ_LENS, BUDGETS, st.integers(1, 40), st.integers(0, 99))
def test_no_sequence_exceeds_a_budget_or_holds_a_document_twice(corpus, seq_len, budget, num_sequences, seed):
    options = {"seq_len": seq_len, "media_budget": budget, "seed": seed}
    plan = PackingPlan.build(corpus, num_sequences=num_sequences, **options)
    assert len(plan) == num_sequences
    for number in range(num_sequences):
        chunks = plan.chunks(number)
        assert sum(stop - start for _, start, stop, _ in chunks) <= seq_len
        assert len({document for document, *_ in chunks}) == len(chunks)
        for name in MODALITIES:
            assert sum(media_in(corpus, *chunk[:3], name) for chunk in chunks) <= budget[name]


@settings(FEW, max_examples=20)
@given(CORPORA, SEQ_LENS, st.integers(0, 99))
def test_a_plan_is_read_as_it_was_written(tmp_path_factory, corpus, seq_len, seed):
    plan = PackingPlan.build(corpus, seq_len=seq_len, epochs=1, seed=seed)
    path = plan.save(tmp_path_factory.mktemp("plan") / "plan.npz")
    assert PackingPlan.load(path).digest() == plan.digest()


@settings(FEW, max_examples=20)
@given(CORPORA, st.integers(1, 30), st.integers(0, 30), st.integers(0, 99))
def test_a_longer_plan_begins_with_the_shorter_one(corpus, num_sequences, more, seed):
    with mock.patch.object(extendable_plan, "MIN_BLOCK_SEQUENCES", 4):
        options = {"seq_len": 48, "media_budget": dict.fromkeys(MODALITIES, 16), "seed": seed}
        short = extendable_plan.build_extendable_plan(corpus, num_sequences=num_sequences, **options)
        long = extendable_plan.build_extendable_plan(corpus, num_sequences=num_sequences + more, **options)
    assert len(short) == num_sequences and len(long) == num_sequences + more
    assert extendable_plan.same_prefix(short, long, num_sequences=num_sequences)


def contents(batches: list[Batch]) -> list[list[bytes]]:
    """For each packed sequence of the batches, in order, its tokens, targets, documents and patches."""
    found = []
    for batch in batches:
        num_sequences, seq_len = batch.inputs.token_ids.shape
        for at in range(num_sequences):
            tensors = [batch.inputs.token_ids[at], batch.inputs.position[at], batch.labels[at], batch.document[at]]
            for patches, media_index in (batch.inputs.media[name] for name in MODALITIES):
                here = media_index // seq_len == at
                tensors += [patches[here], media_index[here] - at * seq_len]
            found.append([tensor.numpy().tobytes() for tensor in tensors])
    return found


@settings(FEW, max_examples=15)
@given(CORPORA, st.integers(1, 3), st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.integers(0, 3)), max_size=3))
def test_resumed_equals_never_stopped(corpus, steps, stops):
    """Stopped after any steps and resumed on any number of ranks: the same packed sequences in the same order."""
    global_batch_size = 6
    plan = PackingPlan.build(corpus, seq_len=48, num_sequences=global_batch_size * (steps + sum(n for _, n in stops)))
    whole = contents(list(Loader(corpus, plan, local_batch_size=global_batch_size)))
    found, state = [], 0
    for world_size, num_steps in [*stops, (2, steps)]:
        ranks = [
            Loader(
                corpus, plan, local_batch_size=global_batch_size // world_size, start_sequence=state, rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for batches in itertools.islice(zip(*ranks, strict=True), num_steps):
            found += contents(list(batches))
        (state,) = {loader.state for loader in ranks}
    assert found == whole and state == len(plan)
