"""Model folders: a trained model with all that is needed to use it, and nothing else.

config.json, model.safetensors, tokenizer.json       written under another name and renamed: whole or absent

for chunk in load("runs/demo").generate(["shot.png", "def "]):
    print(chunk, end="", flush=True)
"""

import json
import logging
import shutil
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from brine.common.files import sync_folder
from brine.common.tensor_files import save_tensors
from brine.data.config import EncodeConfig
from brine.data.sequence import EncodedDocument
from brine.data.tokenizer import Tokenizer
from brine.inference.chat import ROLES, ChatStream, chat_prompt, check_token_ids_match_content
from brine.inference.decode import stream_text, stream_tokens
from brine.inference.prefill import OnPrefill
from brine.inference.prompt import PromptPart, batch_prompts, encode_prompt
from brine.inference.registered import (
    CONFIG,
    STAGE_PREFERENCE,
    TOKENIZER,
    WEIGHTS,
    registry_root,
    resolve_registered,
)
from brine.inference.sampling import GenerationConfig
from brine.model.config import ModelConfig
from brine.model.device import resolve_device
from brine.model.inputs import Inputs
from brine.model.transformer import Transformer

logger = logging.getLogger(__name__)
_WARNED: defaultdict[str, weakref.WeakSet[Transformer]] = defaultdict(weakref.WeakSet)
"""Models that a warning was given for, by its subject."""
BAR_DELAY_S = 2.0


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with the tokenizer and the encoder settings it was trained with.

    trained_context_tokens, trained_roles: longest context and roles of conversations in training; None where `folder`
    does not say."""

    model: Transformer
    tokenizer: Tokenizer
    encode_config: EncodeConfig
    folder: Path
    trained_context_tokens: int | None = None
    trained_roles: tuple[str, ...] | None = None

    def encode(self, parts: PromptPart | Sequence[PromptPart]) -> EncodedDocument:
        """Encode a prompt; see `brine.inference.prompt.encode_prompt` for what a part may be."""
        return encode_prompt(parts, tokenizer=self.tokenizer, config=self.encode_config)

    def inputs(self, parts: PromptPart | Sequence[PromptPart]) -> Inputs:
        """The model's inputs for one prompt: `loaded.model(loaded.inputs(["def "]))`."""
        return batch_prompts([self.encode(parts)], device=self.model.head_weight.device)

    def generate(self, parts: PromptPart | Sequence[PromptPart], **options: Any) -> Iterator[str]:
        """Answer a prompt; returns an iterator of chunks of text, each as soon as it is known.

        options: those of `GenerationConfig`; progress: show a bar on standard error, if it is a terminal, when prefill
        takes more than `BAR_DELAY_S`; on_token: called with each id of the answer, which may be a part of a later
        prompt. Raises ValueError, at the call, for an unreadable part or settings that cannot be sampled with.
        """
        return stream_text(self._tokens(parts, **options), self.tokenizer)

    def chat(
        self, messages: Sequence[Mapping[str, Any]] | Mapping[str, Any], *, keep_token_ids: bool = False, **options: Any
    ) -> ChatStream:
        """Answer a conversation in the form that chats have in training; returns an iterator of chunks of text, whose
        `message` is the whole answer as the next message.
        messages: `[{"role": "user", "content": ...}, ...]` (`brine.inference.chat`). keep_token_ids: the message holds
        its token ids too, which are then read in place of its text. options and errors: those of `generate`."""
        parts, roles = chat_prompt(messages)
        if self.trained_roles == ():
            self._warn_once(
                "chat",
                "this model was trained on no conversation and has never seen this form: continue a text instead "
                "(generate, or --prompt without --chat), or train it on chats too",
            )
        tokens = self._tokens(parts, **options)
        check_token_ids_match_content(messages, self.tokenizer)
        return ChatStream(tokens, self.tokenizer, roles={*roles, *ROLES}, keep_token_ids=keep_token_ids)

    def _tokens(
        self, parts: PromptPart | Sequence[PromptPart], *, progress: bool = False,
        on_token: Callable[[int], None] | None = None, **options: Any,
    ) -> Iterator[int]:  # fmt: skip
        """Ids of the answer to a prompt, as they are chosen; mistakes raise at the call."""
        settings = GenerationConfig.of(**options)
        prompt = self.encode(parts)
        trained = self.trained_context_tokens
        if trained is not None and len(prompt) + settings.max_tokens > trained:
            self._warn_once(
                "length",
                f"the prompt has {len(prompt):,} tokens and its answer up to {settings.max_tokens:,} more, but this "
                f"model was trained on at most {trained:,} at once: give a shorter prompt or a smaller max_tokens",
            )
        if progress:
            options["on_prefill"] = _prefill_bar(len(prompt))
        tokens = stream_tokens(self.model, prompt, vocab_size=self.tokenizer.vocab_size, **options)
        return tokens if on_token is None else _with_callback(tokens, on_token)

    def _warn_once(self, subject: str, message: str) -> None:
        if self.model not in _WARNED[subject]:
            _WARNED[subject].add(self.model)
            logger.warning("%s", message)


def _with_callback(tokens: Iterator[int], on_token: Callable[[int], None]) -> Iterator[int]:
    for token in tokens:
        on_token(token)
        yield token


def _prefill_bar(num_tokens: int) -> OnPrefill:
    """A bar of prompt tokens, which appears after `BAR_DELAY_S` on a terminal and vanishes when all are read."""
    bar = tqdm(
        total=num_tokens, desc="reading", unit=" tokens", unit_scale=True, delay=BAR_DELAY_S, leave=False, disable=None,
        file=sys.stderr,
    )  # fmt: skip

    def on_prefill(count: int) -> None:
        bar.update(count)
        if bar.n >= num_tokens:
            bar.close()

    return on_prefill


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    attention_backend: str = "auto",
    loss_backend: str = "auto",
) -> LoadedModel:
    """Load a model from a model folder, a stage that has one, a run (its best finished stage), or a registry by name:
    "champion", or the digest of its weights or the beginning of it (`brine.inference.registered`).

    device: a torch device or its name; "auto" is a GPU if available. attention_backend, loss_backend: as in `kernels`.
    Raises ValueError, naming file and remedy, where there is no model, or it is broken, of another version, or put
    together from several.
    """
    folder = find_model_folder(Path(folder))
    configs = _read_config(folder / CONFIG)
    try:
        config, encode_config = ModelConfig.from_dict(configs["model"]), EncodeConfig.from_dict(configs["encode"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a model of this version: {error}") from None
    if config.patch_dims != encode_config.dims:
        raise ValueError(
            f"{folder / CONFIG}: the model takes patches of {config.patch_dims}, but the encoder makes "
            f"{encode_config.dims}: config.json mixes two models"
        )
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} ids, the model {config.vocab_size}: give the tokenizer "
            "that the model was trained with"
        )
    model = Transformer(config)
    load_weights(model, folder / WEIGHTS)
    model.attention_backend, model.loss_backend = attention_backend, loss_backend
    model = model.to(resolve_device(str(device))).eval()
    roles = configs.get("trained_roles")
    roles = None if roles is None else tuple(roles)
    return LoadedModel(model, tokenizer, encode_config, folder, configs.get("trained_context_tokens"), roles)


def find_model_folder(folder: Path) -> Path:
    """The model folder that a path or a registered name means: itself, its `model`, or that of a run's best finished
    stage."""
    folder = resolve_registered(folder)
    if not folder.exists():
        raise ValueError(
            f"{folder} does not exist: give a run such as runs/demo, a stage of it, a model folder, or a model of the "
            f"registry {registry_root()} (champion, or a digest)"
        )
    candidates = [folder, folder / "model", *(folder / stage / "model" for stage in STAGE_PREFERENCE)]
    for candidate in candidates:
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            stage = candidate.parent.name
            if candidate.parent.parent == folder and (better := unfinished_stages(folder, before=stage)):
                logger.warning(
                    "%s: %s %s not trained to the end, so that %s is taken; `uv run train.py` with the same arguments "
                    "resumes",
                    folder, " and ".join(better), "is" if len(better) == 1 else "are", stage,
                )  # fmt: skip
            return candidate
    others = sorted(folder.glob(f"*/model/{CONFIG}")) if folder.is_dir() else []
    if len(others) == 1:
        return others[0].parent
    remedy = (
        f"give one of {', '.join(str(other.parent) for other in others)}" if others else "train with `uv run train.py`"
    )
    raise ValueError(
        f"{folder} holds no finished model ({CONFIG} and {WEIGHTS}, here, in model/, or in a stage's model/): {remedy}"
    )


def unfinished_stages(run: Path, *, before: str | None = None) -> list[str]:
    """Stages of a run that were started and have no model, best first; before: only those better than this one."""
    names = STAGE_PREFERENCE[: STAGE_PREFERENCE.index(before)] if before in STAGE_PREFERENCE else STAGE_PREFERENCE
    return [
        name
        for name in names
        if (run / name / "stage.json").is_file() and not (run / name / "model" / WEIGHTS).is_file()
    ]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        configs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): save the model again") from None
    if not isinstance(configs, dict) or not all(isinstance(configs.get(key), dict) for key in ("model", "encode")):
        raise ValueError(f'{path} must be an object with "model" and "encode": it is not the config of a model folder')
    # former folders lack these two
    tokens, roles = configs.get("trained_context_tokens"), configs.get("trained_roles")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise ValueError(f'{path}: "trained_context_tokens" must be a number of tokens, not {tokens!r}')
    if roles is not None and not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise ValueError(f'{path}: "trained_roles" must be a list of roles, not {roles!r}')
    return configs


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, source: str = "these weights"
) -> None:
    """Copy weights into a model of exactly the same names and shapes, whatever their dtype.

    weights: a safetensors file, or tensors by name, whose `source` messages name. Raises ValueError that names the
    differences, before anything is copied.
    """
    if not isinstance(weights, Mapping):
        source = str(weights)
        try:
            weights = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{source} is not a whole safetensors file ({error}): save it again") from None
    check_shapes(
        {name: value.shape for name, value in model.state_dict().items()},
        {name: value.shape for name, value in weights.items()},
        source=source,
    )
    model.load_state_dict(weights)


def check_shapes(own: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], *, source: str) -> None:
    """Raise ValueError naming the first differences between a model's tensors and those in `source`, both as shapes."""
    if wrong := shape_differences(own, found):
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{source} was saved from a model of another shape: {'; '.join(wrong[:3])}{more}; use the config it was "
            "trained with, or train in a new run folder"
        )


def shape_differences(own: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """How tensors that were found differ from a model's own, by their shapes: a phrase for each name."""
    wrong = [f"{name} is missing" for name in own if name not in found]
    wrong += [f"{name} is unknown to the model" for name in found if name not in own]
    return wrong + [
        f"{name} is {tuple(found[name])} there and {tuple(shape)} in the model"
        for name, shape in own.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]


def save_model(
    folder: str | Path, model: Transformer, *, encode_config: EncodeConfig, tokenizer: Tokenizer,
    weights: Mapping[str, Tensor] | None = None, trained_context_tokens: int | None = None,
    trained_roles: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Write a model folder, atomically; other files in it stay.

    Blocks may be compiled. Weights keep their dtype; `weights` are given where the model itself holds only parts of
    them. trained_context_tokens, trained_roles: see `LoadedModel`.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    # a kill between the two renames below
    if old.exists() and not folder.exists():
        old.rename(folder)
    _keep_other_files(old, folder)
    partial.mkdir()
    configs: dict[str, Any] = {"model": model.config.to_dict(), "encode": encode_config.to_dict()}
    roles = None if trained_roles is None else list(trained_roles)
    said = {"trained_context_tokens": trained_context_tokens, "trained_roles": roles}
    configs |= {name: value for name, value in said.items() if value is not None}
    (partial / CONFIG).write_text(json.dumps(configs, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(partial / TOKENIZER)
    tensors = (model.state_dict() if weights is None else weights).items()
    save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors}, partial / WEIGHTS)
    for path in partial.iterdir():
        sync_folder(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _keep_other_files(old, folder)
    sync_folder(folder.parent)


def _keep_other_files(old: Path, folder: Path) -> None:
    """Move what is not of the model from a replaced folder to the new one, and delete the rest."""
    for path in sorted(old.iterdir()) if old.exists() else ():
        if path.name not in (CONFIG, TOKENIZER, WEIGHTS) and not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(old, ignore_errors=True)
