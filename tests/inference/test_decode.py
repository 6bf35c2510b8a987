"""Static decoding: the answers of the other way, by steps that read nothing back and never change an address."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from brine.data.tokenizer import EOS_ID
from brine.inference.cache import KeyValueCache
from brine.inference.decode import DynamicDecoder, generate_batch, greedy_decode, stream_tokens
from brine.inference.prefill import PrefillResult, prefill_prompts
from brine.inference.sampling import SamplingConfig
from brine.inference.static.decoder import StaticDecoder, cast_block_weights, collect_tokens
from brine.model.rotary import constants
from brine.model.transformer import Transformer

pytestmark = pytest.mark.slow

WINDOWS = [1, 8, 40, 500, None]


@pytest.fixture
def prompts(make_document):
    """Six prompts of 18 to 45 tokens, some without any medium."""
    return [
        make_document(seed, head=2 + 3 * seed, tail=1 + seed % 3, picture=6 * (seed % 2), sound=5 * (seed % 3), film=6)
        for seed in range(6)
    ]


@pytest.fixture
def statically(monkeypatch):
    """Has answers go by static decoding, as on a CUDA device, from the call on."""
    return lambda: monkeypatch.setattr("brine.inference.decode.uses_static_decoder", lambda model: True)


def decoding_of(model, prompts, *, max_tokens, prefill_tokens=8192, compute_dtype=None):
    prefilled = prefill_prompts(
        model, prompts, prefill_tokens=prefill_tokens, max_tokens=max_tokens, compute_dtype=compute_dtype
    )
    return DynamicDecoder(model, prefilled, compute_dtype=compute_dtype)


@pytest.mark.parametrize("backend, window", [*(("reference", window) for window in WINDOWS), ("cpu", 8), ("cpu", None)])
def test_hidden_states_are_those_of_the_other_way(make_model, prompts, backend, window):
    """Step by step to 1e-10, in a batch of unequal prompts, past the window's end and around the ring."""
    model = make_model(window=window)
    usual = decoding_of(model, prompts, max_tokens=15)
    model.attention_backend = backend
    static = decoding_of(model, prompts, max_tokens=15).static(15)
    seen = []
    static.model.final_out.register_forward_hook(lambda module, args, out: seen.append(out[:, -1]))
    token = usual.step().argmax(-1)
    for _ in range(14):
        assert torch.equal(static.token, token)
        token = usual.step(token).argmax(-1)
        static.finished.zero_()
        static.advance()
        torch.testing.assert_close(seen[-1], usual.hidden, rtol=0, atol=1e-10)


def ending(make_model, prompts, **changes):
    """A model whose end token is likely, and prompts of its few words: rows end at different times."""
    model = make_model(vocab_size=40, **changes)
    with torch.no_grad():
        model.head_weight[EOS_ID] *= 1.5
    for prompt in prompts:
        text = prompt.token_ids >= 20
        prompt.token_ids[text] = 20 + prompt.token_ids[text] % 20
    return model


@pytest.mark.parametrize("prefill_tokens", [8192, 30], ids=["together", "in-chunks"])
def test_transcribe_gives_the_same_answers(make_model, prompts, statically, prefill_tokens):
    """In two batches: one set of buffers serves both, and the last one, of fewer rows, gets its own."""
    model = ending(make_model, prompts)
    options = {"batch_size": 2, "prefill_tokens": prefill_tokens}
    expected = generate_batch(model, prompts[:5], 12, **options)
    statically()
    assert generate_batch(model, prompts[:5], 12, **options) == expected
    assert len({len(answer) for answer in expected}) > 1, "the rows should not all end together"


def test_greedy_stops_at_what_it_is_told(make_model, prompts, statically):
    model = make_model()
    whole = greedy_decode(decoding_of(model, prompts[3:], max_tokens=12), 12)
    stop = [whole[0][5], whole[2][3]]
    expected = greedy_decode(decoding_of(model, prompts[3:], max_tokens=12), 12, stop=stop)
    statically()
    assert greedy_decode(decoding_of(model, prompts[3:], max_tokens=12), 12, stop=stop) == expected
    assert len(expected[0]) <= 5 and not set(stop) & {token for answer in expected for token in answer}


@pytest.mark.parametrize("window", [8, None])
def test_drawn_answers_are_the_same_both_ways(make_model, prompts, statically, window):
    model = make_model(window=window)
    options = {"max_tokens": 15, "temperature": 2.0, "top_p": 0.9, "top_k": 50, "seed": 3}
    expected = list(stream_tokens(model, prompts[1], **options))
    statically()
    assert list(stream_tokens(model, prompts[1], **options)) == expected
    assert list(stream_tokens(model, prompts[1], **options | {"seed": 4})) != expected


def test_a_row_draws_the_same_in_any_batch(make_model, prompts):
    model, sampling = make_model(), SamplingConfig(temperature=2.0, seed=5)

    def answers(chosen):
        static = decoding_of(model, chosen, max_tokens=8).static(8, sampling=sampling)
        return torch.cat(list(static.groups(3)), dim=1)

    together = answers(prompts)
    assert torch.equal(answers(prompts[:1])[0], together[0])
    assert not torch.equal(answers([prompts[0]] * 2)[0], answers([prompts[0]] * 2)[1])


class NoHostReads(TorchDispatchMode):
    """Refuses what would wait for a device or carry something from the host to it; collects the names of all ops."""

    READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "bincount")
    COPIES = ("lift_fresh", "_pin_memory", "repeat_interleave")

    def __init__(self, on_host):
        """on_host: tensors that lie on the host by nature, as the serials of masks."""
        super().__init__()
        self.on_host, self.names = on_host, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.append(str(func))
        allowed = name == "_local_scalar_dense" and any(args[0] is one for one in self.on_host)
        if not allowed and name.startswith(self.READS + self.COPIES):
            raise AssertionError(f"a step calls {func}")
        if name in ("index", "index_put", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "its shape depends on numbers"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(), SamplingConfig(temperature=0.7), SamplingConfig(temperature=1.5, top_p=0.9, top_k=30)],
    ids=["greedy", "temperature", "nucleus"],
)
def test_every_step_is_the_same_work_on_the_same_addresses(make_model, prompts, sampling):
    """No read, the same ops, and the same buffers from the first step to one far behind the window."""
    model = make_model(window=8)
    model.attention_backend = "reference"
    static = decoding_of(model, prompts, max_tokens=60).static(60, sampling=sampling)
    buffers = [x for layer in static.cache.layers for x in (layer.keys, layer.values)]
    buffers += [*static._state, *(x for spans in static.cache.spans for x in (spans.lo, spans.hi))]
    placed = [(x.data_ptr(), x.shape) for x in buffers]
    serials = [spans.serial for spans in static.cache.spans]
    ops = []
    for _ in range(29):
        static.advance()
        with NoHostReads(serials) as mode, torch.no_grad():
            # without the host's own bookkeeping around it
            static.cache.length += 1
            static._step()
        ops.append(mode.names)
    assert all(names == ops[0] for names in ops[1:])
    again = [x for layer in static.cache.layers for x in (layer.keys, layer.values)]
    again += [*static._state, *(x for spans in static.cache.spans for x in (spans.lo, spans.hi))]
    assert [(x.data_ptr(), x.shape) for x in again] == placed


def test_local_layers_hold_a_window_and_global_ones_the_answer(make_model, prompts):
    static = decoding_of(make_model(window=8), prompts, max_tokens=60).static(60)
    sizes = [layer.keys.shape[1] for layer in static.cache.layers]
    assert sizes == [8, static.cache.capacity, 8, static.cache.capacity]
    longest = max(len(prompt) for prompt in prompts)
    assert longest + 60 <= static.cache.capacity <= 2 * longest + 64


class Recorder:
    """Stands in for the capture of CUDA graphs: a replay runs the step that was recorded."""

    def __init__(self, monkeypatch):
        self.captured = self.replayed = 0
        monkeypatch.setattr("brine.inference.static.decoder.capture_cuda_graph", self.capture_cuda_graph)

    def capture_cuda_graph(self, step):
        self.captured += 1

        def replay():
            self.replayed += 1
            step()

        return replay


def test_a_graph_is_captured_once_and_again_where_buffers_grow(make_model, prompts, monkeypatch):
    """Room for fewer tokens than the answer has: buffers grow twice, the ring among them, and nothing changes."""
    model = make_model(window=70)
    expected = collect_tokens(decoding_of(model, prompts[:2], max_tokens=120).static(120).groups(), 2)
    recorder = Recorder(monkeypatch)
    monkeypatch.setattr("brine.inference.static.decoder.MAX_RESERVED_TOKENS", 40)
    tight = decoding_of(model, prompts[:2], max_tokens=1)
    for layer in tight.cache.layers:
        layer.keys, layer.values, layer.start, layer.stop = (
            *(x.clone() for x in layer.cached),
            0,
            layer.stop - layer.start,
        )
    static = tight.static(120, graphs=True)
    before = static.cache.capacity
    assert collect_tokens(static.groups(), 2) == expected
    assert static.cache.capacity > before + 40
    # of the 119 steps, the first after each change of address warms up
    assert recorder.captured == 3 and recorder.replayed == 119 - 3


def test_where_capture_fails_the_step_goes_on_without(make_model, prompts, monkeypatch):
    model = make_model()
    expected = greedy_decode(decoding_of(model, prompts[3:], max_tokens=12), 12)

    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("brine.inference.static.decoder.capture_cuda_graph", refuse)
    static = decoding_of(model, prompts[3:], max_tokens=12).static(12, graphs=True)
    with pytest.warns(RuntimeWarning, match="could not be captured .*not permitted") as caught:
        assert collect_tokens(static.groups(4), 3) == expected
    assert len(caught) == 1


def test_where_compilation_fails_the_step_goes_on_without(make_model, prompts):
    """The first step fails in its middle, when counters have moved and keys are written: it starts anew."""
    model = make_model()
    expected = greedy_decode(decoding_of(model, prompts[3:], max_tokens=12), 12)

    def fail(*args):
        raise RuntimeError("no compiler")

    static = decoding_of(model, prompts[3:], max_tokens=12).static(12)
    static.compile_blocks = True
    static.model.blocks[2]._compiled_call_impl = fail
    with pytest.warns(RuntimeWarning, match="could not be compiled .*no compiler"):
        assert collect_tokens(static.groups(4), 3) == expected


def test_the_host_reads_one_group_late(make_model, prompts):
    static = decoding_of(make_model(), prompts[:1], max_tokens=10).static(10)
    groups = static.groups(2)
    assert next(groups).shape == (1, 2)
    assert int(static.step) == 4, "two tokens are given out, two more are under way"
    assert sum(group.shape[1] for group in groups) == 8


@pytest.mark.parametrize("outer", [False, True], ids=["given", "by autocast"])
def test_matrices_are_rounded_once(make_model, prompts, outer):
    """In bfloat16 both ways read and answer alike; the rounded matrices are copies, all else is shared."""
    model = make_model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        given = None if outer else torch.bfloat16
        expected = greedy_decode(decoding_of(model, prompts[3:], max_tokens=8, compute_dtype=given), 8)
        decoding = decoding_of(model, prompts[3:], max_tokens=8, compute_dtype=given)
        static = decoding.static(8)
        found = collect_tokens(static.groups(), 3)
    own, theirs = dict(static.model.named_parameters()), dict(model.named_parameters())
    halved = {name for name, weight in own.items() if weight.dtype == torch.bfloat16}
    assert halved == {
        f"blocks.{i}.{name}.weight" for i in range(4) for name in ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")
    }
    assert all(own[name].data_ptr() == theirs[name].data_ptr() for name in own.keys() - halved)
    assert static.cache.layers[0].keys.dtype == torch.bfloat16
    assert found == expected


def test_a_copy_is_uncompiled_and_follows_its_weights(make_model):
    model = make_model()
    for block in model.blocks:
        block.compile()
    twin = cast_block_weights(model, None)
    with torch.no_grad():
        model.head_weight.mul_(2.0)
    assert twin.head_weight is model.head_weight and model.head_weight.requires_grad
    assert all(block._compiled_call_impl is None for block in twin.blocks)
    assert all(block._compiled_call_impl is not None for block in model.blocks)


@pytest.mark.parametrize("window", [8, None])
def test_a_step_stays_on_its_device(config, window, monkeypatch):
    """On tensors without data that claim to lie on a GPU: an op that takes one from the host among them fails."""
    # tensors without data must neither be kept for other tests nor meet theirs
    monkeypatch.setattr("brine.model.rotary.constants", constants.__wrapped__)
    config = replace(config, window=window)
    with FakeTensorMode():
        model = Transformer(config, on_meta_device=True)
        model.attention_backend = "reference"
        with torch.device("cuda"):
            weights = {name: torch.empty(weight.shape) for name, weight in model.state_dict().items()}
            model.load_state_dict(weights, assign=True)
            cache = KeyValueCache(config, reserve=30)
            cache.num_tokens, cache.first_local_key = 20, 0 if window is None else 20 - window + 1
            cache.start = torch.zeros(2, dtype=torch.int32)
            for number, layer in enumerate(cache.layers):
                kept = 20 - (0 if config.is_global(number) else cache.first_local_key)
                layer.append(*torch.zeros(2, 2, kept, 2, 16))
            prefilled = PrefillResult(cache, torch.zeros(2, config.dim), torch.zeros(2))
            suppressed = torch.zeros(config.vocab_size, dtype=torch.bool)
        static = StaticDecoder(
            model,
            prefilled,
            suppressed=suppressed,
            max_tokens=8,
            sampling=SamplingConfig(temperature=1.0, top_p=0.9),
            graphs=False,
        )
        with torch.no_grad():
            static._step()
        assert {x.device.type for x in (*static._state, static.cache.layers[0].keys)} == {"cuda"}
