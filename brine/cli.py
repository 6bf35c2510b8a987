"""The command `brine`: one name for each thing that can be run."""

from __future__ import annotations

import importlib
import sys

from brine.common.closed_pipe import exit_on_closed_pipe

COMMANDS = {
    "train": ("brine.train", "train a recipe: all stages, from the corpus to the report"),
    "data": ("brine.data.cli.main", "check, build, filter, plan, show and convert documents"),
    "plan": ("brine.planner.command", "estimate memory, step time and the best mesh of a recipe"),
    "generate": ("brine.inference.generate", "generate text or chat with a trained model"),
    "eval": ("brine.evals.cli:evaluate", "evaluate a trained model on a suite or on other documents"),
    "suite": ("brine.evals.suites.cli", "make, show and verify frozen evaluation suites"),
    "compare": ("brine.evals.cli:compare", "compare evaluated runs on the same documents, over seeds"),
    "report": ("brine.evals.cli:report", "rebuild summary.json and report.html of a run"),
    "needle": ("brine.evals.needle.run", "run the needle-in-a-haystack evaluation"),
    "repository": (
        "brine.evals.repository.run",
        "repository-level completion: names defined in another file of the package",
    ),
    "store": (
        "brine.pipeline.stages.store_command",
        "list and explain the stages that runs share",
    ),
    "experiments": ("brine.experiments.cli", "plan, run and compare many trainings, over seeds and documents"),
    "registry": ("brine.registry.cli.main", "models with their lineage: add, measure, promote, roll back, verify"),
    "self-play": ("brine.salt.self_play.command", "make training documents by questions whose answers a rule checks"),
    "convert": ("brine.convert", "rewrite a run, corpus, model or plan of a version before 0.2, in place"),
    "check-cluster": (
        "brine.training.parallel.check_cluster",
        "check NCCL, links, ring attention and FSDP2 (run with torchrun)",
    ),
}
"""Command -> (module[:function] that parses its arguments, one line of help)."""


@exit_on_closed_pipe
def main(argv: list[str] | None = None) -> int:
    """Run a command; without one, list them. Returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: brine COMMAND ... (each has --help)\n")
        print("\n".join(f"  {name:<14} {what}" for name, (_, what) in COMMANDS.items()))
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: brine has no command {argv[0]!r}: it has {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _, name = COMMANDS[argv[0]][0].partition(":")
    return getattr(importlib.import_module(module), name or "main")(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
