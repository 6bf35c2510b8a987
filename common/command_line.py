"""Command lines by tyro: options from dataclasses, errors in one line, and the exit codes that all commands share.

tyro draws a box around an error, which no log keeps readable; `one_line_errors` makes it a ValueError of one line.
`command` runs a request: 0 done, 2 a mistake in the request (one line on standard error), 130 interrupted. Progress
belongs on standard error, results on standard output. tyro is imported where it is used.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from brine.common.closed_pipe import exit_on_closed_pipe


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns tyro's error box and exit into a ValueError of one line; `--help` still exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ValueError(_message(said.getvalue())) from None


def _message(box: str) -> str:
    """The text of tyro's error, which a terminal without UTF-8 gets without a frame, and the nearest option's name."""
    lines = [line.strip("│| ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    sections = [" ".join(section.split()) for section in re.split(r"(?m)^[─-]{8,}$", "\n".join(lines))]
    # the title stands in the frame, or is the first section
    message, *more = sections if "╭" in box else sections[1:]
    known = re.search(r"--[\w.-]+", more[0]) if more and more[0].startswith("Perhaps") else None
    return message.rstrip(".") + (f" (did you mean {known[0]}?)" if known else "") + "; see --help"


@functools.cache
def field_docstrings(options: type) -> dict[str, str]:
    """The docstring of each field of a dataclass, on one line; "" without one."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    docs = {field.name: "" for field in dataclasses.fields(options)}
    for field, doc in itertools.pairwise(getattr(definition, "body", ())):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
            docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(doc.value).split())
    return docs


def command(
    read: Callable[[Sequence[str]], Any], *, interrupted: str = "", out_of_memory: str = "give --device cpu"
) -> Callable[[Sequence[str] | None], int]:
    """`main(argv) -> exit code` that runs what `read(argv)` returns; its `run` may return another code than 0.
    interrupted, out_of_memory: texts to print."""

    @exit_on_closed_pipe
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            return read(sys.argv[1:] if argv is None else argv).run() or 0
        except KeyboardInterrupt:
            print(f"\n{interrupted}" if interrupted else "", file=sys.stderr)
            return 130
        except BrokenPipeError:
            raise
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {str(error).replace('give format=', 'give --format')}", file=sys.stderr)
        except RuntimeError as error:
            # torch's, without importing torch
            if type(error).__name__ != "OutOfMemoryError":
                raise
            print(f"error: the device has too little memory: {out_of_memory}", file=sys.stderr)
        return 2

    return main


def parse(name: str, options: type, argv: Sequence[str]) -> Any:
    """An instance of the dataclass `options`, whose docstrings are the help.

    ValueError in one line, SystemExit for --help.
    """
    import tyro

    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed)
    with one_line_errors():
        return tyro.cli(options, prog=f"brine {name}", args=list(argv), config=config)


def parse_subcommand(
    name: str, commands: dict[str, Callable[..., Any]], argv: Sequence[str], *, description: str = ""
) -> Any:
    """An instance of the dataclass that the first argument names in `commands`; errors as in `parse`."""
    import tyro

    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed)
    with one_line_errors():
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog=f"brine {name}", args=list(argv), config=config, description=description or None
        )
