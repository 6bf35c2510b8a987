"""Decides every document of the corpus before anything is rendered.

Train comes first; the held-out splits are sampled around what it contains (lines of its files and targets, all it
says). Each combination of split, kind and level has a random stream: more documents of one kind leave the others as
they were. A plan is a list of manifest entries in the native form and the specs of the media files they name; planning
50,000 documents takes a few seconds and no media library.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

from brine.common.plugins import installed_version
from brine.data.document import SPLITS
from brine.data.files.source_files import SourceFile
from brine.synth.config import KINDS, NEEDLE_KINDS, SynthConfig
from brine.synth.kinds import figures, pages, samples, screens
from brine.synth.kinds.data_tables import numeric_facts
from brine.synth.kinds.samples import Parts
from brine.synth.needles.needle import NeedleDocuments
from brine.synth.sources.code_metrics import CodeMetrics
from brine.synth.sources.code_regions import SplitSampler, TrainTextIndex
from brine.synth.sources.features import SourceFeatures

RENDER_SPEC_VERSION = 1
"""Raise this when the rendering of an unchanged spec changes: it renames the media files."""
FIRST_NAMES = {
    "renderer": "draw", "highlighted": "lit", "narration": "sound", "start_s": "at_s", "motion_frames": "moved_by",
    "visible_lines": "view",
}  # fmt: skip
"""Key of a spec -> its name when files were first named by digests, which must stay as they are."""
EXTENSIONS = {"image": "png", "audio": "flac", "video": "mp4"}
LIBRARIES = {
    **dict.fromkeys(("image", "table", "screen"), ("pillow", "pygments")),
    "chart": ("pillow", "matplotlib"),
    "audio": ("espeakng-loader", "av", "soundfile"),
    "video": ("pillow", "pygments", "espeakng-loader", "av"),
}
"""Whose versions are part of a media file's name, by the spec's renderer or type."""
SAMPLES = {
    "screenshot": samples.screenshots,
    "narration": samples.narrations,
    "recording": samples.recordings,
    "table": figures.tables,
    "chart": figures.charts,
    "screen": screens.screens,
}


@dataclass
class SynthPlan:
    """Manifest entries in order, the spec of every media file, and how many documents were requested and planned."""

    documents: list[dict] = field(default_factory=list)
    specs: dict[str, dict] = field(default_factory=dict)
    requested: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    planned: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def shortfalls(self) -> list[str]:
        """One sentence for each count that the source could not fill."""
        return [
            f"{split} {kind} level {level}: {self.planned[split][kind][level]} of {number} documents, "
            "the source has no more that are allowed"
            for split, kinds in self.requested.items()
            for kind, levels in kinds.items()
            for level, number in levels.items()
            if self.planned[split][kind][level] < number
        ]

    def add_stream(self, split: str, kind: str, level: int, number: int, stream: Iterator[tuple[Parts, str]]) -> None:
        """Adds up to `number` documents of a stream of (parts, path of the source)."""
        before, common = len(self.documents), {"kind": "text" if kind == "package" else kind, "level": level}
        for made, (parts, source) in enumerate(islice(stream, number)):
            content = [self._content_part(*part) for part in parts]
            name = {"id": f"{split}/{kind}/{level}/{made:06d}"}
            self.documents.append({**name, **common, "split": split, "source": source, "content": content})
        # JSON keys are strings, and these two are written to the summary
        for counts, count in ((self.requested, number), (self.planned, len(self.documents) - before)):
            counts.setdefault(split, {}).setdefault(kind, {})[str(level)] = count

    def _content_part(self, part: dict | str, loss_mask: bool) -> dict:
        """A content part of the native form; the spec of media is kept, to be rendered."""
        if isinstance(part, str):
            return {"type": "text", "text": part, "loss_mask": loss_mask}
        path = media_path(part)
        self.specs[path] = part
        use_audio = {"use_audio": bool(part["narration"])} if part["type"] == "video" else {}
        return {"type": part["type"], part["type"]: path, **use_audio}


def plan_corpus(
    config: SynthConfig, *, files: list[SourceFile], features: list[SourceFeatures], splits: dict[str, list[int]],
    code_metrics: list[CodeMetrics] | None = None,
) -> SynthPlan:  # fmt: skip
    """Every document of the three splits; counts that the source cannot fill are lowered. code_metrics: the files'
    numbers, for tables, charts and screens."""
    plan, train_content, vocabulary = SynthPlan(), TrainTextIndex(), []
    for split in SPLITS:
        chosen = splits[split]
        split_features = [features[index] for index in chosen]
        if split == "train":
            vocabulary = samples.frequent_name_parts(split_features, count=config.narration_vocab_size)
        metrics = [code_metrics[index] for index in chosen] if code_metrics is not None else ()
        known = None if split == "train" else train_content
        chosen_files = [files[index] for index in chosen]
        sampler = SplitSampler(chosen_files, split_features, known, metrics, vocabulary, config.level1_style)
        for kind in KINDS:
            for level, number in config.counts(split).by_level(kind).items():
                rng = random.Random(f"{config.seed}/{split}/{kind}/{level}")
                stream = _stream(config, kind, level, sampler, rng)
                paths = ((parts, sampler.files[file].path if file >= 0 else "") for parts, file in stream)
                plan.add_stream(split, kind, level, number, paths)
        if split == "train":
            _add_train_content(train_content, sampler, plan)
    return plan


def media_path(spec: dict) -> str:
    """The path of a spec's file below the corpus: a digest of the spec and of the versions that matter."""
    versions = [installed_version(name) or "none" for name in LIBRARIES[spec.get("renderer", spec["type"])]]
    stamp = json.dumps([RENDER_SPEC_VERSION, first_names(spec), versions], sort_keys=True)
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:32]
    return f"media/{digest[:2]}/{digest}.{EXTENSIONS[spec['type']]}"


def first_names(spec: Any) -> Any:
    """A spec under the key names of FIRST_NAMES, for whatever is derived from its text."""
    if isinstance(spec, dict):
        return {FIRST_NAMES.get(key, key): first_names(value) for key, value in spec.items()}
    return [first_names(item) for item in spec] if isinstance(spec, list | tuple) else spec


def _stream(
    config: SynthConfig, kind: str, level: int, sampler: SplitSampler, rng: random.Random
) -> Iterator[tuple[Parts, int]]:
    """Documents of a kind and level, with the index of the file each is credited to, or -1."""
    if kind == "text":
        return pages.text_chunks(sampler, chunk_bytes=config.chunk_bytes, rng=rng)
    if kind == "package":
        return pages.package_documents(sampler, max_bytes=config.package_text_kib * 1024, rng=rng)
    if kind == "page":
        return pages.pages(sampler, level, rng)
    if kind in NEEDLE_KINDS:
        documents = NeedleDocuments([item.text for item in sampler.files], rng)
        modality = kind.removeprefix("needle_")
        return ((documents.document(modality, level), -1) for _ in repeat(None))
    return ((sample.parts, sample.file) for sample in SAMPLES[kind](sampler, level, rng))


def _add_train_content(content: TrainTextIndex, sampler: SplitSampler, plan: SynthPlan) -> None:
    for item in sampler.files:
        content.add_text(item.text)
    for item, features, numbers in zip(sampler.files, sampler.features, sampler.code_metrics, strict=False):
        content.names.update(features.names)
        content.facts.update(numeric_facts(numbers, path=item.path))
    for document in plan.documents:
        for part in document["content"]:
            if part["type"] == "text":
                content.add_text(part["text"])
            elif document["kind"] not in NEEDLE_KINDS:
                content.add_spoken(samples.spoken_words(plan.specs[part[part["type"]]]))
