"""The registry: models with their lineage, measurements of them, one champion, and a log that all of it follows from.

    runs/registry/models/<weights>/   model/, recipe.json, card.json, measured/<digest>/
    runs/registry/log.jsonl           what was done, a line each (`brine.registry.history`)
    runs/registry/champion            a link to one of the models

Every change is written to the log first; cards and the pointer follow from it, and are made again at the next open
where a kill came between. One process writes at a time, and waits for another for `LOCK_WAIT_S`. Nothing is deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brine.common.content_store import file_lock
from brine.common.files import digest, sync_folder, write_json, write_text
from brine.common.formatting import counted
from brine.evals.measurement import MEASUREMENTS_FILE, save_measurements
from brine.inference.registered import CARD_FILE, CHAMPION, MODELS, STAGE_PREFERENCE, resolve_registered
from brine.registry.card import base_digest, card_base, card_text, make_card
from brine.registry.chained_log import LOG_FILE, ChainedLog, LogScan
from brine.registry.history import History
from brine.registry.lineage import OF_NOTHING
from brine.registry.measured import SuiteInfo, measurement_digest, read_result
from brine.registry.model_files import (
    MODEL_FILES,
    RECIPE_FILE,
    RECORD_FILE,
    digests_of,
    link_read_only,
    place_folder,
    take_write_bits,
)
from brine.registry.promotion import Gate, Promotion, commit_promotion, prepare, the_gate

LOCK_FILE = "lock"
LOCK_WAIT_S = 10.0
LEAST_DIGITS = 4
"""Characters of a digest that name a model at least."""
DEFAULT_ROOT = Path("runs") / "registry"
logger = logging.getLogger("brine.registry")


class Registry:
    """A registry on a disk. Opening it repairs what a kill left undone, and says so.

    Raises ValueError where its log is damaged; `brine registry verify` says what else is.
    """

    def __init__(self, root: str | Path = DEFAULT_ROOT):
        self.root = Path(root)
        if self.root.exists() and not (self.root / LOG_FILE).exists() and self._holds_something_else():
            raise ValueError(f"{self.root} holds something else than a registry: give another folder")
        self.log = ChainedLog(self.root)
        self._scan = LogScan([], [])
        self.history = History()
        self._load()
        if self._needs_repair():
            try:
                with self._locked("opening it"):
                    pass
            except OSError as error:
                # another process is at work, or the folder cannot be written
                logger.warning("%s: not repaired now (%s); the log counts", self.root, error)

    # what is there

    @property
    def champion(self) -> str | None:
        """Weights' digest of the champion by the log; None before the first promotion."""
        return self.history.champion

    def folder_of(self, model: str) -> Path:
        """The folder of a model with this whole digest."""
        return self.root / MODELS / model

    def digest_of(self, name: str) -> str:
        """The whole digest of "champion" or of the beginning of one. Raises ValueError for none or several."""
        if name == CHAMPION:
            if self.champion is None:
                raise ValueError(f"{self.root} has no champion yet: `brine registry promote` makes one")
            return self.champion
        found = [model for model in self.history.added if model.startswith(name)]
        return self._only_one(name, found, "model", shown="`brine registry list` shows them")

    def contained_digest(self, name: str) -> str:
        """The whole digest of a model, or of a stage or a source that one was made from, by the beginning of it.

        Raises ValueError for none or several."""
        if name == CHAMPION:
            return self.digest_of(name)
        known = {each for model in self.history.added for each in self.history.contains(model)}
        # older lines of the log have it as the media of a corpus without media
        found = sorted(each for each in known if each.startswith(name) and each != OF_NOTHING)
        return self._only_one(name, found, "model, stage or source", shown="`brine registry show MODEL` lists them")

    def resolve(self, name: str) -> Path:
        """The folder of "champion", or of a model by its digest or the beginning of it."""
        return resolve_registered(self.digest_of(name), root=self.root)

    def card(self, model: str) -> dict[str, Any]:
        """The card of a model. Raises ValueError where it cannot be read."""
        return self.read_record(self.folder_of(model) / CARD_FILE)

    @staticmethod
    def read_record(path: Path) -> dict[str, Any]:
        """The object in a file of the registry. Raises ValueError where it cannot be read."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): put it back from a copy of the registry") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path} is not an object: put it back from a copy of the registry")
        return record

    # what changes it

    def add(self, run: Path, stage: str | None = None) -> str:
        """Add a trained stage of a run (its best finished one if not named); returns the digest of its weights.

        A model that is there already is left as it is. Raises ValueError for a run without a finished model.
        """
        # imported late: a way back needs no torch
        from brine.inference.load import find_model_folder

        run = Path(run)
        if stage is None:
            folder = find_model_folder(run)
            stage = folder.parent.name
            if folder.parent.parent != run:
                raise ValueError(
                    f"{run} is not a run folder: give one such as runs/demo, and --stage for one of its stages"
                )
        elif stage not in STAGE_PREFERENCE and not (run / stage / "model").is_dir():
            raise ValueError(
                f"{run / stage} has no model: its stages with one are named like {', '.join(STAGE_PREFERENCE)}"
            )
        base, lineage = make_card(run, stage)
        model, source = base["weights"], run / stage / "model"
        names = [f"model/{name}" for name in MODEL_FILES]
        wanted = {f"model/{name}": found for name, found in digests_of(source, MODEL_FILES).items()}
        if model in self.history.added:
            logger.info("%s: %s is there already", self.root, model[:12])
            return model
        target = self.folder_of(model)

        def fill(folder: Path) -> None:
            (folder / "model").mkdir()
            (folder / "measured").mkdir()
            for name in MODEL_FILES:
                link_read_only(source / name, folder / "model" / name)

        with self._locked(f"adding {model[:12]}"):
            if model in self.history.added:
                return model
            if not target.exists():
                place_folder(target, fill)
            # one that an interrupted call left is taken over
            if digests_of(target, names) != wanted:
                raise ValueError(f"{target} differs from {source}: move it away, then add the model again")
            _write_read_only(target / RECIPE_FILE, json.dumps(base["recipe"], indent=1, sort_keys=True) + "\n")
            files = wanted | digests_of(target, [RECIPE_FILE])
            entry = {"model": model, "run": base["run"], "stage": stage, "setting": base["setting"]}
            entry |= {"contains": lineage.digests, "missing": len(base["missing"]), "files": files}
            _write_read_only(target / CARD_FILE, card_text(base, self.history))
            self.commit([{"event": "add", **entry, "card": base_digest(base)}])
        return model

    def measure(self, name: str, folder: Path, suite: SuiteInfo) -> str:
        """Keep what `measure_on_suite` left in a folder for a model; returns the digest of the record."""
        model = self.digest_of(name)
        record, parts = read_result(Path(folder), suite, model)
        key = digest([record, {part: {name: measurement_digest(each) for name, each in found.items()}
                               for part, found in parts.items()}])  # fmt: skip
        target = self.folder_of(model) / "measured" / key

        def fill(made: Path) -> None:
            save_measurements(made / MEASUREMENTS_FILE, parts)
            write_json(made / RECORD_FILE, record)
            for name in (MEASUREMENTS_FILE, RECORD_FILE):
                take_write_bits(made / name)

        with self._locked(f"adding measurements of {model[:12]}"):
            if any(each["folder"] == key for each in self.history.measured.get(model, ())):
                return key
            if not target.exists():
                place_folder(target, fill)
            files = digests_of(target, [MEASUREMENTS_FILE, RECORD_FILE])
            entry = {name: record[name] for name in ("suite", "parts", "machine", "precision", "revision")}
            self.commit([{"event": "measure", "model": model, "folder": key, **entry, "files": files}])
        return key

    def promote(
        self, candidates: Sequence[str], suite: SuiteInfo, *, force: str | None = None,
        margins: Mapping[str, float] | None = None, gate: Gate | None = None,
    ) -> Promotion:  # fmt: skip
        """Ask the gate whether the setting of these confirmation seeds may replace the champion, and if it may, make
        the median seed the champion.

        force: a reason to promote against the gate's answer, recorded for ever. margins: of the guards; calibrated by
        the champion's equal trainings if not given. gate: `brine.registry.gate` if not given. Raises ValueError for a
        request that cannot be answered, and where the champion changed meanwhile.
        """
        if force is not None:
            _require_reason(force)
        self._load()
        gate = gate or the_gate()
        models = [self.digest_of(name) for name in candidates]
        asked = prepare(self, models, suite, gate=gate, forced=force is not None)
        answer = asked.ask(gate, margins, forced=force is not None)
        with self._locked("promoting"):
            return commit_promotion(self, asked, answer, force=force)

    def rollback(self, *, reason: str, to: str | None = None) -> str:
        """Make an earlier champion the champion again; returns its digest. One line of the log and one rename.

        to: the latest earlier one in which nothing is revoked, if not given.
        """
        _require_reason(reason)
        with self._locked("rolling back"):
            target = self.history.former_champion() if to is None else self.digest_of(to)
            self.commit([self._rollback_line(target, reason)])
        assert target is not None
        return target

    def revoke(self, name: str, *, reason: str, rollback: bool = False) -> list[str]:
        """Mark what has this digest (a model, a stage or a source) and every model made from it; returns these models.

        rollback: go back to the latest champion that is not among them, where the champion is; else that is refused.
        """
        _require_reason(reason)
        with self._locked("revoking"):
            history = self.history
            found = self.contained_digest(name)
            if found in history.revoked:
                raise ValueError(f"{found[:12]} is revoked already ({history.revoked[found]})")
            affected, lines = history.downstream(found), []
            if history.champion in affected:
                target = history.former_champion(without={found})
                if not rollback:
                    way = (
                        "give --rollback"
                        if target
                        else "no earlier champion is free of it: promote another model first"
                    )
                    raise ValueError(f"the champion {history.champion[:12]} is, or was made from, {found[:12]}: {way}")
                lines.append(self._rollback_line(target, f"revoked {found[:12]}: {reason}"))
            lines.append({"event": "revoke", "digest": found, "models": affected, "reason": reason})
            self.commit(lines)
        return affected

    # how it is written

    def _rollback_line(self, target: str | None, reason: str) -> dict[str, Any]:
        history = self.history
        if history.champion is None or target is None:
            raise ValueError(f"{self.root} has no earlier champion that may be used: promote another model")
        if target == history.champion:
            raise ValueError(f"{target[:12]} is the champion already")
        if target not in history.was_champion:
            raise ValueError(f"{target[:12]} was never the champion: promote it")
        if why := history.why_revoked(target):
            raise ValueError(f"{target[:12]} may not be used: {why[0]}")
        if damage := [name for name in MODEL_FILES if not (self.folder_of(target) / "model" / name).is_file()]:
            raise ValueError(f"{self.folder_of(target) / 'model' / damage[0]} is missing: put it back first")
        return {"event": "rollback", "model": target, "before": history.champion, "reason": reason}

    def _only_one(self, name: str, found: Sequence[str], what: str, *, shown: str) -> str:
        if found and len(name) < LEAST_DIGITS:
            raise ValueError(f"{name!r} is too short: give at least {LEAST_DIGITS} characters of the digest; {shown}")
        if len(found) > 1:
            raise ValueError(f"{name!r} is the beginning of {len(found)} digests in {self.root}: give more of it")
        if not found:
            raise ValueError(f"{name!r} is no {what} of {self.root}: {shown}")
        return found[0]

    @contextlib.contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Hold the registry for writing, repaired and read anew. Raises TimeoutError that names who holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with file_lock(
            self.root / LOCK_FILE, what=f"its work in the registry {self.root}, before {what}", timeout_s=LOCK_WAIT_S
        ):
            self._load()
            self._repair()
            yield

    def _load(self) -> None:
        self._scan = self.log.scan()
        if self._scan.damage:
            raise ValueError(
                f"{self._scan.damage[0]}: put the file back from a copy; `brine registry verify` lists all"
            )
        self.history = History.of(self._scan.entries)

    def _needs_repair(self) -> bool:
        behind = self._scan.num_applied < len(self._scan.entries)
        return bool(self._scan.torn) or behind or self._pointer() != self.champion

    def _repair(self) -> None:
        """Finish what a kill left undone; the caller holds the lock."""
        for leftover in self.root.glob(".*.tmp"):
            leftover.unlink()
        if self._scan.torn:
            logger.warning("%s", self.log.set_torn_line_apart(self._scan.torn))
        behind = self._scan.entries[self._scan.num_applied :]
        pointer, champion = self._pointer(), self.champion
        if behind:
            logger.warning(
                "%s: not applied before a kill, applied now: %s of the log", self.root, counted(len(behind), "line")
            )
        elif pointer != champion:
            logger.warning(
                "%s: the pointer led to %s, the champion by the log is %s; repaired",
                self.root, str(pointer)[:12], str(champion)[:12],
            )  # fmt: skip
        if behind or pointer != champion:
            self._apply(behind)
            self.log.write_head()
        if self._scan.torn or behind:
            self._load()

    def commit(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write lines to the log, then what follows from them; the caller holds the lock."""
        who = {"unix_time": round(time.time(), 3), "by": f"process {os.getpid()} on {socket.gethostname()}"}
        made = self.log.append([{**entry, **who} for entry in entries], self._scan)
        self._load()
        self._apply(made)
        self.log.write_head()
        self._load()

    def _apply(self, entries: Sequence[Mapping[str, Any]]) -> None:
        touched: dict[str, None] = {}
        for entry in entries:
            if entry["event"] in ("add", "measure", "force"):
                touched[entry["model"]] = None
            touched |= dict.fromkeys(entry.get("models", ()) if entry["event"] == "revoke" else ())
        for model in touched:
            with contextlib.suppress(ValueError, KeyError):
                card = self.card(model)
                # a damaged one stays as it is, for `verify`
                if base_digest(card) == self.history.added[model]["card"]:
                    _write_read_only(self.folder_of(model) / CARD_FILE, card_text(card_base(card), self.history))
        if self._pointer() != self.champion and self.champion is not None:
            temporary = self.root / f".{CHAMPION}.{os.getpid()}.tmp"
            temporary.unlink(missing_ok=True)
            os.symlink(os.path.join(MODELS, self.champion), temporary)
            os.rename(temporary, self.root / CHAMPION)
            sync_folder(self.root)

    def _pointer(self) -> str | None:
        """The model that the pointer leads to."""
        try:
            return Path(os.readlink(self.root / CHAMPION)).name
        except OSError:
            return None

    def _holds_something_else(self) -> bool:
        known = {LOCK_FILE, MODELS}
        return not self.root.is_dir() or any(path.name not in known for path in self.root.iterdir())


def _write_read_only(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text)
        take_write_bits(path)


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise ValueError("give a reason: it stays in the log")
