"""report.html: one file that shows a run to a person, opens offline and needs nothing beside it.

It reads only files under the run folder, written by the stages:

    summary.json                    evals.summary
    evaluate/results.json           evals.evaluate: losses, gains, transcription rates, comparison
    evaluate/transcripts.jsonl      evals.evaluate: truth and model's words; samples name their media files
    evaluate/media/*                the samples' media
    needle/results.json             evals.needle: exact match by modality, length and depth
    <stage>/metrics.jsonl, events.jsonl, ledger.json    of small, large_salt, large_baseline
    corpus/quarantine.jsonl, encoded/quarantine.jsonl   what was set aside
    left_out.json                   documents that fit no row
    stayed.json                     stages that were left as they were although the documents changed
    recipe.json, environment.json   the resolved recipe; versions, cores, choices

and any of them may be missing: what is not there is not shown. The page has no script, no link to any host, and its
pictures, sounds and films inside it. Light or dark follows the reader's setting. All text is escaped, and a content
security policy in the page allows nothing but its own styles and embedded media, so a hostile file name or a model's
odd words stay words.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from evals.config import EvalConfig
from evals.report_curves import curves_section
from evals.report_needles import needles_section
from evals.report_samples import MediaBudget, samples_section
from evals.report_sections import (
    cards,
    duration,
    gains_section,
    ledger_section,
    losses_section,
    record_section,
    salt_section,
)
from evals.summary import STAGES, read_json, read_jsonl, teacher_training_flops, write_whole

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
_LINKS = {"gain": "Gains", "needles": "Needles", "samples": "Samples", "curves": "Curves", "salt": "SALT",
          "levels": "Levels", "ledger": "Ledger", "record": "Record"}  # fmt: skip


def write_report(run: Path, *, config: EvalConfig | None = None) -> Path:
    """Write report.html into a run folder, whole or not at all; returns its path.

    config: for the size limits of embedded media. Raises ValueError when the folder does not exist.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"there is no run folder {run}: run the line first")
    path = run / "report.html"
    write_whole(path, render(run, config=config or EvalConfig()))
    return path


def render(run: Path, *, config: EvalConfig) -> str:
    """The page as text."""
    run = Path(run)
    summary, results = _object(run / "summary.json"), _object(run / "evaluate" / "results.json")
    ledger = summary.get("ledger") or {}
    stages = results.get("stages", STAGES)
    metrics = {stage: read_jsonl(run / stage / "metrics.jsonl") for stage in stages}
    events = {stage: read_jsonl(run / stage / "events.jsonl") for stage in stages}
    quarantine = [line for place in ("corpus", "encoded") for line in read_jsonl(run / place / "quarantine.jsonl")]
    environment = _object(run / "environment.json")
    budget = MediaBudget(run, max_sample_mib=config.max_sample_mib, max_report_mib=config.max_report_mib)
    sections = [
        gains_section(results),
        needles_section(_object(run / "needle" / "results.json")),
        samples_section(read_jsonl(run / "evaluate" / "transcripts.jsonl"), budget),
        curves_section(metrics, teacher_training_flops(ledger)),
        salt_section(results.get("compare"), ledger),
        losses_section(results),
        ledger_section(ledger),
        record_section(
            quarantine,
            _object(run / "left_out.json"),
            events,
            read_json(run / "recipe.json"),
            environment,
            stayed=_object(run / "stayed.json"),
            in_pieces=results.get("in_pieces"),
        ),
    ]
    body = "".join(sections)
    present = [name for name in _LINKS if f'<section id="{name}"' in body]
    links = "".join(f'<a href="#{name}">{_LINKS[name]}</a>' for name in present)
    name = escape(run.resolve().name)
    style = resources.files("evals").joinpath("report.css").read_text(encoding="utf-8")
    day = time.strftime("%d %B %Y", time.localtime((run / "summary.json").stat().st_mtime)) if summary else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Brine: {name}</title><style>{style}</style></head><body><div class="page">'
        f'<header><div class="mark">Brine</div><h1>{name}</h1>'
        f'<p class="lead">{_lead(summary, results, environment)}</p><nav aria-label="Sections">{links}</nav></header>'
        f"<main>{cards(summary)}{body}</main>"
        f"<footer>{escape(day)}{'. ' if day else ''}Every number here is also in summary.json and in the "
        "files of the run folder.</footer></div></body></html>"
    )


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _lead(summary: Mapping[str, Any], results: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """One or two sentences: what was trained, on what, and for how long."""
    if not results:
        return "This run has not been evaluated yet."
    models = results.get("models") or {}
    main = str(results.get("main_model", ""))
    size = (models.get(main) or {}).get("parameters")
    helper = (models.get("small") or {}).get("parameters")
    words = "A transformer" if not size else f"A transformer of {_millions(size)} parameters"
    if helper and main == "large_salt":
        words += f", helped by one of {_millions(helper)}"
    cores = environment.get("threads") or environment.get("cores")
    if isinstance(cores, int):
        words += f", trained on {cores} core{'s' if cores != 1 else ''}"
    if summary.get("wall_s") is not None:
        words += f" in {duration(summary['wall_s'])}, evaluation and corpus included"
    split = results.get("split")
    return escape(words) + (f". Numbers are of the {escape(str(split))} split." if split else ".")


def _millions(count: Any) -> str:
    return f"{count / 1e6:.1f} million" if isinstance(count, int | float) else "unknown"


if __name__ == "__main__":
    from evals.commands import report as command

    raise SystemExit(command())
