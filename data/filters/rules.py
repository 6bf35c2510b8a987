"""The rules that a command line and a recipe can name, with their settings as they come.

    apply(corpus, ("exact_duplicates", "near_duplicates"))     Rounds, with these two on top of what lies there

Rules with other settings, thresholds on scores and rules of your own are a line of Python each: `rounds.add(rule)`.
"""

from collections.abc import Iterable

from data.filters import RULES
from data.filters.rounds import RoundError, Rounds, Rule
from data.store import EncodedCorpus


def rule_of(name: str) -> Rule:
    """A new rule by its name. Raises RoundError for an unknown one."""
    check_names([name])
    from data.filters.duplicates import ExactDuplicates, NearDuplicates
    from data.filters.media import MediaQuality
    from data.filters.quality import TextQuality

    return {rule.name: rule for rule in (ExactDuplicates, NearDuplicates, TextQuality, MediaQuality)}[name]()


def check_names(names: Iterable[str]) -> None:
    """Raises RoundError for a name that no rule has."""
    for name in names:
        if name not in RULES:
            raise RoundError(f"no rule {name!r}: there are {', '.join(RULES)}")


def apply(corpus: EncodedCorpus, names: Iterable[str], *, num_workers: int = 1, progress: bool = False) -> Rounds:
    """Add a round by each name; those that a stopped call has added already are kept. Raises RoundError."""
    names = list(names)
    check_names(names)
    rounds = Rounds.open(corpus)
    done = [record["name"] for record in rounds.records]
    for name in names:
        if name not in done:
            rounds.add(rule_of(name), num_workers=num_workers, progress=progress)
    return rounds
