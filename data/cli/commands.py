"""What each command of `brine data` does: takes the parsed request, prints the answer, returns the exit code.

The work is done elsewhere; here are the order of what is printed and the choice of exit code. Each function raises
ValueError for invalid arguments.
"""

import json
import sys
import time
from pathlib import Path

from brine.common.remote.object_store import is_url, url_of
from brine.common.tables import print_plain_or_rich, sanitize
from brine.data.cli.options import (
    BuildRequest,
    CheckRequest,
    ConvertRequest,
    DataPlanRequest,
    FilterRequest,
    ShowRequest,
    SourceOptions,
)
from brine.data.config import EncodeConfig
from brine.data.corpus.blocks.engine import BlockEngine, LocalEngine
from brine.data.corpus.excluded import ExclusionStats, cli_option
from brine.data.corpus.readers import iter_texts
from brine.data.corpus.statistics import CorpusStats
from brine.data.corpus.store import EncodedCorpus, build_corpus, is_corpus
from brine.data.corpus.streamed import upload_corpus
from brine.data.filters.registry import run_filters
from brine.data.filters.run_passes import check_may_filter, open_passes, run_notes
from brine.data.formats.convert import conversions
from brine.data.formats.corpus_source import CorpusSource, check_sources
from brine.data.formats.joined import open_sources
from brine.data.formats.open import DocumentSource, open_source
from brine.data.inspect.check import RetryList, byte_tokenizer, check_source, default_decode_workers
from brine.data.inspect.tables import report
from brine.data.packing.plan import PackingPlan
from brine.data.tokenizer import Tokenizer, train_tokenizer


def open_path(request: SourceOptions) -> DocumentSource:
    """The source behind PATH. Raises ValueError when there is none, or when it is a corpus already."""
    if is_corpus(request.path):
        raise ValueError(f"{request.path} is a corpus that is built already: look at it with `plan` and `show`")
    return open_source(request.path, format=request.format, max_file_mib=request.encode.max_file_mib)


def _tokenizer(request: SourceOptions) -> Tokenizer:
    return Tokenizer.load(request.tokenizer) if request.tokenizer is not None else byte_tokenizer()


def _print_counts(title: str, stats: CorpusStats, summary_lines: list[str]) -> None:
    print(f"{sanitize(title)}\n")
    print_plain_or_rich(*report(stats))
    for line in summary_lines:
        print(sanitize(line, 1000))


def check(request: CheckRequest) -> int:
    """0 when something is kept, 1 when nothing is, 130 when Ctrl-C ended it."""
    source = open_path(request)
    quarantine, plot = request.quarantine, request.plot
    if request.out is not None:
        quarantine, plot = quarantine or request.out / "quarantine.jsonl", plot or request.out / "check.png"
    if request.media_budget and request.seq_len is None:
        raise ValueError("media budgets apply to packed sequences: also give --seq-len or --recipe")
    excluded = ExclusionStats(request.seq_len, request.media_budget) if request.seq_len is not None else None
    found = check_source(
        source,
        tokenizer=_tokenizer(request),
        config=request.encode,
        num_workers=request.workers or default_decode_workers(),
        limit=request.limit,
        retry=RetryList.read(request.retry).with_fixed_lines(source) if request.retry else None,
        quarantine=quarantine,
        excluded=excluded,
    )
    stats = found.stats
    summary = stats.to_json() | {"format": source.format, "seconds": round(found.seconds, 3)}
    summary["split_origins"] = {origin: dict(counts) for origin, counts in sorted(source.split_origins.items())}
    if excluded is not None:
        summary["excluded"] = excluded.to_json()
    if found.interrupted:
        summary["interrupted"] = True
    # files first: whoever reads what is printed may stop reading
    if plot is not None:
        from brine.data.inspect.check_plot import plot_stats

        plot_stats(stats, plot, name=str(request.path))
    if request.out is not None:
        (request.out / "check.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    if found.interrupted:
        seen = stats.num_documents + stats.num_quarantined
        print(f"interrupted: what follows counts the {seen:,} documents seen so far")
    _print_counts(f"{source.path}: {source.format}", stats, source.summary_lines())
    if found.missing:
        names = ", ".join(sanitize(name, 60) for name in found.missing[:5])
        print(f"no longer there under this name: {len(found.missing):,} ({names})")
    if quarantine is not None:
        print(f"quarantine file: {quarantine}")
    elif stats.num_quarantined:
        print("save quarantined documents with --quarantine FILE and check them again with --retry FILE")
    if plot is not None:
        print(f"plot: {plot}")
    if excluded is not None:
        print(f"packing: {excluded.text(cli_option)}")
        held_out = stats.splits.get("validation") or stats.splits.get("test") or request.limit is not None
        why = excluded.refused(most=request.max_excluded_fraction) or ("" if held_out else "no document is held out")
        if why and not found.interrupted and request.retry is None:
            print(f"training would reject this: {why}")
    print(json.dumps(summary))
    return 130 if found.interrupted else 0 if stats.num_documents else 1


def build(request: BuildRequest) -> int:
    """The corpus in FOLDER, made, resumed or opened, and its table."""
    began = time.monotonic()
    if request.address is not None and request.engine != "ray":
        raise ValueError("--address is the address of a Ray cluster: also give --engine ray")
    if request.out is not None and not is_url(request.out):
        raise ValueError(f"--out {request.out} is the URL to upload to, such as s3://bucket/corpus")
    source, folder = _open_for_build(request)
    if request.tokenizer is not None:
        tokenizer = Tokenizer.load(request.tokenizer)
    else:
        print(f"training a tokenizer of {request.vocab_size} ids on the train split", file=sys.stderr)
        tokenizer = train_tokenizer(iter_texts(source.documents()), request.vocab_size)
    corpus = build_corpus(
        source,
        folder,
        tokenizer=tokenizer,
        config=request.encode,
        num_workers=request.workers or default_decode_workers(),
        keep_media=not request.no_media,
        shard_documents=request.shard_documents,
        progress=True,
        overwrite_other=False,
        engine=_engine(request),
    )
    stats, vocab_size = CorpusStats.from_corpus(corpus), corpus.tokenizer.vocab_size
    _print_counts(f"{folder}: {vocab_size:,} ids, from {source.format}", stats, corpus.summary_lines)
    print(f"quarantine file: {folder / 'quarantine.jsonl'}")
    if request.out is not None:
        sent = upload_corpus(folder, request.out)
        print(f"uploaded to {url_of(request.out)}: {sent.uploaded:,} new objects, {sent.uploaded_bytes:,} bytes")
    extra = {"format": source.format, "vocab_size": vocab_size, "fingerprint": corpus.fingerprint}
    print(json.dumps(stats.to_json() | extra | {"seconds": round(time.monotonic() - began, 3)}))
    return 0


def _open_for_build(request: BuildRequest) -> tuple[DocumentSource, Path]:
    """The documents to encode, and the folder for them."""
    if not request.sources:
        if request.folder is None:
            raise ValueError("build needs PATH and FOLDER, or FOLDER and --sources NAME=PATH NAME=PATH")
        return open_path(request), request.folder
    if request.folder is not None or request.format is not None:
        raise ValueError("--sources takes the place of PATH and --format: give FOLDER alone before it")
    sources = tuple(CorpusSource.parse(each) for each in request.sources)
    check_sources(sources)
    if weighted := next((each for each in sources if each.weight != 1), None):
        raise ValueError(
            f"--sources: a corpus holds each document once, so the weight of {weighted.name} has no effect here: give "
            f"it in training by --packing.mixture source:{weighted.name}={weighted.weight:g}"
        )
    return open_sources(sources, max_file_mib=request.encode.max_file_mib), request.path


def _engine(request: BuildRequest) -> BlockEngine | None:
    if request.engine == "local":
        return LocalEngine(request.workers or default_decode_workers())
    if request.engine == "ray":
        from brine.data.corpus.blocks.ray_engine import RayEngine

        return RayEngine(request.address, num_decoders=request.workers or 2)
    return None


def filter(request: FilterRequest) -> int:
    """Filter passes added to the corpus in FOLDER, or undone, and what they have left."""
    corpus = EncodedCorpus.open(request.folder)
    if request.undo or request.filters:
        check_may_filter(request.folder)
    filter_log = open_passes(corpus, request.folder)
    for _ in range(request.undo or 0):
        undone = filter_log.undo()
        print(f"undone: {undone['number']:02d} {undone['name']}")
    if request.filters:
        num_workers = request.workers or default_decode_workers()
        filter_log = run_filters(corpus, request.filters, num_workers=num_workers, progress=True)
    print(f"{sanitize(str(request.folder))}\n")
    print_plain_or_rich(filter_log.table())
    for record in filter_log.records:
        print(f"dropped and why: {filter_log.path_of(record) / 'dropped.jsonl'}")
    kept = filter_log.kept_mask()
    if not kept.any():
        print("error: no document is left: undo the last pass with --undo 1", file=sys.stderr)
    dropped = {record["name"]: record["dropped"] for record in filter_log.records}
    print(json.dumps({"documents": len(kept), "kept": int(kept.sum()), "dropped": dropped}))
    return 0 if kept.any() else 1


def plan(request: DataPlanRequest) -> int:
    """How the corpus in FOLDER is packed, filters applied; a plan file only with --out."""
    from brine.data.inspect.plan_report import plot_plan, report, summary
    from brine.data.packing.composition import count_chunk_tokens

    began = time.monotonic()
    if request.out is not None and (not request.name or Path(request.name).name != request.name):
        raise ValueError(f"--name {request.name!r} must be a plain file name")
    corpus = EncodedCorpus.open(request.folder)
    options = ("split", "seq_len", "media_budget", "num_sequences", "epochs", "seed", "long", "name")
    filter_log = open_passes(corpus, request.folder)
    kept = filter_log.kept_mask()
    made = PackingPlan.build(corpus, documents=kept, **{name: getattr(request, name) for name in options})
    seconds = time.monotonic() - began
    tokens = count_chunk_tokens(corpus, made)
    plot, written = request.plot, {}
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
        written["plan"] = made.save(request.out / f"{request.name}.npz")
        plot = plot or request.out / f"{request.name}.png"
    if plot is not None:
        written["plot"] = plot_plan(made, tokens, plot, name=f"{request.folder}: {request.name}")
    print(f"{sanitize(str(request.folder))}: split {request.split}\n")
    print_plain_or_rich(*report(corpus, made, tokens))
    if filter_log.records:
        names = ", ".join(record["name"] for record in filter_log.records)
        print(f"filters: {names}, by which {int(kept.sum()):,} of {len(kept):,} documents are kept")
    for note in run_notes(request.folder, seq_len=request.seq_len, media_budget=request.media_budget):
        print(note)
    for name, path in written.items():
        print(f"{name}: {path}")
    print(json.dumps(summary(made, tokens) | {"seconds": round(seconds, 3)}))
    return 0


def show(request: ShowRequest) -> int:
    """One document as an image or a page; prints its path."""
    from brine.data.inspect.show import view_corpus, view_source

    out = request.out
    if out is not None and out.suffix not in (".png", ".html"):
        raise ValueError(f"--out {out} must end in .png or .html")
    if not is_corpus(request.path):
        view = view_source(open_path(request), request.id, tokenizer=_tokenizer(request), config=request.encode)
    elif request.tokenizer is None and request.encode == EncodeConfig():
        view = view_corpus(request.path, request.id)
    else:
        raise ValueError(f"{request.path} is a corpus with a tokenizer and encoding: leave those options out")
    if out is None:
        name = "".join(char if char.isalnum() or char in "-_" else "-" for char in view.document.id)
        out = Path(f"{name[:100].strip('-') or 'document'}.png")
    if out.suffix == ".html":
        from brine.data.inspect.show_page import write_page as write
    else:
        from brine.data.inspect.show_image import write_image as write
    print(write(view, out))
    return 0


def convert(request: ConvertRequest) -> int:
    """Manifests written from PATH; 1 where they have no rows."""
    written: dict[str, int] = {}
    for each in conversions(request.path, root=request.root):
        for path, count in each.write(request.out).items():
            print(sanitize(f"{path}: {count:,} lines{each.note}", 1000))
            written[str(path)] = count
    print(json.dumps(written))
    return 0 if any(written.values()) else 1
