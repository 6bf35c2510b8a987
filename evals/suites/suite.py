"""A suite: a folder made once by `brine suite make`, never edited, known by a digest over everything in it.

    suite.json                     name, version, measures, guards, counts, origin, SHA-256 of cases.jsonl, digest
    cases.jsonl                    a case on each line, by ascending id (`case.py`)
    media/<SHA-256>.<extension>    each file once

Cases name media by hash and suite.json names cases.jsonl by hash, so its digest covers every byte. Opening reads
suite.json alone; `cases` checks cases.jsonl, `check_media` and `verify` the media. Other files, and links, are refused.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from brine.common.files import file_digest, parse_object, to_plain
from brine.evals.measurement import MeasureSpec
from brine.evals.suites.case import PARTS, SuiteCase, media_sha256, parse_case

FORMAT = 1
"""Raised where files, ids, parts or ranks change."""
SUITE_FILE, CASES_FILE, MEDIA_FOLDER = "suite.json", "cases.jsonl", "media"
SUITES_ROOT = Path("runs") / "suites"
"""Where a suite that is given by name is looked for."""
MAX_SUITE_MIB, MAX_CASES_MIB = 64, 2048
MAX_VERSION = 999_999
_TYPES = {
    "name": str, "version": int, "digest": str, "primary": str, "measures": list, "guards": list, "cells": list,
    "num_cases": dict, "settings": dict, "files": dict, "made_from": list, "skipped": dict,
}  # fmt: skip
_BOUNDS = {"max_media_mib": 4096, "max_case_tokens": 2**24}
"""Settings that measuring keeps to, and the most that they may be."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSIONED = re.compile(rf"(?P<name>{NAME.pattern})@(?P<version>[1-9][0-9]{{0,5}})")


@dataclass(frozen=True)
class Suite:
    """An opened suite. primary: name of the measure that models are ranked by; guards: measures that must not become
    worse; info: the whole of suite.json."""

    folder: Path
    name: str
    version: int
    digest: str
    primary: str
    measures: tuple[MeasureSpec, ...]
    guards: tuple[str, ...]
    info: Mapping[str, Any]
    parts: tuple[str, ...] = PARTS

    @classmethod
    def open(cls, path_or_name: str | Path, *, root: Path = SUITES_ROOT) -> "Suite":
        """A suite by the path of its folder, by NAME@VERSION, or by NAME, its newest version, in `root`.

        Raises ValueError where there is none, or suite.json was changed."""
        folder = find_suite(path_or_name, root=root)
        file = folder / SUITE_FILE
        info = _read_info(file)
        try:
            measures = tuple(_spec(each) for each in info["measures"])
            found = cls(
                folder, info["name"], info["version"], info["digest"], info["primary"], measures,
                tuple(info["guards"]), info,
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a suite of this version ({error!r}): make the suite again") from None
        if info["digest"] != suite_digest(info):
            raise ValueError(f"{file} was changed: its digest is not {info['digest']}; copy the suite again")
        if unknown := [name for name in (found.primary, *found.guards) if name not in {m.name for m in measures}]:
            raise ValueError(f"{file} declares {unknown[0]!r}, which is none of its measures: make the suite again")
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the suite was made, and bounds that measuring keeps to."""
        return self.info["settings"]

    @property
    def identity(self) -> dict[str, Any]:
        """{name, version, digest}, for records."""
        return {"name": self.name, "version": self.version, "digest": self.digest}

    @cached_property
    def cases(self) -> tuple[SuiteCase, ...]:
        """All cases, by ascending id. Raises ValueError where cases.jsonl is missing or was changed."""
        path = self.folder / CASES_FILE
        if problem := _file_problem(path, MAX_CASES_MIB):
            raise ValueError(f"{path} {problem}: copy the suite again")
        if file_digest(path) != self.info["files"][CASES_FILE]:
            raise ValueError(f"{path} was changed: it is not the file that the suite was made with; copy it again")
        return tuple(read_cases(path))

    def cases_in(self, part: str) -> list[SuiteCase]:
        """The cases of one part. Raises ValueError for an unknown part."""
        if part not in PARTS:
            raise ValueError(f"part {part!r} is none of {', '.join(PARTS)}")
        return [case for case in self.cases if case.part == part]

    def check_media(self, cases: Iterable[SuiteCase]) -> None:
        """Raise ValueError, naming the file, where media of these cases are missing or were changed."""
        if problems := self._media_problems({path for case in cases for path in paths_in(case)}):
            raise ValueError(f"{problems[0]}: copy the suite again")

    def verify(self) -> list[str]:
        """What is wrong, a line for each file; empty for a suite that is as it was made. Reads every byte."""
        problems = []
        try:
            expected = {path for case in self.cases for path in paths_in(case)}
        except ValueError as error:
            return [str(error)]
        problems += self._media_problems(expected)
        known = {SUITE_FILE, CASES_FILE, *expected}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name not in known and name != MEDIA_FOLDER:
                problems.append(f"{path} does not belong to the suite")
        return problems

    def _media_problems(self, paths: Iterable[str]) -> list[str]:
        problems = []
        for name in sorted(paths):
            path = self.folder / name
            if problem := _file_problem(path, self.settings["max_media_mib"]):
                problems.append(f"{path} {problem}")
            elif file_digest(path) != media_sha256(name):
                problems.append(f"{path} was changed: its SHA-256 is not its name")
        return problems


def paths_in(case: SuiteCase) -> list[str]:
    """Paths of a case's media, relative to the suite."""
    return [part.path for part in case.parts if hasattr(part, "path")]


def suite_digest(info: Mapping[str, Any]) -> str:
    """SHA-256 of suite.json without its digest, in canonical form, 64 hexadecimal digits."""
    rest = {name: value for name, value in info.items() if name != "digest"}
    return hashlib.sha256(json.dumps(to_plain(rest), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_cases(path: Path) -> Iterable[SuiteCase]:
    """The cases of a file. Raises ValueError naming file and line."""
    before = ""
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                if (line := parse_object(text)) is None:
                    raise ValueError("it is not a JSON object")
                case = parse_case(line)
                if case.id <= before:
                    raise ValueError("ids must ascend")
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not a case of a suite: {error}") from None
            before = case.id
            yield case


def find_suite(path_or_name: str | Path, *, root: Path = SUITES_ROOT) -> Path:
    """The folder of a suite, by path, NAME@VERSION or NAME. Raises ValueError where there is none."""
    folder = Path(path_or_name).expanduser()
    if (folder / SUITE_FILE).is_file():
        return folder
    name = str(path_or_name)
    if _VERSIONED.fullmatch(name) and (root / name / SUITE_FILE).is_file():
        return root / name
    if versions := versions_of(name, root=root):
        return root / f"{name}@{versions[-1]}"
    names = sorted(path.parent.name for path in root.glob(f"*/{SUITE_FILE}"))
    known = [each for each in names if _VERSIONED.fullmatch(each)]
    there = f"there are {', '.join(known)}" if known else f"make one with `brine suite make {_shown(name)} SOURCE`"
    raise ValueError(f"{path_or_name} is no suite, neither a folder with {SUITE_FILE} nor a name in {root}: {there}")


def versions_of(name: str, *, root: Path = SUITES_ROOT) -> list[int]:
    """Versions of a suite that are in `root`, ascending."""
    found = [_VERSIONED.fullmatch(path.parent.name) for path in root.glob(f"*/{SUITE_FILE}")]
    return sorted(int(match["version"]) for match in found if match and match["name"] == name)


def split_name(name: str) -> tuple[str, int | None]:
    """(name, version) of NAME or NAME@VERSION. Raises ValueError for any other text."""
    if match := _VERSIONED.fullmatch(name):
        return match["name"], int(match["version"])
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a suite: give letters, digits, dots, dashes and underscores, and a version as in "
            "synth@2 or none"
        )
    return name, None


def _shown(name: str) -> str:
    return name if NAME.fullmatch(name) else "NAME"


def _spec(value: Mapping[str, Any]) -> MeasureSpec:
    return MeasureSpec(**{field.name: value[field.name] for field in fields(MeasureSpec)})


def _read_info(path: Path) -> dict[str, Any]:
    if problem := _file_problem(path, MAX_SUITE_MIB):
        raise ValueError(f"{path} {problem}: copy the suite again")
    try:
        info = parse_object(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        info = None
    if info is None or "format" not in info:
        raise ValueError(f"{path} was changed or cut off: it is not the description of a suite; copy the suite again")
    if info["format"] != FORMAT:
        raise ValueError(f"{path} has format {info['format']!r}, not {FORMAT}: make the suite again")
    for name, type_ in _TYPES.items():
        if type(value := info.get(name)) is not type_:
            raise ValueError(f"{path}: {name!r} must be of type {type_.__name__}, not {type(value).__name__}")
    if not NAME.fullmatch(info["name"]) or not 1 <= info["version"] <= MAX_VERSION:
        raise ValueError(f"{path}: {info['name'][:80]!r} of version {info['version']} cannot name a suite")
    for name, most in _BOUNDS.items():
        if not 0 < _number(info["settings"].get(name)) <= most:
            raise ValueError(f"{path}: the setting {name} must be a number above 0, at most {most:,}")
    return info


def _number(value: Any) -> float:
    return value if type(value) in (int, float) else 0


def _file_problem(path: Path, max_mib: float) -> str:
    """Why a file cannot be a suite's; "" for a regular file of at most `max_mib`."""
    if path.is_symlink():
        return "is a link, which no suite has"
    if not path.is_file():
        return "is missing"
    if path.stat().st_size > max_mib * 2**20:
        return f"has over {max_mib:g} MiB"
    return ""
