"""Bytes of a stage change only together with the revision of its code: otherwise runs that share stages would be given
what former code made.

`golden_stages.json` maps a stage and its revision to a digest of what it makes of a small fixed source, as far as that
is equal on all machines: of a training its packed sequences, of an evaluation the documents that are measured. After a
deliberate change and a raised revision, `python tests/pipeline/test_golden_stages.py` (from the repository's root, with
it on PYTHONPATH) adds the new lines.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from brine.data.config import EncodeConfig
from brine.data.corpus.readers import iter_texts
from brine.data.corpus.shards import INDEX
from brine.data.corpus.store import build_corpus
from brine.data.filters.registry import run_filters
from brine.data.formats.open import open_source
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import train_tokenizer
from brine.evals.loss import choose_documents
from brine.pipeline import corpus, evaluate_stage, model_stages
from brine.salt.selection import DocumentScores
from brine.synth import SynthConfig, SynthCounts, build_synth_corpus
from tests.data.encode_here import Here
from tests.synth.test_golden import write_source

GOLDEN = Path(__file__).with_name("golden_stages.json")
REVISIONS = {
    "corpus": corpus.CORPUS_REVISION,
    "encoded": corpus.ENCODED_REVISION,
    "filtered": corpus.FILTERED_REVISION,
    "training": model_stages.TRAIN_REVISION,
    "select": model_stages.SELECT_REVISION,
    "evaluate": evaluate_stage.EVALUATE_REVISION,
}


def digest_of(*arrays) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """What each stage makes of the source, on this machine."""
    write_source(folder / "source")
    counts = SynthCounts(text=40, package=2)
    synth = SynthConfig(source=folder / "source", train=counts, validation=counts, test=counts, workers=1)
    build_synth_corpus(synth, folder / "corpus")
    manifest = folder / "corpus" / "manifest.jsonl"
    source = open_source(manifest)
    tokenizer = train_tokenizer(iter_texts(source.documents()), 384)
    data = build_corpus(source, folder / "store", tokenizer=tokenizer, config=EncodeConfig(), num_workers=1)
    shards = sorted((folder / "store" / "shards").rglob("*.npy"))
    shards = [path.read_bytes() for path in shards if path.name != "media.npy"]
    index = [np.load(folder / "store" / "index" / f"{name}.npy") for name in INDEX]
    log = run_filters(data, ["exact_duplicates", "near_duplicates", "text_quality"], folder=folder / "filter_log")
    passes = [log.kept_mask(), *(json.dumps(log.dropped(number + 1)).encode() for number in range(len(log)))]
    plan = PackingPlan.build(
        data, split="train", seq_len=128, media_budget={"image": 0, "audio": 0, "video": 0}, epochs=2, seed=3,
        blank_fraction=0.1, documents=log.kept_mask(),
    )  # fmt: skip
    document = np.flatnonzero(np.asarray(data.split) == 0)
    scores = DocumentScores(
        document, np.sin(np.arange(len(document))).round(3), data.num_tokens[document] // 2, data.num_tokens[document]
    )
    scores.save(folder / "select", kept=scores.select_documents(keep=0.4, kind=data.kind[document]), ids=data.ids)
    measured = choose_documents(data, split="test", per_cell=7, seed=0)
    return {
        "corpus": digest_of(manifest.read_bytes()),
        "encoded": digest_of((folder / "store" / "tokenizer.json").read_bytes(), *shards, *index),
        "filtered": digest_of(*passes),
        "training": digest_of(
            *(getattr(plan, name).astype(np.int64) for name in ("document", "start", "stop", "blank"))
        ),
        "select": digest_of((folder / "select" / "selection.jsonl").read_bytes()),
        "evaluate": digest_of(" ".join(data.ids[number] for number in measured).encode()),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brine.data.corpus.store.DecodePool", Here)
        return digests(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", REVISIONS)
def test_bytes_change_only_with_the_revision(found, stage):
    known = json.loads(GOLDEN.read_text())
    name = f"{stage} {REVISIONS[stage]}"
    assert name in known, f"{GOLDEN.name} has no line for {name}: run this file to add it"
    assert found[stage] == known[name], f"bytes of stage {stage} changed: raise its REVISION"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        new = {f"{stage} {REVISIONS[stage]}": value for stage, value in digests(Path(folder)).items()}
        # what stands under a revision stays
        GOLDEN.write_text(json.dumps(new | known, indent=1) + "\n")
