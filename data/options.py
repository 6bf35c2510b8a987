"""The options of `python -m data`: one sub-command each, typed, with their help.

Options that set how media become tokens are the fields of `EncodeConfig` under their own names, with the sentences
under those fields as help, so that a new field is an option at once. What an option's value means to the room is
checked where it is used, not here; here it must only be of its type.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

from data.config import EncodeConfig
from data.filters import RULES


def encode_config(request: argparse.Namespace) -> EncodeConfig:
    """The EncodeConfig that the options ask for. Raises ValueError for a number that cannot work."""
    given = {field.name: getattr(request, field.name) for field in dataclasses.fields(EncodeConfig)}
    return EncodeConfig(**{name: value for name, value in given.items() if value is not None})


def apply_recipe(request: argparse.Namespace, recipes: dict) -> None:
    """Fill in rows and encoding from the recipe that the request names, where it does not say otherwise itself.

    Raises ValueError when there is no such recipe.
    """
    if request.recipe not in recipes:
        raise ValueError(f"--recipe {request.recipe!r} is none of {', '.join(recipes)}")
    recipe = recipes[request.recipe]()
    rows = {"row_tokens": recipe.rows.row_tokens}
    request.max_left_out = recipe.rows.max_left_out
    rows |= {f"{name}_budget": budget for name, budget in recipe.rows.media_budget.items()}
    for name, value in (rows | dataclasses.asdict(recipe.corpus.encode)).items():
        if getattr(request, name) is None:
            setattr(request, name, value)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; the name of the command is `command` in what it gives."""
    top = argparse.ArgumentParser(prog="python -m data", description="Look at training data, and build it.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_build(commands)
    _add_filter(commands)
    _add_plan(commands)
    _add_show(commands)
    return top


def _add_check(commands) -> None:
    check = commands.add_parser(
        "check",
        help="read and decode everything; count it; say what cannot be used and why",
        description="Read and decode everything in PATH, count it, and say what cannot be used and why. "
        "The last line is one JSON object. Nothing is written unless asked for.",
    )
    _add_source(check)
    rows = check.add_argument_group("rows, to be told what of the train split fits none")
    rows.add_argument(
        "--recipe", metavar="NAME", help="rows and encoding of a recipe of train.py, where not given here"
    )
    rows.add_argument("--row-tokens", type=_count, metavar="N", help="tokens in a row")
    for name in ("image", "audio", "video"):
        rows.add_argument(f"--{name}-budget", type=int, metavar="N",
                          help=f"most {name} tokens in a row (default: the row)")  # fmt: skip
    check.add_argument("--limit", type=_count, metavar="N", help="look at the first N documents only")
    check.add_argument(
        "--retry", type=Path, metavar="FILE", help="look only at the documents this quarantine file names"
    )
    check.add_argument("--quarantine", type=Path, metavar="FILE", help="write what is set aside there, as JSON lines")
    check.add_argument("--plot", type=Path, metavar="FILE.png", help="draw lengths and tokens there")
    check.add_argument("--out", type=Path, metavar="DIR", help="write quarantine.jsonl, check.png and check.json there")
    _add_encoding(check)


def _add_build(commands) -> None:
    build = commands.add_parser(
        "build",
        help="encode everything into an indexed corpus",
        description="Encode everything in PATH into FOLDER: tokens, patches and an index. A build that was stopped "
        "goes on with the same command; one that is finished is opened at once.",
    )
    _add_source(build)
    build.add_argument("folder", type=Path, metavar="FOLDER", help="where the corpus goes: new, empty, or begun before")
    build.add_argument("--vocab-size", type=_count, default=512, metavar="N",
                       help="ids of the tokenizer that is trained on the training split (default 512)")  # fmt: skip
    build.add_argument("--no-media", action="store_true", help="store no patches: media are decoded again when used")
    _add_encoding(build)


def _add_filter(commands) -> None:
    filter_ = commands.add_parser(
        "filter",
        help="leave documents out of training, rule by rule, or take that back",
        description="Judge what a corpus holds by one rule after the other and note below FOLDER what is dropped and "
        "why. `plan` and training then leave it out. Without rules: show what is there. "
        f"Rules: {', '.join(RULES)}.",
    )
    filter_.add_argument("folder", type=Path, metavar="FOLDER", help="a corpus that `build` wrote")
    filter_.add_argument("rules", nargs="*", metavar="RULE", help="in the order to be applied")
    filter_.add_argument("--undo", type=_count, metavar="N", help="take the last N rounds away first")
    filter_.add_argument("--workers", type=_count, metavar="N", help="processes (default: one a core, at most 8)")


def _add_plan(commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="show how a corpus is packed into rows",
        description="Pack the documents of a corpus into rows and show the result. Nothing is written without --out.",
    )
    plan.add_argument("folder", type=Path, metavar="FOLDER", help="a corpus that `build` wrote")
    plan.add_argument("--row-tokens", type=_count, default=2048, metavar="N", help="tokens in a row (default 2048)")
    for name in ("image", "audio", "video"):
        plan.add_argument(f"--{name}-budget", type=_count, metavar="N",
                          help=f"most {name} tokens in a row (default: the row)")  # fmt: skip
    length = plan.add_mutually_exclusive_group()
    length.add_argument("--num-rows", type=_count, metavar="N", help="plan this many rows")
    length.add_argument("--epochs", type=_count, metavar="N", help="plan as many rows as N visits fill (default 1)")
    plan.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffle (default 0)")
    plan.add_argument("--split", default="train", metavar="SPLIT", help="train (default), validation or test")
    plan.add_argument("--long", choices=("split", "drop"), default="split",
                      help="documents longer than a row: split over rows (default) or drop")  # fmt: skip
    plan.add_argument("--name", default="plan", metavar="NAME", help="of the plan written to --out (default plan)")
    plan.add_argument("--out", type=Path, metavar="DIR", help="write NAME.npz and NAME.png there")
    plan.add_argument("--plot", type=Path, metavar="FILE.png", help="draw rows and mixture there")


def _add_show(commands) -> None:
    show = commands.add_parser(
        "show",
        help="draw one document as the model will see it",
        description="Draw one document as the model will see it: patches, mel, frames, tokens, places and the mask.",
    )
    _add_source(show, what="a corpus that `build` wrote, or anything that `check` reads")
    show.add_argument("id", metavar="ID", help="the document's id, or its number from 0")
    show.add_argument("--out", type=Path, metavar="FILE", help="FILE.png or FILE.html (default: ID.png, here)")
    _add_encoding(show)


def _add_source(parser, *, what: str = "a folder, a tar, a Parquet file or a manifest") -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help=what)
    parser.add_argument("--format", metavar="NAME", help="of PATH, where it is not to be found out")


def _add_encoding(parser) -> None:
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, or a folder that holds one")
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="decoding processes (default: one a core, at most 8)"
    )
    group = parser.add_argument_group("how media become tokens")
    words = _field_docs(EncodeConfig)
    for field in dataclasses.fields(EncodeConfig):
        kind = int if field.type in (int, "int") else float
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            metavar="N",
            help=f"{words.get(field.name, '')} (default {field.default:,})".replace("%", "%%"),
        )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, by name; nothing where the source is not at hand."""
    try:
        body = ast.parse(inspect.getsource(config)).body[0].body
    except (OSError, TypeError):
        return {}
    return {
        field.target.id: " ".join(words.value.value.split()).rstrip(".")
        for field, words in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant)
    }
