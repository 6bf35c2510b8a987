"""What a recipe takes from outside, as a plan keeps it: absolute paths, and weights and tokenizers as they are today.

Trials may start in other folders, and "champion" may mean another model tomorrow: a plan holds the folder that it means
now, whose name in the registry is the digest of its weights. Weights are known by `init_digest` besides, and a trial
refuses others; a tokenizer is known by its path alone, like documents.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from brine.common.files import to_plain
from brine.data.formats.corpus_source import CorpusSource
from brine.data.formats.open import OBJECT_STORES
from brine.experiments.planning.from_plain import from_plain
from brine.pipeline.inputs.pinned import pin, registered_model, resolve_path
from brine.pipeline.recipe import Recipe

NAMED_FIELDS = ("corpus.tokenizer", "small.init_from", "large.init_from")
"""Fields that are a path, or a name or digest of a registry."""
PATH_FIELDS = ("corpus.source", "corpus.manifest")
SOURCES_FIELD = "corpus.sources"


def with_frozen_inputs(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, names of a registry replaced by the folders that they mean, the weights' digests,
    and the size of the vocabulary of a given tokenizer. Raises ValueError naming the field of weights or a tokenizer
    that cannot be found or do not fit."""
    frozen = {name: frozen_value(name, getattr(recipe.corpus, name.partition(".")[2]))
              for name in (*PATH_FIELDS, SOURCES_FIELD, NAMED_FIELDS[0])}  # fmt: skip
    corpus = dataclasses.replace(recipe.corpus, **{name.partition(".")[2]: value for name, value in frozen.items()})
    models = {}
    for name in NAMED_FIELDS[1:]:
        group = name.partition(".")[0]
        train = getattr(recipe, group)
        models[group] = dataclasses.replace(train, init_from=frozen_value(name, train.init_from))
    return pin(dataclasses.replace(recipe, corpus=corpus, **models))[0]


def frozen_value(name: str, value: Any) -> Any:
    """A value of a recipe's field, given by dotted name, with its paths made absolute; of other fields the value as it
    is. Raises ValueError naming the field."""
    if value is None:
        return None
    if name in PATH_FIELDS:
        return whole_path(Path(value))
    if name == SOURCES_FIELD:
        return tuple(
            source if source.path is None else dataclasses.replace(source, path=whole_path(source.path))
            for source in parse_sources(value)
        )
    if name in NAMED_FIELDS:
        try:
            return str(resolve_path(str(value), registered_model).absolute())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return value


def frozen_entry(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An axis of a search as its plan keeps it: what is asked for later means the same as now."""
    if "values" not in entry:
        return entry
    return entry | {"values": [to_plain(frozen_value(name, value)) for value in entry["values"]]}


def parse_sources(value: Any) -> tuple[CorpusSource, ...]:
    """`corpus.sources` from short forms ("wiki=texts,weight=2"), plain JSON or sources. Raises ValueError."""
    parsed = (CorpusSource.parse(each) if isinstance(each, str) else each for each in value)
    return tuple(from_plain(CorpusSource, each, where=SOURCES_FIELD) for each in parsed)


def whole_path(path: Path) -> Path:
    """An absolute path; an address in an object store is one."""
    return path if str(path).startswith(OBJECT_STORES) else path.expanduser().absolute()
