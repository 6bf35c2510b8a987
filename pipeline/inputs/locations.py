"""Where the documents of a run were when it last ran.

A corpus that runs share records where the run that encoded it found the documents; a run on a copy elsewhere knows
better where its own are, by its `recipe.json`.
"""

from pathlib import Path
from typing import Any

from brine.common.files import read_json
from brine.common.remote.object_store import url_of


def location_of(path: str | Path) -> str:
    """A path or URL in the form in which locations are compared."""
    return url_of(path) or str(Path(path).expanduser().resolve())


def recorded_corpus(run: Path) -> dict[str, Any]:
    """The field `corpus` of the recipe that a run folder records; {} where it records none."""
    recipe = read_json(run / "recipe.json")
    corpus = recipe.get("corpus") if isinstance(recipe, dict) else None
    return corpus if isinstance(corpus, dict) else {}


def locations_before(recorded: Any, stored: Any) -> list[str]:
    """Where documents were, the most certain place first. recorded: by the run; stored: by its corpus, which counts
    where the run records nothing, or a path relative to a folder that is not known any more."""
    texts = [each for each in (recorded, stored) if isinstance(each, str) and each]
    if texts and texts[0] is recorded and (url_of(recorded) or Path(recorded).is_absolute()):
        texts = texts[:1]
    return [location_of(each) for each in texts]
