"""Prompts in chunks: every cut, every batch and every interruption gives what one forward over everything gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from brine.data.sequence import FIELDS, EncodedDocument
from brine.data.tokenizer import EOS_ID
from brine.inference.cache import KeyValueCache
from brine.inference.decode import DynamicDecoder, generate_batch, stream_tokens
from brine.inference.prefill import ChunkedPrefill, chunk_ends, group_prompts, prefill_prompts
from brine.inference.prompt import batch_prompts
from brine.kernels.attention import Spans
from brine.model.embed import floats
from tests.batches import followed_by

pytestmark = pytest.mark.slow

WINDOW = 5


def equal_spans(one, two):
    return one.num_keys == two.num_keys and torch.equal(one.lo, two.lo) and torch.equal(one.hi, two.hi)


def random_ids(generator, batch, length):
    """Documents, padding and media blocks in runs of random lengths; blocks may outgrow the window."""
    document, block = torch.zeros(2, batch, length, dtype=torch.int32)
    for row in range(batch):
        for ids, choices in ((document, [-1, 0, 1, 1, 2]), (block, [0, 0, 3, 4])):
            start = 0
            while start < length:
                stop = start + int(generator.integers(1, 12))
                ids[row, start:stop] = int(generator.choice(choices))
                start = stop
    return document, block


@pytest.mark.parametrize("keep_all_keys", [False, True], ids=["window-kept", "all-kept"])
@pytest.mark.parametrize("seed", range(6))
def test_spans_from_the_cache_are_those_of_the_whole(config, keep_all_keys, seed):
    """Whatever is packed, padded and cut: the few numbers that the cache keeps are enough."""
    generator = np.random.default_rng(seed)
    length, (document, block) = 90, random_ids(generator, 3, 90)
    inside = ((block[:, 1:] == block[:, :-1]) & (block[:, 1:] != 0) & (document[:, 1:] == document[:, :-1])).any(0)
    split_points = [cut for cut in range(1, length) if not inside[cut - 1] and generator.random() < 0.6]
    cache = KeyValueCache(replace(config, window=WINDOW), keep_all_keys=keep_all_keys)
    for start, stop in zip([0, *split_points], [*split_points, length], strict=True):
        local, long = cache.extend(document[:, start:stop], block[:, start:stop])
        seen, new = document[:, :stop], stop - start
        assert equal_spans(long, Spans.packed(seen, num_queries=new))
        whole = Spans.packed(seen, block=block[:, :stop], window=WINDOW, num_queries=new)
        first = 0 if keep_all_keys else max(0, start - WINDOW + 1)
        assert equal_spans(local, whole.restrict(range(new), range(first, stop)))


def test_a_state_that_no_cache_has_given_is_refused(config):
    """Nothing checks the masks that are made of it later."""
    cache = KeyValueCache(config)
    counts = torch.tensor([8, 0])
    for start in (8, -1):
        ids = torch.zeros(1, dtype=torch.int32)
        state = {"counts": counts, "segment": ids, "block": ids, "start": ids + start}
        with pytest.raises(ValueError, match="do not belong to a cache of 8"):
            cache.load_state(state.__getitem__)


def test_a_single_token_makes_no_new_local_spans(config):
    """A window past the start of the document the mask is always the same, and with it what backends derive."""
    cache = KeyValueCache(config)
    ids = torch.zeros(2, 20, dtype=torch.int32)
    cache.extend(ids, ids)
    seen = [cache.extend(ids[:, :1], ids[:, :1])[0] for _ in range(30)]
    assert all(spans is seen[0] for spans in seen[1:])
    # a row that begins another document looks back less
    assert cache.extend(ids[:, :1] + 1, ids[:, :1])[0] is not seen[0]


@pytest.fixture
def prompts(make_document):
    """Unequal prompts: dense with media, of text alone, with blocks that are longer than small chunks."""
    return [
        make_document(1, head=3, picture=20, sound=7, film=12, tail=9),
        make_document(2, head=40, picture=0, sound=0, film=0, tail=1),
        make_document(3, head=1, picture=6, sound=0, film=30, tail=2),
        make_document(4, head=2, picture=0, sound=11, film=0, tail=4),
    ]


def logits_of_the_whole(model, prompt, answer):
    """(1 + len(answer), V): what follows the prompt and each token of the answer, from one forward without a cache."""
    inputs = followed_by(batch_prompts([prompt]), answer)
    return (model(inputs) @ model.head_weight.T)[0, len(prompt) - 1 :]


@torch.no_grad()
@pytest.mark.parametrize("prefill_tokens", [1, 5, 16, 37, 64, 10_000])
def test_chunked_and_cached_equals_the_whole(make_model, prompts, prefill_tokens):
    """Logits of a batch of unequal prompts, read in chunks and continued token by token, in float64."""
    model = make_model()
    decoding = DynamicDecoder(model, prefill_prompts(model, prompts, prefill_tokens=prefill_tokens, max_tokens=24))
    logits, tokens = [decoding.hidden @ model.head_weight.T], []
    for _ in range(24):
        tokens.append(logits[-1].argmax(-1))
        decoding.step(tokens[-1])
        logits.append(decoding.hidden @ model.head_weight.T)
    logits, answers = torch.stack(logits, dim=1), torch.stack(tokens, dim=1)
    for row, prompt in enumerate(prompts):
        truth = logits_of_the_whole(model, prompt, answers[row].tolist())
        torch.testing.assert_close(logits[row], truth, rtol=0, atol=1e-10)
        assert answers[row].tolist() == truth[:-1].argmax(-1).tolist()


@pytest.mark.slow
def test_transcripts_do_not_depend_on_chunks(make_model, prompts):
    """Rows leave the batch at different times, the longest first."""
    model = make_model()
    with torch.no_grad():
        model.head_weight[EOS_ID] *= 1.6
    answers = [generate_batch(model, prompts, 20, batch_size=4, prefill_tokens=size) for size in (4, 50, 10_000)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] == [list(stream_tokens(model, one, max_tokens=20, prefill_tokens=9)) for one in prompts]
    assert len({len(answer) for answer in answers[0]}) > 1


def test_chunks_end_between_blocks():
    block = np.array([0, 0, 1, 1, 1, 2, 2, 0, 0, 0])
    assert chunk_ends(block, 10) == [10]
    assert chunk_ends(block, 4) == [2, 5, 9, 10]
    # the block of three is longer than a chunk and comes whole
    assert chunk_ends(block, 2) == [2, 5, 7, 9, 10]
    assert chunk_ends(block, 1) == [1, 2, 5, 7, 8, 9, 10]
    with pytest.raises(ValueError, match="prefill_tokens = 0: give at least 1"):
        chunk_ends(block, 0)


def test_prompts_share_a_forward_where_they_fit():
    assert group_prompts([3, 3, 4, 9, 20, 1, 1], 12) == [[0, 1, 2], [3], [4], [5, 6]]
    assert group_prompts([5], 1) == [[0]]


def test_patches_stay_on_the_host_until_their_chunk(make_model, make_document, monkeypatch):
    """A prompt's patches become floats chunk by chunk, never all at once."""
    prompt = make_document(5, picture=6, sound=0, film=0, tail=0)
    prompt = EncodedDocument(**{name: np.concatenate([getattr(prompt, name)] * 10) for name in FIELDS})
    sizes = []
    monkeypatch.setattr("brine.model.embed.floats", lambda patches: sizes.append(len(patches)) or floats(patches))
    prefill_prompts(make_model(), [prompt], prefill_tokens=30)
    assert sum(sizes) == 60 and max(sizes) <= 18


@pytest.mark.slow
def test_nothing_grows_but_global_keys(make_model, make_document):
    """After 300 new tokens local buffers are as large as before, and reserved ones were never moved."""
    model = make_model(num_layers=2)
    prefilled = prefill_prompts(model, [make_document(6), make_document(7, head=30)], max_tokens=300)
    decoding, (local, long) = DynamicDecoder(model, prefilled), prefilled.cache.layers
    place, room = long.keys.data_ptr(), long.keys.shape[1]
    assert room == max(len(make_document(6)), len(make_document(7, head=30))) + 300
    token = torch.tensor([20, 21])
    largest = 0
    for step in range(300):
        decoding.step(token)
        if step > 200:
            largest = max(largest, local.keys.shape[1])
    assert largest < 100 and (long.keys.data_ptr(), long.keys.shape[1]) == (place, room)
    decoding.select(torch.tensor([1]))
    assert long.keys.data_ptr() == place and long.stop == room
    with pytest.raises(ValueError, match="must ascend"):
        decoding.select(torch.tensor([0, 0]))


@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp64", "bf16"])
def test_resumed_reading_ends_in_the_same_bits(make_model, prompts, tmp_path, stop_after, dtype):
    model = make_model() if dtype is None else make_model().float()

    def begin():
        return ChunkedPrefill(model, prompts[0], prefill_tokens=12, max_tokens=8, compute_dtype=dtype)

    whole = begin()
    while whole.prefill_chunk():
        pass
    first = begin()
    for _ in range(stop_after):
        first.prefill_chunk()
    first.save(tmp_path / "state.safetensors")
    # read on and lost: only what was saved counts
    first.prefill_chunk()
    again = begin()
    again.resume(tmp_path / "state.safetensors")
    assert 0 < again.num_prefilled < len(prompts[0]) and again.num_prefilled < first.num_prefilled
    with pytest.raises(ValueError, match="call prefill_chunk"):
        again.prefilled()
    while again.prefill_chunk():
        pass
    one, two = (DynamicDecoder(model, prefill.prefilled(), compute_dtype=dtype) for prefill in (whole, again))
    token = None
    for _ in range(8):
        logits = one.step(token)
        assert torch.equal(logits, two.step(token))
        token = logits.argmax(-1)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_of_an_earlier_version_is_read(make_model, prompts, tmp_path):
    """Segment ids were saved as "document"."""
    model, path = make_model(), tmp_path / "state.safetensors"
    first = ChunkedPrefill(model, prompts[0], prefill_tokens=12)
    first.prefill_chunk()
    first.save(path)
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in names}
    save_file({("document" if name == "segment" else name): value for name, value in tensors.items()}, path, metadata)
    again = ChunkedPrefill(model, prompts[0], prefill_tokens=12)
    again.resume(path)
    assert again.num_prefilled == first.num_prefilled and torch.equal(again.cache.segment, first.cache.segment)


def test_a_saved_reading_of_something_else_is_named(make_model, prompts, tmp_path):
    path = tmp_path / "state.safetensors"
    prefill = ChunkedPrefill(make_model(), prompts[0], prefill_tokens=12)
    with pytest.raises(ValueError, match="nothing to save"):
        prefill.save(path)
    prefill.prefill_chunk()
    prefill.save(path)
    others = {
        "prompt": ChunkedPrefill(make_model(), prompts[1], prefill_tokens=12),
        "model": ChunkedPrefill(make_model(seed=1), prompts[0], prefill_tokens=12),
        "chunk length": ChunkedPrefill(make_model(), prompts[0], prefill_tokens=13),
        "dtype": ChunkedPrefill(make_model(), prompts[0], prefill_tokens=12, compute_dtype=torch.bfloat16),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"another .*{what}.*delete it"):
            other.resume(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole saved prefill"):
        ChunkedPrefill(make_model(), prompts[0], prefill_tokens=12).resume(path)
