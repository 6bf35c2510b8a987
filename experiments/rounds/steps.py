"""The steps of a round before its trainings: what is held out, the audit, new labels, self-play, and the watch.

Each is known by the digests of what it is made from and lies in the store that runs share, so that a round in which
nothing changed makes nothing again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore, store_key
from brine.common.files import digest, file_digest, replacing
from brine.data.corpus.media_digest import media_digest
from brine.data.corpus.readers import iter_texts
from brine.data.document import Document
from brine.data.formats.open import open_source
from brine.data.formats.source import DocumentSource
from brine.data.tokenizer import train_tokenizer
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.evals.suites.suite import Suite
from brine.experiments.rounds.line import RoundLine
from brine.inference.load import WEIGHTS, LoadedModel
from brine.salt.audit import AuditResult, audit_pseudo_labels, audited_split
from brine.salt.collapse import FIRST_ROUND, TRUE, watch_kinds
from brine.salt.content import ContentHasher
from brine.salt.pseudo_label import PSEUDO_LABEL_SUFFIX, target_text
from brine.salt.pseudo_pool import POOL_FILE, PseudoEntry, read_pool
from brine.salt.relabel import relabel
from brine.salt.self_play.play import self_play
from brine.salt.self_play.source_text import SourceText

WORDS_REVISION = FEEDBACK_REVISION = LABEL_REVISION = AUDIT_REVISION = PLAY_REVISION = 1
"""Raised where a step makes other bytes of the same inputs."""
OWN_SUITE, OWN_CASES = "held-out", 256
"""Name of the suite that a line makes of its own words, and its cases of each kind, level and part."""
MANIFEST, TOKENIZER = "manifest.jsonl", "tokenizer.json"
logger = logging.getLogger("brine.rounds")


class RoundSteps:
    """The steps of one line over one store."""

    def __init__(self, line: RoundLine, store: ContentStore):
        self.line, self.store = line, store

    def source_digest(self, source: DocumentSource) -> str:
        """A source by its words and media."""
        most = self.line.base.corpus.encode.max_file_mib
        manifest = source.fingerprint(media=False)
        media = media_digest(source, self.store.root / ".media", manifest=manifest, max_file_mib=most)
        return digest([manifest, media])

    def adopt_documents(self, path: Path, *, stage: str, held_out: bool) -> Path:
        """A folder with a native manifest of a source and its media; held_out: the audited ones are moved into the
        validation split, and the tokenizer is trained on the others."""
        source = open_source(path, max_file_mib=self.line.base.corpus.encode.max_file_mib)
        audit = self.line.audit if held_out else None
        vocab_size = self.line.base.corpus.vocab_size if held_out else None
        config = {"audit": audit, "vocab_size": vocab_size}
        key = store_key(config, {"documents": self.source_digest(source)}, revision=WORDS_REVISION)

        def build(folder: Path) -> dict[str, int]:
            hasher, count = ContentHasher(source.root), 0
            documents: Iterable[Document] = (each for each in source.documents() if isinstance(each, Document))
            if held_out:
                documents = audited_split(documents, hasher, self.line.audit)
            with replacing(folder / MANIFEST) as file:
                for document in documents:
                    # copies: whoever owns the documents may edit theirs
                    adopted = hasher.adopt(document, folder, link=False)
                    file.write(json.dumps(adopted.to_json(), ensure_ascii=False) + "\n")
                    count += 1
            if held_out:
                texts = iter_texts(open_source(folder / MANIFEST).documents())
                train_tokenizer(texts, self.line.base.corpus.vocab_size).save(folder / TOKENIZER)
            return {"documents": count}

        return self.store.get_or_build(stage, key, build)

    def adopt_feedback(self, path: Path, *, held_out: frozenset[str], rejected: Iterable[str]) -> Path | None:
        """A folder with a native manifest of the feedback that may be trained on: none that shares its content, prompt
        or media with a held-out case, and none whose content is among the rejected. None where nothing is left."""
        source, excluded = open_source(path, max_file_mib=self.line.base.corpus.encode.max_file_mib), set(rejected)
        inputs = {
            "documents": self.source_digest(source), "held_out": digest(sorted(held_out)),
            "rejected": digest(sorted(excluded)),
        }  # fmt: skip
        key = store_key({}, inputs, revision=FEEDBACK_REVISION)

        def build(folder: Path) -> dict[str, int]:
            hasher, count = ContentHasher(source.root), Counter(documents=0, shares_held_out=0, rejected=0)
            with replacing(folder / MANIFEST) as file:
                for document in source.documents():
                    if not isinstance(document, Document):
                        continue
                    if hasher.is_held_out(document, held_out):
                        count["shares_held_out"] += 1
                    elif hasher.content(document) in excluded:
                        count["rejected"] += 1
                    else:
                        adopted = hasher.adopt(document, folder, link=False)
                        file.write(json.dumps(adopted.to_json(), ensure_ascii=False) + "\n")
                        count["documents"] += 1
            return dict(count)

        folder = self.store.get_or_build("feedback", key, build)
        return folder if self.store.result(folder)["documents"] else None

    @staticmethod
    def contents(folder: Path | None) -> set[str]:
        """Digests of the documents of an adopted folder."""
        if folder is None:
            return set()
        hasher = ContentHasher(folder)
        return {
            hasher.content(item) for item in open_source(folder / MANIFEST).documents() if isinstance(item, Document)
        }

    def suite(self, words: Path, folder: Path) -> Suite:
        """The suite of the line: the one that is given, or the held-out documents of the words, kept in `folder`."""
        if self.line.suite is not None:
            return Suite.open(self.line.suite)
        if (folder / f"{OWN_SUITE}@1").exists():
            return Suite.open(f"{OWN_SUITE}@1", root=folder)
        config = SuiteConfig(per_cell=OWN_CASES, transcripts_per_cell=0, timing=False)
        return make_suite(f"{OWN_SUITE}@1", [words / MANIFEST], config, root=folder)

    def held_out(self, words: Path, suite: Suite) -> frozenset[str]:
        """What the held-out documents of the words, and the suite's cases, are known by."""
        hasher, found = ContentHasher(words), set()
        for item in open_source(words / MANIFEST).documents():
            if isinstance(item, Document) and item.split != "train":
                found |= hasher.identities(item)
        hasher = ContentHasher(suite.folder)
        for case in suite.cases:
            found |= hasher.identities(Document(case.id, tuple(case.parts), "case", split="test"))
        return frozenset(found)

    def audit(self, teacher: LoadedModel, words: Path) -> tuple[AuditResult, str]:
        """The audit of a teacher, and its digest."""
        inputs = {"weights": file_digest(teacher.folder / WEIGHTS), "words": file_digest(words / MANIFEST)}
        config = {"audit": self.line.audit, "label": self.line.label}
        key = store_key(config, inputs, revision=AUDIT_REVISION)

        def build(folder: Path) -> None:
            audit_pseudo_labels(teacher, words / MANIFEST, config=self.line.audit, label_config=self.line.label).save(
                folder
            )

        return AuditResult.load(self.store.get_or_build("audit", key, build)), digest(key)

    def relabel(
        self, teacher: LoadedModel, unlabelled: Path, *, audit: AuditResult, audit_digest: str, number: int,
        earlier: Path | None, held_out: frozenset[str],
    ) -> tuple[Path, str]:  # fmt: skip
        """The pool of pseudo-labels so far, with this round's; and what it was asked, to know a request again."""
        documents = file_digest(unlabelled / MANIFEST)
        asked = digest([audit_digest, documents, digest(sorted(held_out)), self.line.label])
        inputs = {"asked": asked, "earlier": file_digest(earlier / POOL_FILE) if earlier else ""}
        key = store_key({"round": number}, inputs, revision=LABEL_REVISION)

        def build(folder: Path) -> None:
            relabel(
                teacher, unlabelled / MANIFEST, folder, audit=audit, round_number=number, earlier=earlier,
                held_out=held_out, config=self.line.label,
            )  # fmt: skip

        return self.store.get_or_build("relabel", key, build), asked

    def play(self, teacher: LoadedModel, *, number: int, earlier: list[Path], held_out: frozenset[str]) -> Path | None:
        """The pool of a round's self-play; None where the line has none."""
        if self.line.self_play is None:
            return None
        config = dataclasses.replace(
            self.line.self_play, round_number=number, seed=self.line.self_play.seed + number,
            collapse=self.line.collapse,
        )  # fmt: skip
        source = SourceText.read(self.line.self_play_source)
        known = [file_digest(pool / POOL_FILE) for pool in earlier]
        inputs = {
            "weights": file_digest(teacher.folder / WEIGHTS), "source": source.digest, "earlier": digest(known),
            "held_out": digest(sorted(held_out)),
        }  # fmt: skip
        key = store_key(config, inputs, revision=PLAY_REVISION)

        def build(folder: Path) -> None:
            self_play(teacher, folder, config, source=source, earlier=earlier, held_out=held_out, say=logger.info)

        return self.store.get_or_build("self_play", key, build)

    def watch(self, pool: Path, *, words: Path, number: int) -> dict[str, dict[str, Any]]:
        """The collapse watch over a round's new labels, by kind, against those of the first round that has some and
        against the words of the same kind."""
        rounds: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for entry in read_pool(pool):
            rounds[entry.round][_kind(entry)].append(target_text(entry.document))
        if number not in rounds:
            return {}
        true: dict[str, list[str]] = defaultdict(list)
        for item in open_source(words / MANIFEST).documents():
            if isinstance(item, Document):
                true[item.kind].append(target_text(item))
        references = {TRUE: true} | ({FIRST_ROUND: rounds[min(rounds)]} if min(rounds) < number else {})
        found = watch_kinds(rounds[number], references, self.line.collapse)
        return {kind: result.to_dict() | {"stops": result.stops} for kind, result in found.items()}


def _kind(entry: PseudoEntry) -> str:
    return entry.document.kind.removesuffix(PSEUDO_LABEL_SUFFIX)
