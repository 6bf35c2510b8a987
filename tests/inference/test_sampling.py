"""Sampling: the distribution that was asked for, from counted numbers, without an op that CUDA lacks."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brine.inference.sampling import GREEDY, SamplingConfig, sample_token, uniform_samples

CHANCES = [0.25, 0.125, 0.5, 0.125]


def shares(chances=CHANCES, count=4000, **options):
    """How often each token is drawn."""
    logits = torch.tensor(chances).log().repeat(count, 1)
    drawn = sample_token(logits, uniform_samples(0, 1, count)[0], SamplingConfig(**options))
    return np.bincount(drawn.numpy(), minlength=len(chances)) / count


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"temperature": 1.0}, CHANCES),
        ({"temperature": 1.0, "top_p": 0.6}, [1 / 3, 0, 2 / 3, 0]),
        ({"temperature": 1.0, "top_p": 0.45}, [0, 0, 1, 0]),
        ({"temperature": 1.0, "top_k": 2}, [1 / 3, 0, 2 / 3, 0]),
        ({"temperature": 1.0, "top_k": 1}, [0, 0, 1, 0]),
        # the first of equals stays
        ({"temperature": 1.0, "top_k": 3}, [2 / 7, 1 / 7, 4 / 7, 0]),
        # of the two likeliest, which hold 3/4, the first holds two thirds
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [0, 0, 1, 0]),
        ({"temperature": 1.0, "top_k": 9}, CHANCES),
        ({"temperature": 0.5}, [4 / 22, 1 / 22, 16 / 22, 1 / 22]),
        ({"temperature": 1e-30, "top_p": 0.9}, [0, 0, 1, 0]),
        ({"temperature": 0.0}, [0, 0, 1, 0]),
    ],
    ids=str,
)
def test_shares(options, expected):
    np.testing.assert_allclose(shares(**options), expected, atol=0.03 if max(expected) < 1 else 0)


def test_a_nucleus_ends_where_its_mass_is_reached():
    """Probabilities 1/2, 1/4, 1/8, 1/8 are exact in binary: 0.5 is reached by the first token alone."""
    np.testing.assert_array_equal(shares(temperature=1.0, top_p=0.5), [0, 0, 1, 0])


def test_what_is_banned_is_never_drawn():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    for options in ({}, {"top_p": 0.99}, {"top_k": 4}):
        for uniform in (0.0, 0.4999, 0.5, 1.0 - 2.0**-53):
            token = sample_token(
                logits, torch.full((3,), uniform, dtype=torch.float64), SamplingConfig(temperature=1.0, **options)
            )
            assert token.tolist() == [0 if uniform < 0.5 else 2] * 3


def test_numbers_are_counted():
    """More numbers are a continuation, and rows and seeds have streams of their own."""
    few, many = uniform_samples(7, 2, 5), uniform_samples(7, 3, 50)
    assert torch.equal(few, many[:2, :5]) and few.dtype == torch.float64
    assert len(set(many.flatten().tolist())) == 150
    assert not torch.equal(uniform_samples(8, 2, 5), few)
    # any integer is a seed, as it is for torch
    assert 0 <= float(uniform_samples(-1, 1, 1)) < 1 and 0 <= float(uniform_samples(2**70, 1, 1)) < 1


class Ops(TorchDispatchMode):
    """Sees the dtypes of all cumulative sums."""

    def __init__(self):
        super().__init__()
        self.sums = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "cumsum" in str(func) or "multinomial" in str(func):
            self.sums.append(args[0].dtype)
        return func(*args, **kwargs or {})


def test_sums_are_of_integers():
    """A cumulative sum of floats has no deterministic kernel on CUDA, and raises where only such are allowed."""
    with Ops() as ops:
        sample_token(torch.randn(2, 9), torch.rand(2, dtype=torch.float64), SamplingConfig(temperature=1.0, top_p=0.5))
    assert ops.sums == [torch.int64]


def test_greedy_needs_no_numbers():
    assert not GREEDY.do_sample and sample_token(torch.tensor([[1.0, 3.0, 2.0]]), None, GREEDY).tolist() == [1]


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingConfig(**options)
