"""What each command of the command line does: read the request, call the room, print the answer.

The work is done elsewhere (`data.check`, `data.store`, `data.plan`, `data.show`); here are the order of what is
printed and the choice of exit code. Each function takes the parsed request, returns the exit code and raises
ValueError for a mistake in the request.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from data.check import Check, Retry, byte_tokenizer, check_source, default_workers
from data.config import EncodeConfig
from data.filters.rounds import Rounds
from data.filters.rules import apply
from data.formats import Source, open_source
from data.left_out import LeftOut, command_option
from data.options import encode_config
from data.plan import Plan
from data.readers import texts_of
from data.store import EncodedCorpus, build_corpus, is_corpus
from data.tables import report, safe
from data.tally import Tally
from data.tokenizer import Tokenizer, train_tokenizer


def open_path(request: argparse.Namespace) -> Source:
    """The source behind PATH. Raises ValueError when there is none, with a hint where it is a corpus already."""
    if is_corpus(request.path):
        raise ValueError(f"{request.path} is a corpus that is built already: look at it with `plan` and `show`")
    return open_source(request.path, format=request.format, max_file_mib=encode_config(request).max_file_mib)


def check(request: argparse.Namespace) -> int:
    """`data check`: 0 when something is kept, 1 when nothing is, 130 when Ctrl-C ended it."""
    source, config = open_path(request), encode_config(request)
    quarantine, plot = request.quarantine, request.plot
    if request.out is not None:
        quarantine = quarantine or request.out / "quarantine.jsonl"
        plot = plot or request.out / "check.png"
    budget = {name: getattr(request, f"{name}_budget") for name in ("image", "audio", "video")}
    budget = {name: value for name, value in budget.items() if value is not None}
    if budget and request.row_tokens is None:
        raise ValueError("a budget is of a row: give --row-tokens, or --recipe")
    left_out = LeftOut(request.row_tokens, budget) if request.row_tokens is not None else None
    found = check_source(
        source,
        tokenizer=tokenizer_of(request),
        config=config,
        num_workers=request.workers or default_workers(),
        limit=request.limit,
        retry=Retry.read(request.retry).mended(source) if request.retry else None,
        quarantine=quarantine,
        left_out=left_out,
    )
    summary = found.tally.to_json() | {"format": source.format, "seconds": round(found.seconds, 3)}
    summary["splits_from"] = {origin: dict(counts) for origin, counts in sorted(source.splits_from.items())}
    if left_out is not None:
        summary["left_out"] = left_out.to_json()
    if found.interrupted:
        summary["interrupted"] = True
    # files first: whoever reads what is printed may stop reading
    if plot is not None:
        from data.check_plot import plot_tally

        plot_tally(found.tally, plot, name=str(request.path))
    if request.out is not None:
        (request.out / "check.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    _say(found, source, quarantine=quarantine, plot=plot)
    if left_out is not None:
        print(f"rows: {left_out.text(command_option)}")
        splits = found.tally.splits
        held_out = splits.get("validation") or splits.get("test") or request.limit is not None
        why = left_out.refused(most=getattr(request, "max_left_out", 1.0))
        why = why or ("" if held_out else "no document is held out")
        if why and not found.interrupted and request.retry is None:
            print(f"training would refuse this: {why}")
    print(json.dumps(summary))
    return 130 if found.interrupted else 0 if found.tally.num_documents else 1


def _say(found: Check, source: Source, *, quarantine: Path | None, plot: Path | None) -> None:
    """Print what a check found, for people."""
    if found.interrupted:
        seen = found.tally.num_documents + found.tally.num_quarantined
        print(f"interrupted: what follows counts the {seen:,} documents seen so far")
    print(f"{safe(str(source.path))}: {source.format}\n\n{report(found.tally)}\n")
    for line in source.told():
        print(safe(line, 1000))
    if found.missing:
        names = ", ".join(safe(name, 60) for name in found.missing[:5])
        print(f"no longer there under this name: {len(found.missing):,} ({names})")
    if quarantine is not None:
        print(f"quarantine file: {quarantine}")
    elif found.tally.num_quarantined:
        print("to write and retry what is set aside: --quarantine FILE, then --retry FILE")
    if plot is not None:
        print(f"plot: {plot}")


def build(request: argparse.Namespace) -> int:
    """`data build`: the corpus in FOLDER, made, completed or opened, and its table."""
    began = time.monotonic()
    source, config = open_path(request), encode_config(request)
    tokenizer = tokenizer_of(request, default=None)
    if tokenizer is None:
        print(f"training a tokenizer of {request.vocab_size} ids on the train split", file=sys.stderr)
        tokenizer = train_tokenizer(texts_of(source.documents()), request.vocab_size)
    corpus = build_corpus(
        source,
        request.folder,
        tokenizer=tokenizer,
        config=config,
        num_workers=request.workers or default_workers(),
        keep_media=not request.no_media,
        progress=True,
        replace_other=False,
    )
    tally = Tally.of_corpus(corpus)
    print(
        f"{safe(str(request.folder))}: {corpus.tokenizer.vocab_size:,} ids, from {source.format}\n\n{report(tally)}\n"
    )
    for line in source.told():
        print(safe(line, 1000))
    print(f"quarantine file: {request.folder / 'quarantine.jsonl'}")
    extra = {
        "format": source.format,
        "vocab_size": corpus.tokenizer.vocab_size,
        "fingerprint": corpus.fingerprint,
        "seconds": round(time.monotonic() - began, 3),
    }
    print(json.dumps(tally.to_json() | extra))
    return 0


def filter(request: argparse.Namespace) -> int:
    """`data filter`: rounds added to the corpus in FOLDER, or undone, and what they have left."""
    corpus = EncodedCorpus.open(request.folder)
    if request.undo:
        rounds = Rounds.open(corpus)
        for _ in range(request.undo):
            undone = rounds.undo()
            print(f"undone: {undone['number']:02d} {undone['name']}")
    rounds = apply(corpus, request.rules, num_workers=request.workers or default_workers(), progress=True)
    print(f"{safe(str(request.folder))}\n\n{rounds.report()}\n")
    for record in rounds.records:
        print(f"dropped and why: {rounds.path_of(record) / 'dropped.jsonl'}")
    kept = rounds.kept()
    by_round = {record["name"]: record["dropped"] for record in rounds.records}
    print(json.dumps({"documents": len(kept), "kept": int(kept.sum()), "dropped": by_round}))
    return 0 if kept.any() else 1


def plan(request: argparse.Namespace) -> int:
    """`data plan`: how the corpus in FOLDER is packed, filter rounds observed; a plan file only with --out."""
    from data.plan_report import entry_tokens, plot_plan, summary
    from data.plan_report import report as plan_text

    began = time.monotonic()
    if request.out is not None and (not request.name or Path(request.name).name != request.name):
        raise ValueError(f"--name {request.name!r} must be a plain file name")
    corpus = EncodedCorpus.open(request.folder)
    budget = {name: getattr(request, f"{name}_budget") for name in ("image", "audio", "video")}
    made = Plan.build(
        corpus,
        split=request.split,
        documents=Rounds.open(corpus).kept(),
        row_tokens=request.row_tokens,
        media_budget={name: value for name, value in budget.items() if value is not None},
        num_rows=request.num_rows,
        epochs=request.epochs,
        seed=request.seed,
        long=request.long,
        name=request.name,
    )
    seconds = time.monotonic() - began
    tokens = entry_tokens(corpus, made)
    plot, written = request.plot, {}
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
        written["plan"] = made.save(request.out / f"{request.name}.npz")
        plot = plot or request.out / f"{request.name}.png"
    if plot is not None:
        written["plot"] = plot_plan(corpus, made, tokens, plot, name=f"{request.folder}: {request.name}")
    print(f"{safe(str(request.folder))}: split {request.split}\n\n{plan_text(corpus, made, tokens)}\n")
    for name, path in written.items():
        print(f"{name}: {path}")
    print(json.dumps(summary(corpus, made, tokens) | {"seconds": round(seconds, 3)}))
    return 0


def show(request: argparse.Namespace) -> int:
    """`data show`: one document as a picture or a page; prints where it is."""
    from data.show import view_corpus, view_source

    out = request.out
    if out is not None and out.suffix not in (".png", ".html"):
        raise ValueError(f"--out {out} must end in .png or .html")
    if is_corpus(request.path):
        if request.tokenizer is not None or encode_config(request) != EncodeConfig():
            raise ValueError(
                f"{request.path} is a corpus and has its own tokenizer and numbers: leave those options out"
            )
        view = view_corpus(request.path, request.id)
    else:
        view = view_source(
            open_path(request), request.id, tokenizer=tokenizer_of(request), config=encode_config(request)
        )
    if out is None:
        name = "".join(char if char.isalnum() or char in "-_" else "-" for char in view.document.id)
        out = Path(f"{name[:100].strip('-') or 'document'}.png")
    if out.suffix == ".html":
        from data.show_page import write_page as write
    else:
        from data.show_pictures import write_picture as write
    print(write(view, out))
    return 0


def tokenizer_of(request: argparse.Namespace, default=byte_tokenizer) -> Tokenizer | None:
    """The tokenizer asked for; what `default` gives where none is."""
    if request.tokenizer is not None:
        return Tokenizer.load(request.tokenizer)
    return default() if default is not None else None
