"""Decides every document of the corpus before anything is rendered.

Train comes first, then what train contains is known (all lines of its files and targets, all it says), then
the held-out splits are drawn around that. Each combination of split, kind and level has a random stream of
its own, so asking for more documents of one kind leaves the others as they were. A plan is a list of
manifest entries in the native form and the recipes of the media files they name; planning the demo's 50,000
documents takes a few seconds and no media library.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

from data.workbench import figure_samples, samples, screen_samples
from data.workbench.config import KINDS, NEEDLES, SPLITS, WorkbenchConfig
from data.workbench.extract import Extract
from data.workbench.frames import facts_of
from data.workbench.levels import Region
from data.workbench.lines import NOTHING_KNOWN, Bench, Known
from data.workbench.needle_documents import NeedleDocuments
from data.workbench.numbers import Measures
from data.workbench.samples import Sample
from data.workbench.source import SourceFile

RECIPE_FORMAT = 1
"""Raise this when the rendering of an unchanged recipe changes: it renames the media files."""

ENDINGS = {"image": "png", "audio": "flac", "video": "mp4"}
LIBRARIES = {
    "image": ("pillow", "pygments"),
    "table": ("pillow", "pygments"),
    "chart": ("pillow", "matplotlib"),
    "screen": ("pillow", "pygments"),
    "audio": ("espeakng-loader", "av", "soundfile"),
    "video": ("pillow", "pygments", "espeakng-loader", "av"),
}
"""Whose versions are part of a media file's name, by what the recipe draws, or by its type."""

PAGE_CODE = Region(lines=(3, 8), chars=(8, 80), blank_lines=True)
PAGE_FILM_SHARE = {1: 0.25, 2: 0.5, 3: 0.5, 4: 0.5}
"""How many pages of a level close with a recording."""


@dataclass
class Plan:
    """Manifest entries in order, the recipe of every media file, and how many documents were asked and planned."""

    documents: list[dict] = field(default_factory=list)
    recipes: dict[str, dict] = field(default_factory=dict)
    asked: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    planned: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def lowered(self) -> list[str]:
        """One sentence for each count that the source could not fill."""
        return [
            f"{split} {kind} level {level}: {self.planned[split][kind][level]} of {count} documents, "
            f"the source has no more that are allowed"
            for split, kinds in self.asked.items()
            for kind, levels in kinds.items()
            for level, count in levels.items()
            if self.planned[split][kind][level] < count
        ]


def make_plan(
    config: WorkbenchConfig,
    *,
    files: list[SourceFile],
    extracts: list[Extract],
    splits: dict[str, list[int]],
    measures: list[Measures] | None = None,
) -> Plan:
    """Every document of the three splits. Counts that the source cannot fill are lowered, see Plan.lowered.

    `measures` are the files' numbers; only tables, charts and screens need them.
    """
    planner = _Planner(config)
    known = Known()
    for split in SPLITS:
        chosen = [files[index] for index in splits[split]]
        bench = Bench(
            chosen,
            extracts=[extracts[index] for index in splits[split]],
            known=NOTHING_KNOWN if split == "train" else known,
            measures=[measures[index] for index in splits[split]] if measures is not None else (),
        )
        if split == "train":
            planner.parts = samples.frequent_parts(bench.extracts, count=config.num_name_parts)
        planner.add_split(split, bench)
        if split == "train":
            for item in chosen:
                known.add_text(item.text)
            for item, extract, numbers in zip(chosen, bench.extracts, bench.measures, strict=False):
                known.names.update(extract.names)
                known.facts.update(facts_of(numbers, path=item.path))
            for document in planner.plan.documents:
                for part in document["content"]:
                    if part["type"] == "text":
                        known.add_text(part["text"])
            for spoken in planner.spoken:
                known.add_spoken(spoken)
    return planner.plan


def media_path(recipe: dict) -> str:
    """The path of a recipe's file below the corpus: a digest of the recipe and of the versions that matter."""
    libraries = LIBRARIES[recipe.get("draw", recipe["type"])]
    stamp = [RECIPE_FORMAT, recipe, [_version(name) for name in libraries]]
    digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:32]
    return f"media/{digest[:2]}/{digest}.{ENDINGS[recipe['type']]}"


_versions: dict[str, str] = {}


def _version(name: str) -> str:
    if name not in _versions:
        try:
            _versions[name] = version(name)
        except PackageNotFoundError:
            _versions[name] = "none"
    return _versions[name]


class _Planner:
    """Collects documents; holds what the kinds share."""

    def __init__(self, config: WorkbenchConfig) -> None:
        self.config = config
        self.plan = Plan()
        self.parts: list[str] = []
        self.spoken: list[str] = []

    def add_split(self, split: str, bench: Bench) -> None:
        for kind in KINDS:
            for level, count in self.config.counts(split).of(kind).items():
                rng = random.Random(f"{self.config.seed}/{split}/{kind}/{level}")
                made = 0
                for content, file in islice(self._stream(kind, level, bench, rng), count):
                    self.plan.documents.append(
                        {
                            "id": f"{split}/{kind}/{level}/{made:06d}",
                            "kind": "text" if kind == "package" else kind,
                            "level": level,
                            "split": split,
                            "source": bench.files[file].path if file >= 0 else "",
                            "content": content,
                        }
                    )
                    made += 1
                # JSON keys are strings, and these two are written to the summary
                self.plan.asked.setdefault(split, {}).setdefault(kind, {})[str(level)] = count
                self.plan.planned.setdefault(split, {}).setdefault(kind, {})[str(level)] = made

    def _stream(self, kind: str, level: int, bench: Bench, rng: random.Random) -> Iterator[tuple[list[dict], int]]:
        style = self.config.level1_style
        if kind == "text":
            yield from text_pieces(bench, piece_bytes=self.config.piece_bytes, rng=rng)
        elif kind == "package":
            yield from packages(bench, max_bytes=self.config.package_kib * 1024, rng=rng)
        elif kind == "page":
            yield from self._pages(bench, level, rng)
        elif kind in NEEDLES:
            yield from self._needles(kind.removeprefix("needle_"), bench, level, rng)
        else:
            if kind == "screenshot":
                stream = samples.screenshots(bench, level=level, style=style, rng=rng)
            elif kind == "narration":
                stream = samples.narrations(bench, level=level, parts=self.parts, rng=rng)
            elif kind == "recording":
                stream = samples.recordings(bench, level=level, style=style, rng=rng)
            elif kind == "table":
                stream = figure_samples.tables(bench, level=level, style=style, rng=rng)
            elif kind == "chart":
                stream = figure_samples.charts(bench, level=level, rng=rng)
            else:
                stream = screen_samples.screens(bench, level=level, style=style, rng=rng)
            for sample in stream:
                yield self._shown(sample), sample.file

    def _shown(self, sample: Sample) -> list[dict]:
        """The medium, then its transcription, or a question and its answer: nothing else, so that every target token
        is about the medium. The question is no target.
        """
        if sample.spoken:
            self.spoken.append(sample.spoken)
        part = self._medium(sample.recipe)
        question = [{**_text(f"{sample.question}\n"), "learn": False}] if sample.question else []
        return [part, *question, _text(sample.text)]

    def _medium(self, recipe: dict) -> dict:
        """The content part of a recipe's file, which is noted to be rendered."""
        path = media_path(recipe)
        self.plan.recipes[path] = recipe
        part = {"type": recipe["type"], recipe["type"]: path}
        if recipe["type"] == "video":
            part["sound"] = bool(recipe["sound"])
        return part

    def _needles(self, modality: str, bench: Bench, level: int, rng: random.Random) -> Iterator[tuple[list[dict], int]]:
        """Endless documents of facts and questions; only answers are targets."""
        documents = NeedleDocuments([item.text for item in bench.files], rng)
        while True:
            yield (
                [
                    self._medium(part) if isinstance(part, dict) else {**_text(part), "learn": learn}
                    for part, learn in documents.document(modality, level)
                ],
                -1,
            )

    def _pages(self, bench: Bench, level: int, rng: random.Random) -> Iterator[tuple[list[dict], int]]:
        """Tutorial pages, each about one file: heading, prose and code; a screenshot, a narration, perhaps a
        recording, each with its text; a last sentence. A file gives several pages about other regions.
        """
        order = [(round_, index) for round_ in range(64) for index in range(len(bench.files))]
        # rounds stay in order, so that every file is used before one is used again
        keys = [rng.random() for _ in order]
        order = [item for _key, item in sorted(zip(keys, order, strict=True), key=lambda both: (both[1][0], both[0]))]
        alone: dict[int, _FilePages] = {}
        for _round, index in order:
            if index not in alone:
                alone[index] = _FilePages(bench.alone(index), level, self.parts, self.config.level1_style, rng)
            content = alone[index].next_page(self._shown)
            if content is not None:
                yield content, index


class _FilePages:
    """The pages that one file can give, drawn from streams that never repeat."""

    def __init__(self, bench: Bench, level: int, parts: list[str], style: str, rng: random.Random) -> None:
        self.bench = bench
        self.level = level
        self.rng = random.Random(rng.getrandbits(64))
        self.screenshots = samples.screenshots(bench, level=level, style=style, rng=self.rng)
        self.narrations = samples.narrations(bench, level=level, parts=parts, rng=self.rng)
        self.recordings = samples.recordings(bench, level=level, style=style, rng=self.rng)
        self.code = bench.regions(PAGE_CODE, rng=self.rng)
        self.sentences = [item for item in bench.extracts[0].sentences if not bench.known.has_line_of(item)]

    def next_page(self, show) -> list[dict] | None:
        """The content of a new page, or None when the file has no more regions or nothing left to say."""
        shot, said, code = (next(stream, None) for stream in (self.screenshots, self.narrations, self.code))
        if shot is None or said is None or code is None:
            return None
        film = None
        if self.rng.random() < PAGE_FILM_SHARE[self.level]:
            film = next(self.recordings, None)
        path = self.bench.files[0].path
        heading = f"# {path.rsplit('.', 1)[0].replace('/', '.')}, line {code.start + 1}\n"
        if self.bench.known.has_line_of(heading):
            return None
        prose = self._prose(3)
        listing = "".join(f"    {line}".rstrip() + "\n" for line in code.lines)
        content = [_text("\n".join([heading, *([prose + "\n"] if prose else []), listing]))]
        content += show(shot) + show(said)
        if film is not None:
            content += show(film)
        last = self._prose(1)
        if last:
            # the text before is a transcription and ends without a line end
            content.append(_text(f"\n\n{last}\n"))
        return content

    def _prose(self, count: int) -> str:
        """Some sentences of the file in reading order, each used once; "" when none is left."""
        taken, self.sentences = self.sentences[:count], self.sentences[count:]
        prose = " ".join(taken)
        return "" if self.bench.known.has_line_of(prose) else prose


def text_pieces(bench: Bench, *, piece_bytes: int, rng: random.Random) -> Iterator[tuple[list[dict], int]]:
    """Every file cut at line ends into pieces of at most piece_bytes, each opened by the path, in random order."""
    pieces = [
        (f"{item.path}\n{piece}", index)
        for index, item in enumerate(bench.files)
        for piece in cut(item.text, max_bytes=max(1, piece_bytes - len(item.path.encode()) - 1))
        if piece.strip()
    ]
    rng.shuffle(pieces)
    for piece, index in pieces:
        yield [_text(piece)], index


def packages(bench: Bench, *, max_bytes: int, rng: random.Random) -> Iterator[tuple[list[dict], int]]:
    """The files of each package joined in the order of their paths, up to max_bytes a document; a file that is
    larger is cut. In random order; a document is credited to its first file.
    """
    documents: list[tuple[str, int]] = []
    by_package: dict[str, list[int]] = {}
    for index, item in enumerate(bench.files):
        by_package.setdefault(item.package, []).append(index)
    for package in sorted(by_package):
        text, size, first = "", 0, -1
        for index in by_package[package]:
            item = bench.files[index]
            for piece in cut(item.text, max_bytes=max(1, max_bytes - len(item.path.encode()) - 2)):
                block = f"{item.path}\n{piece.rstrip()}\n\n"
                if text and size + len(block.encode()) > max_bytes:
                    documents.append((text, first))
                    text, size = "", 0
                if not text:
                    first = index
                text += block
                size += len(block.encode())
        if text:
            documents.append((text, first))
    rng.shuffle(documents)
    for text, first in documents:
        yield [_text(text)], first


def cut(text: str, *, max_bytes: int) -> list[str]:
    """A text cut at line ends into pieces of at most max_bytes (UTF-8); a single line may be longer."""
    pieces: list[str] = []
    lines: list[str] = []
    size = 0
    # not splitlines(): it also ends lines at separators that are characters of a string or comment
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        length = len(line.encode())
        if lines and size + length > max_bytes:
            pieces.append("".join(lines))
            lines, size = [], 0
        lines.append(line)
        size += length
    if lines:
        pieces.append("".join(lines))
    return pieces


def _text(text: str) -> dict:
    return {"type": "text", "text": text, "learn": True}
