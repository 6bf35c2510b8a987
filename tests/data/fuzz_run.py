"""Runs mutated files through decoding servers, and says of each whether what happened is right.

    run(seeds, seed, range(500), folder) -> Report

Media go through one `DecodePool`. Its servers are this file run as a program: `brine.data.media.server` with an audit
around `encode` that holds each accepted result to the length functions, from the size the decoder really gave, and
notes time and memory in a log that the parent reads at the end. Manifests, tars and tables are read in this process, as
a build reads them.

Right is, for every case: no exception here; a refusal is a `DocumentError` that names the file; an accepted result is
finite and as long as the length functions say; a file that was cut is refused, or nothing of it was lost (the result
equals the whole file's), or its format cannot tell (`MAY_HIDE_A_CUT`) and the result is no longer than the whole's; a
whole file under another suffix gives the same result, one given out as another sort is refused. A server that was
killed for its time is right but counted; one that died is counted and named.
"""

import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brine.data.config import EncodeConfig
from brine.data.document import Audio, Document, DocumentError, Image, Quarantined, Text, Video, parse_document
from tests.data.fuzz_media import MAY_HIDE_A_CUT, Mutant, Seed, mutant
from tests.paths import ROOT

CONFIG = EncodeConfig(
    max_image_tokens=64,
    max_video_tokens=256,
    max_video_s=30.0,
    max_audio_s=10.0,
    max_pixels=4_000_000,
    decode_timeout_s=30.0,
)
MAX_MEMORY_MIB = 2048.0
_MAX_ITEMS = 10_000
_SORTS = {"image": Image, "audio": Audio, "video": Video}


@dataclass
class Report:
    """What came of a series of cases."""

    outcomes: Counter = field(default_factory=Counter)
    """(suffix of the seed, outcome) -> cases; outcomes are accepted, refused, killed, died."""
    problems: list[str] = field(default_factory=list)
    """What must not happen, each with its case."""
    reasons: Counter = field(default_factory=Counter)
    """First words of the reasons of refusals -> cases."""
    deaths: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest_case: str = ""
    peak_mib: float = 0.0
    """Most memory any server held."""
    growth_mib: float = 0.0
    """Most that any server held after a document beyond what it held after its warm-up."""


def run(
    seeds: dict[str, Seed], seed: int, cases: Iterable[int], folder: Path, *, num_servers: int = 2, progress=None
) -> Report:
    """Put the given cases of the series `seed` through servers, working in `folder`."""
    from brine.data.media.pool import DecodePool
    from brine.data.tokenizer import train_tokenizer

    report = Report()
    (folder / "audit").mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    pool = DecodePool(
        root=folder,
        tokenizer=train_tokenizer([], 267),
        config=CONFIG,
        num_servers=num_servers,
        batch_documents=16,
        max_memory_mib=MAX_MEMORY_MIB,
    )
    pool.server_module = "tests.data.fuzz_run"
    media = {name: entry for name, entry in sorted(seeds.items()) if entry.sort in _SORTS}
    wholes = [
        Mutant(-1 - number, name, "whole", entry.sort, Path(name).suffix, entry.content)
        for number, (name, entry) in enumerate(media.items())
    ]
    whole = {}
    pending: dict[str, Mutant] = {}
    with pool:
        # once with every seed, so that libraries are loaded and buffers grown when growth is first measured
        for result in pool.encode(_documents(wholes, folder, pending, report)):
            case = pending.pop(result.document.id)
            whole[case.seed_name] = result
            if result.quarantined:
                report.problems.append(f"{_label(case)}: whole, yet refused: {result.quarantined.reason}")
        for path in (folder / "audit").iterdir():
            path.rename(path.with_suffix(".warm"))
        mutants = (mutant(seeds, seed, case) for case in cases)
        for number, result in enumerate(pool.encode(_documents(mutants, folder, pending, report))):
            case = pending.pop(result.document.id)
            _judge(case, result, whole, report)
            (folder / f"{case.case}{case.suffix}").unlink()
            if progress and number % 100 == 99:
                progress(number + 1, report)
    _read_audit(folder / "audit", report)
    return report


def _documents(cases: Iterable[Mutant], folder: Path, pending: dict[str, Mutant], report: Report) -> Iterator[Document]:
    """Media cases as documents whose files are written just before; other cases are dealt with on the way."""
    for case in cases:
        path = folder / f"{case.case}{case.suffix}"
        path.write_bytes(case.content)
        if case.sort not in _SORTS:
            _read_container(case, path, report)
            path.unlink()
            continue
        pending[str(case.case)] = case
        yield Document(str(case.case), (_SORTS[case.sort](path.name),))


def _label(case: Mutant) -> str:
    return f"case {case.case} ({case.operation} of {case.seed_name} as {case.sort})"


def _judge(case: Mutant, result, whole: dict, report: Report) -> None:
    """Count one result, and name what is wrong with it."""
    reason = result.quarantined.reason if result.quarantined else ""
    outcome = "refused" if reason else "accepted"
    if "the decoder died" in reason:
        outcome = "died"
        report.deaths.append(f"{_label(case)}: {reason}")
    elif "longer than decode_timeout_s" in reason:
        outcome = "killed"
    report.outcomes[Path(case.seed_name).suffix[1:], outcome] += 1
    if outcome == "refused":
        report.reasons[re.sub(r"\d+(\.\d+)?", "#", reason.partition(": ")[2])[:60]] += 1
        if not reason.startswith("file "):
            report.problems.append(f"{_label(case)}: not a reason that names the file: {reason}")
        if case.operation == "rename":
            report.problems.append(f"{_label(case)}: a whole file under another name was refused: {reason}")
    if outcome == "accepted":
        report.problems += [f"{_label(case)}: {wrong}" for wrong in _wrong(case, result, whole[case.seed_name])]


def _wrong(case: Mutant, result, whole) -> Iterator[str]:
    """What an accepted result must not be."""
    # a whole seed that was refused is a problem of its own
    if whole.encoded is None:
        return
    same = result.crc32 == whole.crc32
    if case.operation == "cut" and not same:
        if case.seed_name not in MAY_HIDE_A_CUT:
            yield "was cut and lost something, yet accepted as whole"
        elif len(result.encoded) > len(whole.encoded):
            yield "was cut and grew"
    if case.operation == "rename" and not same:
        yield "gives another result under another name"
    # a video given as a sound is its audio track
    film = isinstance(whole.document.parts[0], Video)
    if case.operation == "relabel" and not (film and case.sort == "audio"):
        yield "is of another sort, yet accepted"


def _read_container(case: Mutant, path: Path, report: Report) -> None:
    """Read a mutated manifest, tar or table in this process, down to the bytes of the media inside."""
    began = time.perf_counter()
    outcome = "accepted"
    try:
        outcome = _read_all(case, path)
    # whatever a reader raises is a finding
    except Exception as error:
        report.problems.append(f"{_label(case)}: {type(error).__name__}: {error}")
    report.outcomes[path.suffix[1:], outcome] += 1
    seconds = time.perf_counter() - began
    if seconds > report.slowest_s:
        report.slowest_s, report.slowest_case = seconds, _label(case)


def _read_all(case: Mutant, path: Path) -> str:
    from brine.data.files.archive import open_media
    from brine.data.formats.open import open_source

    root, outcome, ids = path.resolve().parent, "accepted", set()
    try:
        table = "datasets" if path.suffix == ".arrow" else "parquet"
        form = {"manifest": "manifest", "tar": "webdataset"}.get(case.sort, table)
        source = open_source(path, format=form)
        items = list(itertools.islice(source.documents(), _MAX_ITEMS))
    except ValueError:
        return "refused"
    assert len(items) < _MAX_ITEMS, "a reader that does not end"
    for item in items:
        if isinstance(item, Quarantined):
            assert item.reason and json.dumps(item.to_json()).isprintable()
            outcome = "refused"
            continue
        assert item.id not in ids and parse_document(json.loads(json.dumps(item.to_json()))) == item
        ids.add(item.id)
        for part in item.parts:
            if not isinstance(part, Text) and "::" in part.path:
                try:
                    with open_media(root, part.path, max_file_mib=1.0) as file:
                        file.read_bytes()
                except DocumentError:
                    outcome = "refused"
    return outcome


def _read_audit(folder: Path, report: Report) -> None:
    """Times and memory from the servers' logs."""
    warm = {path.stem: json.loads(path.read_text().splitlines()[-1])["rss_mib"] for path in folder.glob("*.warm")}
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        # a server that was started later is measured from where it had loaded what it needs
        base = warm.get(path.stem, max((line["rss_mib"] for line in lines[:40]), default=0.0))
        for line in lines:
            report.peak_mib = max(report.peak_mib, line["peak_mib"])
            report.growth_mib = max(report.growth_mib, line["rss_mib"] - base)
            if line["seconds"] > report.slowest_s:
                report.slowest_s, report.slowest_case = line["seconds"], f"case {line['id']}"


class _Audit:
    """Notes what decoders gave, and holds the sequence to it."""

    def __init__(self):
        self.pictures: list[tuple[int, int]] = []
        self.samples: list[int] = []
        self.ends_s: list[float] = []
        self.has_film_hooks = False

    def hook(self) -> None:
        from brine.data import encode as encode_module
        from brine.data.media import images

        self._wrap(images, "fit", lambda pixels, *_: self.pictures.append(pixels.shape[1::-1]))
        encode = encode_module.encode

        def audited(document, *, root, **options):
            self._hook_loaded()
            for noted in (self.pictures, self.samples, self.ends_s):
                noted.clear()
            _status("clear")
            began = time.perf_counter()
            try:
                sequence = encode(document, root=root, **options)
                self.check(document, sequence, options["config"])
                return sequence
            finally:
                line = {
                    "id": document.id,
                    "seconds": time.perf_counter() - began,
                    "peak_mib": _status("VmHWM:"),
                    "rss_mib": _status("VmRSS:"),
                }
                with open(Path(root) / "audit" / f"{os.getpid()}.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")

        encode_module.encode = audited

    def _wrap(self, module, name: str, note) -> None:
        original = getattr(module, name)

        def wrapped(*arguments, **options):
            result = original(*arguments, **options)
            note(result if name == "open_frames" else arguments[0], *arguments[1:])
            return result

        setattr(module, name, wrapped)

    def _hook_loaded(self) -> None:
        """Once the video and sound decoders are loaded, which is when the first document needs them."""
        import sys

        if "brine.data.media.audio" in sys.modules and not hasattr(sys.modules["brine.data.media.audio"], "hooked"):
            module = sys.modules["brine.data.media.audio"]
            module.hooked = True
            self._wrap(module, "mel_tokens", lambda samples, *_: self.samples.append(len(samples)))
        if "brine.data.media.video" in sys.modules and not self.has_film_hooks:
            self.has_film_hooks = True
            self._wrap(
                sys.modules["brine.data.media.video"], "open_frames", lambda film, *_: self.ends_s.append(film.end_s)
            )

    def check(self, document: Document, sequence, config: EncodeConfig) -> None:
        """AssertionError, which the parent takes for a finding, unless lengths and numbers are right."""
        from brine.data.lengths import audio_tokens, image_grid, video_layout

        (part,) = document.parts
        heard = self.samples[0] if self.samples else 0
        if isinstance(part, Image):
            expected = (int(np.prod(image_grid(*self.pictures[0], config))), 0, 0)
        elif isinstance(part, Audio):
            expected = (0, audio_tokens(heard, config), 0)
        else:
            layout = video_layout(*self.pictures[0], self.ends_s[0], heard, config)
            expected = (0, layout.num_audio_tokens, layout.num_video)
        found = (len(sequence.image), len(sequence.audio), len(sequence.video))
        assert found == expected, f"{found} tokens where the length functions say {expected}"
        assert len(sequence) == sum(expected) + 3, "a sequence is its media, two boundaries and an end"
        sound = sequence.audio.astype(np.float32)
        assert np.isfinite(sound).all() and (not sound.size or -1.01 < sound.min() <= sound.max() < 2), (
            "mel out of range"
        )
        assert np.isfinite(sequence.position).all(), "positions are not finite"


def _status(name: str) -> float:
    """A size of this process in MiB, or ("clear") its high-water mark set back; 0 where the system does not say."""
    try:
        if name == "clear":
            Path("/proc/self/clear_refs").write_text("5")
            return 0.0
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(name))


if __name__ == "__main__":
    from brine.data.media import server as decode_server

    _Audit().hook()
    decode_server.main()
