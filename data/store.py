"""A source of documents encoded once into a folder of memory-mapped arrays, and read back document by document.

    meta.json           hashes of source, tokenizer and EncodeConfig; counts; written last, so complete or absent
    tokenizer.json      the tokenizer the ids belong to
    index/*.npy         one entry a document: kind, level, split, source, num_tokens, num_image/audio/video, crc32,
                        shard, start_<field> (first entry of that field in its shard), line_start (into documents.jsonl)
    documents.jsonl     the native JSON of each document kept
    quarantine.jsonl    what was set aside: id, file, line, reason
    shards/00000/*.npy  the fields of `data.sequence.Sequence`, concatenated over the shard's documents

The build decodes in killable servers and writes in one process (`data.shards`), in manifest order, so the arrays are
the same to the bit whatever the number of servers; a build that was killed goes on after the last whole shard. The
index is mapped like everything else: what nobody reads takes no memory. `DecodingCorpus` has the interface of
`EncodedCorpus` but takes media from their files when asked, through the same servers, and holds every document to the
stored checksum.

Building what is built already looks at every file that it was made from (`data.media_record`): where one changed under
an unchanged manifest, the shards from that one on are made again, in a finished corpus and in one that goes on.

A finished corpus is never taken apart: where it has to be made again, the new one is written beside it, as
`<name>.rebuilding`, and takes its place by rename when it is whole. So a rebuild that fails or is stopped leaves the
former corpus as it was, and goes on the next time. Filter rounds of a former corpus are kept as `rounds.former`.

What this does not do: copy media (the manifest's folder must stay for `path_of` and decoding), or look at them when a
corpus is only opened (the decoding corpus holds them to their checksum). Delete the folder to rebuild.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.config import EncodeConfig
from data.decode_pool import DecodePool
from data.document import MODALITIES, Document, Part, Quarantined, check_relative, parse_document
from data.formats import Source, open_source
from data.media_record import Watch, changed_media
from data.rebuild import begin, beside, keep_shards, recover, sole_builder, take_place
from data.sequence import FIELDS, TOKEN_FIELDS, Sequence
from data.shards import INDEX, ShardWriter, drop_shards, read_json, write_json
from data.tokenizer import Tokenizer

logger = logging.getLogger("brine.store")

FORMAT = 2
READING = 1
"""Counts up where documents come in another order or split: what was begun under other rules is begun again."""


class CorpusError(ValueError):
    """A corpus that cannot be built or opened; the message names it and the remedy."""


class CorruptDocument(ValueError):
    """A document that could not be loaded though the index has it."""


def is_corpus(path: str | Path) -> bool:
    """Whether a path is a folder that `build_corpus` wrote, or began."""
    path = Path(path)
    return ((path / "index").is_dir() and (path / "meta.json").is_file()) or (path / "building.json").is_file()


def build_corpus(
    manifest: str | Path | Source,
    folder: str | Path,
    *,
    tokenizer: Tokenizer,
    config: EncodeConfig | None = None,
    num_workers: int = 2,
    keep_media: bool = True,
    shard_mib: float = 64.0,
    shard_documents: int = 4096,
    progress: bool = False,
    replace_other: bool = True,
) -> "EncodedCorpus":
    """Encode a source into `folder` and open it; at once when the folder holds the finished result already, and no
    file that it was made from has changed.

    `manifest` is what `data.formats.open_source` gives, or a path that it opens: a manifest, folder, tar or table.
    keep_media=False stores tokens and index without patches, for `DecodingCorpus`. `num_workers` decoding servers
    run beside this process. replace_other: whether a finished corpus of another source may be replaced. Raises
    CorpusError when the source cannot be read or no document of it can be used, InUseError while another process
    builds there; what was finished before stays then.
    """
    folder, config = Path(folder), config or EncodeConfig()
    source = manifest if isinstance(manifest, Source) else _open(manifest, config)
    identity = {
        "format": FORMAT,
        # words and names; what media, tars and tables hold is noted shard by shard
        "manifest_sha256": source.fingerprint(media=False),
        "tokenizer_sha256": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "encode_digest": config.digest(),
        "keep_media": keep_media,
        "shard_mib": shard_mib,
        "shard_documents": shard_documents,
    }
    recover(folder)
    former = read_json(folder / "meta.json")
    finished, place, limit = former.get("identity") == identity, folder, config.max_file_mib
    changes = changed_media(folder, source.root, max_file_mib=limit) if finished else None
    if finished and not changes:
        return EncodedCorpus.open(folder)
    if former:
        if not finished and not replace_other and former.get("manifest") != str(source.path.resolve()):
            raise CorpusError(
                f"folder {folder} holds the corpus of {former.get('manifest')}: give another folder, or delete it first"
            )
        place = beside(folder)
        logger.warning("%s stays as it is until the new corpus is whole, which is written to %s", folder, place)
    beginning = identity | {"reading": READING}
    with sole_builder(place):
        if read_json(place / "building.json") == beginning:
            changes, drop = changed_media(place, source.root, max_file_mib=limit), place
        else:
            if not begin(place, beginning):
                raise CorpusError(f"folder {place} holds other files: give a new or empty one for the encoded corpus")
            if changes:
                keep_shards(folder, place, changes.shard)
            drop = None
        if changes:
            again = "all of it" if not changes.shard else f"what follows shard {changes.shard - 1}"
            logger.warning("%s: %s; %s is encoded again", source.path, changes, again)
            if drop is not None:
                drop_shards(drop, changes.shard)
        _fill(place, source, identity=identity, tokenizer=tokenizer, config=config, servers=num_workers, bar=progress)
        if place != folder:
            take_place(place, folder, keep_rounds=_fingerprint_of(place) == _fingerprint_of(folder))
    return EncodedCorpus.open(folder)


def _fill(
    place: Path, source: Source, *, identity: dict, tokenizer: Tokenizer, config: EncodeConfig, servers: int, bar: bool
) -> None:
    """Encode what is not yet there of a source into a folder that was begun for it, and finish it."""
    (place / "shards").mkdir(exist_ok=True)
    writer = ShardWriter(
        place,
        keep_media=identity["keep_media"],
        shard_bytes=int(identity["shard_mib"] * 2**20),
        shard_documents=identity["shard_documents"],
    )
    began = time.monotonic()
    with (
        DecodePool(root=source.root, tokenizer=tokenizer, config=config, num_servers=servers) as pool,
        Watch(source, max_file_mib=config.max_file_mib) as watch,
    ):
        results = pool.encode_items(watch.items(source, writer.items_done))
        if bar:
            from tqdm import tqdm

            total = source.num_documents_hint
            results = tqdm(results, desc="encode", unit=" docs", initial=writer.items_done, total=total, smoothing=0.05)
        for result in results:
            writer.note(watch.take())
            writer.add(result)
            if not isinstance(result, Quarantined) and result.quarantined is not None:
                source.set_aside(result.document)
        writer.close_shard()
    tokenizer.save(place / "tokenizer.json")
    counts = writer.finish()
    if not counts["documents"] and not counts["quarantined"]:
        raise CorpusError("; ".join([f"{source.path} holds no document", *source.told()]))
    if not counts["documents"]:
        first = counts["first_reason"]
        raise CorpusError(
            f"no document of {source.path} can be used ({counts['quarantined']} set aside; the first: {first}): "
            f"see {place / 'quarantine.jsonl'} and mend the files it names"
        )
    write_json(
        place / "meta.json",
        {
            "identity": identity,
            "manifest": str(source.path.resolve()),
            "root": str(source.root),
            "encode": config.to_dict(),
            "build_s": round(time.monotonic() - began, 3),
            **counts,
        },
    )


def _fingerprint_of(folder: Path) -> str:
    """The fingerprint of a corpus; "" for a damaged one, which may be replaced all the same."""
    try:
        return EncodedCorpus.open(folder).fingerprint
    except CorpusError:
        return ""


class EncodedCorpus:
    """A folder written by `build_corpus`. Arrays stay on disk; `sequence(i)` reads one document, checked by crc32.

    Public arrays, one entry a document (n of them): kind (int16 into kinds), level, split (int8 into SPLITS), source
    (int32 into sources), num_tokens (int64), num_media[modality] (int64).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = read_json(self.folder / "meta.json")
        if self.meta.get("identity", {}).get("format") != FORMAT:
            raise CorpusError(f"{self.folder} holds no finished corpus of format {FORMAT}: build it with build_corpus")
        self.config = EncodeConfig.from_dict(self.meta["encode"])
        # corpora of before had manifests only, whose folder is the root
        self.root = Path(self.meta.get("root", Path(self.meta["manifest"]).parent))
        self.kinds: list[str] = self.meta["kinds"]
        self.sources: list[str] = self.meta["sources"]
        self.num_documents: int = self.meta["documents"]
        try:
            self._index = {name: self._load_column(name) for name in INDEX}
        except (OSError, ValueError) as error:
            raise CorpusError(f"corpus {self.folder} is damaged ({error}): delete it and build it again") from None
        last = int(self._index["shard"][-1]) if self.num_documents else -1
        for number in range(last + 1):
            if not (self.folder / "shards" / f"{number:05d}" / "shard.json").is_file():
                raise CorpusError(f"corpus {self.folder} lacks shard {number:05d}: copy all of it, or build it again")
        self.kind, self.level = self._index["kind"], self._index["level"]
        self.split, self.source = self._index["split"], self._index["source"]
        self.num_tokens = self._index["num_tokens"]
        self.num_media = {name: self._index[f"num_{name}"] for name in MODALITIES}
        self._shards: dict[tuple[int, str], np.ndarray] = {}
        self._ids: list[str] | None = None
        self._tokenizer: Tokenizer | None = None

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
        identity = self.meta["identity"] | {"keep_media": None, "shard_mib": None, "shard_documents": None}
        content = json.dumps([identity, self.num_documents], sort_keys=True).encode()
        return hashlib.sha256(content + self._index["crc32"].tobytes()).hexdigest()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the corpus was encoded with."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.folder / "tokenizer.json")
        return self._tokenizer

    @property
    def checksums(self) -> np.ndarray:
        """(n,) crc32 of each document's tokens and patches: equal for equal documents."""
        return self._index["crc32"]

    @property
    def ids(self) -> list[str]:
        """Document ids in order."""
        if self._ids is None:
            with open(self.folder / "documents.jsonl", "rb") as file:
                self._ids = [json.loads(line)["id"] for line in file]
        return self._ids

    def quarantine(self) -> list[dict]:
        """Records of what the build set aside."""
        with open(self.folder / "quarantine.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def document(self, number: int) -> Document:
        """The document as it stood in the manifest, in native form."""
        with open(self.folder / "documents.jsonl", "rb") as file:
            file.seek(int(self._index["line_start"][number]))
            return parse_document(json.loads(file.readline()))

    def path_of(self, part: Part) -> Path:
        """Where the file of a media part lies; for a part inside a tar or table no file is at that path."""
        return self.root / check_relative(part.path)

    def _field(self, number: int, name: str) -> np.ndarray:
        shard = int(self._index["shard"][number])
        if (shard, name) not in self._shards:
            path = self.folder / "shards" / f"{shard:05d}" / f"{name}.npy"
            self._shards[shard, name] = np.load(path, mmap_mode="r", allow_pickle=False)
        array = self._shards[shard, name]
        start = int(self._index[f"start_{name}"][number])
        count = int(self._index[f"num_{name}" if name in MODALITIES else "num_tokens"][number])
        if start + count > len(array):
            raise CorruptDocument(f"field {name} ends at entry {len(array)}, before the document does")
        return array[start : start + count]

    def tokens(self, number: int) -> Sequence:
        """The sequence without its patches, unchecked: what planning needs of a long document."""
        fields = {name: np.asarray(self._field(number, name)) for name in TOKEN_FIELDS}
        empty = {name: np.zeros((0, self.config.dims[name]), FIELDS[name]) for name in MODALITIES}
        return Sequence(**fields, **empty)

    def sequence(self, number: int) -> Sequence:
        """One document. Raises CorruptDocument when the cache is damaged."""
        if not self.meta["identity"]["keep_media"]:
            raise CorpusError(f"corpus {self.folder} was built without media: open it with DecodingCorpus")
        try:
            sequence = Sequence(**{name: np.asarray(self._field(number, name)) for name in FIELDS}).validate()
        except (OSError, ValueError) as error:
            raise CorruptDocument(f"document {number} of {self.folder} cannot be read: {error}") from None
        self._check(number, sequence.crc32())
        return sequence

    def sequences(self, numbers: Iterable[int]) -> dict[int, Sequence | CorruptDocument]:
        """Several documents at once; a failure stands in for its document instead of being raised."""
        found: dict[int, Sequence | CorruptDocument] = {}
        for number in numbers:
            try:
                found[number] = self.sequence(number)
            except CorruptDocument as error:
                found[number] = error
        return found

    def _check(self, number: int, crc32: int) -> None:
        if crc32 != int(self._index["crc32"][number]):
            raise CorruptDocument(f"document {number} of {self.folder} differs from its checksum: rebuild the corpus")

    def close(self) -> None:
        """Let go of mapped files."""
        self._shards.clear()


class DecodingCorpus(EncodedCorpus):
    """The same corpus with media decoded from their files when asked, by servers that can be killed.

    Lengths come from the index, so plans are the same; a file that changed since fails its checksum. Slower by
    the price of decoding, and needs no room for patches.
    """

    def __init__(self, folder: str | Path, *, num_servers: int = 1):
        super().__init__(folder)
        self.num_servers = num_servers
        self._pool: DecodePool | None = None

    def __reduce__(self):
        return _open_decoding, (str(self.folder), self.num_servers)

    def sequence(self, number: int) -> Sequence:
        """One document, decoded now. Raises CorruptDocument when that fails or gives something else than indexed."""
        found = self.sequences([number])[number]
        if isinstance(found, CorruptDocument):
            raise found
        return found

    def sequences(self, numbers: Iterable[int]) -> dict[int, Sequence | CorruptDocument]:
        """Several documents, decoded in one go."""
        numbers = list(dict.fromkeys(numbers))
        if self._pool is None:
            self._pool = DecodePool(
                root=self.root,
                tokenizer=self.tokenizer,
                config=self.config,
                num_servers=self.num_servers,
                batch_documents=16,
            )
        found: dict[int, Sequence | CorruptDocument] = {}
        for number, result in zip(numbers, self._pool.encode(map(self.document, numbers)), strict=True):
            try:
                if result.sequence is None:
                    raise CorruptDocument(f"document {number}: {result.quarantined.reason}")
                self._check(number, result.crc32)
                found[number] = result.sequence
            except CorruptDocument as error:
                found[number] = error
        return found

    def close(self) -> None:
        """End the decoding servers and let go of mapped files."""
        super().close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def open_corpus(folder: str | Path) -> EncodedCorpus:
    """A finished corpus, as one that decodes where it was built without media. Raises CorpusError."""
    corpus = EncodedCorpus.open(folder)
    return corpus if corpus.meta["identity"]["keep_media"] else DecodingCorpus(folder)


def _open_decoding(folder: str, num_servers: int) -> DecodingCorpus:
    return DecodingCorpus(folder, num_servers=num_servers)


def _open(path: str | Path, config: EncodeConfig) -> Source:
    try:
        return open_source(path, max_file_mib=config.max_file_mib)
    except ValueError as error:
        raise CorpusError(str(error)) from None
