"""Static decoding: every token is the same step on the same addresses, so that a GPU can replay it as a CUDA graph.

Nothing of a step depends on the host, which reads chosen ids only, one group late. The first step runs eagerly, the
second is captured, the rest are replays; where capture fails, the same step runs without a graph. A full buffer grows
by half and the step is captured again. With a `compute_dtype` the matrices of blocks and head are rounded once, to
copies. Capture, replay and the head in half precision have not run on a GPU yet. B batch, E width, V vocabulary.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from brine.data.tokenizer import EOS_ID
from brine.inference.prefill import MAX_RESERVED_TOKENS, PrefillResult
from brine.inference.sampling import GREEDY, SamplingConfig, sample_token, uniform_samples
from brine.inference.static.cache import StaticCache
from brine.model.device import device_of
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer

TOKENS_PER_SYNC = 16
"""Tokens between two readings of the host, where the answer is not streamed."""


class StaticDecoder:
    """A batch of prompts being answered, with a step of equal work per token."""

    def __init__(
        self, model: Transformer, prefilled: PrefillResult, *, suppressed: Tensor, max_tokens: int,
        sampling: SamplingConfig = GREEDY, stop: Sequence[int] = (), compute_dtype: torch.dtype | None = None,
        capacity: int = 0, graphs: bool | None = None, compile_blocks: bool = False,
    ):  # fmt: skip
        """prefilled: the prompts; its cache is taken over and emptied. suppressed: (V,) bool, ids never chosen.

        max_tokens: of the longest answer. stop: ids that end an answer, besides the end token. compute_dtype: as in the
        prefill; autocast's by default. capacity: tokens to allocate for, if more than these need. graphs: capture the
        step; by default where the model is on a CUDA device. compile_blocks: compile the blocks.
        """
        self.device = device_of(model)
        if compute_dtype is None and torch.is_autocast_enabled(self.device.type):
            compute_dtype = torch.get_autocast_dtype(self.device.type)
        if compute_dtype == model.head_weight.dtype:
            compute_dtype = None
        self.compute_dtype, self.sampling, self.max_tokens = compute_dtype, sampling, max_tokens
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        self.compile_blocks = compile_blocks
        self.model = cast_block_weights(model, compute_dtype)
        if compile_blocks:
            for block in self.model.blocks:
                block.compile(dynamic=False)
        self.head = self.model.head_weight
        if compute_dtype is not None and self.device.type == "cuda":
            self.head = self.head.to(compute_dtype)
        self.suppressed = suppressed
        num_rows = len(prefilled.position)
        self.stop = torch.tensor([EOS_ID, *stop], device=self.device)
        self.zeros = torch.zeros(num_rows, 1, dtype=torch.int32, device=self.device)
        self.position = torch.zeros(num_rows, 1, 1, device=self.device)
        self.token = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
        self.finished = torch.zeros(num_rows, dtype=torch.bool, device=self.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.generated = torch.full((num_rows, max_tokens), EOS_ID, device=self.device)
        self.uniform = (
            uniform_samples(sampling.seed, num_rows, max_tokens).to(self.device) if sampling.do_sample else None
        )
        need = prefilled.cache.num_tokens + min(max_tokens, MAX_RESERVED_TOKENS)
        self.cache = StaticCache(prefilled.cache, capacity=max(capacity, need))
        self._replay: Callable[[], None] | None = None
        self._warm = False
        self._begin(prefilled)

    def fits(self, prefilled: PrefillResult) -> bool:
        """Whether `restart` can answer other prompts with the same buffers and graph."""
        return self.cache.fits(prefilled.cache, self.max_tokens)

    def restart(self, prefilled: PrefillResult) -> None:
        """Answer other prompts, of as many rows."""
        self.cache.refill(prefilled.cache)
        self._begin(prefilled)

    def groups(self, every: int = 1) -> Iterator[Tensor]:
        """Yield (B, n) int64 ids on the host, `every` at a time, until there are `max_tokens`; a row that has ended
        continues with end tokens. Each group is read while the next one is computed."""
        waiting, done = None, 0
        while done < self.max_tokens:
            count = min(every, self.max_tokens - done)
            for number in range(done, done + count):
                # the first token was chosen from the prompts' hidden states
                if number:
                    self.advance()
            fetched = self._fetch(done, done + count)
            done += count
            if waiting is not None:
                yield waiting()
            waiting = fetched
        if waiting is not None:
            yield waiting()

    @torch.no_grad()
    def advance(self) -> None:
        """Read the newest token and choose the next one, on the device."""
        if self.cache.full:
            self.cache.grow(self.cache.capacity + max(MAX_RESERVED_TOKENS, self.cache.capacity // 2))
            self._replay, self._warm = None, False
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            if not self._warm:
                self._warm_up()
            else:
                if self.graphs and self._replay is None:
                    try:
                        self._replay = capture_cuda_graph(self._step)
                    except Exception as error:
                        self.graphs = False
                        _warn_slower("a CUDA graph could not be captured", error)
                (self._replay or self._step)()
        self.cache.length += 1

    def _warm_up(self) -> None:
        state = [x.clone() for x in self._state]
        try:
            self._step_on_side_stream()
        except Exception as error:
            if not self.compile_blocks:
                raise
            _warn_slower("the blocks could not be compiled", error)
            self.compile_blocks, self.model = False, cast_block_weights(self.model, self.compute_dtype)
            for x, before in zip(self._state, state, strict=True):
                x.copy_(before)
            self._step_on_side_stream()
        self._warm = True

    def _step_on_side_stream(self) -> None:
        if not self.graphs or self.device.type != "cuda":
            return self._step()
        # what a graph replays must not have been set up on the default stream
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)

    @property
    def _state(self) -> tuple[Tensor, ...]:
        """What a step changes, besides keys and values, which it writes to the same index when it runs again."""
        return *self.cache.state, self.position, self.token, self.finished, self.step, self.generated

    def _step(self) -> None:
        """The step: no host read, no new address, no shape that depends on the length of the answer."""
        self.position.add_(1)
        with self._precision():
            inputs = Inputs(self.token[:, None], self.position.expand(-1, 1, 3), self.zeros, self.zeros)
            hidden = self.model(inputs, cache=self.cache)[:, -1]
        self._choose(hidden)

    def _choose(self, hidden: Tensor) -> None:
        """hidden: (B, E). Writes the next token of each row."""
        if self.head.dtype == hidden.dtype:
            logits = nn.functional.linear(hidden, self.head).float()
        else:
            # inputs in half precision, sums and logits in single
            logits = torch.mm(hidden.to(self.head.dtype), self.head.T, out_dtype=torch.float32)
        uniform = None if self.uniform is None else self.uniform.index_select(1, self.step).squeeze(1)
        token = sample_token(logits.masked_fill_(self.suppressed, -torch.inf), uniform, self.sampling)
        # a row that has ended stays ended
        token = token.masked_fill(self.finished, EOS_ID)
        self.finished.logical_or_((token[:, None] == self.stop).any(-1))
        self.generated.index_copy_(1, self.step, token[:, None])
        self.token.copy_(token)
        self.step.add_(1)

    def _precision(self) -> AbstractContextManager:
        if self.compute_dtype is None:
            return nullcontext()
        # what autocast caches would outlive the step that it was made in
        return torch.autocast(self.device.type, dtype=self.compute_dtype, cache_enabled=False)

    @torch.no_grad()
    def _begin(self, prefilled: PrefillResult) -> None:
        self.position.copy_(prefilled.position.view(-1, 1, 1))
        self.finished.zero_()
        self.step.zero_()
        self._choose(prefilled.hidden)

    def _fetch(self, first: int, stop: int) -> Callable[[], Tensor]:
        """Start to copy tokens [first, stop) to the host -> a function that waits for them and gives (B, n) int64."""
        ids = self.generated[:, first:stop]
        if self.device.type != "cuda":
            ids = ids.cpu().clone()
            return lambda: ids
        on_host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        on_host.copy_(ids, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))

        def wait() -> Tensor:
            copied.synchronize()
            return on_host

        return wait


def collect_tokens(groups: Iterator[Tensor], num_rows: int, *, stop: Sequence[int] = ()) -> list[list[int]]:
    """The ids of each row up to the end token or one of `stop`, left out; reads no further when all rows have ended."""
    ends = {EOS_ID, *stop}
    answers: list[list[int]] = [[] for _ in range(num_rows)]
    going = set(range(num_rows))
    for group in groups:
        for row in sorted(going):
            for token in group[row].tolist():
                if token in ends:
                    going.discard(row)
                    break
                answers[row].append(token)
        if not going:
            break
    return answers


def capture_cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph, without running it -> a function that replays it."""
    graph = torch.cuda.CUDAGraph()
    # other threads, such as a loader's that pins memory, continue meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def cast_block_weights(model: Transformer, dtype: torch.dtype | None) -> Transformer:
    """The same model, uncompiled, with all weights shared but the blocks' matrices, which are in `dtype` (None: shared
    too). Hooks are kept; in a graph they run once, when it is captured."""
    # deepcopy does not copy what its memo holds
    twin = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), model.rotary)})
    for module in twin.blocks.modules():
        if dtype is not None and isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
    return twin


def _warn_slower(problem: str, error: Exception) -> None:
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    words = f"{problem} ({type(error).__name__}: {first_line}): decoding continues without, and slower"
    warnings.warn(words, RuntimeWarning, stacklevel=3)
