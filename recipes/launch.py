"""The command line of a run: which recipe, and which of its fields are overridden.

tyro makes options of the dataclasses' fields and help of their docstrings. `train.py --help` is a page with the recipes
and the groups of options; `train.py RECIPE --help` lists every option of a recipe that has an effect in it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from brine.common.command_line import field_docstrings, one_line_errors
from brine.common.remote.object_store import check_local, is_url
from brine.data.formats.corpus_source import CorpusSource
from brine.model.config import ModelConfig
from brine.pipeline.model_stages import model_stages_of
from brine.pipeline.recipe import MANIFEST_REQUIRED, MODEL_STAGES, CorpusConfig, Recipe
from brine.recipes.registry import RECIPES, find_recipe, recipe_names
from brine.synth import SynthConfig
from brine.training.config import TrainConfig
from brine.training.logging.metrics import sink_names

FLATTENED = tyro.conf.arg(name="")
"""Annotation of a field whose options have no prefix."""
DERIVED: dict[type, dict[str, str]] = {
    ModelConfig: {
        "vocab_size": "--corpus.vocab-size",
        "image_dim": "--corpus.encode.patch-size",
        "audio_dim": "--corpus.encode.mel-bins and --corpus.encode.mel-frames-per-token",
        "video_dim": "--corpus.encode.patch-size and --corpus.encode.tubelet-frames",
    },
    SynthConfig: {"source": "--corpus.source"},
    TrainConfig: {"init_digest": "--large.init-from or --small.init-from"},
}
"""Fields that a recipe derives from others, which are no options, and the options that decide them."""
OTHER_NAMES = {
    "learning-rate": "lr max-lr peak-lr matrix-lr",
    "weight-decay": "wd",
    "global-batch-size": "bs gbs batch-size total-batch-size gradient-accumulation-steps grad-accum ga",
    "micro-batch-size": "mbs device-batch-size local-batch-size",
    "num-steps": "steps iters max-steps max-iters num-iterations train-steps training-steps",
    "warmup-steps": "warmup warmup-iters lr-warmup-steps",
    "schedule": "lr-schedule lr-scheduler scheduler",
    "grad-clip": "clip max-norm max-grad-norm clip-grad-norm",
    "decay-fraction": "decay-ratio warmdown-ratio",
    "final-lr-fraction": "final-lr-frac lr-min min-lr",
    "beta1": "adam-beta1",
    "beta2": "adam-beta2",
    "adam-eps": "eps epsilon",
    "checkpoint-every": "save-every save-interval checkpoint-interval ckpt-interval checkpoint.interval",
    "validate-every": "eval-every eval-interval val-interval",
    "log-every": "log-interval log-freq",
    "model.num-layers": "depth n-layer n-layers num-hidden-layers",
    "model.num-heads": "n-head n-heads num-attention-heads",
    "model.num-kv-heads": "n-kv-head n-kv-heads num-key-value-heads",
    "model.dim": "n-embd d-model hidden-size model-dim",
    "model.mlp-dim": "ffn-dim hidden-dim intermediate-size",
    "packing.seq-len": "seq-len seqlen sequence-length sequence-len max-seq-len block-size context-length",
    "runtime.dp-shard": "fsdp dp-shard data-parallel-shard-degree",
    "runtime.context-parallel": "cp context-parallel context-parallel-degree",
    "runtime.activation-checkpointing": "ac activation-checkpoint activation-checkpointing activation-checkpoint.mode",
    "runtime.compile": "compile torch-compile compile.enable",
    "runtime.device": "device device-type",
    "runtime.dtype": "dtype precision mixed-precision",
    "corpus.manifest": "data dataset data-dir data-path dataset-path",
    "corpus.vocab-size": "vocab-size",
    "name": "run run-name",
    "runs": "dump-folder output-dir out-dir",
}
"""Options by their names, with those that other training codes have for them: for suggestions."""
COMMON_OPTIONS = """
  --corpus.manifest PATH, --packing.seq-len, --large.num-steps, --large.global-batch-size, --large.micro-batch-size,
  --large.learning-rate, --large.model.num-layers, --large.model.dim, --runtime.dp-shard, --runtime.context-parallel"""


@dataclass(frozen=True)
class LaunchConfig:
    """Launch options, in addition to the recipe's fields."""

    recipe: Annotated[Recipe, FLATTENED]
    """The run."""
    runs: Path = Path("runs")
    """Folder that holds the run folders."""
    store: Path | None = None
    """Folder of the stages that runs share (`brine store`), if not RUNS/.store."""
    remote_store: str | None = None
    """URL (s3://bucket/prefix, file:///folder; extra [remote]) where stages are looked up before they are built, and to
    which those that were built are uploaded; `brine store pull NAME URL` brings a run back."""
    dry_run: bool = False
    """Print parameters, tokens and estimated time, then stop."""
    tracker: str | None = None
    """Sink that also takes the metrics: "tensorboard", or one of an installed package (entry point `brine.sinks`)."""
    extend: bool = False
    """Continue with more steps (`--large.num-steps MORE`) where a trained model's schedule is "wsd", from the beginning
    of its decay; its old folder is renamed to STAGE.old-1."""
    rerun: tuple[str, ...] = ()
    """Trained stages (small, large_salt, large_baseline) to train again, whether or not their settings changed; their
    old folders are renamed to STAGE.old-1, never deleted."""
    debug: bool = False
    """Show where an error came from, and log more."""

    def __post_init__(self):
        check_local(self.runs, name="runs")
        check_local(self.store, name="store")
        if self.remote_store is not None and not is_url(self.remote_store):
            raise ValueError(f"remote_store = {self.remote_store!r} must be a URL such as s3://bucket/prefix")
        if self.tracker is not None and self.tracker not in sink_names():
            raise ValueError(
                f"tracker = {self.tracker!r} is unknown: choose {' or '.join(sink_names())}; metrics.jsonl is always "
                "written"
            )
        if unknown := [name for name in self.rerun if name not in MODEL_STAGES]:
            raise ValueError(f"rerun = {unknown[0]!r}: choose from {', '.join(MODEL_STAGES)}; other stages follow")


def parse(argv: list[str], *, prog: str = "train.py") -> LaunchConfig:
    """The request behind the arguments.

    The first is a recipe's name or the path of its file; `demo` where it is an option or absent. Exits with code 2 and
    a message for an unknown recipe, field or value, and with 0 after --help.
    """
    named = bool(argv) and not argv[0].startswith("-")
    name, rest = (argv[0], argv[1:]) if named else (next(iter(RECIPES)), argv)
    try:
        return _parse(name, find_recipe(name), rest, prog, on_a_page=not named)
    except ValueError as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parse(name: str, make: Callable[[], Recipe], rest: list[str], prog: str, *, on_a_page: bool) -> LaunchConfig:
    try:
        recipe = make()
    except (TypeError, AttributeError, NameError, KeyError, ImportError) as error:
        raise ValueError(f"the recipe {name} fails, with {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"the recipe {name}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{name} returns {type(recipe).__name__}: a recipe's function returns a Recipe")
    if on_a_page:
        known = {key: " ".join(make.__doc__.split()) for key, make in RECIPES.items()}
        lines = [f"  {key:<10} {known.get(key, '')}".rstrip() for key in recipe_names()]
        description = "\n".join([
            f"Train a recipe, `{name}` by default: {prog} RECIPE [OPTIONS]. Recipes:", *lines, "",
            option_groups(f"{prog} RECIPE --help"),
        ])  # fmt: skip
    else:
        description = f"Train recipe `{name}`: every option, with its value in this recipe."
    prog = prog if on_a_page else f"{prog} {name}"
    launch = parse_options(LaunchConfig(recipe), rest, prog=prog, description=description, on_a_page=on_a_page)
    vocab = next((word for word in rest if word.replace("_", "-").startswith("--corpus.vocab-size")), None)
    if vocab and launch.recipe.corpus.tokenizer is not None:
        raise ValueError(f"{vocab} follows from --corpus.tokenizer {launch.recipe.corpus.tokenizer}: leave it out")
    if launch.recipe.corpus.manifest == MANIFEST_REQUIRED:
        raise ValueError(
            f"recipe {name} has no documents: give --corpus.manifest PATH, a folder, manifest, tar, Parquet file or "
            "built corpus"
        )
    return launch


def option_groups(full_help: str) -> str:
    """The groups of a recipe's options, a line each, for a page of help. full_help: the command that lists all."""
    docs, types = field_docstrings(Recipe), typing.get_type_hints(Recipe)
    groups = [f"  --{name + '.*':<11} {docs[name]}" for name in docs if dataclasses.is_dataclass(types[name])]
    head = f"Any field of a recipe is an option; `{full_help}` lists all, by group:"
    return "\n".join([head, *groups, "", f"Often changed:{COMMON_OPTIONS}"])


def parse_options(default: Any, args: list[str], *, prog: str, description: str, on_a_page: bool = False) -> Any:
    """A copy of a dataclass with a field `recipe`, whose options have no prefix, with the fields that `args` name.

    on_a_page: leave the groups of the recipe's options out of --help. Raises ValueError in one line for an unknown
    option or a value that a dataclass refuses, SystemExit after --help.
    """
    _check_sources(args)
    shows_help = bool({"-h", "--help"} & set(args))
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(lambda info: _fields_of(info, default.recipe, on_a_page, shows_help))
    registry.primitive_rule(_source_option)
    try:
        with registry, one_line_errors():
            return tyro.cli(type(default), default=default, args=args, prog=prog, description=description)
    except ValueError as error:
        raise ValueError(_with_suggestion(_with_option(str(error)))) from None


def _fields_of(info: Any, recipe: Recipe, on_a_page: bool, shows_help: bool) -> Any:
    """tyro's rule for fields of a recipe that are no options, or have no effect in it and are not in its help."""
    if info.type not in (Recipe, CorpusConfig, *DERIVED) or not isinstance(info.default, info.type):
        return None
    types, docs = typing.get_type_hints(info.type, include_extras=True), field_docstrings(info.type)
    unused: set[str] = set()
    if info.type is Recipe:
        groups = {name for name in types if dataclasses.is_dataclass(types[name])}
        unused = groups if on_a_page else set() if "small" in model_stages_of(recipe) else {"small", "salt"}
    elif recipe.corpus.manifest is not None:
        unused = {"source"} if info.type is CorpusConfig else set()
        unused |= types.keys() - {"workers"} if info.type is SynthConfig else set()
    fields = tuple(
        tyro.constructors.StructFieldSpec(
            name,
            Annotated[kind, tyro.conf.Suppress] if shows_help and name in unused else kind,
            getattr(info.default, name),
            docs[name],
        )
        for name, kind in types.items()
        if name not in DERIVED.get(info.type, ())
    )
    return tyro.constructors.StructConstructorSpec(lambda **given: dataclasses.replace(info.default, **given), fields)


def _check_sources(args: list[str]) -> None:
    """Raise the ValueError of a source that cannot be read, which tyro would keep to itself."""
    reading = False
    for word in args:
        if word.startswith("--"):
            name, _, word = word.partition("=")
            reading = name == "--corpus.sources"
        if reading and word:
            CorpusSource.parse(word)


def _source_option(info: Any) -> Any:
    """tyro's rule for one of `corpus.sources`, which is given in its short form."""
    if info.type is not CorpusSource:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="NAME=PATH[,weight=W][,consent=CLASS][,format=FORMAT]",
        instance_from_str=lambda given: CorpusSource.parse(given[0]),
        is_instance=lambda value: isinstance(value, CorpusSource), str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


def _with_option(message: str) -> str:
    """An error message of a dataclass that begins with the option of the field that it refused."""
    refused = re.match(r"Error parsing (?:LaunchConfig|recipe\.([\w.]+)): (?:(\w+)(?= = ))?", message)
    if refused is None:
        return message
    group, field = refused.groups()
    option = f"--{group}." if group else "--"
    option += field.replace("_", "-") if field else "*: "
    return option + message[refused.end() :].removesuffix("; see --help")


def _with_suggestion(message: str) -> str:
    """An error message with the option that was meant, where another training code's name was given."""
    unknown = re.match(r"Unrecognized options: --([\w.-]+)", message)
    if unknown is None:
        return message
    given = unknown[1].replace("_", "-")
    prefix, _, name = given.rpartition(".")
    derived = {field.replace("_", "-"): option for fields in DERIVED.values() for field, option in fields.items()}
    if name in derived and (prefix.endswith(("model", "synth")) or name == "init-digest"):
        return f"--{unknown[1]} follows from {derived[name]}, which can be given"
    known = next((option for option, names in OTHER_NAMES.items() if {name, given} & set(names.split())), None)
    if known is None:
        return message
    model_name = prefix.split(".")[0]
    if not known.startswith(("packing.", "runtime.", "corpus.", "name", "runs")):
        known = f"{model_name if model_name in ('small', 'large') else 'large'}.{known}"
    return re.sub(r"( \(did you mean .*?\))?; see --help$", f" (did you mean --{known}?); see --help", message)
