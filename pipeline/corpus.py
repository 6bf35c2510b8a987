"""The corpus stages: find or make the documents, encode them as tokens and patches, filter them.

Changed documents under a trained run are reported and not encoded again; other documents under the name of a run are
refused (`model_stages.check_same_documents`). A built corpus (`brine data build`) is opened as it is, after its media
were compared with what was encoded.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from brine.common.files import digest, file_digest, read_json
from brine.common.remote.object_store import is_url
from brine.data.corpus.file_records import find_changed_files
from brine.data.corpus.media_digest import changed_while_encoded, media_digest
from brine.data.corpus.readers import iter_texts
from brine.data.corpus.statistics import quarantine_summary
from brine.data.corpus.store import EncodedCorpus, build_corpus, is_corpus
from brine.data.corpus.swap import FILTER_LOG
from brine.data.files.roots import MediaRoots
from brine.data.files.source_files import read_source, source_hash
from brine.data.filters.filter_log import FilterLog
from brine.data.filters.registry import run_filters
from brine.data.formats.joined import joined_digest
from brine.data.formats.open import open_source
from brine.data.formats.source import DocumentSource
from brine.data.tokenizer import train_tokenizer
from brine.pipeline.inputs.sources import join_sources_of
from brine.pipeline.model_stages import STORE, check_same_documents
from brine.pipeline.stages.run_lock import on_main_rank, refusals_named
from brine.pipeline.stages.stage_backup import DONE_FILE, STAGE_FILE
from brine.pipeline.stages.stage_store import PipelineStage, logger
from brine.synth import build_synth_corpus

if TYPE_CHECKING:
    from brine.pipeline.run import Pipeline

MEDIA_HASHES = ".media"
"""In the store: the remembered hashes of media."""
CORPUS_REVISION = 1
"""Of the code of the stage `corpus`: raise it where equal settings and inputs give other bytes."""
ENCODED_REVISION = 1
"""Likewise of `encoded`."""
FILTERED_REVISION = 1
"""Likewise of `filtered`."""


def find_documents(run: Pipeline) -> tuple[Path | DocumentSource, dict[str, str]]:
    """Path of the documents to train on (of several sources: the joined source), and the digests that identify them;
    makes a synthetic corpus if none is given."""
    config = run.recipe.corpus
    if config.manifest is not None and is_corpus(config.manifest):
        if config.filters:
            raise ValueError(f"corpus.filters: {config.manifest} is built; use `brine data filter` on it")
        corpus = EncodedCorpus.open(config.manifest)
        check_media(run, corpus)
        # a prompt's media must become tokens as the corpus's did
        config = dataclasses.replace(config, encode=corpus.config, vocab_size=corpus.tokenizer.vocab_size)
        run.recipe = dataclasses.replace(run.recipe, corpus=config)
        return config.manifest, {"corpus": corpus.fingerprint, "filter_log": FilterLog.open(corpus).digest}
    if config.manifest is not None:
        source = open_source(config.manifest, max_file_mib=config.encode.max_file_mib)
        inputs = {"manifest": source.fingerprint(media=False)}
        given = config.manifest if is_url(config.manifest) else source.path
        check_same_documents(run.store, given, digest=inputs["manifest"])
        run.media_root, run.documents_digest = source.root, inputs["manifest"]
        return config.manifest, inputs | _media_input(run, source, inputs)
    synth = _make_synth_corpus(run) if config.uses_synth else None
    if config.sources:
        joined, inputs = join_sources_of(run, None if synth is None else synth.folder / "manifest.jsonl")
        run.media_root = joined.root
        described = [(each["name"], each["consent"], each["sha256"]) for each in joined.described]
        run.documents_digest = joined_digest(described)
        return joined, inputs | _media_input(run, joined, inputs)
    inputs = {"corpus": synth.digest}
    return synth.folder / "manifest.jsonl", inputs | _changed_media(run, synth.folder.resolve(), inputs)


def _make_synth_corpus(run: Pipeline) -> PipelineStage:
    config = run.recipe.corpus
    synth = dataclasses.replace(config.synth, source=config.source)
    files, _ = read_source(synth.source, min_file_bytes=synth.min_file_bytes, max_file_kib=synth.max_file_kib)
    if not config.sources:
        check_same_documents(run.store, None, digest=source_hash(files), source=config.source)

    def build(folder: Path) -> dict:
        summary = build_synth_corpus(synth, folder)
        return {"fingerprint": file_digest(folder / "manifest.jsonl"), "documents": summary["documents"]}

    return run.stage(
        "corpus", build, config=synth, inputs={"source": source_hash(files)}, revision=CORPUS_REVISION,
        keep_if_inputs_change=True,
        output_names=("manifest.jsonl", "summary.json", "media", ".partial"),
    )  # fmt: skip


def check_media(run: Pipeline, corpus: EncodedCorpus) -> None:
    """Warn of media that changed since a corpus was built. Raises ValueError where training must decode them and too
    many changed."""
    most = run.recipe.packing.max_excluded_fraction

    def compare() -> None:
        if not corpus.root.exists():
            return
        changes = find_changed_files(corpus.folder, corpus.root, max_file_mib=corpus.config.max_file_mib)
        keeps_media = corpus.meta["identity"]["keep_media"]
        remedy = f"`brine data build` with the folder {corpus.folder} encodes them again"
        effect = "Training leaves their documents out, validation stops at one that it needs"
        if changes:
            effect = "Training continues with what was encoded then" if keeps_media else effect
            logger.warning("corpus: %s. %s; %s", changes, effect, remedy)
        if not keeps_media and changes.share > most:
            raise ValueError(f"corpus: {changes}, over packing.max_excluded_fraction {most:g}; {remedy}")

    on_main_rank(run.world, compare)


def _media_input(run: Pipeline, source: DocumentSource, inputs: dict[str, str]) -> dict[str, str]:
    """{"media": digest of the contents of all media} as a further input of the encoded stage.

    A run that was begun without it compares the media with what it encoded.
    """
    begun = (read_json(run.folder / "encoded" / STAGE_FILE) or {}).get("inputs")
    if run.store.content is None or (begun is not None and not (run.folder / "encoded").is_symlink()):
        return _changed_media(run, source.root, inputs)
    memory, most = run.store.content.root / MEDIA_HASHES, run.recipe.corpus.encode.max_file_mib

    def hash_media() -> str:
        with refusals_named("the hashes of media"):
            return media_digest(source, memory, manifest=digest(inputs), max_file_mib=most)

    return {"media": on_main_rank(run.world, hash_media)}


def _changed_media(run: Pipeline, root: Path | MediaRoots, inputs: dict[str, str]) -> dict[str, str]:
    """{"media": digest of the changed media} as a further input of the encoded stage; {} until some have changed.

    While nothing changes the media keep the digest under which the stage was begun.
    """
    folder = run.folder / "encoded"

    def compare() -> dict[str, str]:
        begun = (read_json(folder / STAGE_FILE) or {}).get("inputs") or {}
        named = {"media": begun["media"]} if "media" in begun else {}
        # an unfinished stage, or another corpus's, looks at its media when it runs
        if (folder / DONE_FILE).exists() and begun.keys() == (inputs | named).keys():
            changes = find_changed_files(folder / STORE, root, max_file_mib=run.recipe.corpus.encode.max_file_mib)
            if changes:
                logger.info("encoded: %s", changes)
                named = {"media": changes.digest} if begun == inputs | named else named
        return named

    return on_main_rank(run.world, compare)


def encode(run: Pipeline, folder: Path, manifest: Path | DocumentSource, inputs: dict[str, str]) -> dict:
    """Train the tokenizer on the training split's text, unless one is given, then encode every document, unless the
    corpus is built. Raises ValueError where a file changed since `inputs`, the stage's, were made from it."""
    config = run.recipe.corpus
    if is_built(manifest):
        corpus = EncodedCorpus.open(manifest)
    else:
        source = manifest
        if not isinstance(source, DocumentSource):
            source = open_source(manifest, max_file_mib=config.encode.max_file_mib)
        tokenizer = run.pinned.tokenizer or train_tokenizer(iter_texts(source.documents()), config.vocab_size)
        workers = config.synth.workers
        corpus = build_corpus(
            source, folder / STORE, tokenizer=tokenizer, config=config.encode, num_workers=workers, progress=True
        )
        if changed := _changed_meanwhile(run, folder / STORE, source, inputs):
            # what was encoded must not be found under the digests of other content
            shutil.rmtree(folder / STORE)
            raise ValueError(
                f"encoded: {changed} changed while the documents of {source.path} were encoded, so they are encoded "
                "again: give the same command once nobody writes to them"
            )
        for line in corpus.summary_lines:
            logger.info("%s", line)
    quarantined = corpus.quarantine()
    if quarantined:
        logger.warning("%s: see %s", quarantine_summary(quarantined), folder / "quarantine.jsonl")
    shutil.copyfile(corpus.folder / "quarantine.jsonl", folder / "quarantine.jsonl")
    return {"documents": corpus.num_documents, "quarantined": len(quarantined), "fingerprint": corpus.fingerprint}


def _changed_meanwhile(run: Pipeline, corpus: Path, source: DocumentSource, inputs: dict[str, str]) -> str | None:
    """What is no longer as the inputs of the encoded stage say, or as it was when it was encoded."""
    if run.documents_digest is not None and source.fingerprint(media=False) != run.documents_digest:
        return "the text or the list of files"
    if run.store.content is None or not (run.folder / "encoded").is_symlink() or "media" not in inputs:
        return None
    words = {name: value for name, value in inputs.items() if name != "media"}
    return changed_while_encoded(
        corpus, source, run.store.content.root / MEDIA_HASHES, media=inputs["media"], manifest=digest(words),
        max_file_mib=run.recipe.corpus.encode.max_file_mib,
    )  # fmt: skip


def is_built(documents: Path | DocumentSource) -> bool:
    """Whether the documents are a built corpus."""
    return not isinstance(documents, DocumentSource) and is_corpus(documents)


def apply_filters(run: Pipeline, folder: Path) -> dict:
    """Apply the filters of the recipe; the corpus itself, which other runs may use, is not touched."""
    config = run.recipe.corpus
    filter_log = run_filters(
        run.data, config.filters, folder=folder / FILTER_LOG, num_workers=config.synth.workers, progress=True
    )
    logger.info("%s", filter_log.report())
    (folder / "filter_passes.txt").write_text(filter_log.report() + "\n", encoding="utf-8")
    return {"kept": int(filter_log.kept_mask().sum()), "fingerprint": filter_log.digest}


def filter_log(run: Pipeline) -> FilterLog:
    """The filter passes of the recipe; those of former runs lie in their corpus."""
    folder = run.folder / "filtered" / FILTER_LOG
    return FilterLog.open(run.data, folder if folder.is_dir() else None)
