"""The command `brine registry`: add, measure, promote, rollback, revoke, verify, list, show.

The last line printed is one JSON object; tables before it are for people. Exit codes: 0 done, 1 the gate refuses or
`verify` found damage, 2 a mistake in the request (one line), 130 interrupted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from brine.common.command_line import command, one_line_errors
from brine.common.tables import print_plain_or_rich
from brine.inference.options import ComputeOptions
from brine.inference.registered import registry_root

Models = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL...")]
Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """Options of every command."""

    root: Path = field(default_factory=registry_root)
    """The registry's folder (the variable BRINE_REGISTRY, else runs/registry)."""

    def open(self, *, create: bool = False):
        """The registry. Raises ValueError where there is none, unless it may be made."""
        from brine.registry.registry import Registry

        registry = Registry(self.root)
        if not create and not registry.history.added:
            raise ValueError(f"there is no registry at {self.root}: `brine registry add RUN` begins one")
        return registry


@dataclass(frozen=True, kw_only=True)
class AddRequest(RegistryOptions):
    """Add trained models with their lineage. The run is not modified, but its model's files become read-only."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Runs, such as runs/demo."""
    stage: str | None = None
    """Their stage, such as small; the best finished one if not given."""

    def run(self) -> None:
        """Print the digests. Raises ValueError for a run without a finished model."""
        if not self.runs:
            raise ValueError("give at least one run, such as runs/demo")
        registry = self.open(create=True)
        added = [registry.add(run, self.stage) for run in self.runs]
        for model in added:
            for reason in registry.card(model)["missing"]:
                print(f"{model[:12]} cannot be promoted without {reason}")
        _say({"registry": str(self.root), "models": added})


@dataclass(frozen=True, kw_only=True)
class MeasureRequest(RegistryOptions, ComputeOptions):
    """Measure models on an evaluation suite (all its parts), or keep measurements that were made already."""

    models: Models
    """champion, or digests or their beginnings."""
    on: str
    """The suite, by name or path."""
    measured: Path | None = None
    """A folder with measurements.jsonl and result.json of the one model given, instead of measuring."""

    def run(self) -> None:
        """Print the digests of the records. Raises ValueError for measurements of another model or suite."""
        from brine.registry.cli.suite_access import measure_model, open_suite

        if not self.models or (self.measured is not None and len(self.models) > 1):
            raise ValueError("give models; exactly one with --measured")
        registry, suite = self.open(), open_suite(self.on)
        models, records = [registry.digest_of(name) for name in self.models], []
        device, dtype = self.resolve() if self.measured is None else (None, None)
        for model in models:
            with tempfile.TemporaryDirectory(prefix="brine-registry-") as scratch:
                folder = self.measured or Path(scratch) / "measured"
                if self.measured is None:
                    measure_model(registry.folder_of(model), suite, folder, device=device, compute_dtype=dtype)
                records.append(registry.measure(model, folder, suite))
        _say({"registry": str(self.root), "models": models, "records": records})


@dataclass(frozen=True, kw_only=True)
class PromoteRequest(RegistryOptions):
    """Ask the gate whether the setting of these confirmation seeds may replace the champion; if so the median seed
    becomes the champion.

    The first model of a registry needs measurements and a complete lineage alone."""

    models: Models
    """Digests, or their beginnings, of the confirmation seeds: at least 3."""
    on: str
    """The suite, by name or path."""
    force: str | None = None
    """Promote against the answer, for this reason; it stays in the log and on the card."""

    def run(self) -> int:
        """Print the decision; 1 where it refuses. Raises ValueError for a request that cannot be answered."""
        from brine.registry.cli.suite_access import open_suite
        from brine.registry.cli.tables import decision_tables

        found = self.open().promote(self.models, open_suite(self.on), force=self.force)
        print_plain_or_rich(*decision_tables(found))
        answer = {"outcome": found.answer.outcome, "passed": found.answer.passed, "reasons": list(found.answer.reasons)}
        _say({"promoted": found.model, "before": found.before, "forced": found.forced, "uses": found.uses, **answer})
        return 0 if found.model else 1


@dataclass(frozen=True, kw_only=True)
class RollbackRequest(RegistryOptions):
    """Make an earlier champion the champion again."""

    reason: str
    """Why; it stays in the log."""
    to: str | None = None
    """Which one; the latest in which nothing is revoked if not given."""

    def run(self) -> None:
        """Print the champion. Raises ValueError where there is no way back."""
        registry = self.open()
        before = registry.champion
        _say({"champion": registry.rollback(reason=self.reason, to=self.to), "before": before})


@dataclass(frozen=True, kw_only=True)
class RevokeRequest(RegistryOptions):
    """Mark a model, a stage or a source, and every model made from it, as not to be used."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIGEST")]
    """A digest of weights, a stage or a source, or its beginning."""
    reason: str
    """Why; it stays in the log and on the cards."""
    rollback: bool = False
    """Go back to the latest champion that was not made from it, if the champion was."""

    def run(self) -> None:
        """Print what is downstream. Raises ValueError where the champion is, unless it is rolled back."""
        registry = self.open()
        found = registry.contained_digest(self.model)
        affected = registry.revoke(found, reason=self.reason, rollback=self.rollback)
        for model in affected:
            print(f"revoked with it: {model} ({registry.history.added[model]['run']})")
        _say({"revoked": found, "models": affected, "champion": registry.champion})


@dataclass(frozen=True, kw_only=True)
class VerifyRequest(RegistryOptions):
    """Hash every file again and compare it and every line of the log with what was recorded; changes nothing."""

    def run(self) -> int:
        """Print what is damaged; 1 where something is."""
        from brine.registry.verify import verify

        damage = verify(self.root)
        print("\n".join(damage) if damage else "everything is as it was recorded")
        _say({"registry": str(self.root), "damage": damage})
        return 1 if damage else 0


@dataclass(frozen=True, kw_only=True)
class ListRequest(RegistryOptions):
    """List the models, the champion first; revoked and forced ones in red."""

    def run(self) -> None:
        """Print a table."""
        from brine.registry.cli.tables import list_table

        registry = self.open()
        print_plain_or_rich(list_table(registry.history))
        _say({"champion": registry.champion, "models": list(registry.history.added)})


@dataclass(frozen=True, kw_only=True)
class ShowRequest(RegistryOptions):
    """Show one model: what it was made from, what was measured of it, what happened to it."""

    model: Model
    """champion, or a digest or its beginning."""

    def run(self) -> None:
        """Print tables. Raises ValueError for a model that is not there."""
        from brine.registry.cli.tables import show_tables

        registry = self.open()
        card = registry.card(registry.digest_of(self.model))
        print_plain_or_rich(*show_tables(card, registry.history))
        _say({"folder": str(registry.folder_of(card["weights"])), "missing": card["missing"]})


COMMANDS = {
    "add": AddRequest, "measure": MeasureRequest, "promote": PromoteRequest, "rollback": RollbackRequest,
    "revoke": RevokeRequest, "verify": VerifyRequest, "list": ListRequest, "show": ShowRequest,
}  # fmt: skip


def read_request(argv: Sequence[str]) -> Any:
    """The request of a command line. Raises ValueError in one line, SystemExit for --help."""
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    with one_line_errors():
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="brine registry", args=list(argv), config=config)


main = command(read_request, interrupted="interrupted; nothing is half done, the next command finishes it")


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found, allow_nan=False))
