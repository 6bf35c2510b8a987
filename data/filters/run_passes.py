"""The filter passes of a run over its encoded corpus, which it may share with runs that filter otherwise.

RUN/encoded/store          the corpus, perhaps shared
RUN/filtered/filter_log    the passes of this run over it
RUN/recipe.json            what else decides what it trains on
"""

import os
from pathlib import Path
from typing import Any

from brine.common.content_store import DONE_FILE, STAGE_FILE, lock_path
from brine.common.files import read_json
from brine.data.corpus.store import CorpusError, EncodedCorpus
from brine.data.corpus.swap import FILTER_LOG
from brine.data.document import MODALITIES
from brine.data.filters.filter_log import FilterLog


def run_of(folder: Path) -> Path | None:
    """The run folder of RUN/encoded/store, as the path is written; None for any other corpus."""
    folder = Path(os.path.abspath(folder))
    is_stage = (folder.parent.name, folder.name) == ("encoded", "store") and (folder.parent / STAGE_FILE).is_file()
    return folder.parent.parent if is_stage else None


def open_passes(corpus: EncodedCorpus, folder: Path) -> FilterLog:
    """The passes over a corpus: the run's, where `folder`, as it was given, is that of a run that has its own."""
    run = run_of(folder)
    own = None if run is None else run / "filtered" / FILTER_LOG
    return FilterLog.open(corpus, own if own is not None and own.is_dir() else None)


def check_may_filter(folder: Path) -> None:
    """Raise CorpusError for a corpus that runs share, which passes must not be written into."""
    stage, run = Path(folder).resolve().parent, run_of(folder)
    if run is not None and (run / "filtered").is_dir():
        raise CorpusError(
            f"{folder} has the filter passes of its run: change them by --corpus.filters of the run, or filter a copy "
            "(`cp -rL`)"
        )
    if (stage / STAGE_FILE).is_file() and lock_path(stage).exists():
        raise CorpusError(
            f"{folder} belongs to a stage that runs share: give the run --corpus.filters, or filter a copy (`cp -rL`)"
        )


def run_notes(folder: Path, *, seq_len: int, media_budget: dict[str, int]) -> list[str]:
    """What a plan of RUN/encoded/store does not take from the run, one line each; [] for any other corpus."""
    run = run_of(folder)
    recipe = None if run is None else read_json(run / "recipe.json")
    if run is None or not isinstance(recipe, dict):
        return []
    corpus, packing = _fields(recipe, "corpus"), _fields(recipe, "packing")
    notes = []
    filters = [str(each) for each in corpus.get("filters") or ()]
    if filters and not (run / "filtered" / DONE_FILE).is_file():
        notes.append(f"not applied: the run's filters ({', '.join(filters)}), which have not been through yet")
    more = ["packing.mixture"] if packing.get("mixture") else []
    if any(_fields({"source": each}, "source").get("weight", 1) != 1 for each in corpus.get("sources") or ()):
        more.append("the weights of corpus.sources")
    if _fields(recipe, "salt").get("selection"):
        more.append("salt.selection, for the arm salt")
    if more:
        notes.append(f"not applied: {' and '.join(more)} of the run, by which documents are drawn more or less often")
    theirs = {name: packing.get(f"{name}_budget") for name in MODALITIES}
    asked = {"seq_len": seq_len} | {f"{name}_budget": media_budget.get(name) for name in theirs}
    sizes = {"seq_len": packing.get("seq_len")} | {f"{name}_budget": value for name, value in theirs.items()}
    if any(value is not None and value != asked[name] for name, value in sizes.items()):
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sizes.items() if value is not None)
        notes.append(f"the run itself packs with {options}")
    return notes


def _fields(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}
