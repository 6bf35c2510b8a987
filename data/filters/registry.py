"""Filters by name with their default settings, for the command line and recipes.

    run_filters(corpus, ("exact_duplicates", "near_duplicates"))

Other settings and thresholds on scores are a line of Python each: `filter_log.add(filter_)`. Filters of other packages
are entry points of the group `brine.filters`: a class like those here, under its `name`.
"""

from collections.abc import Iterable
from pathlib import Path

from brine.common.plugins import load_plugin, plugins
from brine.data.corpus.store import EncodedCorpus
from brine.data.filters.filter_log import Filter, FilterError, FilterLog
from brine.data.filters.names import FILTERS


def make_filter(name: str) -> Filter:
    """A new filter by its name. Raises FilterError for an unknown one."""
    check_filter_names([name])
    if name not in FILTERS:
        filter_ = load_plugin(plugins("brine.filters")[name])()
        if filter_.name != name:
            raise FilterError(f"the filter {name!r} of brine.filters has the name {filter_.name!r}: make them equal")
        return filter_
    from brine.data.filters.duplicates import ExactDuplicates, NearDuplicates
    from brine.data.filters.media import MediaQuality
    from brine.data.filters.quality import TextQuality

    return {filter_.name: filter_ for filter_ in (ExactDuplicates, NearDuplicates, TextQuality, MediaQuality)}[name]()


def check_filter_names(names: Iterable[str]) -> None:
    """Raises FilterError for a name that no filter has."""
    for name in names:
        if name not in FILTERS and name not in (others := plugins("brine.filters")):
            raise FilterError(f"unknown filter {name!r}: there are {', '.join([*FILTERS, *others])}")


def run_filters(
    corpus: EncodedCorpus, names: Iterable[str], *, folder: Path | None = None, num_workers: int = 1,
    progress: bool = False,
) -> FilterLog:  # fmt: skip
    """Add a pass by each name; those that a stopped call has added already are kept. folder: of the passes, if not in
    the corpus. Raises FilterError."""
    names = list(names)
    check_filter_names(names)
    filter_log = FilterLog.open(corpus, folder)
    done = [record["name"] for record in filter_log.records]
    for name in names:
        if name not in done:
            filter_log.add(make_filter(name), num_workers=num_workers, progress=progress)
    return filter_log
