"""The fused head and loss against its dense reference, and the reference against the formula, in fp64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from brine.kernels.linear_loss import linear_cross_entropy
from brine.kernels.linear_loss.reference import reference_linear_cross_entropy

TERMS = {
    "plain": {},
    "z": {"z_loss": 1e-2},
    "distill": {"distill_weight": 0.3},
    "distill-hot": {"distill_weight": 0.6, "temperature": 2.5},
    "distill-only-cold": {"distill_weight": 1.0, "temperature": 0.5},
    "all": {"distill_weight": 0.4, "temperature": 3.0, "z_loss": 0.1},
}


def problem(num=23, width=8, vocab_size=19, dtype=torch.float64, targets=True, teacher=True):
    hidden = torch.randn(num, width, dtype=torch.float64)
    weight = torch.randn(vocab_size, width, dtype=torch.float64)
    labels = torch.randint(vocab_size, (num,))
    labels[::4] = -100
    if not targets:
        labels[:] = -100
    soft = {}
    if teacher:
        soft["teacher_hidden"] = torch.randn(num, 5, dtype=torch.float64).to(dtype)
        soft["teacher_weight"] = torch.randn(vocab_size, 5, dtype=torch.float64).to(dtype)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels, soft


def loss_and_grads(function, hidden, weight, labels, **kwargs):
    loss, token_loss = function(hidden, weight, labels, **kwargs)
    assert not token_loss.requires_grad
    return [loss.detach(), token_loss, *torch.autograd.grad(3.0 * loss, [hidden, weight])]


def fused(*args, **kwargs):
    return linear_cross_entropy(*args, return_token_loss=True, **kwargs)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 23, None])
@pytest.mark.parametrize(
    ("terms", "weighted", "targets"), list(itertools.product(TERMS, [False, True], [False, True])), ids=str
)
def test_fused_equals_reference(terms, weighted, targets, chunk_tokens):
    hidden, weight, labels, soft = problem(targets=targets)
    kwargs = TERMS[terms] | soft | {"token_weight": torch.rand(23, dtype=torch.float64) if weighted else None}
    expected = loss_and_grads(reference_linear_cross_entropy, hidden, weight, labels, **kwargs)
    got = loss_and_grads(fused, hidden, weight, labels, chunk_tokens=chunk_tokens, **kwargs)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    if not targets:
        assert all((x == 0).all() for x in got)


def test_reference_is_the_formula():
    hidden, weight, labels, soft = problem()
    hidden, weight = hidden.detach(), weight.detach()
    token_weight = torch.rand(23, dtype=torch.float64)
    loss, token_loss = reference_linear_cross_entropy(
        hidden, weight, labels, token_weight=token_weight, z_loss=0.1, distill_weight=0.4, temperature=3.0, **soft
    )
    total = 0.0
    for i in range(23):
        if labels[i] < 0:
            assert token_loss[i] == 0
            continue
        student = [float(hidden[i] @ row) for row in weight]
        teacher = [float(soft["teacher_hidden"][i] @ row) for row in soft["teacher_weight"]]
        lse = torch.tensor(student, dtype=torch.float64).logsumexp(0).item()
        hard = lse - student[labels[i]]
        p = (torch.tensor(teacher, dtype=torch.float64) / 3.0).softmax(0)
        log_q = (torch.tensor(student, dtype=torch.float64) / 3.0).log_softmax(0)
        cross = -float((p * log_q).sum())
        total += float(token_weight[i]) * (0.6 * hard + 0.4 * 9.0 * cross + 0.1 * lse**2)
        assert token_loss[i].item() == pytest.approx(hard)
    assert loss.item() == pytest.approx(total)


def test_gradient_matches_finite_differences():
    hidden, weight, labels, soft = problem(num=6, width=3, vocab_size=5)
    kwargs = dict(z_loss=0.1, distill_weight=0.4, temperature=2.0, chunk_tokens=4, **soft)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, **kwargs), (hidden, weight))


def test_distillation_vanishes_where_student_is_the_teacher():
    """Cross-entropy with a teacher that agrees has gradient 0, at any temperature."""
    hidden, weight, labels, _ = problem(teacher=False)
    loss = linear_cross_entropy(
        hidden, weight, labels, distill_weight=1.0, temperature=2.0, teacher_hidden=hidden, teacher_weight=weight
    )
    for grad in torch.autograd.grad(loss, [hidden, weight]):
        torch.testing.assert_close(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_low_precision_is_as_good_as_the_naive_run(dtype, terms):
    """Error within twice the naive run's own error in that precision plus 4 eps of the largest true value."""
    hidden, weight, labels, soft = problem(num=300, width=64, vocab_size=500, dtype=dtype)
    kwargs = TERMS[terms]

    def naive(
        hidden, weight, labels, *, teacher_hidden, teacher_weight, distill_weight=0.0, temperature=1.0, z_loss=0.0
    ):
        target = labels >= 0
        logits = hidden @ weight.T
        hard = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        p = ((teacher_hidden @ teacher_weight.T) / temperature).softmax(-1)
        soft_loss = F.cross_entropy(logits / temperature, p, reduction="none")
        total = (1 - distill_weight) * hard + distill_weight * temperature**2 * soft_loss
        total = total + z_loss * logits.logsumexp(-1) ** 2
        return (total * target).sum(), (hard * target).detach()

    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact_soft = {name: x.double() for name, x in soft.items()}
    truth = loss_and_grads(reference_linear_cross_entropy, *exact, labels, **kwargs, **exact_soft)
    own = loss_and_grads(naive, hidden, weight, labels, **kwargs, **soft)
    got = loss_and_grads(fused, hidden, weight, labels, chunk_tokens=64, **kwargs, **soft)
    assert got[0].dtype == torch.float32 and got[2].dtype == got[3].dtype == dtype
    for name, x, mine, true in zip(("loss", "token_loss", "d_hidden", "d_weight"), got, own, truth, strict=True):
        error, allowed = ((y.double() - true).abs().max().item() for y in (x, mine))
        assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps * true.abs().max().item(), name


def test_autocast_with_master_weights():
    hidden, weight, labels, _ = problem(num=40, dtype=torch.float32, teacher=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden.bfloat16(), weight, labels)
        full = linear_cross_entropy(hidden, weight, labels)
    d_hidden, d_weight = torch.autograd.grad(loss, [hidden, weight])
    assert loss.dtype == torch.float32 and d_weight.dtype == torch.float32 and d_hidden.dtype == torch.float32
    assert torch.equal(loss, full)
    exact = loss_and_grads(reference_linear_cross_entropy, hidden, weight, labels)
    assert loss.item() == pytest.approx(exact[0].item(), rel=1e-2)


def test_tokens_without_target_may_hold_anything():
    hidden, weight, labels, soft = problem()
    hidden = hidden.detach()
    hidden[labels < 0] = torch.nan
    soft["teacher_hidden"][labels < 0] = torch.inf
    hidden.requires_grad_()
    got = loss_and_grads(fused, hidden, weight, labels, distill_weight=0.5, chunk_tokens=4, **soft)
    assert all(x.isfinite().all() for x in got)


def test_no_logits_of_the_whole_batch_are_made():
    """The largest tensor made along the way is a chunk's logits, never (tokens, vocabulary)."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    hidden, weight, labels, soft = problem(num=256, width=8, vocab_size=400)
    with Watch():
        linear_cross_entropy(hidden, weight, labels, chunk_tokens=16, distill_weight=0.5, **soft).backward()
    assert largest <= 16 * 400


def test_runs_without_gradients_and_for_one_of_them():
    hidden, weight, labels, _ = problem(teacher=False)
    expected = loss_and_grads(reference_linear_cross_entropy, hidden, weight, labels)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels), expected[0])
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden.detach(), weight, labels), weight)
    torch.testing.assert_close(3 * grad, expected[3])
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), labels), hidden)
    torch.testing.assert_close(3 * grad, expected[2])


def test_wrong_arguments_are_named():
    hidden, weight, labels, soft = problem()
    wrong = labels.clone()
    wrong[3] = 19
    for call, message in [
        (lambda: linear_cross_entropy(hidden, weight[:, :3], labels), "hidden must be"),
        (lambda: linear_cross_entropy(hidden, weight, labels.int()), r"labels must be \(N,\) = \(23,\) int64"),
        (lambda: linear_cross_entropy(hidden, weight, wrong), r"labels\[3\] is 19"),
        (lambda: linear_cross_entropy(hidden, weight, labels, token_weight=torch.ones(2)), "token_weight must be"),
        (lambda: linear_cross_entropy(hidden, weight, labels, distill_weight=0.5), "needs both teacher_hidden"),
        (lambda: linear_cross_entropy(hidden, weight, labels, distill_weight=2.0, **soft), r"must lie in \[0, 1\]"),
        (lambda: linear_cross_entropy(hidden, weight, labels, temperature=0.0), "temperature must be above 0"),
        (lambda: linear_cross_entropy(hidden, weight, labels, chunk_tokens=0), "chunk_tokens must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
