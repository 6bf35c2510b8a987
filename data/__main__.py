"""The data room's command line.

    python -m data check PATH            what is in a folder, archive or manifest, and what cannot be used
    python -m data build PATH FOLDER     an indexed corpus from it
    python -m data filter FOLDER RULES   what of it is left out of training, and why
    python -m data plan FOLDER           how a corpus is packed into rows
    python -m data show PATH ID          one document as the model will see it

PATH is a folder, a tar, a Parquet file or a manifest of any format that `data.formats` reads. The last line printed is
one JSON object (the path of the picture, for `show`); everything before it is for people, and progress goes to
standard error. Exit codes: 0 done, 1 nothing that can be used, 2 a mistake in the request (said in a line, without a
stack trace), 130 ended by Ctrl-C.
"""

import os
import sys

from data.options import apply_recipe, parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    try:
        request = parser().parse_args(sys.argv[1:] if argv is None else argv)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    try:
        from data import commands

        if getattr(request, "recipe", None) is not None:
            from recipes import RECIPES

            apply_recipe(request, RECIPES)
        return getattr(commands, request.command)(request)
    except KeyboardInterrupt:
        print(
            "interrupted" + ("; the same command goes on" if request.command in ("build", "filter") else ""),
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # whoever read our output has gone; what Python would say about that at its end helps nobody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
