"""Evaluates a finished run on other documents, encoded with the run's tokenizer and encoder.

    OUT/encoded/, evaluate/, request.json     the documents, results as in a run, and what was asked for

The run is not modified. A corpus built by `brine data build` is read unchanged where its tokenizer and encoder are the
run's, else encoded again; documents that its filters excluded are excluded, all others count as held out. Documents of
the run's training split (equal tokens and patches) are counted.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brine.common.files import finite, read_json, read_jsonl
from brine.common.renamed import current_file
from brine.common.tables import as_text, sanitize, table
from brine.data.config import EncodeConfig
from brine.data.corpus.store import CorpusError, EncodedCorpus, build_corpus, is_corpus, open_corpus
from brine.data.document import SPLITS, Document
from brine.data.filters.filter_log import FilterLog
from brine.data.formats.open import open_source
from brine.data.formats.source import DocumentSource
from brine.data.inspect.check import default_decode_workers
from brine.data.tokenizer import Tokenizer
from brine.evals.comparison.runs import load_losses, summarize_losses
from brine.evals.config import EvalConfig
from brine.evals.evaluate import evaluate
from brine.evals.loss import require_targets
from brine.evals.run_files import format_interval, main_model, write_page, write_results
from brine.evals.suites.training_overlap import seen_in_training
from brine.inference.load import STAGE_PREFERENCE, LoadedModel, find_model_folder, load, unfinished_stages

NOTES_FILE = "reader_notes.json"
"""Beside the encoded documents: the notes of their reader."""
MAX_REASONS_SHOWN = 3
logger = logging.getLogger(__name__)


def load_models(run: Path, *, device: torch.device) -> dict[str, LoadedModel]:
    """The final models of a run by stage; of a stage or a model folder that one. Raises ValueError without any."""
    found = {name: run / name for name in STAGE_PREFERENCE if (run / name / "model" / "model.safetensors").is_file()}
    if not found:
        folder = find_model_folder(run)
        found = {folder.parent.name if folder.name == "model" else folder.name: folder}
    elif unfinished := unfinished_stages(run):
        logger.warning("%s: %s not trained to the end, and left out", run, " and ".join(unfinished))
    return {name: load(folder, device=device) for name, folder in found.items()}


def evaluate_on(
    run: Path, data: Path, out: Path, config: EvalConfig, *, device: torch.device,
    compute_dtype: torch.dtype | None = None, workers: int | None = None,
    format: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a run on other documents, write the files above into `out`, and return a summary as JSON.

    workers: decoding processes. format: of the documents (default: detected). Raises ValueError for a run without a
    model, unusable documents, and an `out` that holds something else.
    """
    models = load_models(run, device=device)
    main = models[main_model(models)]
    if not is_corpus(data):
        # raises before anything is written
        open_source(data, format=format, max_file_mib=main.encode_config.max_file_mib)
    elif format is not None:
        raise ValueError(f"{data} is a built corpus, which has no format: leave --format out")
    request = {"run": str(run.resolve()), "data": str(data.resolve()), "config": repr(config)}
    _open_output_folder(out, request | ({"format": format} if format else {}))
    with open_eval_corpus(
        data, out / "encoded", tokenizer=main.tokenizer, config=main.encode_config, split=config.split,
        workers=workers or default_decode_workers(), format=format,
    ) as (corpus, notes):  # fmt: skip
        chosen = np.flatnonzero(corpus.split == SPLITS.index(config.split))
        require_targets(corpus, config.split, what=f"document of {data}")
        seen, quarantined = seen_in_training(run, corpus, chosen), corpus.quarantine()
        results = evaluate(
            out / "evaluate", corpus=corpus, models=models, config=config, compute_dtype=compute_dtype,
            stages=tuple(models),
        )  # fmt: skip
    losses = {name: load_losses(out, name) for name in models}
    return finite({
        "run": str(run),
        "data": str(data),
        "documents": len(chosen),
        "notes": notes,
        "quarantined": len(quarantined),
        "quarantine_reasons": quarantine_reasons(quarantined),
        "num_measured": len(losses[results["main_model"]].ids),
        "num_trained_on": None if seen is None else int(seen.sum()),
        "main_model": results["main_model"],
        "models": {name: summarize_losses(found, config) for name, found in losses.items()},
        "media_gain": {
            modality: {name: entry[name] for name in ("gain", "low", "high", "num_documents", "kinds")}
            for modality, entry in results["media_gain"].items()
        },
        "compute_info": results["compute_info"],
    })  # fmt: skip


def _open_output_folder(out: Path, request: dict[str, str]) -> None:
    """Create a folder for this request, or resume in one. Raises ValueError where it holds anything else."""
    path = out / "request.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_json(path) != request)):
        raise ValueError(f"{out} already holds something else, which is not replaced: give a new folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    write_results(path, request)


@contextmanager
def open_eval_corpus(
    path: Path, folder: Path, *, tokenizer: Tokenizer, config: EncodeConfig, split: str, workers: int,
    format: str | None = None,
) -> Iterator[tuple[EncodedCorpus, list[str]]]:  # fmt: skip
    """The corpus to evaluate on, its usable documents all in `split`, and the notes of its reader.

    What must be encoded is, in `folder`. Raises ValueError for what cannot be read or used.
    """
    with closing(open_corpus(path)) if is_corpus(path) else nullcontext() as built:
        if built is None:
            source = open_source(path, format=format, max_file_mib=config.max_file_mib)
        else:
            filter_log = FilterLog.open(built)
            kept = filter_log.kept_mask()
            if not kept.any():
                raise ValueError(f"{path}: its filters excluded every document: undo one, or give others")
            if built.config == config and built.tokenizer.to_str() == tokenizer.to_str():
                yield _in_split(built, split, kept), []
                return
            source = _reencoded_source(built, filter_log)
        try:
            corpus = build_corpus(
                source, folder, tokenizer=tokenizer, config=config, num_workers=workers, progress=True
            )
        except CorpusError as error:
            raise ValueError(_none_usable(path, folder, source) or str(error)) from None
        with closing(corpus):
            every = np.ones(len(corpus), bool)
            yield _in_split(corpus, split, every), _reader_notes(source, folder.with_name(NOTES_FILE))


def _in_split(corpus: EncodedCorpus, split: str, kept: np.ndarray) -> EncodedCorpus:
    """The corpus with every kept document in one split, and the others in train."""
    corpus.split = np.where(kept, SPLITS.index(split), SPLITS.index("train")).astype(np.int8)
    return corpus


def quarantine_reasons(rejects: list[dict]) -> list[str]:
    """Why documents were quarantined, a line for each of the first and one for the others."""
    lines = []
    for reject in rejects[:MAX_REASONS_SHOWN]:
        location = ":".join(str(reject[name]) for name in ("file", "line") if reject.get(name) not in (None, ""))
        where = f" ({location})" if location else ""
        lines.append(f"{str(reject['id'])[:80]}{where}: {str(reject['reason'])[:300]}")
    if others := rejects[MAX_REASONS_SHOWN:]:
        reason, count = Counter(str(reject["reason"])[:120] for reject in others).most_common(1)[0]
        lines.append(f"{len(others):,} more, such as {count:,} for: {reason}")
    return lines


def _none_usable(path: Path, folder: Path, source: DocumentSource) -> str:
    """The error where no document is usable; "" for other errors. The folder may be temporary."""
    if not (folder / "quarantine.jsonl").is_file():
        return ""
    rejects = read_jsonl(folder / "quarantine.jsonl")
    if not rejects:
        return "; ".join([f"{path} holds no document", *source.summary_lines()])
    return f"no document of {path} can be used: " + "; ".join(quarantine_reasons(rejects))


def _reader_notes(source: DocumentSource, path: Path) -> list[str]:
    """The notes of a source's reader. A finished build is not read again, so its notes are kept."""
    if lines := source.summary_lines():
        write_page(path, json.dumps(lines, ensure_ascii=False) + "\n")
        return lines
    found = read_json(current_file(path))
    return [str(line) for line in found] if isinstance(found, list) else []


def _reencoded_source(built: EncodedCorpus, filter_log: FilterLog) -> DocumentSource:
    if not built.root.is_dir():
        raise ValueError(
            f"{built.folder} was encoded by another tokenizer or encoder than this run's, and {built.root}, where its "
            "documents came from, is gone: restore it, or give the documents themselves"
        )

    def read(include_decode: bool, skipped: Counter) -> Iterator[Document]:
        for number in np.flatnonzero(filter_log.kept_mask()):
            yield built.document(int(number))

    return DocumentSource(built.folder, "manifest", built.root, read, digest=lambda media: filter_log.digest)


def format_evaluation(found: Mapping[str, Any]) -> str:
    """The result of `evaluate_on` as aligned tables."""
    lines = [sanitize(line, 1000) for line in found["notes"]]
    lines += [f"quarantined: {sanitize(reason, 1000)}" for reason in found["quarantine_reasons"]]
    lines.append(
        f"{found['documents']} documents, {found['quarantined']} quarantined, {found['num_measured']} measured"
    )
    if found["num_trained_on"] is None:
        lines.append("overlap with the training set cannot be checked: the training corpus is missing")
    elif found["num_trained_on"]:
        lines.append(f"the run was trained on {found['num_trained_on']} of these, which are not held out")
    for name, model in found["models"].items():
        columns = ("loss", "bits_per_byte")
        rows = [
            (part["kind"], part["documents"], *(format_interval(part[column], "value") for column in columns))
            for part in [{"kind": "all", **model}, *model["kinds"]]
        ]
        lines.append("\n" + as_text(table((name, "documents", "nats per token", "bits per byte"), rows)))
    for modality, gain in found["media_gain"].items():
        head = (f"media gain, {modality}", "documents", f"1 - L(matched) / L(blank), {found['main_model']}")
        parts = [{"kind": "headline", **gain}, *gain["kinds"]]
        rows = [(part["kind"], part["num_documents"], format_interval(part, "gain")) for part in parts]
        lines.append("\n" + as_text(table(head, rows)))
    return "\n".join(lines)
