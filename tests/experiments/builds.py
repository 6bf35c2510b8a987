"""How often each stage of an experiment was built, from what its trials printed and what its store holds."""

import re
from collections import Counter

from brine.common.content_store import DONE_FILE
from brine.pipeline.run import STORE_FOLDER

_BUILT = re.compile(r"^(\w+): done in [\d.]+ s$", re.MULTILINE)
"""A stage's line when its function was called and came to its end; one that was linked or skipped says so instead."""


def builds_by_stage(folder):
    """{stage: how often it was built to its end} over all trials of an experiment."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((folder / "logs").glob("*.log")))
    return dict(Counter(_BUILT.findall(text)))


def stored_stages(folder):
    """{stage: finished folders in the store}; every link of a trial leads to one of them."""
    store = folder.parent / STORE_FOLDER
    found = Counter(mark.parent.parent.name for mark in store.glob(f"*/*/{DONE_FILE}"))
    stored = {mark.parent.resolve() for mark in store.glob(f"*/*/{DONE_FILE}")}
    linked = {link.resolve() for link in folder.glob("trials/*/*") if link.is_symlink()}
    assert linked == stored, "a stage was stored that no trial uses, or a trial uses one that is not stored"
    return dict(found)
