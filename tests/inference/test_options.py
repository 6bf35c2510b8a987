"""Command lines: lists by commas, and every mistake in one line with its remedy."""

from dataclasses import dataclass

import pytest
import torch

from brine.common.command_line import command, parse
from brine.inference.options import ComputeOptions, Integers, Names


@dataclass(frozen=True, kw_only=True)
class ExampleRequest(ComputeOptions):
    """An example."""

    lengths: Integers = (2048,)
    """Tokens."""
    names: Names = ("text",)
    """Names."""

    def run(self):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_lists_are_separated_by_commas():
    request = parse("example", ExampleRequest, ["--lengths", "1, 2,", "--names", "a,b", "--device", "cpu"])
    assert request.lengths == (1, 2) and request.names == ("a", "b")
    assert parse("example", ExampleRequest, []).lengths == (2048,)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--length", "3"], "did you mean --lengths?"),
        (["--lengths", "2k"], "'2k': give whole numbers such as 2048,4096"),
        (["--dtype", "float8"], "float8"),
        (["--threads"], "--threads"),
    ],
)
def test_a_mistake_is_one_line(words, hint, capsys):
    assert command(lambda argv: parse("example", ExampleRequest, argv))(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and hint in said and said.count("\n") == 1


def test_too_little_memory_names_the_remedy(capsys):
    main = command(lambda argv: parse("example", ExampleRequest, argv), out_of_memory="give less")
    assert main([]) == 2 and capsys.readouterr().err == "error: the device has too little memory: give less\n"
    assert command(lambda argv: ExampleRequest(threads=0))([]) == 2


def test_threads_are_positive():
    with pytest.raises(ValueError, match="--threads must be at least 1"):
        ExampleRequest(threads=0).resolve()
