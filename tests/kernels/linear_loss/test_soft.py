"""Sparse soft labels: the reference against a formula in plain Python, the fused version against the reference in fp64,
and the samples' expectation against the dense loss."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from brine.kernels.linear_loss import linear_cross_entropy
from brine.kernels.linear_loss.reference import reference_linear_cross_entropy
from brine.kernels.linear_loss.sampling import sample_soft_labels
from brine.kernels.linear_loss.soft_labels import merge_duplicates

NUM, VOCABULARY = 23, 19
TERMS = {
    "T1": {"distill_weight": 0.3},
    "T2.5-z": {"distill_weight": 0.6, "temperature": 2.5, "z_loss": 0.1},
    "only-T0.5": {"distill_weight": 1.0, "temperature": 0.5},
}


def problem(kind="truncated", num=NUM, width=8, vocab_size=VOCABULARY, places=6, dtype=torch.float64):
    """hidden, weight, labels, soft labels; a quarter of the tokens have no target, and hold garbage."""
    hidden = torch.randn(num, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(vocab_size, (num,))
    ids = torch.stack([torch.randperm(vocab_size)[:places] for _ in range(num)])
    chance = torch.rand(num, places, dtype=torch.float64)
    # the label among the listed words, and not
    ids[1, 0] = labels[1]
    ids[2, ids[2] == labels[2]] = (labels[2] + 1) % vocab_size
    # places without a word, in front too; and one row that holds no word
    ids[3, 2:], ids[5, 0] = -1, -1
    if kind != "sampled":
        ids[6] = -1
    # a word three times
    ids[7, 1:4] = ids[7, 0]
    chance[ids < 0] = 0.0
    chance = chance / chance.sum(1, keepdim=True).clamp(min=1e-9)
    if kind == "truncated":
        # what is kept goes from a little to nearly all, and all
        kept = 1.0 - torch.logspace(-0.1, -6, num, dtype=torch.float64)
        kept[num // 2] = 1.0
        chance *= kept[:, None]
    labels[::4] = -100
    ids[labels < 0], chance[labels < 0] = 10**9, torch.nan
    return (
        hidden,
        weight,
        labels,
        {"soft_ids": ids, "soft_probabilities": chance.to(torch.promote_types(dtype, torch.float32))},
    )


def loss_and_grads(function, hidden, weight, labels, **kwargs):
    loss, token_loss = function(hidden, weight, labels, **kwargs)
    assert not token_loss.requires_grad
    return [loss.detach(), token_loss, *torch.autograd.grad(3.0 * loss, [hidden, weight])]


def fused(*args, **kwargs):
    return linear_cross_entropy(*args, return_token_loss=True, **kwargs)


@pytest.mark.parametrize("chunk_tokens", [1, 5, None])
@pytest.mark.parametrize(
    ("terms", "kind", "weighted"),
    list(itertools.product(TERMS, ["truncated", "sampled", "renormalised"], [False, True])),
    ids=str,
)
def test_fused_equals_reference(terms, kind, weighted, chunk_tokens):
    hidden, weight, labels, soft = problem("sampled" if kind == "renormalised" else kind)
    if kind == "renormalised":
        soft["soft_probabilities"] = soft["soft_probabilities"] * torch.rand(NUM, 1, dtype=torch.float64)
        soft["soft_tail"] = "renormalise"
    kwargs = TERMS[terms] | soft | {"token_weight": torch.rand(NUM, dtype=torch.float64) if weighted else None}
    expected = loss_and_grads(reference_linear_cross_entropy, hidden, weight, labels, **kwargs)
    got = loss_and_grads(fused, hidden, weight, labels, chunk_tokens=chunk_tokens, **kwargs)
    assert all(x.isfinite().all() for x in got)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_reference_is_the_formula(tail):
    hidden, weight, labels, soft = problem("truncated" if tail == "bucket" else "sampled")
    hidden, weight = hidden.detach(), weight.detach()
    if tail == "renormalise":
        soft["soft_probabilities"] = soft["soft_probabilities"] * torch.rand(NUM, 1, dtype=torch.float64)
    loss, _ = reference_linear_cross_entropy(
        hidden, weight, labels, distill_weight=0.4, temperature=3.0, soft_tail=tail, **soft
    )
    total = 0.0
    for i in range(NUM):
        if labels[i] < 0:
            continue
        q = torch.softmax(weight @ hidden[i] / 3.0, 0).tolist()
        listed = {}
        for word, chance in zip(soft["soft_ids"][i].tolist(), soft["soft_probabilities"][i].tolist(), strict=True):
            if word >= 0:
                listed[word] = listed.get(word, 0.0) + chance
        mass = sum(listed.values())
        cross = -sum(p * math.log(q[word]) for word, p in listed.items())
        if tail == "renormalise":
            cross /= mass
        elif mass < 1.0 - 1e-6:
            cross -= (1.0 - mass) * math.log(math.fsum(p for word, p in enumerate(q) if word not in listed))
        hard = F.cross_entropy(weight @ hidden[i], labels[i]).item()
        total += 0.6 * hard + 0.4 * 9.0 * cross
    assert loss.item() == pytest.approx(total)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["truncated", "sampled"])
def test_gradient_matches_finite_differences(kind, temperature):
    hidden, weight, labels, soft = problem(kind, num=9, width=3)
    kwargs = dict(z_loss=0.1, distill_weight=0.4, temperature=temperature, chunk_tokens=4, **soft)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, **kwargs), (hidden, weight))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_whole_distribution_listed_is_the_dense_loss(temperature):
    hidden, weight, labels, _ = problem()
    teacher = {"teacher_hidden": torch.randn(NUM, 5).double(), "teacher_weight": torch.randn(VOCABULARY, 5).double()}
    kwargs = {"distill_weight": 0.7, "temperature": temperature, "chunk_tokens": 6}
    chance = torch.softmax(teacher["teacher_hidden"] @ teacher["teacher_weight"].T / temperature, -1)
    ids = torch.arange(VOCABULARY).repeat(NUM, 1)
    dense = loss_and_grads(fused, hidden, weight, labels, **kwargs, **teacher)
    sparse = loss_and_grads(fused, hidden, weight, labels, soft_ids=ids, soft_probabilities=chance, **kwargs)
    for x, y in zip(sparse, dense, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_truncated_labels_of_the_student_itself_have_no_gradient(temperature):
    """The bucket keeps the teacher as the optimum; renormalised labels have theirs elsewhere."""
    hidden, weight, labels, _ = problem()
    chance, ids = torch.softmax(hidden @ weight.T / temperature, -1).detach().topk(4)
    kwargs = {"distill_weight": 1.0, "temperature": temperature, "soft_ids": ids, "soft_probabilities": chance}
    grads = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, **kwargs), [hidden, weight])
    assert max(x.abs().max() for x in grads) < 1e-13
    biased = linear_cross_entropy(hidden, weight, labels, soft_tail="renormalise", **kwargs)
    assert max(x.abs().max() for x in torch.autograd.grad(biased, [hidden, weight])) > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_tail_that_the_student_gives_almost_nothing(dtype, temperature):
    """The student's tail is exp(-100) and less: 1 - sum would be 0, its log infinite and the gradient NaN."""
    hidden = torch.tensor([[100.0 * temperature], [300.0 * temperature]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [1.0], [0.0], [-0.0], [-1.0]], dtype=dtype, requires_grad=True)
    soft = {"soft_ids": torch.tensor([[0, 1], [1, 0]]), "soft_probabilities": torch.full((2, 2), 0.375, dtype=dtype)}
    loss, _ = fused(hidden, weight, torch.tensor([0, 1]), distill_weight=1.0, temperature=temperature, **soft)
    # log 2 with weight 3/4 for either token, and 1/4 of the distance to the rest
    true = temperature**2 * (2 * 0.75 * math.log(2.0) + 0.25 * (100.0 + 300.0))
    assert loss.item() == pytest.approx(true, rel=8 * torch.finfo(dtype).eps)
    d_hidden, d_weight = torch.autograd.grad(loss, [hidden, weight])
    # all of the rest is in the two words of logit 0, half each; 3/4 - 1 of the listed words' mass moves there
    torch.testing.assert_close(d_hidden, torch.full_like(d_hidden, 0.25 * temperature))
    rows = torch.tensor([0.125, 0.125, -0.125, -0.125, 0.0], dtype=dtype)[:, None]
    torch.testing.assert_close(d_weight, rows * 400.0 * temperature**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_labels_that_sum_to_one_within_rounding_have_no_tail(dtype):
    """Sampled labels kept in a short dtype do not sum to 1 exactly; the rest, here exp(-60), must not enter for it."""
    hidden = torch.full((1, 1), 60.0, requires_grad=True)
    weight = torch.tensor([[1.0], [1.0], [1.0], [0.0], [0.0]])
    chance = torch.tensor([[1.0, 1.0, 1.0]]).div(3.0).to(dtype)
    kwargs = {"distill_weight": 1.0, "soft_ids": torch.tensor([[0, 1, 2]]), "soft_probabilities": chance}
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0]), **kwargs)
    assert loss.item() == pytest.approx(math.log(3.0) * chance.double().sum().item(), rel=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_low_precision_is_as_good_as_the_naive_run(dtype, terms, tail):
    """Error within twice the naive run's own error in that precision plus 4 eps of the largest true value."""
    hidden, weight, labels, soft = problem(num=300, width=64, vocab_size=500, places=37, dtype=dtype)
    kwargs = TERMS[terms] | {"soft_tail": tail}
    if tail == "renormalise":
        soft["soft_ids"][6, 0], soft["soft_probabilities"][6, 0] = 4, 0.5

    def naive(
        hidden, weight, labels, *, soft_ids, soft_probabilities, soft_tail, distill_weight, temperature=1.0, z_loss=0.0
    ):
        rows = (labels >= 0).nonzero().flatten()
        logits = hidden[rows] @ weight.T
        place, chance = soft_ids[rows].clamp(min=0), soft_probabilities[rows]
        log_q = (logits / temperature).log_softmax(-1)
        rest = 1.0 - chance.sum(-1)
        if soft_tail == "renormalise":
            chance, rest = chance / chance.sum(-1, keepdim=True), torch.zeros_like(rest)
        listed = torch.zeros(logits.shape).scatter_add(1, place, (soft_ids[rows] >= 0).float()) > 0
        soft = -(chance * log_q.gather(1, place)).sum(-1)
        soft = soft - rest * log_q.masked_fill(listed, -torch.inf).logsumexp(-1)
        hard = F.cross_entropy(logits, labels[rows], reduction="none")
        total = (1 - distill_weight) * hard + distill_weight * temperature**2 * soft
        total = total + z_loss * logits.logsumexp(-1) ** 2
        return total.sum(), torch.zeros(len(labels)).index_put((rows,), hard.float()).detach()

    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = loss_and_grads(reference_linear_cross_entropy, *exact, labels, **kwargs, **soft)
    own = loss_and_grads(naive, hidden, weight, labels, **kwargs, **soft)
    got = loss_and_grads(fused, hidden, weight, labels, chunk_tokens=64, **kwargs, **soft)
    assert got[0].dtype == torch.float32 and got[2].dtype == got[3].dtype == dtype
    for name, x, mine, true in zip(("loss", "token_loss", "d_hidden", "d_weight"), got, own, truth, strict=True):
        error, allowed = ((y.double() - true).abs().max().item() for y in (x, mine))
        assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps * true.abs().max().item(), name


def test_soft_labels_are_not_looked_at_without_weight():
    hidden, weight, labels, soft = problem()
    plain = linear_cross_entropy(hidden, weight, labels)
    soft["soft_ids"][:] = 10**9
    assert torch.equal(linear_cross_entropy(hidden, weight, labels, distill_weight=0.0, **soft), plain)


def test_wrong_soft_labels_are_named():
    hidden, weight, labels, soft = problem()
    ids, chance = soft["soft_ids"], soft["soft_probabilities"]
    dense = {"teacher_hidden": hidden.detach(), "teacher_weight": weight.detach()}

    def changed(x, row, column, value):
        x = x.clone()
        x[row, column] = value
        return x

    everything = torch.arange(VOCABULARY).repeat(NUM, 1)
    for wrong, message in [
        ({"soft_ids": ids.int()}, r"soft_ids must be \(N, k\) = \(23, k\) int64"),
        ({"soft_ids": ids[:4]}, r"soft_ids must be \(N, k\)"),
        ({"soft_ids": ids[:, :0], "soft_probabilities": chance[:, :0]}, "k > 0"),
        ({"soft_probabilities": chance[:, :3]}, "soft_probabilities must be floating"),
        ({"soft_probabilities": ids}, "soft_probabilities must be floating"),
        ({"soft_ids": changed(ids, 1, 2, VOCABULARY)}, r"soft_ids must lie in \[0, 19\).*soft_ids\[1, 2\] is 19"),
        ({"soft_ids": changed(ids, 1, 2, -2)}, r"soft_ids\[1, 2\] is -2"),
        ({"soft_ids": changed(ids, 1, 2, -1)}, r"must be 0 where soft_ids is -1; soft_probabilities\[1, 2\]"),
        (
            {"soft_probabilities": changed(chance, 1, 2, -0.1)},
            r"must be at least 0; soft_probabilities\[1, 2\] is -0.1",
        ),
        ({"soft_probabilities": changed(chance, 1, 2, torch.nan)}, "must be at least 0"),
        ({"soft_probabilities": changed(chance, 1, 2, 0.99)}, r"sum.* must be at most 1"),
        ({"soft_tail": "fold"}, "soft_tail must be one of bucket, renormalise"),
        ({"soft_tail": "renormalise"}, r"must be above 0 under soft_tail=\"renormalise\".*\[6, 0\]"),
        ({"soft_probabilities": None}, "or both soft_ids"),
        (dense, "not both"),
        (
            {"soft_ids": everything, "soft_probabilities": torch.full((NUM, VOCABULARY), 0.5 / VOCABULARY)},
            "must be 1 where the whole vocabulary is listed",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(hidden, weight, labels, distill_weight=0.5, **(soft | wrong))


def test_merging_adds_and_keeps_the_rest():
    ids = torch.tensor([[4, -1, 4, 2, 4], [1, 2, 3, 4, 5]])
    values = torch.tensor([[1.0, 0.0, 2.0, 8.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    ids, values = merge_duplicates(ids, values)
    assert ids.tolist() == [[4, 2, -1, -1, -1], [5, 4, 3, 2, 1]]
    assert values.tolist() == [[7.0, 8.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]]


def teacher_and_student(vocab_size=97, width=6):
    """One token of each, in fp64: hidden (1, E), weight (V, E), twice. The teacher is well off uniform."""
    return [torch.randn(1 if i % 2 == 0 else vocab_size, width, dtype=torch.float64) for i in range(4)]


def draws(teacher_hidden, teacher_weight, num_samples, temperature, num, seed=0):
    """Soft labels of `num` tokens that are all the same: independent draws."""
    generator = torch.Generator().manual_seed(seed)
    return sample_soft_labels(
        teacher_hidden.expand(num, -1), teacher_weight, num_samples, temperature, generator=generator
    )


def d_hidden_of(hidden, weight, num, **kwargs):
    """Gradients (num, E) of the pure soft loss with respect to `num` copies of one hidden state."""
    hidden = hidden.expand(num, -1).clone().requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.zeros(num, dtype=torch.int64), distill_weight=1.0, **kwargs)
    return torch.autograd.grad(loss, hidden)[0], loss.detach() / num


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_labels_are_unbiased(temperature):
    """The mean gradient of 20,000 tokens with 8 draws each is the dense one within 4.5 of its standard errors; that of
    the 8 likeliest words, renormalised, is not, even though it has no variance at all."""
    teacher_hidden, teacher_weight, hidden, weight = teacher_and_student()
    num = 20_000
    dense, loss = d_hidden_of(
        hidden, weight, 1, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight, temperature=temperature
    )
    ids, chance = draws(teacher_hidden, teacher_weight, 8, temperature, num)
    grads, mean_loss = d_hidden_of(
        hidden, weight, num, soft_ids=ids, soft_probabilities=chance, temperature=temperature
    )
    standard_error = grads.std(0) / math.sqrt(num)
    assert ((grads.mean(0) - dense[0]) / standard_error).abs().max() < 4.5
    assert standard_error.max() < 0.02 * dense.norm()
    assert mean_loss.item() == pytest.approx(loss.item(), rel=0.01)

    top, ids = torch.softmax(teacher_hidden @ teacher_weight.T / temperature, -1).topk(8)
    biased, _ = d_hidden_of(
        hidden, weight, 1, soft_ids=ids, soft_probabilities=top, soft_tail="renormalise", temperature=temperature
    )
    assert ((biased[0] - dense[0]) / standard_error).abs().max() > 20


def test_the_angle_to_the_dense_gradient_shrinks_with_the_draws():
    """Four times the draws, half the error: the mean tangent of the angle falls by about 2 each time."""
    teacher_hidden, teacher_weight, hidden, weight = teacher_and_student()
    dense, _ = d_hidden_of(hidden, weight, 1, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight)
    angles = []
    for num_samples in (16, 64, 256, 1024):
        ids, chance = draws(teacher_hidden, teacher_weight, num_samples, 1.0, num=500)
        grads, _ = d_hidden_of(hidden, weight, 500, soft_ids=ids, soft_probabilities=chance)
        cosine = F.cosine_similarity(grads, dense)
        angles.append((1.0 / cosine.square() - 1.0).sqrt().median().item())
    for wide, narrow in itertools.pairwise(angles):
        assert 1.6 < wide / narrow < 2.5, angles
    assert angles[-1] < 0.1


def test_samples_are_counts_in_a_settled_form():
    hidden, weight = torch.randn(50, 4), torch.randn(31, 4)
    ids, chance = sample_soft_labels(hidden, weight, 12, generator=torch.Generator().manual_seed(1))
    assert ids.shape == chance.shape == (50, 12) and ids.dtype == torch.int64 and chance.dtype == torch.float32
    counts = chance.double() * 12
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-5)
    torch.testing.assert_close(counts.sum(1), torch.full((50,), 12.0).double())
    assert torch.equal(ids < 0, chance == 0) and ((ids[:, 1:] < ids[:, :-1]) | (ids[:, 1:] == -1)).all()
    assert (ids < 31).all() and (ids < 0).any() and (counts > 1.5).any()


def test_samples_depend_on_the_generator_and_not_on_the_chunks():
    hidden, weight = torch.randn(50, 4), torch.randn(31, 4)
    first, second, other = (
        sample_soft_labels(hidden, weight, 12, 2.0, generator=torch.Generator().manual_seed(seed), chunk_tokens=chunk)
        for seed, chunk in ((1, None), (1, 7), (2, None))
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_words_of_no_probability_are_never_drawn():
    """The first, the last and one between have probability 0 in fp64; uniform numbers fall on all others."""
    weight = torch.tensor([-2000.0, 0.0, -2000.0, 1.0, -2000.0])[:, None]
    ids, chance = sample_soft_labels(torch.ones(300, 1), weight, 9, generator=torch.Generator().manual_seed(0))
    assert set(ids.unique().tolist()) == {-1, 1, 3}
    share = chance.where(ids == 3, 0.0).sum(1).mean().item()
    true = 1.0 / (1.0 + math.exp(-1.0))
    assert abs(share - true) < 4.5 * math.sqrt(true * (1 - true) / 2700)


def test_sampling_makes_no_logits_of_the_whole_batch():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    hidden, weight = torch.randn(256, 8), torch.randn(400, 8)
    with Watch():
        sample_soft_labels(hidden, weight, 5, chunk_tokens=16)
    assert largest <= 16 * 400


def test_sampling_refuses_what_means_nothing():
    hidden, weight = torch.randn(5, 4), torch.randn(31, 4)
    for call, message in [
        (lambda: sample_soft_labels(hidden, weight[:, :3], 4), "teacher_hidden must be"),
        (lambda: sample_soft_labels(hidden, weight, 0), "num_samples >= 1"),
        (lambda: sample_soft_labels(hidden, weight, 4, 0.0), "temperature above 0"),
        (lambda: sample_soft_labels(hidden, weight, 4, chunk_tokens=0), "chunk_tokens must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
