"""What the resume tests compare, hashes of global rows, and a rank that can be stopped in any way."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch

from brine.data.batch import Batch, counter_generator
from brine.data.corpus.store import DecodingCorpus, EncodedCorpus
from brine.data.document import MODALITIES
from brine.data.loader import Loader
from brine.data.packing.plan import PackingPlan
from brine.data.sequence import EncodedDocument
from brine.model.inputs import TENSORS

FIELDS = ("token_ids", "position", "document", "block", "labels", "kind", "modality_context")


def row_hashes(batch: Batch) -> dict[int, str]:
    """Global row -> SHA-256 of all its tensors, its patches and their places in the row."""
    num_sequences, seq_len = batch.inputs.token_ids.shape
    found = {}
    for at, row in enumerate(batch.sequence_index):
        content = hashlib.sha256()
        for name in FIELDS:
            content.update(getattr(batch.inputs if name in TENSORS else batch, name)[at].numpy().tobytes())
        for name in MODALITIES:
            patches, media_index = batch.inputs.media[name]
            own = media_index // seq_len == at
            content.update((media_index[own] - at * seq_len).numpy().tobytes() + patches[own].numpy().tobytes())
        found[row] = content.hexdigest()
    for name in MODALITIES:
        # what belongs to no row is blank
        assert not batch.inputs.media[name][0][batch.inputs.media[name][1] == num_sequences * seq_len].any()
    return found


@dataclasses.dataclass(frozen=True)
class Speckle:
    """Augmentation by counters: noise on images, drawn from (seed, document, row)."""

    seed: int

    def __call__(self, document: int, sequence: EncodedDocument, row: int) -> EncodedDocument:
        noise = counter_generator(self.seed, document, row).integers(0, 8, sequence.image.shape, dtype=np.uint8)
        return dataclasses.replace(sequence, image=sequence.image ^ noise)


def open_corpus(folder: str | Path, *, decoding: bool) -> EncodedCorpus:
    """The corpus with its patches from the cache, or decoded when asked."""
    return DecodingCorpus(folder) if decoding else EncodedCorpus.open(folder)


def descendants(pid: int) -> set[int]:
    """Processes below one, by /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def alive(pid: int) -> bool:
    """Is it there, and not merely waiting to be buried?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def serve(connection, asked: dict) -> None:
    """A rank in a process of its own: (state, {row: hash}) of a step for each word that it receives.

    asked: corpus, plan, decoding, rank, world_size, global_batch_size, start_sequence, num_workers, transform.
    """
    torch.set_num_threads(1)
    loader = Loader(
        open_corpus(asked["corpus"], decoding=asked["decoding"]),
        PackingPlan.load(asked["plan"]),
        local_batch_size=asked["global_batch_size"] // asked["world_size"],
        start_sequence=asked["start_sequence"],
        rank=asked["rank"],
        world_size=asked["world_size"],
        num_workers=asked["num_workers"],
        transform=Speckle(asked["transform"]),
    )
    for batch in loader:
        connection.recv()
        connection.send((loader.state, row_hashes(batch)))
