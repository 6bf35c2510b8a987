"""The command line `brine data`: check, build, filter, plan, show, convert.

The last line printed is one JSON object (for `show`, the path of the image); everything before it is human-readable,
and progress goes to standard error. Exit codes: 0 done, 1 nothing usable, 2 invalid arguments (one line, no stack
trace), 130 ended by Ctrl-C.
"""

import dataclasses
import sys

import tyro

from brine.common.closed_pipe import exit_on_closed_pipe
from brine.common.command_line import one_line_errors
from brine.common.plugins import load_plugin, plugins
from brine.data.cli.options import COMMANDS, CheckRequest


@exit_on_closed_pipe
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    try:
        request = _parse(argv)
        from brine.data.cli import commands

        if getattr(request, "recipe", None) is not None:
            # the recipe's values are the defaults of a second pass, so that those given win
            request = _parse(argv, default=_by_recipe(request))
        return getattr(commands, name)(request)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        resumes = "; the same command resumes it" if name in ("build", "filter") else ""
        print(f"interrupted{resumes}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parse(argv: list[str], default: CheckRequest | None = None):
    """The request behind the arguments. Raises ValueError in one line instead of tyro's box, SystemExit for --help."""
    options = {"prog": "brine data", "config": (tyro.conf.FlagCreatePairsOff,)}
    with one_line_errors():
        if default is not None:
            return tyro.cli(type(default), args=argv[1:], default=default, **options)
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=argv, **options)


def _by_recipe(request: CheckRequest) -> CheckRequest:
    recipes = plugins("brine.recipes")
    if request.recipe not in recipes:
        raise ValueError(f"--recipe {request.recipe!r} is none of {', '.join(recipes)}")
    recipe = load_plugin(recipes[request.recipe])()
    return dataclasses.replace(
        request,
        seq_len=recipe.packing.seq_len,
        encode=recipe.corpus.encode,
        max_excluded_fraction=recipe.packing.max_excluded_fraction,
        **{f"{name}_budget": budget for name, budget in recipe.packing.media_budget.items()},
    )
