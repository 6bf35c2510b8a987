"""report.html: one file that shows a run, opens offline and needs no other file.

It reads summary.json, evaluate/results.json and transcripts.jsonl, needle/results.json, each stage's metrics.jsonl and
events.jsonl, and the run's records, where they exist. The page has no script and no link to any host, and follows the
reader's light or dark setting. Templates escape all text, and a content security policy allows nothing but the page's
styles and embedded media.
"""

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from brine.common.files import read_json, read_jsonl
from brine.common.renamed import current_file
from brine.evals.config import EvalConfig
from brine.evals.needle.table import read_needle_results
from brine.evals.report import sections
from brine.evals.report.curves import curves_section
from brine.evals.report.needles import needles_section
from brine.evals.report.samples import ReportMediaEmbedder, samples_section
from brine.evals.report.tables import duration, percent
from brine.evals.run_files import STAGES, read_object, read_results, teacher_training_flops, write_page

_LINKS = {"gain": "Gains", "needles": "Needles", "samples": "Samples", "curves": "Curves", "salt": "SALT",
          "levels": "Levels", "cost": "Cost", "record": "Record"}  # fmt: skip


TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"links": _LINKS, "percent": percent}
    return environment


def write_report(run: Path, *, config: EvalConfig | None = None) -> Path:
    """Write report.html into a run folder, atomically; returns its path.

    config: for the size limits of embedded media. Raises ValueError when the folder does not exist.
    """
    if not run.is_dir():
        raise ValueError(f"there is no run folder {run}: train first")
    path = run / "report.html"
    write_page(path, render(run, config=config or EvalConfig()))
    return path


def render(run: Path, *, config: EvalConfig) -> str:
    """The page as text."""
    summary, results = read_object(run / "summary.json"), read_results(run)
    environment = read_object(run / "environment.json")
    compute_cost = summary.get("compute_cost") or {}
    stages = results.get("stages", STAGES)
    metrics = {stage: read_jsonl(run / stage / "metrics.jsonl") for stage in stages}
    budget = ReportMediaEmbedder(run, max_sample_mib=config.max_sample_mib, max_report_mib=config.max_report_mib)
    # the folder of an earlier command stays
    selection = read_jsonl(run / "select" / "selection.jsonl") if "select" in stages else []
    shown = [
        sections.gains_section(results),
        needles_section(read_needle_results(run / "needle" / "results.json")),
        samples_section(read_jsonl(run / "evaluate" / "transcripts.jsonl"), budget),
        curves_section(metrics, teacher_training_flops(compute_cost)),
        sections.salt_section(results.get("compare"), compute_cost, selection=selection),
        sections.losses_section(results),
        sections.cost_section(compute_cost),
        sections.record_section(
            [line for folder in ("corpus", "encoded") for line in read_jsonl(run / folder / "quarantine.jsonl")],
            read_object(current_file(run / "excluded.json")),
            {stage: read_jsonl(run / stage / "events.jsonl") for stage in stages},
            read_json(run / "recipe.json"),
            environment,
            kept_stale=read_object(current_file(run / "kept_stale.json")),
            split_documents=results.get("split_documents"),
            reader_notes=read_object(run / "encoded" / "store" / "meta.json").get("summary") or (),
        ),
    ]
    return _environment().get_template("page.html").render(
        name=run.resolve().name,
        lead=_lead(summary, results, environment),
        cards=sections.headline_cards(summary),
        sections=[section for section in shown if section],
        numbers="summary.json and in the files of the run folder",
        day=time.strftime("%d %B %Y", time.localtime((run / "summary.json").stat().st_mtime)) if summary else "",
    )  # fmt: skip


def _lead(summary: Mapping[str, Any], results: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    if not results:
        return "This run has not been evaluated yet."
    models, main = results.get("models") or {}, results.get("main_model")
    size, helper = ((models.get(name) or {}).get("parameters") for name in (main, "small"))
    words = f"A transformer of {_millions(size)} parameters" if size else "A transformer"
    if helper and main == "large_salt":
        words += f", helped by one of {_millions(helper)}"
    cores = environment.get("threads") or environment.get("cores")
    if isinstance(cores, int):
        words += f", trained on {cores} core{'s' if cores != 1 else ''}"
    if summary.get("wall_s") is not None:
        words += f" in {duration(summary['wall_s'])}, evaluation and corpus included"
    split = results.get("split")
    return words + (f". Numbers are of the {split} split." if split else ".")


def _millions(count: Any) -> str:
    return f"{count / 1e6:.1f} million" if isinstance(count, int | float) else "unknown"
