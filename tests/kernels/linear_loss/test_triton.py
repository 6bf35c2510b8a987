"""The Triton backend of the fused head and loss against the reference: same terms, odd sizes, fp64 truth.

Where there is a GPU the cases run on it. Elsewhere they run in Triton's interpreter, which must be switched on before
Triton is first imported: one test starts this file again in a process of its own. To see the cases there one by one:

    TRITON_INTERPRET=1 pytest -n 0 tests/kernels/linear_loss/test_triton.py
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from brine.kernels.linear_loss import linear_cross_entropy
from brine.kernels.linear_loss import select_backend as choose
from brine.kernels.linear_loss.reference import reference_linear_cross_entropy
from tests.paths import ROOT

pytestmark = pytest.mark.slow

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if ON_GPU else [])
TERMS = {
    "plain": {},
    "z": {"z_loss": 1e-2},
    "dense": {"distill_weight": 0.3},
    "dense-T2.5-z": {"distill_weight": 0.6, "temperature": 2.5, "z_loss": 0.1},
    "dense-only-T0.5": {"distill_weight": 1.0, "temperature": 0.5},
    "sparse": {"distill_weight": 0.3},
    "sparse-T2.5-z": {"distill_weight": 0.6, "temperature": 2.5, "z_loss": 0.1},
    "sparse-only-T0.5": {"distill_weight": 1.0, "temperature": 0.5},
    "sparse-renormalised": {"distill_weight": 0.5, "soft_tail": "renormalise"},
}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def problem(terms="plain", num=23, width=8, vocab_size=19, places=6, dtype=torch.float32):
    """hidden, weight, labels, soft labels as the terms want them; a quarter of the tokens have no target."""
    hidden = torch.randn(num, width).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(vocab_size, width).to(DEVICE, dtype).requires_grad_()
    labels = torch.randint(vocab_size, (num,))
    soft = {}
    if terms.startswith("dense"):
        soft["teacher_hidden"] = torch.randn(num, 5).to(DEVICE, dtype)
        soft["teacher_weight"] = torch.randn(vocab_size, 5).to(DEVICE, dtype)
    if terms.startswith("sparse"):
        ids = torch.stack([torch.randperm(vocab_size)[:places] for _ in range(num)])
        chance = torch.rand(num, places)
        # the label among the listed words; unused places; a word three times; all of the probability listed
        ids[1, 0] = labels[1]
        ids[3, 2:], ids[5, 0] = -1, -1
        ids[7, 1:4] = ids[7, 0]
        chance[ids < 0] = 0.0
        kept = torch.rand(num, 1)
        kept[9] = 1.0
        soft["soft_ids"] = ids.to(DEVICE)
        soft["soft_probabilities"] = (chance / chance.sum(1, keepdim=True) * kept).to(DEVICE)
    labels[::4] = -100
    return hidden, weight, labels.to(DEVICE), soft


def loss_and_grads(function, hidden, weight, labels, **kwargs):
    loss, token_loss = function(hidden, weight, labels, **kwargs)
    assert not token_loss.requires_grad
    wanted = [x for x in (hidden, weight) if x.requires_grad]
    return [loss.detach(), token_loss, *torch.autograd.grad(3.0 * loss, wanted)]


def fused(*args, **kwargs):
    return linear_cross_entropy(*args, return_token_loss=True, backend="triton", **kwargs)


def naive(hidden, weight, labels, *, token_weight=None, **kwargs):
    """The dense formula in hidden's dtype: what low precision costs by itself."""
    distill_weight, temperature = kwargs.get("distill_weight", 0.0), kwargs.get("temperature", 1.0)
    rows = (labels >= 0).nonzero().flatten()
    logits = hidden[rows] @ weight.T
    hard = F.cross_entropy(logits, labels[rows], reduction="none")
    total = (1 - distill_weight) * hard + kwargs.get("z_loss", 0.0) * logits.logsumexp(-1) ** 2
    log_q = (logits / temperature).log_softmax(-1)
    soft = 0.0
    if "teacher_hidden" in kwargs:
        teacher = (kwargs["teacher_hidden"][rows] @ kwargs["teacher_weight"].T) / temperature
        soft = -(teacher.softmax(-1) * log_q).sum(-1)
    elif "soft_ids" in kwargs:
        ids, chance = kwargs["soft_ids"][rows], kwargs["soft_probabilities"][rows]
        if kwargs.get("soft_tail") == "renormalise":
            chance = chance / chance.sum(-1, keepdim=True)
        place = ids.clamp(min=0)
        listed = torch.zeros(logits.shape, device=DEVICE).scatter_add(1, place, (ids >= 0).float()) > 0
        rest = (1.0 - chance.sum(-1)).clamp(min=0.0)
        soft = -(chance * log_q.gather(1, place)).sum(-1)
        soft = soft - (rest * log_q.masked_fill(listed, -torch.inf).logsumexp(-1)).where(rest > 1e-6, 0.0)
    total = total + distill_weight * temperature**2 * soft
    total = total if token_weight is None else total * token_weight[rows]
    token_loss = torch.zeros(len(labels), device=DEVICE).index_put((rows,), hard.float())
    return total.sum(), token_loss.detach()


def hold_to_the_truth(hidden, weight, labels, soft, chunk_tokens, **kwargs):
    """Error within twice the naive run's own error in that precision plus 4 eps of the largest true value."""
    dtype = hidden.dtype
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in (hidden, weight)]
    exact_soft = {name: x.double() if name.startswith("teacher") else x for name, x in soft.items()}
    truth = loss_and_grads(reference_linear_cross_entropy, *exact, labels, **kwargs, **exact_soft)
    own = loss_and_grads(naive, hidden, weight, labels, **kwargs, **soft)
    got = loss_and_grads(fused, hidden, weight, labels, chunk_tokens=chunk_tokens, **kwargs, **soft)
    assert got[0].dtype == got[1].dtype == torch.float32 and all(x.dtype == dtype for x in got[2:])
    names = ["loss", "token_loss"] + ["d_hidden"] * hidden.requires_grad + ["d_weight"]
    for name, x, mine, true in zip(names, got, own, truth, strict=True):
        assert x.isfinite().all(), name
        error, allowed = ((y.double() - true).abs().max().item() for y in (x, mine))
        assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps * true.abs().max().item(), name


@needs_triton
@pytest.mark.skipif(INTERPRETED or ON_GPU, reason="the cases run in this process")
def test_the_cases_pass_in_the_interpreter():
    # what a parent pytest has set is not for the child
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(Path(__file__))],
        env=env | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


class TestKernel:
    """Collected where the kernel can run: in the interpreter, or on a GPU."""

    __test__ = INTERPRETED or ON_GPU

    @pytest.mark.parametrize(
        ("terms", "dtype", "weighted"),
        list(itertools.product(TERMS, DTYPES, [False, True])),
        ids=lambda x: str(x).replace("torch.", ""),
    )
    def test_triton_is_as_good_as_the_naive_run(self, terms, dtype, weighted):
        hidden, weight, labels, soft = problem(terms, dtype=dtype)
        token_weight = torch.rand(len(labels), device=DEVICE) if weighted else None
        hold_to_the_truth(hidden, weight, labels, soft, 5, token_weight=token_weight, **TERMS[terms])

    @pytest.mark.parametrize("terms", ["plain", "dense-T2.5-z", "sparse", "sparse-T2.5-z"])
    @pytest.mark.parametrize("vocab_size", [4096, 4099, 9001])
    def test_rows_of_several_blocks(self, vocab_size, terms):
        # hidden is the identity: the logits are the weights and d_weight is d_logits, so no matmul adds its own error
        _, weight, labels, soft = problem(terms, num=10, width=10, vocab_size=vocab_size)
        hidden = torch.eye(10, device=DEVICE)
        hold_to_the_truth(hidden, weight, labels, soft, 7, **TERMS[terms])

    def test_peaks_that_rise_and_fall_over_the_blocks(self):
        """The online sums are rescaled by each new peak, the teacher's and the student's at different blocks."""
        rising = torch.linspace(-60.0, 60.0, 12001, device=DEVICE)
        weight = torch.stack((rising, -rising, rising.flip(0)), 1).requires_grad_()
        labels = torch.tensor([1, 7000, 11000], device=DEVICE)
        teacher = {
            "teacher_hidden": torch.tensor([[-1.0], [1.0], [0.1]], device=DEVICE),
            "teacher_weight": rising[:, None] / 1.5,
        }
        hidden = torch.eye(3, device=DEVICE)
        for temperature in (1.0, 3.0):
            hold_to_the_truth(hidden, weight, labels, teacher, 2, distill_weight=0.5, temperature=temperature)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    @pytest.mark.parametrize("listed", [100.0, -100.0], ids=["far-above", "far-below"])
    def test_listed_words_far_from_the_rest(self, listed, temperature):
        hidden = torch.ones(1, 1, device=DEVICE, requires_grad=True)
        weight = torch.tensor([[listed], [listed + 1], [0.0], [0.5], [-1.0]], device=DEVICE, requires_grad=True)
        soft = {
            "soft_ids": torch.tensor([[0, -1, 1]], device=DEVICE),
            "soft_probabilities": torch.tensor([[0.5, 0.0, 0.25]], device=DEVICE),
        }
        for label in (0, 2):
            labels = torch.tensor([label], device=DEVICE)
            hold_to_the_truth(hidden, weight, labels, soft, 1, distill_weight=0.5, temperature=temperature)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_rows_that_list_the_whole_vocabulary(self, temperature):
        hidden, weight, labels, _ = problem(vocab_size=7)
        chance = torch.rand(23, 7, device=DEVICE) + 0.1
        soft = {
            "soft_ids": torch.arange(7, device=DEVICE).repeat(23, 1),
            "soft_probabilities": chance / chance.sum(1, keepdim=True),
        }
        hold_to_the_truth(hidden, weight, labels, soft, 4, distill_weight=0.5, temperature=temperature)

    def test_without_gradients_and_without_targets(self):
        hidden, weight, labels, soft = problem("sparse")
        expected = linear_cross_entropy(hidden, weight, labels, backend="chunked", distill_weight=0.5, **soft)
        with torch.no_grad():
            loss = linear_cross_entropy(hidden, weight, labels, backend="triton", distill_weight=0.5, **soft)
        torch.testing.assert_close(loss, expected)
        got = loss_and_grads(fused, hidden, weight, torch.full_like(labels, -100), distill_weight=0.5, **soft)
        assert all((x == 0).all() for x in got)

    def test_a_logit_that_is_not_a_number_shows(self):
        hidden, weight, labels, _ = problem()
        with torch.no_grad():
            hidden[5] = torch.nan
        loss, token_loss = fused(hidden, weight, labels)
        assert loss.isnan() and token_loss[5].isnan() and token_loss.isnan().sum() == 1

    def test_what_it_cannot_do_is_refused(self):
        hidden, weight, labels, _ = problem()
        with pytest.raises(ValueError, match=r"takes fp32, bf16 or fp16, not torch\.float64"):
            linear_cross_entropy(hidden.double(), weight.double(), labels, backend="triton")
        if INTERPRETED:
            with pytest.raises(ValueError, match="interpreter has no bf16"):
                linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels, backend="triton")
            with (
                pytest.raises(ValueError, match="interpreter has no bf16"),
                torch.autocast("cpu", dtype=torch.bfloat16),
            ):
                linear_cross_entropy(hidden, weight, labels, backend="triton")

    @pytest.mark.skipif(not ON_GPU, reason="nothing is compiled in the interpreter")
    def test_other_numbers_of_tokens_compile_nothing_anew(self):
        from brine.kernels.linear_loss.triton_kernels import linear_loss_kernel

        hidden, weight, labels, _ = problem(num=40)
        fused(hidden, weight, labels, chunk_tokens=16)
        compiled = sum(len(cache[0]) for cache in linear_loss_kernel.device_caches.values())
        for num in (1, 7, 16, 33):
            fused(hidden[:num], weight, labels[:num], chunk_tokens=5)
        assert sum(len(cache[0]) for cache in linear_loss_kernel.device_caches.values()) == compiled


@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
def test_backends_agree(backend):
    hidden, weight, labels, soft = problem("sparse-T2.5-z", dtype=torch.float64)
    kwargs = TERMS["sparse-T2.5-z"] | soft | {"return_token_loss": True}
    expected = loss_and_grads(reference_linear_cross_entropy, hidden, weight, labels, **TERMS["sparse-T2.5-z"], **soft)
    got = loss_and_grads(linear_cross_entropy, hidden, weight, labels, backend=backend, **kwargs)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_an_unknown_backend_is_refused():
    hidden, weight, labels, _ = problem()
    with pytest.raises(
        ValueError, match="unknown backend 'fast'; choose one of auto, reference, chunked, triton, liger"
    ):
        linear_cross_entropy(hidden, weight, labels, backend="fast")


def test_triton_that_is_not_installed_is_refused(monkeypatch):
    choose.reset()
    monkeypatch.delitem(sys.modules, "brine.kernels.linear_loss.triton_kernels", raising=False)
    monkeypatch.delattr("brine.kernels.linear_loss.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    hidden, weight, labels, _ = problem()
    with pytest.raises(ValueError, match="needs the package triton"):
        linear_cross_entropy(hidden, weight, labels, backend="triton")


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused_without_the_interpreter():
    hidden, weight, labels, _ = problem()
    with pytest.raises(ValueError, match=r"needs CUDA tensors, and hidden is on cpu.*TRITON_INTERPRET=1"):
        linear_cross_entropy(hidden.cpu(), weight.cpu(), labels.cpu(), backend="triton")


def test_the_packages_are_imported_without_triton():
    code = (
        "import sys, brine.kernels.attention, brine.kernels.linear_loss, brine.kernels.context_parallel.layout; "
        "assert 'triton' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
def test_every_variant_compiles_ahead_of_time():
    """Triton's compiler takes the kernel as launched, without a GPU too; for one architecture, to be quick."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from benchmarks.kernels.compile_report import loss_variants

    names = []
    for variant in loss_variants(90):
        names.append(variant.name)
        if "bf16" not in variant.name:
            continue
        kernel = getattr(importlib.import_module(variant.module), variant.kernel)
        attrs = {(number,): [["tt.divisibility", 16]] for number in variant.divisible}
        source = ASTSource(kernel, variant.signature, variant.constants, attrs)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=variant.options)
        # a load of 16 bytes a thread
        assert "ld.global.v4.b32" in compiled.asm["ptx"]
    assert len(names) == len(set(names)) == 12
