"""Documents of text: chunks of files, whole packages, and tutorial pages with media of all kinds.

Streams of (parts, index of the file the document is credited to); they end when the source is exhausted.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator

from brine.synth.kinds.levels import PAGE_CODE, PAGE_VIDEO_FRACTION
from brine.synth.kinds.samples import Parts, narrations, recordings, screenshots
from brine.synth.sources.code_regions import SplitSampler

MAX_PAGES_PER_FILE = 64


def text_chunks(sampler: SplitSampler, *, chunk_bytes: int, rng: random.Random) -> Iterator[tuple[Parts, int]]:
    """Every file cut at line ends into chunks of at most chunk_bytes, each opened by the path, in random order."""
    chunks = [
        (f"{item.path}\n{chunk}", index)
        for index, item in enumerate(sampler.files)
        for chunk in split_at_newlines(item.text, max_bytes=max(1, chunk_bytes - len(item.path.encode()) - 1))
        if chunk.strip()
    ]
    rng.shuffle(chunks)
    for chunk, index in chunks:
        yield [(chunk, True)], index


def package_documents(sampler: SplitSampler, *, max_bytes: int, rng: random.Random) -> Iterator[tuple[Parts, int]]:
    """The files of each package joined in the order of their paths, up to max_bytes per document; a larger file is cut.

    In random order; a document is credited to its first file.
    """
    blocks: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for index, item in enumerate(sampler.files):
        for chunk in split_at_newlines(item.text, max_bytes=max(1, max_bytes - len(item.path.encode()) - 2)):
            blocks[item.package].append((f"{item.path}\n{chunk.rstrip()}\n\n", index))
    documents: list[tuple[str, int]] = []
    for package in sorted(blocks):
        text, size, first = "", 0, -1
        for block, index in blocks[package]:
            if text and size + len(block.encode()) > max_bytes:
                documents.append((text, first))
                text, size = "", 0
            first = index if not text else first
            text, size = text + block, size + len(block.encode())
        documents.append((text, first))
    rng.shuffle(documents)
    for text, first in documents:
        yield [(text, True)], first


def split_at_newlines(text: str, *, max_bytes: int) -> list[str]:
    """A text cut at line ends into chunks of at most max_bytes (UTF-8); a single line may be longer."""
    chunks: list[str] = []
    size = max_bytes
    # not splitlines(): it also ends lines at separators that are characters of a string or comment
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        size += len(line.encode())
        if size > max_bytes or not chunks:
            chunks.append("")
            size = len(line.encode())
        chunks[-1] += line
    return chunks


def pages(sampler: SplitSampler, level: int, rng: random.Random) -> Iterator[tuple[Parts, int]]:
    """Tutorial pages, each about other regions of one file; every file is used before one is used again."""
    rounds, files = range(MAX_PAGES_PER_FILE), range(len(sampler.files))
    order = sorted((round_, rng.random(), index) for round_ in rounds for index in files)
    open_files: dict[int, _PageSampler] = {}
    for _round, _key, index in order:
        if index not in open_files:
            open_files[index] = _PageSampler(sampler.single_file(index), level, rng)
        parts = open_files[index].next_page()
        if parts is not None:
            yield parts, index


class _PageSampler:
    """The pages that one file can give, sampled from streams that never repeat."""

    def __init__(self, sampler: SplitSampler, level: int, rng: random.Random) -> None:
        self.sampler, self.level = sampler, level
        self.rng = rng = random.Random(rng.getrandbits(64))
        self.screenshots = screenshots(sampler, level, rng)
        self.narrations = narrations(sampler, level, rng)
        self.recordings = recordings(sampler, level, rng)
        self.code = sampler.regions(PAGE_CODE, rng=rng)
        self.sentences = [item for item in sampler.features[0].sentences if not sampler.train_content.has_line_of(item)]

    def next_page(self) -> Parts | None:
        """Heading, prose and code; a screenshot, a narration, perhaps a recording, each with its text; a last sentence.

        None when the file has no more regions or nothing left to say.
        """
        shot, said, code = (next(stream, None) for stream in (self.screenshots, self.narrations, self.code))
        if shot is None or said is None or code is None:
            return None
        filmed = next(self.recordings, None) if self.rng.random() < PAGE_VIDEO_FRACTION[self.level] else None
        name = self.sampler.files[0].path.rsplit(".", 1)[0].replace("/", ".")
        heading = f"# {name}, line {code.start + 1}\n"
        if self.sampler.train_content.has_line_of(heading):
            return None
        prose, last = self._prose(3), self._prose(1)
        listing = "".join(f"    {line}".rstrip() + "\n" for line in code.lines)
        samples = [part for sample in (shot, said, filmed) if sample for part in sample.parts]
        opening = "\n".join([heading, *([f"{prose}\n"] if prose else []), listing])
        # the text before the last sentence is a transcription and ends without a line end
        return [(opening, True), *samples, *([(f"\n\n{last}\n", True)] if last else [])]

    def _prose(self, count: int) -> str:
        """Some sentences of the file in reading order, each used once; "" when none is left."""
        taken, self.sentences = self.sentences[:count], self.sentences[count:]
        prose = " ".join(taken)
        return "" if self.sampler.train_content.has_line_of(prose) else prose
