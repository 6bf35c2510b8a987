"""What a recipe takes over from an earlier run: its tokenizer (`corpus.tokenizer`), its weights (`init_from`).

`pin` finds and checks both before anything is built, and puts into the recipe what follows from them: the size of the
vocabulary, and the weights' digest. Names that are no path, "champion" above all, are looked up by a callable: that of
`brine.inference.registered`, unless another is given. Stages are known by digests, never by paths or names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from brine.data.corpus.store import is_corpus
from brine.data.tokenizer import Tokenizer
from brine.inference.load import TOKENIZER, find_model_folder
from brine.inference.registered import CHAMPION, registry_root, resolve_registered
from brine.pipeline.recipe import MODEL_STAGES, Recipe
from brine.training.checkpoint.init_from import (
    InitialWeights,
    check_fits,
    differing_settings,
    find_initial_weights,
)
from brine.training.parallel.distributed import World

logger = logging.getLogger("brine.pipeline")

ResolveModel = Callable[[str], Path]
"""Folder of the model that a name or digest of a registry stands for; raises ValueError for an unknown one."""
_DIGEST = re.compile(r"[0-9a-f]{6,64}")


def registered_model(name: str) -> Path:
    """The `ResolveModel` of the registry that `BRINE_REGISTRY` names, or of runs/registry."""
    folder = resolve_registered(name)
    if not folder.exists():
        raise ValueError(
            f"{name!r} is no path and no model of the registry {registry_root()}: give the path of a run or model, or "
            "a name that `brine registry list` shows"
        )
    return folder


@dataclass(frozen=True)
class Pinned:
    """What a run takes over. tokenizer: of all documents; None: trained on them. initial: by "small" and "large"."""

    tokenizer: Tokenizer | None = None
    initial: Mapping[str, InitialWeights] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    """`init_from` by "small" and "large", as it was given."""

    @property
    def tokenizer_digest(self) -> str | None:
        return None if self.tokenizer is None else tokenizer_digest(self.tokenizer)

    def initial_of(self, stage: str) -> InitialWeights | None:
        """The weights that a training stage begins with; None for random ones."""
        return self.initial.get("small" if stage == MODEL_STAGES[0] else "large")

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError where the corpus has another tokenizer than the one of the given weights."""
        for name, initial in self.initial.items():
            if initial.tokenizer is None or tokenizer_digest(Tokenizer.load(initial.tokenizer)) != tokenizer_digest(
                tokenizer
            ):
                raise ValueError(_other_tokenizer(name, self.given[name], initial))


def pin(recipe: Recipe, *, resolve_model: ResolveModel = registered_model, world: World | None = None) -> tuple:
    """(recipe with what follows from the tokenizer and weights that it names, the `Pinned`). All ranks call it.

    Raises ValueError, on every rank, for what cannot be found, or does not fit.
    """
    world = world or World()
    if recipe.corpus.tokenizer is None and recipe.small.init_from is recipe.large.init_from is None:
        return recipe, Pinned()
    found: tuple | None = None
    trouble = None
    if world.is_main:
        try:
            found = _pin(recipe, resolve_model)
        except ValueError as error:
            trouble = str(error)
    if trouble := world.broadcast(trouble):
        raise ValueError(trouble)
    return world.broadcast(found)


def _pin(recipe: Recipe, resolve_model: ResolveModel) -> tuple[Recipe, Pinned]:
    tokenizer = None
    if recipe.corpus.tokenizer is not None:
        try:
            tokenizer = load_tokenizer(recipe.corpus.tokenizer, resolve_model)
        except ValueError as error:
            raise ValueError(f"corpus.tokenizer: {error}") from None
        corpus = dataclasses.replace(recipe.corpus, vocab_size=tokenizer.vocab_size)
        recipe = dataclasses.replace(recipe, corpus=corpus)
    # a built corpus has its own
    fixed = Tokenizer.load(recipe.corpus.manifest) if _is_built(recipe) else tokenizer
    if tokenizer is not None and tokenizer_digest(fixed) != tokenizer_digest(tokenizer):
        raise ValueError(
            f"corpus.tokenizer: the corpus {recipe.corpus.manifest} was built with another one: leave it out, or build "
            "the corpus again with this one"
        )
    initial, given = {}, {}
    for name in ("small", "large"):
        train = getattr(recipe, name)
        if train.init_from is None:
            continue
        try:
            found = find_initial_weights(
                resolve_path(train.init_from, resolve_model), init_optimizer=train.init_optimizer
            )
        except ValueError as error:
            raise ValueError(f"{name}.init_from: {error}") from None
        if train.init_digest not in (None, found.digest):
            raise ValueError(
                f"{name}.init_from = {train.init_from}: its weights are not those of before (init_digest "
                f"{found.digest[:16]}, not {train.init_digest[:16]}): put the former ones back, or name others"
            )
        initial[name], given[name] = found, train.init_from
        if fixed is not None:
            Pinned(fixed, {name: found}, given).check_tokenizer(fixed)
        else:
            logger.warning(
                "%s.init_from: a tokenizer is trained on the documents, and training stops where it differs from that "
                "of %s: --corpus.tokenizer %s takes that one", name, train.init_from, train.init_from,
            )  # fmt: skip
        vocab = recipe.corpus.vocab_size if fixed is None else fixed.vocab_size
        if fixed is None and found.config is not None:
            vocab = found.config.vocab_size
        resolved = dataclasses.replace(train, model=recipe.model(train.model, vocab))
        check_fits(found, resolved, name=name, given=train.init_from)
        if changes := differing_settings(found, resolved.model):
            logger.warning("%s.init_from: the model continues with other settings (%s)", name, "; ".join(changes))
        recipe = dataclasses.replace(recipe, **{name: dataclasses.replace(train, init_digest=found.digest)})
    return recipe, Pinned(tokenizer, initial, given)


def resolve_path(named: str, resolve_model: ResolveModel) -> Path:
    """The folder or file that a value of `corpus.tokenizer` or `init_from` stands for. Raises ValueError."""
    path = Path(named).expanduser()
    if named == CHAMPION or (not path.exists() and _DIGEST.fullmatch(named)):
        return resolve_model(named)
    if not path.exists():
        raise ValueError(f"{named} does not exist: give a run such as runs/demo, a model folder, or {CHAMPION!r}")
    return path


def load_tokenizer(named: str, resolve_model: ResolveModel = registered_model) -> Tokenizer:
    """The tokenizer of a file, a built corpus, a run, a stage, a model folder, or a model of a registry.

    Raises ValueError for one that is missing, or has other special tokens.
    """
    path = resolve_path(named, resolve_model)
    stored = path / "encoded" / "store"
    if path.is_dir():
        places = (path, stored)
        path = next((each for each in places if (each / TOKENIZER).is_file()), None) or find_model_folder(path)
    try:
        return Tokenizer.load(path)
    except (KeyError, TypeError) as error:
        raise ValueError(f"tokenizer {path} is no byte-level BPE ({error}): give one that Brine trained") from None


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's content, as in a corpus's `meta.json`."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def _is_built(recipe: Recipe) -> bool:
    return recipe.corpus.manifest is not None and is_corpus(recipe.corpus.manifest)


def _other_tokenizer(name: str, given: str, initial: InitialWeights) -> str:
    if initial.tokenizer is None:
        return f"{name}.init_from = {given}: the tokenizer of these weights is not known: give the run's model instead"
    return (
        f"{name}.init_from = {given}: these weights were trained with another tokenizer than that of the documents, so "
        f"that their tokens mean something else: give --corpus.tokenizer {given}"
    )
