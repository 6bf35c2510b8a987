"""The steps of a round before its trainings: what is held out, the audit, new labels, self-play, and the watch.

Each is known by the digests of what it is made from and lies in the store that runs share, so that a round in which
nothing changed makes nothing again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from brine.common.content_store import ContentStore, store_key
from brine.common.files import digest, file_digest, replacing
from brine.data.corpus.media_digest import media_digest
from brine.data.corpus.readers import iter_texts
from brine.data.document import Document, DocumentError
from brine.data.formats.open import open_source
from brine.data.formats.source import DocumentSource
from brine.data.tokenizer import train_tokenizer
from brine.evals.suites.making.make import SuiteConfig, make_suite
from brine.evals.suites.suite import Suite
from brine.experiments.rounds.line import RoundLine
from brine.inference.load import WEIGHTS, LoadedModel
from brine.salt.audit import AuditResult, audit_pseudo_labels, audited_split
from brine.salt.collapse import FIRST_ROUND, TRUE, watch_kinds
from brine.salt.content import MAX_FILE_MIB, ContentHasher
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
        self.max_file_mib = line.base.corpus.encode.max_file_mib

    def source_digest(self, source: DocumentSource) -> str:
        """A source by its words and media."""
        manifest, memory = source.fingerprint(media=False), self.store.root / ".media"
        media = media_digest(source, memory, manifest=manifest, max_file_mib=self.max_file_mib)
        return digest([manifest, media])

    def _hasher(self, root: Path) -> ContentHasher:
        return ContentHasher(root, max_file_mib=self.max_file_mib)

    @staticmethod
    def _readable(source: DocumentSource, hasher: ContentHasher, count: dict[str, Any]) -> Iterator[Document]:
        """Documents of which everything can be read; the others are counted, and the first is kept with its reason."""
        for item in source.documents():
            if isinstance(item, Document):
                try:
                    hasher.content(item)
                except DocumentError as error:
                    reason = str(error)
                else:
                    yield item
                    continue
            else:
                reason = item.reason
            count["unreadable"] += 1
            count.setdefault("first_unreadable", f"{item.id}: {reason}")

    def adopt_documents(self, path: Path, *, stage: str, held_out: bool) -> Path:
        """A folder with a native manifest of a source and its media; held_out: the audited ones are moved into the
        validation split, and the tokenizer is trained on the others. Documents that cannot be read are left out, and
        counted in the folder's result."""
        source = open_source(path, max_file_mib=self.max_file_mib)
        audit = self.line.audit if held_out else None
        vocab_size = self.line.base.corpus.vocab_size if held_out else None
        config = {"audit": audit, "vocab_size": vocab_size}
        key = store_key(config, {"documents": self.source_digest(source)}, revision=WORDS_REVISION)

        def build(folder: Path) -> dict[str, Any]:
            hasher = self._hasher(source.root)
            count: dict[str, Any] = {"documents": 0, "unreadable": 0}
            documents = self._readable(source, hasher, count)
            if held_out:
                documents = audited_split(documents, hasher, self.line.audit)
            with replacing(folder / MANIFEST) as file:
                for document in documents:
                    # copies: whoever owns the documents may edit theirs
                    adopted = hasher.adopt(document, folder, link=False)
                    file.write(json.dumps(adopted.to_json(), ensure_ascii=False) + "\n")
                    count["documents"] += 1
            if held_out:
                texts = iter_texts(open_source(folder / MANIFEST, max_file_mib=self.max_file_mib).documents())
                train_tokenizer(texts, self.line.base.corpus.vocab_size).save(folder / TOKENIZER)
            return count

        return self.store.get_or_build(stage, key, build)

    def adopt_feedback(self, path: Path, *, held_out: frozenset[str], rejected: Iterable[str]) -> Path:
        """A folder with a native manifest of the feedback that may be trained on: none that shares its content, prompt
        or media with a held-out case, none whose content is among the rejected, and none that cannot be read. The
        folder's result counts them."""
        source, excluded = open_source(path, max_file_mib=self.max_file_mib), set(rejected)
        inputs = {
            "documents": self.source_digest(source), "held_out": digest(sorted(held_out)),
            "rejected": digest(sorted(excluded)),
        }  # fmt: skip
        key = store_key({}, inputs, revision=FEEDBACK_REVISION)

        def build(folder: Path) -> dict[str, Any]:
            hasher = self._hasher(source.root)
            count: dict[str, Any] = {"documents": 0, "shares_held_out": 0, "rejected": 0, "unreadable": 0}
            with replacing(folder / MANIFEST) as file:
                for document in self._readable(source, hasher, count):
                    if hasher.is_held_out(document, held_out):
                        count["shares_held_out"] += 1
                    elif hasher.content(document) in excluded:
                        count["rejected"] += 1
                    else:
                        adopted = hasher.adopt(document, folder, link=False)
                        file.write(json.dumps(adopted.to_json(), ensure_ascii=False) + "\n")
                        count["documents"] += 1
            return count

        return self.store.get_or_build("feedback", key, build)

    def without_withdrawn(self, kept: Path | None, feedback: Path | None) -> Path | None:
        """Of the feedback that an earlier round kept, a folder of what today's feedback has too, by content: what its
        users have taken out is trained on by no arm. None where nothing is left."""
        if kept is None or feedback is None:
            return None
        withdrawn = self.contents(kept) - self.contents(feedback)
        if not withdrawn:
            return kept
        inputs = {"kept": file_digest(kept / MANIFEST), "withdrawn": digest(sorted(withdrawn))}

        def build(folder: Path) -> dict[str, int]:
            hasher, count = self._hasher(kept), 0
            with replacing(folder / MANIFEST) as file:
                for document in self._stored(kept):
                    if hasher.content(document) not in withdrawn:
                        adopted = hasher.adopt(document, folder)
                        file.write(json.dumps(adopted.to_json(), ensure_ascii=False) + "\n")
                        count += 1
            return {"documents": count}

        folder = self.store.get_or_build("feedback", store_key({}, inputs, revision=FEEDBACK_REVISION), build)
        return folder if self.store.result(folder)["documents"] else None

    def contents(self, folder: Path | None) -> set[str]:
        """Digests of the documents of an adopted folder."""
        if folder is None:
            return set()
        hasher = self._hasher(folder)
        return {hasher.content(document) for document in self._stored(folder)}

    def _stored(self, folder: Path) -> Iterator[Document]:
        """The documents of an adopted folder."""
        found = open_source(folder / MANIFEST, max_file_mib=self.max_file_mib).documents()
        return (item for item in found if isinstance(item, Document))

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
        hasher, found = self._hasher(words), set[str]()
        for document in self._stored(words):
            if document.split != "train":
                found |= hasher.identities(document)
        # the suite may have been made under another limit
        hasher = ContentHasher(suite.folder, max_file_mib=max(MAX_FILE_MIB, self.max_file_mib))
        for case in suite.cases:
            found |= hasher.identities(Document(case.id, tuple(case.parts), "case", split="test"))
        return frozenset(found)

    def audit(self, teacher: LoadedModel, words: Path) -> tuple[AuditResult, str]:
        """The audit of a teacher, and its digest."""
        inputs = {"weights": file_digest(teacher.folder / WEIGHTS), "words": file_digest(words / MANIFEST)}
        config = {"audit": self.line.audit, "label": self.line.label}
        key = store_key(config, inputs, revision=AUDIT_REVISION)

        def build(folder: Path) -> None:
            audit_pseudo_labels(
                teacher, words / MANIFEST, config=self.line.audit, label_config=self.line.label,
                max_file_mib=self.max_file_mib,
            ).save(folder)  # fmt: skip

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
                held_out=held_out, config=self.line.label, max_file_mib=self.max_file_mib,
            )  # fmt: skip

        return self.store.get_or_build("relabel", key, build), asked

    def play_source_digest(self) -> str | None:
        """Digest of the source tree that self-play asks about, as it is now; None where the line has none."""
        return None if self.line.self_play is None else SourceText.read(self.line.self_play_source).digest

    def play(
        self, teacher: LoadedModel, *, number: int, earlier: list[Path], held_out: frozenset[str],
        source_digest: str | None = None,
    ) -> Path | None:  # fmt: skip
        """The pool of a round's self-play; None where the line has none. source_digest: of the source tree when the
        round began; ValueError for another one, unless the round has played already."""
        if self.line.self_play is None:
            return None
        config = dataclasses.replace(
            self.line.self_play, round_number=number, seed=self.line.self_play.seed + number,
            collapse=self.line.collapse,
        )  # fmt: skip
        if source_digest is None:
            # of a round that began before the source was pinned
            source_digest = self.play_source_digest()
        assert source_digest is not None
        known = [file_digest(pool / POOL_FILE) for pool in earlier]
        inputs = {
            "weights": file_digest(teacher.folder / WEIGHTS), "source": source_digest, "earlier": digest(known),
            "held_out": digest(sorted(held_out)),
        }  # fmt: skip
        key = store_key(config, inputs, revision=PLAY_REVISION)

        def build(folder: Path) -> None:
            source = SourceText.read(self.line.self_play_source)
            if source.digest != source_digest:
                named = self.line.self_play_source or "the interpreter's standard library"
                raise ValueError(
                    f"self_play_source ({named}) has changed since round {number} began, which plays about what it "
                    "was: put it back, or begin a line of another name"
                )
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
