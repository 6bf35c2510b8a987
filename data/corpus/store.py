"""A source of documents encoded once into a folder of memory-mapped arrays, and read back document by document.

    meta.json           hashes of source, tokenizer and EncodeConfig; counts; written last, so complete or absent
    tokenizer.json      the tokenizer the ids belong to
    index/*.npy         one number per document: kind, level, split, source, num_tokens, num_image/audio/video, crc32,
                        shard, start_<field> (where it begins in its shard's field), line_start (in documents.jsonl)
    documents.jsonl     the native JSON of each document kept
    quarantine.jsonl    what was quarantined: id, file, line, reason
    shards/00000/*.npy  the fields of `brine.data.sequence.EncodedDocument`, concatenated over the shard's documents

Killable processes decode, one writes (`brine.data.corpus.shards`), in manifest order: arrays are bit-identical
for any number of processes. A killed build resumes after the last shard; a finished one is encoded again from the first
shard with a changed file (`file_records`), in a folder beside it (`swap`). Media are not copied (their folder must stay
for `path_of` and decoding), nor compared when a corpus is opened.
"""

import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from brine.common.files import read_json
from brine.common.remote.cache import cache_root
from brine.common.remote.object_store import RemoteError, is_url
from brine.data.config import EncodeConfig
from brine.data.corpus.blocks.engine import BlockEngine
from brine.data.corpus.file_records import find_changed_files
from brine.data.corpus.fill_shards import fill_shards
from brine.data.corpus.shards import INDEX, drop_shards, shard_path, write_json
from brine.data.corpus.streamed import StreamedShards, has_corpus, local_corpus
from brine.data.corpus.swap import build_lock, init_build_folder, link_shards, rebuild_path, recover_swap, swap_in
from brine.data.document import MODALITIES, Document, Part, parse_document
from brine.data.files.addresses import check_relative
from brine.data.files.roots import root_from_json, root_to_json
from brine.data.formats.open import DocumentSource, open_source
from brine.data.media.pool import DecodePool
from brine.data.sequence import FIELDS, TOKEN_FIELDS, EncodedDocument
from brine.data.tokenizer import Tokenizer

logger = logging.getLogger("brine.store")

FORMAT = 3
FINGERPRINT_FORMAT = 2
"""Raised where stored documents change. Format 3 renamed files alone, and filter passes and plans of before stay valid.
"""
READER_VERSION = 1
"""Raised where documents come in another order or split: a build that was begun with another one is begun again."""


class CorpusError(ValueError):
    """A corpus that cannot be built or opened; the message names it and the remedy."""


class CorruptDocumentError(ValueError):
    """A document that could not be loaded though the index has it."""


def is_corpus(path: str | Path) -> bool:
    """Whether a path is a folder that `build_corpus` wrote, or began, or a URL of a finished one."""
    if is_url(path):
        return has_corpus(path)
    path = Path(path)
    return ((path / "index").is_dir() and (path / "meta.json").is_file()) or (path / "building.json").is_file()


def build_corpus(
    manifest: str | Path | DocumentSource,
    folder: str | Path,
    *,
    tokenizer: Tokenizer,
    config: EncodeConfig | None = None,
    num_workers: int = 2,
    keep_media: bool = True,
    shard_mib: float = 64.0,
    shard_documents: int = 4096,
    progress: bool = False,
    overwrite_other: bool = True,
    engine: BlockEngine | None = None,
) -> "EncodedCorpus":
    """Encode a source into `folder` and open it; only open it when that is done already and no source file has changed.

    manifest: a DocumentSource, or a path that `open_source` opens. keep_media=False stores no patches, for
    `DecodingCorpus`. num_workers: decoding processes. engine: encodes blocks of `shard_documents` items elsewhere, to
    the same bytes, instead. overwrite_other: a finished corpus of another source may be replaced. Raises CorpusError
    when the source cannot be read, no document of it can be used or the folder holds something else, CorpusLockedError
    while another process builds there; what was finished before stays then.
    """
    folder, config, source = Path(folder), config or EncodeConfig(), manifest
    if not isinstance(source, DocumentSource):
        try:
            source = open_source(source, max_file_mib=config.max_file_mib)
        except ValueError as error:
            raise CorpusError(str(error)) from None
    identity = {
        "format": FORMAT,
        # words and names; what media, tars and tables hold is recorded shard by shard
        "manifest_sha256": source.fingerprint(media=False),
        "tokenizer_sha256": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "encode_digest": config.digest(),
        "keep_media": keep_media,
        "shard_mib": shard_mib,
        "shard_documents": shard_documents,
    }
    recover_swap(folder)
    former = read_json(folder / "meta.json") or {}
    _refuse_old_format(folder, former)
    finished, build_folder = former.get("identity") == identity, folder
    changes = find_changed_files(folder, source.root, max_file_mib=config.max_file_mib) if finished else None
    if finished and not changes:
        return EncodedCorpus.open(folder)
    if former:
        if not finished and not overwrite_other and former.get("manifest") != source.location:
            raise CorpusError(
                f"folder {folder} holds the corpus of {former.get('manifest')}: give another folder, or delete it first"
            )
        build_folder = rebuild_path(folder)
        logger.warning("%s is kept until the new corpus, written to %s, is complete", folder, build_folder)
    build_identity = identity | {"reader_version": READER_VERSION}
    with build_lock(build_folder):
        resumed = read_json(build_folder / "building.json") == build_identity
        if resumed:
            changes = find_changed_files(build_folder, source.root, max_file_mib=config.max_file_mib)
        elif not init_build_folder(build_folder, build_identity):
            raise CorpusError(
                f"folder {build_folder} holds other files: give a new or empty one for the encoded corpus"
            )
        elif changes:
            link_shards(folder, build_folder, changes.shard)
        if changes:
            again = "all of it" if not changes.shard else f"what follows shard {changes.shard - 1}"
            logger.warning("%s: %s; %s is encoded again", source.path, changes, again)
            if resumed:
                drop_shards(build_folder, changes.shard)
        how = {"engine": engine, "num_workers": num_workers, "progress": progress}
        _encode(build_folder, source, identity, tokenizer, config, **how)
        if build_folder != folder:
            swap_in(build_folder, folder, keep_filter_log=_fingerprint_of(build_folder) == _fingerprint_of(folder))
    return EncodedCorpus.open(folder)


def _encode(
    build_folder: Path,
    source: DocumentSource,
    identity: dict,
    tokenizer: Tokenizer,
    config: EncodeConfig,
    **how: Any,
) -> None:
    """how: engine, num_workers and progress of `fill_shards`."""
    began = time.monotonic()
    counts = fill_shards(build_folder, source, identity=identity, tokenizer=tokenizer, config=config, **how)
    tokenizer.save(build_folder / "tokenizer.json")
    if not counts["documents"] and not counts["quarantined"]:
        raise CorpusError("; ".join([f"{source.path} holds no document", *source.summary_lines()]))
    if not counts["documents"]:
        remedy = f"see {build_folder / 'quarantine.jsonl'} and repair the files it names"
        if source.path.is_relative_to(cache_root()) and "does not exist" in counts["first_reason"]:
            remedy = "media come from a URL with the URL of their folder: give that instead of the manifest's"
        raise CorpusError(
            f"no document of {source.path} can be used ({counts['quarantined']} quarantined; the first: "
            f"{counts['first_reason']}): {remedy}"
        )
    meta = {"identity": identity, "manifest": source.location, "root": root_to_json(source.root)}
    meta |= {"corpus_sources": list(source.described)} if source.described else {}
    meta |= {"encode": config.to_dict(), "build_s": round(time.monotonic() - began, 3)}
    meta["summary"] = source.summary_lines()
    write_json(build_folder / "meta.json", meta | counts)


def _refuse_old_format(folder: Path, meta: dict) -> None:
    found = meta.get("identity", {}).get("format", FORMAT)
    if found != FORMAT:
        raise CorpusError(
            f"{folder} holds a corpus of format {found}, not {FORMAT}: convert it with `brine convert {folder}`"
        )


def _fingerprint_of(folder: Path) -> str:
    """The fingerprint of a corpus; "" for a damaged one, which may be replaced all the same."""
    try:
        return EncodedCorpus.open(folder).fingerprint
    except CorpusError:
        return ""


class EncodedCorpus:
    """A folder written by `build_corpus`. Arrays stay on disk; `encoded_document(i)` reads one, checked by crc32.

    Public arrays, one number per document (n of them): kind (int16 into kinds), level, split (int8 into SPLITS), source
    (int32 into sources), num_tokens (int64), num_media[modality] (int64).
    """

    def __init__(self, folder: str | Path):
        self.folder = local_corpus(folder)
        self.meta = read_json(self.folder / "meta.json") or {}
        if "identity" not in self.meta:
            stage = (self.folder / "store" / "meta.json").is_file()
            remedy = f"give {self.folder / 'store'}" if stage else "build it with `brine data build`"
            raise CorpusError(f"{self.folder} holds no finished corpus: {remedy}")
        _refuse_old_format(self.folder, self.meta)
        self.config = EncodeConfig.from_dict(self.meta["encode"])
        # early corpora had manifests only, whose folder is the root
        self.root = root_from_json(self.meta.get("root") or str(Path(self.meta["manifest"]).parent))
        self.kinds: list[str] = self.meta["kinds"]
        self.sources: list[str] = self.meta["sources"]
        self.num_documents: int = self.meta["documents"]
        try:
            self._index = {name: self._load_column(name) for name in INDEX}
        except (OSError, ValueError) as error:
            raise CorpusError(f"corpus {self.folder} is damaged ({error}): delete it and build it again") from None
        last = int(self._index["shard"][-1]) if self.num_documents else -1
        for number in range(last + 1):
            if not (shard_path(self.folder, number) / "shard.json").is_file():
                raise CorpusError(f"corpus {self.folder} lacks shard {number:05d}: copy all of it, or build it again")
        self.kind, self.level = self._index["kind"], self._index["level"]
        self.split, self.source = self._index["split"], self._index["source"]
        self.num_tokens = self._index["num_tokens"]
        self.num_media = {name: self._index[f"num_{name}"] for name in MODALITIES}
        self._shards: dict[tuple[int, str], np.ndarray] = {}
        self._streamed = StreamedShards.of(self.folder)

    def _load_column(self, name: str) -> np.ndarray:
        path = self.folder / "index" / f"{name}.npy"
        column = np.load(path, mmap_mode="r" if self.num_documents else None, allow_pickle=False)
        if (column.shape, column.dtype) != ((self.num_documents,), INDEX[name]):
            raise ValueError(f"{path} holds {column.dtype} of shape {column.shape}")
        return np.asarray(column)

    @classmethod
    def open(cls, folder: str | Path) -> "EncodedCorpus":
        """Open a finished corpus folder. Raises CorpusError when there is none, or it is damaged."""
        return cls(folder)

    def __len__(self) -> int:
        return self.num_documents

    def __reduce__(self):
        return type(self), (str(self.folder),)

    @property
    def fingerprint(self) -> str:
        """Identifies the documents, their order and their encoding; plans carry it."""
        same = {"format": FINGERPRINT_FORMAT, "keep_media": None, "shard_mib": None, "shard_documents": None}
        content = json.dumps([self.meta["identity"] | same, self.num_documents], sort_keys=True).encode()
        return hashlib.sha256(content + self._index["crc32"].tobytes()).hexdigest()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer.json")

    @property
    def checksums(self) -> np.ndarray:
        """(n,) crc32 of each document's tokens and patches: equal for equal documents."""
        return self._index["crc32"]

    @functools.cached_property
    def ids(self) -> list[str]:
        """Document ids in order."""
        with open(self.folder / "documents.jsonl", "rb") as file:
            return [json.loads(line)["id"] for line in file]

    @property
    def summary_lines(self) -> list[str]:
        """What reading the source found, by `DocumentSource.summary_lines` without what was quarantined."""
        return self.meta.get("summary", [])

    @property
    def consent_classes(self) -> dict[str, str]:
        """Class of consent of each source that the corpus joins, by its name; {} where it was made from one alone."""
        return {source["name"]: source["consent"] for source in self.meta.get("corpus_sources", ())}

    def quarantine(self) -> list[dict]:
        """Records of what the build quarantined."""
        with open(self.folder / "quarantine.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def document(self, number: int) -> Document:
        """The document as it stood in the manifest, in native form."""
        with open(self.folder / "documents.jsonl", "rb") as file:
            file.seek(int(self._index["line_start"][number]))
            return parse_document(json.loads(file.readline()))

    def path_of(self, part: Part) -> Path:
        """The file of a media part; for a part inside a tar or table no file has that path."""
        return self.root / check_relative(part.path)

    def _field(self, number: int, name: str) -> np.ndarray:
        shard = int(self._index["shard"][number])
        if (shard, name) not in self._shards:
            path = shard_path(self.folder, shard) / f"{name}.npy"
            if self._streamed is not None:
                return self._part(number, name, self._streamed.array(path))
            self._shards[shard, name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._part(number, name, self._shards[shard, name])

    def _part(self, number: int, name: str, array: np.ndarray) -> np.ndarray:
        start = int(self._index[f"start_{name}"][number])
        count = int(self._index[f"num_{name}" if name in MODALITIES else "num_tokens"][number])
        if start + count > len(array):
            raise CorruptDocumentError(f"field {name} ends at {len(array)}, before the document does")
        return array[start : start + count]

    def tokens(self, number: int) -> EncodedDocument:
        """The sequence without its patches, unchecked: what planning needs of a long document."""
        fields = {name: np.asarray(self._field(number, name)) for name in TOKEN_FIELDS}
        empty = {name: np.zeros((0, self.config.dims[name]), FIELDS[name]) for name in MODALITIES}
        return EncodedDocument(**fields, **empty)

    def encoded_document(self, number: int) -> EncodedDocument:
        """One document. Raises CorruptDocumentError when the cache is damaged."""
        if not self.meta["identity"]["keep_media"]:
            raise CorpusError(f"corpus {self.folder} was built without media: open it with DecodingCorpus")
        try:
            sequence = EncodedDocument(**{name: np.asarray(self._field(number, name)) for name in FIELDS}).validate()
        # a store that does not answer must not cost documents
        except RemoteError:
            raise
        except (OSError, ValueError) as error:
            raise CorruptDocumentError(f"document {number} of {self.folder} cannot be read: {error}") from None
        self._check(number, sequence.crc32())
        return sequence

    def encoded_documents(self, numbers: Iterable[int]) -> dict[int, EncodedDocument | CorruptDocumentError]:
        """Several documents at once; a failure stands in for its document instead of being raised."""
        found: dict[int, EncodedDocument | CorruptDocumentError] = {}
        for number in numbers:
            try:
                found[number] = self.encoded_document(number)
            except CorruptDocumentError as error:
                found[number] = error
        return found

    def _check(self, number: int, crc32: int) -> None:
        if crc32 != int(self._index["crc32"][number]):
            raise CorruptDocumentError(
                f"document {number} of {self.folder} differs from its checksum: rebuild the corpus"
            )

    def close(self) -> None:
        self._shards.clear()
        if self._streamed is not None:
            self._streamed.close()


class DecodingCorpus(EncodedCorpus):
    """The same corpus with media decoded from their files when asked, in processes that can be killed.

    Lengths come from the index, so plans are the same; a file that changed since fails its checksum.
    """

    def __init__(self, folder: str | Path, *, num_servers: int = 1):
        super().__init__(folder)
        self.num_servers = num_servers
        self._pool: DecodePool | None = None

    def __reduce__(self):
        return functools.partial(DecodingCorpus, num_servers=self.num_servers), (str(self.folder),)

    def encoded_document(self, number: int) -> EncodedDocument:
        """One document, decoded now. Raises CorruptDocumentError when that fails or differs from the index."""
        found = self.encoded_documents([number])[number]
        if isinstance(found, CorruptDocumentError):
            raise found
        return found

    def encoded_documents(self, numbers: Iterable[int]) -> dict[int, EncodedDocument | CorruptDocumentError]:
        """Several documents, decoded in one go."""
        numbers = list(dict.fromkeys(numbers))
        if self._pool is None:
            options = {"root": self.root, "tokenizer": self.tokenizer, "config": self.config}
            self._pool = DecodePool(**options, num_servers=self.num_servers, batch_documents=16)
        found: dict[int, EncodedDocument | CorruptDocumentError] = {}
        for number, result in zip(numbers, self._pool.encode(map(self.document, numbers)), strict=True):
            try:
                if result.encoded is None:
                    raise CorruptDocumentError(f"document {number}: {result.quarantined.reason}")
                self._check(number, result.crc32)
                found[number] = result.encoded
            except CorruptDocumentError as error:
                found[number] = error
        return found

    def close(self) -> None:
        super().close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def open_corpus(folder: str | Path) -> EncodedCorpus:
    """A finished corpus, as one that decodes where it was built without media. Raises CorpusError."""
    corpus = EncodedCorpus.open(folder)
    return corpus if corpus.meta["identity"]["keep_media"] else DecodingCorpus(folder)
