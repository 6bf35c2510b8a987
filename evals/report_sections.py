"""The report's sections but the samples: each a function from the run's records to HTML, or to "" without them.

Whatever a stage did not write is simply not there: a corpus without sound has no row for sound, a run without a
baseline has no verdict. Every string passes `escape`; numbers pass `number`, which turns None into a dash.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from data.document import MODALITIES
from evals.charts import Dot, dot_chart, short
from evals.summary import flops_of

STAGE_NAMES = {
    "large_salt": "large, with SALT",
    "large_baseline": "large, baseline",
    "small": "small",
    "select": "selection",
}
MODALITY_STYLE = {"image": 0, "audio": 3, "video": 4}
ACCOUNT_NAMES = {
    "student": "its own training",
    "teacher_forward": "soft labels from the small model",
    "scoring": "scoring documents",
    "labelling": "labels made ahead",
    "teacher_training": "training as teacher",
}
_GAIN_AXIS = "gain (dashed mark: target)"
_CELL_AXIS = "gain, by kind and level"
DASH = '<span class="none">&ndash;</span>'


def number(value: Any, digits: int = 3) -> str:
    """A number with fixed digits, or a dash."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return DASH
    return f"{value:,.{digits}f}".replace("-", "&minus;") if isinstance(value, float) else f"{value:,}"


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if not isinstance(seconds, int | float):
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def span(entry: Mapping[str, Any], digits: int = 2) -> str:
    """ "low to high" of an interval, "" without one."""
    low, high = entry.get("low"), entry.get("high")
    return f"{number(low, digits)} to {number(high, digits)}" if low is not None and high is not None else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, caption: str = "", sums: int = 0) -> str:
    """A table from ready HTML cells; on narrow screens each row becomes a block. The last `sums` rows are totals."""
    head, rows = list(head), [list(row) for row in rows]
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(
            f'<td data-name="{escape(name)}"{_cell_class(cell)}>{cell}</td>'
            for name, cell in zip(head[1:], row[1:], strict=True)
        )
        total = ' class="sum"' if place >= len(rows) - sums else ""
        lines.append(f'<tr{total}><th scope="row">{row[0]}</th>{cells}</tr>')
    words = f"<caption>{caption}</caption>" if caption else ""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="stack">{words}<thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell_class(cell: str) -> str:
    return ' class="barcell"' if 'class="bar' in cell else ""


def card(name: str, value: str, *, below: str = "", badge: str = "", good: bool | None = None, words=False) -> str:
    """One headline number."""
    tone = {True: " good", False: " bad", None: ""}[good]
    mark = f'<span class="badge{tone}">{badge}</span>' if badge else ""
    kind = "value words" if words else "value"
    return (
        f'<div class="card"><div class="name">{name}</div><div class="{kind}">{value}</div>'
        f'<div class="range">{below}</div>{mark}</div>'
    )


def cards(summary: Mapping[str, Any]) -> str:
    """The headline numbers against their targets."""
    targets, found = summary.get("targets") or {}, []

    def badge(name: str, sign: str) -> dict[str, Any]:
        entry = targets.get(name)
        if not entry:
            return {}
        good = entry["reached"]
        if good is None:
            return {"badge": "not measured"}
        return {"badge": f"{'reached' if good else 'missed'} {sign}&nbsp;{entry['target']:g}", "good": good}

    if summary.get("bits_per_byte") is not None:
        found.append(card("Held-out text", number(summary["bits_per_byte"], 2), below="bits per byte"))
    for name, title in (("image", "Gain from pictures"), ("audio", "Gain from sound"), ("video", "Gain from video")):
        entry = (summary.get("media_gain") or {}).get(name) or {}
        if entry.get("gain") is not None:
            found.append(card(title, number(entry["gain"], 2), below=span(entry), **badge(f"{name}_gain", "≥")))
    for name, title in (("image", "Errors reading pictures"), ("audio", "Errors transcribing sound")):
        value = (summary.get("cer") or {}).get(name)
        if value is not None:
            text = f"{100 * value:.1f}&nbsp;%"
            found.append(card(title, text, below="of characters, easiest level", **badge(f"{name}_cer", "≤")))
    equal = ((summary.get("salt") or {}).get("equal_steps")) or {}
    if equal.get("verdict"):
        words = {"win": "SALT wins", "loss": "SALT loses", "undecided": "Undecided"}[equal["verdict"]]
        below = f"{number(equal.get('difference'), 3)} nats per token at equal steps"
        cost = ((summary["salt"].get("equal_cost") or {}).get("without_teacher_training") or {}).get("verdict")
        tone = {"win": True, "loss": False}.get(cost)
        badge_words = f"{cost} at equal cost" if cost else ""
        found.append(card("SALT against baseline", words, below=below, badge=badge_words, good=tone, words=True))
    if summary.get("wall_s") is not None:
        memory = summary.get("peak_rss_gib")
        below = f"{number(float(memory), 1)} GiB at most" if memory is not None else ""
        found.append(card("The whole line", duration(summary["wall_s"]), below=below))
    return f'<div class="cards">{"".join(found)}</div>' if found else ""


def gains_section(results: Mapping[str, Any]) -> str:
    """Media gains: headline with targets, per kind and level, and the losses behind them."""
    gains = {name: (results.get("media_gain") or {}).get(name) for name in MODALITIES}
    gains = {name: entry for name, entry in gains.items() if entry and entry.get("gain") is not None}
    if not gains:
        return ""
    targets = results.get("targets") or {}

    def dot(name: str, entry: Mapping[str, Any], modality: str, **more: Any) -> Dot:
        note = f", {entry.get('num_documents', 0)} documents"
        low, high = (entry["gain"] if entry.get(end) is None else entry[end] for end in ("low", "high"))
        return Dot(name, entry["gain"], low, high, MODALITY_STYLE[modality], note=note, **more)

    heads = [dot(name, entry, name, target=targets.get(f"{name}_gain"), strong=True) for name, entry in gains.items()]
    cells = [
        dot(f"{cell['kind'][:11]} {cell['level']}", cell, modality)
        for modality, entry in gains.items()
        for cell in entry.get("cells", [])
        if cell.get("gain") is not None
    ]
    rows = [
        [
            escape(name),
            number(entry.get("own")),
            number(entry.get("blank")),
            number(entry.get("other")),
            number(entry.get("num_documents")),
        ]
        for name, entry in gains.items()
    ]
    losses = table(("medium", "its own", "blank", "another's", "documents"), rows, caption="Loss, nats per token, with")
    left = f'<div class="sheet">{dot_chart("Media gain per modality", heads, x_label=_GAIN_AXIS)}{losses}</div>'
    right = ""
    if len(cells) > len(heads):
        right = f'<div class="sheet">{dot_chart("Media gain per kind and level", cells, x_label=_CELL_AXIS)}</div>'
    return (
        '<section id="gain"><h2>What the media tell it</h2><p class="about">Media gain is the share of the loss after '
        "a medium that is saved by what the medium shows: 0 means the model does not look, 1 that it needs nothing "
        "else. Blank means grey or silence in the same place; whiskers are 95 % intervals over documents. A gain over "
        "several kinds and levels weighs them as the training mix does.</p>"
        f'<div class="two">{left}{right}</div></section>'
    )


def salt_section(compare: Mapping[str, Any] | None, ledger: Mapping[str, Any]) -> str:
    """The verdict in words, then the differences with their intervals."""
    if not compare or not compare.get("equal_steps"):
        return ""
    equal, cost = compare["equal_steps"], compare.get("equal_cost") or {}
    named = [("equal steps", equal)]
    named += [("equal cost", cost["without_teacher_training"])] if "without_teacher_training" in cost else []
    named += [("with teacher", cost["with_teacher_training"])] if "with_teacher_training" in cost else []
    dots = [
        Dot(name, entry["difference"], entry["low"], entry["high"], 0, strong=True)
        for name, entry in named
        if entry.get("difference") is not None and entry.get("low") is not None
    ]
    chart = dot_chart("SALT minus baseline", dots, x_label="nats per token; below 0 SALT is better")
    long = {
        "equal steps": "equal student steps",
        "equal cost": "equal billed cost, teacher at hand",
        "with teacher": "equal billed cost, teacher's training billed",
    }
    rows = [
        [
            long[name] + (f"<small>{escape(str(entry['note']))}</small>" if entry.get("note") else ""),
            number(entry.get("ours")),
            number(entry.get("theirs")),
            number(entry.get("difference"), 4),
            span(entry, 4) or DASH,
            escape(str(entry.get("verdict", ""))),
        ]
        for name, entry in named
    ]
    head = ("compared at", "SALT", "baseline", "difference", "interval", "verdict")
    drawn = f'<div class="sheet">{chart}</div>' if chart else ""
    words = f'<div><p class="verdict">{salt_words(compare)}</p>{_match_words(compare)}{_bill_words(ledger)}</div>'
    return (
        f'<section id="salt"><h2>Did the small model help?</h2><div class="two">{words}{drawn}</div>'
        f'<div class="sheet below">{table(head, rows)}</div>'
        '<p class="about">Intervals are over held-out documents. One pair of runs cannot show how much another seed '
        "would move the difference.</p></section>"
    )


def salt_words(compare: Mapping[str, Any]) -> str:
    """The verdict as a sentence or two."""
    equal = compare["equal_steps"]
    size = f"{number(abs(equal.get('difference') or 0.0), 4)} nats per token"
    words = {
        "win": f"After the same number of steps, the model with SALT is better by {size}",
        "loss": f"After the same number of steps, the model with SALT is worse by {size}",
        "undecided": "After the same number of steps, the two models cannot be told apart",
    }[equal["verdict"]]
    cost = (compare.get("equal_cost") or {}).get("without_teacher_training")
    if not cost:
        return words + "."
    if cost.get("difference") is None:
        return words + "; at equal billed cost there is no comparison."
    link = "and" if cost["verdict"] == equal["verdict"] else "but"
    ending = {
        "win": "it is ahead at equal billed cost",
        "loss": "it is behind at equal billed cost",
        "undecided": "nothing is decided at equal billed cost",
    }[cost["verdict"]]
    words += f"; {link} {ending}"
    billed = (compare["equal_cost"].get("with_teacher_training") or {}).get("verdict")
    if billed and billed != cost["verdict"]:
        words += {
            "win": ", and ahead when the small model&rsquo;s training is billed too",
            "loss": ", and behind when the small model&rsquo;s training is billed too",
            "undecided": ", and undecided when the small model&rsquo;s training is billed too",
        }[billed]
    return words + "."


def _match_words(compare: Mapping[str, Any]) -> str:
    match = compare.get("to_match") or {}
    plain, full = match.get("without_teacher_training") or {}, match.get("with_teacher_training") or {}
    if not match:
        return ""
    if plain.get("cost_share") is None:
        return "<p>It never came down to the baseline&rsquo;s final validation loss.</p>"
    words = (
        f"It came down to the baseline&rsquo;s final validation loss after {100 * plain['step_share']:.0f}&nbsp;% of "
        f"the baseline&rsquo;s steps and {100 * plain['cost_share']:.0f}&nbsp;% of its cost"
    )
    if full.get("cost_share") is not None:
        words += f"; {100 * full['cost_share']:.0f}&nbsp;% with the small model&rsquo;s training billed"
    return f"<p>{words}.</p>"


def _bill_words(ledger: Mapping[str, Any]) -> str:
    bills = ledger.get("billed") or {}
    ours, theirs = bills.get("large_salt"), bills.get("large_baseline")
    if not ours or not theirs or not theirs["student"]:
        return ""
    base = theirs["student"] + theirs["teacher_help"]
    help_share, teacher_share = 100 * ours["teacher_help"] / base, 100 * ours["teacher_training"] / base
    return (
        f"<p>Of the baseline&rsquo;s whole cost, the small model&rsquo;s help came to {help_share:.1f}&nbsp;% and its "
        f"own training to {teacher_share:.1f}&nbsp;%.</p>"
    )


def losses_section(results: Mapping[str, Any]) -> str:
    """Held-out loss per kind and level of every model, and the transcription rates."""
    models = {name: model for name, model in (results.get("models") or {}).items() if model.get("cells")}
    blocks = []
    if models:
        names = [name for name in STAGE_NAMES if name in models] + [n for n in models if n not in STAGE_NAMES]
        cells = {name: {(row["kind"], row["level"]): row for row in models[name]["cells"]} for name in names}
        rows = []
        for key in sorted({key for found in cells.values() for key in found}):
            some = next(found[key] for found in cells.values() if key in found)
            losses = [number((cells[name].get(key) or {}).get("loss")) for name in names]
            rows.append([f"{escape(key[0])}, level {key[1]}", *losses,
                         number((cells[names[0]].get(key) or {}).get("bits_per_byte"), 2),
                         number(some.get("documents")), number(some.get("tokens"))])  # fmt: skip
        head = ["kind and level", *(STAGE_NAMES.get(name, name) for name in names)]
        head += ["bits per byte", "documents", "tokens"]
        note = f"Nats per target token; bits per byte are those of: {STAGE_NAMES.get(names[0], escape(names[0]))}"
        blocks.append(f'<div class="sheet">{table(head, rows, caption=note)}</div>')
    if results.get("transcription"):
        rows = [
            [
                f"{escape(row['kind'])}, level {row['level']}",
                number(row.get("cer"), 3),
                span({"low": row.get("cer_low"), "high": row.get("cer_high")}, 3) or DASH,
                number(row.get("exact"), 2),
                number(row.get("names_recovered"), 2),
                number(row.get("documents")),
            ]
            for row in results["transcription"]
        ]
        head = ("kind and level", "character errors", "interval", "exactly right", "names recovered", "documents")
        note = "Greedy transcriptions: edits per character, share without any error, share of names given in order"
        blocks.append(f'<div class="sheet">{table(head, rows, caption=note)}</div>')
    if not blocks:
        return ""
    return f'<section id="levels"><h2>Every kind, every level</h2>{"".join(blocks)}</section>'


def ledger_section(ledger: Mapping[str, Any]) -> str:
    """FLOPs and seconds of every stage and account."""
    stages = {stage: ledger[stage] for stage in STAGE_NAMES if ledger.get(stage)}
    if not stages:
        return ""
    most = max((entry["flops"] for entries in stages.values() for entry in entries.values()), default=0) or 1
    rows = []
    for stage, entries in stages.items():
        for account, entry in entries.items():
            bar = f'<span class="bar" style="width:{100 * entry["flops"] / most:.1f}%"></span>'
            rows.append([f"{STAGE_NAMES[stage]}: {escape(ACCOUNT_NAMES.get(account, account))}", bar,
                         short(entry["flops"]), duration(entry["seconds"])])  # fmt: skip
    flops = sum(flops_of(entries) for entries in stages.values())
    seconds = sum(entry["seconds"] for entries in stages.values() for entry in entries.values())
    rows.append(["all together", "", short(flops), duration(seconds)])
    head = ("who, and for what", "", "FLOPs", "time")
    return (
        '<section id="ledger"><h2>Ledger</h2><p class="about">Floating-point operations, counted from shapes, and the '
        f'time they took. Validation is billed to nobody.</p><div class="sheet">{table(head, rows, sums=1)}</div>'
        "</section>"
    )


def record_section(
    quarantine: list[dict[str, Any]],
    left_out: Mapping[str, Any],
    events: Mapping[str, list[dict[str, Any]]],
    recipe: Any,
    environment: Mapping[str, Any] | None,
    *,
    stayed: Mapping[str, Any] | None = None,
    in_pieces: Mapping[str, Any] | None = None,
) -> str:
    """What was set aside, fits no row or was measured in pieces; what happened, the resolved recipe, the machine."""
    blocks = [_quarantine_html(quarantine), _left_out_html(left_out)]
    if in_pieces and in_pieces.get("documents"):
        blocks.append(
            f"<p>{in_pieces['documents']:,} of {in_pieces['of_documents']:,} held-out documents are longer than "
            f"{in_pieces['row_tokens']:,} tokens and were measured in pieces that do not see each other (the longest "
            f"has {in_pieces['longest']:,}).</p>"
        )
    blocks += [f"<p>{escape(str(stage))}: {escape(str(told))}.</p>" for stage, told in (stayed or {}).items()]
    lines = [(stage, event) for stage, found in events.items() for event in found]
    if lines:
        rows = "\n".join(
            f"{stage}: {event.get('event', '?')} "
            + json.dumps({k: v for k, v in event.items() if k not in ("event", "wall")}, ensure_ascii=False)
            for stage, event in lines[-200:]
        )
        blocks.append(_details(f"{len(lines)} events during training", f"<pre>{escape(rows)}</pre>"))
    if recipe is not None:
        text = json.dumps(recipe, indent=2, ensure_ascii=False)
        blocks.append(_details("The resolved recipe", f"<pre>{escape(text)}</pre>"))
    if environment:
        pairs = "".join(
            f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
            for name, value in environment.items()
            if value not in (None, "", {}, [])
        )
        blocks.append(_details("The machine and the versions", f'<dl class="pairs">{pairs}</dl>', opened=True))
    return f'<section id="record"><h2>Record</h2>{"".join(blocks)}</section>'


def _quarantine_html(quarantine: list[dict[str, Any]]) -> str:
    if not quarantine:
        return "<p>No document was set aside.</p>"
    reasons = Counter(str(line.get("reason", "unknown")) for line in quarantine)
    lines = "\n".join(
        f"{line.get('id', '?')} {line.get('file') or ''}: {line.get('reason', '')}" for line in quarantine[:50]
    )
    more = f"\n… and {len(quarantine) - 50} more" if len(quarantine) > 50 else ""
    common = "; ".join(f"{reason[:120]} ({count})" for reason, count in reasons.most_common(3))
    words = f"{len(quarantine)} document{'s' if len(quarantine) != 1 else ''} set aside"
    return f"<p>{escape(words)}: {escape(common)}.</p>" + _details("Quarantine", f"<pre>{escape(lines + more)}</pre>")


def _left_out_html(left_out: Mapping[str, Any]) -> str:
    documents, of_documents = left_out.get("documents"), left_out.get("of_documents")
    if not isinstance(documents, int) or not isinstance(of_documents, int) or not of_documents:
        return ""
    limits = {"tokens": left_out.get("row_tokens"), **(left_out.get("media_budget") or {})}

    def needed(needs: Mapping[str, int] | None) -> str:
        return escape(
            ", ".join(
                f"{need:,} {name}{' tokens' if name != 'tokens' else ''} (a row has {limits.get(name)})"
                for name, need in (needs or {}).items()
            )
        )

    cut = left_out.get("cut") or {}
    pieces = cut.get("kinds") or {}
    in_pieces = (
        f" {sum(pieces.values()):,} fit only in pieces that do not see each other: "
        f"{escape(', '.join(f'{count:,} {kind}' for kind, count in pieces.items()))}; {cut.get('apart', 0):,} of these "
        f"hold media or a question. Whole they would need at most: {needed(cut.get('needs'))}."
        if pieces
        else ""
    )
    if not documents:
        return f"<p>Every training document fits a row.{in_pieces}</p>"
    tokens = 100 * left_out.get("tokens", 0) / max(1, left_out.get("of_tokens", 0))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in (left_out.get("kinds") or {}).items())
    names = ", ".join(map(str, left_out.get("first") or ()))
    return (
        f"<p>{documents:,} of {of_documents:,} training documents fit no row and were left out "
        f"({100 * documents / of_documents:.1f}&nbsp;% of the documents, {tokens:.1f}&nbsp;% of the tokens): "
        f"{escape(kinds)}. The first: {escape(names)}. Needed at most: "
        f"{needed(left_out.get('needs'))}.{in_pieces}</p>"
    )


def _details(title: str, body: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{body}</details>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
