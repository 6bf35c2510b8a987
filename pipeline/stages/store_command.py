"""`brine store`: what the runs share, why two runs differ, and what can be deleted.

brine store list                       stages, their sizes, and the runs that link to them
brine store explain runs/a runs/b      the first cause of each difference
brine store gc                         what nothing needs any more; --delete deletes it
brine store push runs/a URL            upload the stages of a run to an object store; `pull NAME URL` brings them back
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from brine.common.command_line import command, parse_subcommand
from brine.common.formatting import counted, file_size
from brine.common.remote.object_store import check_local
from brine.common.remote.stage_transfer import pull, push
from brine.common.tables import print_plain_or_rich, table
from brine.pipeline.run import STORE_FOLDER
from brine.pipeline.stages.shared_stages import (
    delete,
    delete_downloads,
    explain,
    left_downloads,
    list_stages,
    unneeded,
    with_foreign_files,
)
from brine.pipeline.stages.stage_folder import record_run

LINKS_SHOWN = 3
Run = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Where runs and their store are."""

    runs: Path = Path("runs")
    """Folder that holds the run folders."""
    store: Path | None = None
    """The store, if not RUNS/.store."""

    def __post_init__(self):
        check_local(self.runs, name="runs")
        check_local(self.store, name="store")

    def root(self) -> Path:
        """The store's folder. Raises ValueError where there is none."""
        root = self.store or self.runs / STORE_FOLDER
        if not root.is_dir():
            raise ValueError(f"there is no store {root}: give --runs or --store, or train something first")
        return root


@dataclass(frozen=True, kw_only=True)
class ListStages(StoreOptions):
    """List the stored stages, their sizes, and the runs that link to them."""

    def run(self) -> None:
        """Print a table and one JSON object."""
        stages = list_stages(self.root(), self.runs)
        rows = [
            (stage.stage, stage.folder.name, file_size(stage.num_bytes), "" if stage.finished else "unfinished",
             _shown_links(stage.runs))
            for stage in stages
        ]  # fmt: skip
        print_plain_or_rich(table(("stage", "folder", "size", "state", "links"), rows))
        print(json.dumps({"stages": len(stages), "bytes": sum(stage.num_bytes for stage in stages)}))


@dataclass(frozen=True, kw_only=True)
class ExplainRuns:
    """Say, stage by stage, whether two runs share it, and which setting, input or revision differs if not."""

    first: Run
    """A run folder."""
    second: Run
    """Another one."""

    def run(self) -> None:
        """Print a line for each difference and one JSON object. Raises ValueError for a folder that is not a run."""
        found = explain(self.first, self.second)
        for stage in found:
            print(f"{stage.stage:<16}{stage.state}")
            for change in stage.changes:
                print(f"{'':<16}  {change}")
            if stage.caused_by:
                print(f"{'':<16}  because of {' and '.join(stage.caused_by)}")
        print(json.dumps({stage.stage: stage.state for stage in found}))


@dataclass(frozen=True, kw_only=True)
class CollectGarbage(StoreOptions):
    """Show the stored stages that no run links to and that nothing linked was made from, and what downloads that failed
    left. Only --delete deletes them."""

    delete: bool = False
    """Delete what is shown; without it nothing is changed."""
    dry_run: bool = False
    """Only show (the default)."""

    def run(self) -> None:
        """Print a table and one JSON object. Raises ValueError for --delete together with --dry-run."""
        if self.delete and self.dry_run:
            raise ValueError("--delete and --dry-run exclude each other: give one of the two")
        root = self.root()
        stages = unneeded(root, self.runs)
        downloads = left_downloads(root)
        if stages or downloads:
            rows = [(stage.stage, stage.folder.name, file_size(stage.num_bytes)) for stage in (*stages, *downloads)]
            print_plain_or_rich(table(("stage", "folder", "size"), rows))
        for stage in with_foreign_files(root, self.runs):
            named = ", ".join((stage.foreign or ())[:3])
            print(f"{stage.folder} is kept: there are files that no stage made ({named}); move them away first")
        gone = [*delete(root, self.runs, stages), *delete_downloads(downloads)] if self.delete else []
        total = sum(stage.num_bytes for stage in (*stages, *downloads))
        if not stages:
            print("every stored stage is needed by a run")
        if (stages or downloads) and not self.delete:
            found = [
                counted(len(each), noun) for each, noun in ((stages, "stage"), (downloads, "left download")) if each
            ]
            print(f"{' and '.join(found)}, {file_size(total)}, would be deleted: give --delete to do it")
        said = {"unneeded": len(stages), "left_downloads": len(downloads), "bytes": total, "deleted": len(gone)}
        print(json.dumps(said))


@dataclass(frozen=True, kw_only=True)
class PushRun(StoreOptions):
    """Upload the finished stages of a run to an object store (extra [remote]); those that are there are not sent."""

    run_folder: Run
    """A run folder."""
    url: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="URL")]
    """s3://bucket/prefix, file:///folder, ..."""

    def run(self) -> None:
        """Print one JSON object."""
        done = push(self.run_folder, self.root(), self.url)
        print(json.dumps({"stages": len(done.stages), "sent": done.sent}))


@dataclass(frozen=True, kw_only=True)
class PullRun(StoreOptions):
    """Download the stages of a run that are not here, and link the run to them."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of a run that was pushed."""
    url: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="URL")]
    """The URL it was pushed to."""

    def run(self) -> None:
        """Print one JSON object."""
        root = self.store or self.runs / STORE_FOLDER
        done = pull(self.name, self.runs, root, self.url)
        record_run(root, self.runs / self.name)
        print(json.dumps({"stages": len(done.stages), "received": done.sent}))


def _shown_links(runs: tuple[str, ...]) -> str:
    others = f" and {len(runs) - LINKS_SHOWN} more" if len(runs) > LINKS_SHOWN else ""
    return ", ".join(runs[:LINKS_SHOWN]) + others or "none"


COMMANDS = {"list": ListStages, "explain": ExplainRuns, "gc": CollectGarbage, "push": PushRun, "pull": PullRun}
main = command(partial(parse_subcommand, "store", COMMANDS))
