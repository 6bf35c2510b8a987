"""What a round is made from, found when it begins and pinned, so that documents that come meanwhile wait for the next.

    runs/<line>/round_01/inputs.json    stored folders of words, unlabelled documents and feedback; the digests of the
                                        suite and of self-play's source tree; what could not be read

The words of people, and so the tokenizer and the held-out documents, and the suite are those of the first round for the
life of a line; unlabelled documents and feedback are read anew in each. Feedback that was kept and is no longer there
is withdrawn: neither arm of the round trains on it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brine.common.files import read_json, write_json
from brine.common.formatting import counted
from brine.evals.suites.suite import Suite
from brine.experiments.rounds.steps import RoundSteps

INPUTS_FILE = "inputs.json"
logger = logging.getLogger("brine.rounds")


@dataclass(frozen=True)
class RoundInputs:
    """Folders with native manifests, all in the store; the suite; and digests of what is held out."""

    words: Path
    unlabelled: Path | None
    feedback: Path | None
    """None also where no document of it may be trained on."""
    kept: Path | None
    """Of the feedback that earlier rounds kept, what is still there."""
    suite: Suite
    held_out: frozenset[str]
    play_source: str | None
    """Digest of self-play's source tree."""
    unreadable: dict[str, dict[str, Any]]
    """{"feedback": {"documents", "first"}}: how many documents could not be read, and the first with its reason."""


def pin_inputs(
    steps: RoundSteps, line_folder: Path, number: int, *, rejected: Iterable[str], kept: str | None = None
) -> RoundInputs:  # fmt: skip
    """The inputs of a round: read now if it has not begun, else those that it began with.

    rejected: contents of feedback that an earlier round left out. kept: the stored folder of feedback that the last
    round kept, relative to the store. Raises ValueError where the line's words or suite are others than in its first
    round, or a pinned folder is gone.
    """
    path = line_folder / f"round_{number:02d}" / INPUTS_FILE
    pinned = read_json(path)
    if not isinstance(pinned, dict):
        pinned = _find(steps, line_folder, rejected, kept)
        first = read_json(line_folder / "round_01" / INPUTS_FILE) or pinned
        if pinned["words"] != first["words"]:
            raise ValueError(
                f"{steps.line.words} is not what it was in the first round of this line, which keeps its tokenizer and "
                "held-out documents: put it back and give new documents as feedback, or begin a line of another name"
            )
        if pinned["suite"]["digest"] != first["suite"]["digest"]:
            raise ValueError(
                f"the suite {steps.line.suite} is not the one of the first round of this line: name its version, as in "
                "reading@1, or begin a line of another name"
            )
        write_json(path, pinned)
    folders = {
        name: None if found is None else steps.store.root / found
        for name, found in (pinned | {"kept": pinned.get("kept", kept)}).items()
        if name in ("words", "unlabelled", "feedback", "kept")
    }
    for folder in folders.values():
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is gone, which {path} names: put it back, or begin a line of another name")
    words = folders["words"]
    assert words is not None
    suite = Suite.open(pinned["suite"]["folder"])
    if suite.digest != pinned["suite"]["digest"]:
        raise ValueError(f"{suite.folder} is another suite than {path} names: put it back")
    return RoundInputs(
        words, folders["unlabelled"], folders["feedback"], folders["kept"], suite, steps.held_out(words, suite),
        pinned.get("self_play_source"), pinned.get("unreadable", {}),
    )  # fmt: skip


def _find(steps: RoundSteps, line_folder: Path, rejected: Iterable[str], kept: str | None) -> dict[str, Any]:
    """What is there now, folders relative to the store."""
    line, unreadable = steps.line, {}

    def usable(name: str, folder: Path) -> Path | None:
        """The folder, None where nothing in it can be used; what could not be read is told."""
        result = steps.store.result(folder)
        if result.get("unreadable"):
            unreadable[name] = {"documents": result["unreadable"], "first": result["first_unreadable"]}
            said = f"{counted(result['unreadable'], 'document')} of {name}"
            logger.warning("%s cannot be read and are left out: %s", said, result["first_unreadable"])
        return folder if result["documents"] else None

    words = steps.adopt_documents(line.words, stage="words", held_out=True)
    usable("words", words)
    suite = steps.suite(words, line_folder / "suites")
    unlabelled, feedback = None, None
    if line.unlabelled is not None:
        unlabelled = usable("unlabelled", steps.adopt_documents(line.unlabelled, stage="unlabelled", held_out=False))
    if line.feedback is not None:
        held_out = steps.held_out(words, suite)
        feedback = usable("feedback", steps.adopt_feedback(line.feedback, held_out=held_out, rejected=rejected))
    still = steps.without_withdrawn(None if kept is None else steps.store.root / kept, feedback)
    found = {"words": words, "unlabelled": unlabelled, "feedback": feedback, "kept": still}
    relative = {name: None if each is None else str(each.relative_to(steps.store.root)) for name, each in found.items()}
    return relative | {
        "suite": {"folder": str(suite.folder.absolute()), "digest": suite.digest},
        "self_play_source": steps.play_source_digest(), "unreadable": unreadable,
    }  # fmt: skip
