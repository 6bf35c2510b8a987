"""The report's record of a run: quarantined, excluded and split documents, events, recipe, machine and versions."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from brine.evals.report.tables import counts, percent

_QUARANTINED_SHOWN, _EVENTS_SHOWN = 50, 200


def record_section(
    quarantine: list[dict[str, Any]], excluded: Mapping[str, Any], events: Mapping[str, list[dict[str, Any]]],
    recipe: Any, environment: Mapping[str, Any] | None, *, kept_stale: Mapping[str, Any] | None = None,
    split_documents: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """quarantine: lines of quarantine.jsonl. excluded: excluded.json. events: stage -> lines of events.jsonl.
    kept_stale: stages kept although the documents changed, and why. split_documents: see `loss.split_documents`."""
    sentences, texts = [_quarantine_sentence(quarantine), *_excluded_sentences(excluded)], []
    if split_documents and split_documents.get("documents"):
        sentences.append(
            f"{split_documents['documents']:,} of {split_documents['total_documents']:,} held-out documents are longer "
            f"than {split_documents['seq_len']:,} tokens and were split into chunks that do not attend to each other "
            f"(the longest has {split_documents['longest_tokens']:,})."
        )
    sentences += [f"{stage}: {reason}." for stage, reason in (kept_stale or {}).items()]
    if quarantine:
        lines = [f"{line.get('id', '?')} {line.get('file') or ''}: {line.get('reason', '')}" for line in quarantine]
        more = [f"… and {len(lines) - _QUARANTINED_SHOWN} more"] if len(lines) > _QUARANTINED_SHOWN else []
        texts.append(("Quarantine", "\n".join(lines[:_QUARANTINED_SHOWN] + more)))
    lines = [_event(stage, event) for stage, found in events.items() for event in found]
    if lines:
        texts.append((f"{len(lines)} events during training", "\n".join(lines[-_EVENTS_SHOWN:])))
    if recipe is not None:
        texts.append(("Resolved recipe", json.dumps(recipe, indent=2, ensure_ascii=False)))
    return {
        "id": "record",
        "sentences": sentences,
        "texts": texts,
        "environment": [
            (name.replace("_", " "), _plain(value))
            for name, value in (environment or {}).items()
            if value not in (None, "", {}, [])
        ],
    }


def _event(stage: str, event: Mapping[str, Any]) -> str:
    details = {name: value for name, value in event.items() if name not in ("event", "unix_time")}
    return f"{stage}: {event.get('event', '?')} {json.dumps(details, ensure_ascii=False)}"


def _quarantine_sentence(quarantine: list[dict[str, Any]]) -> str:
    if not quarantine:
        return "No document was quarantined."
    reasons = Counter(str(line.get("reason", "unknown")) for line in quarantine)
    common = "; ".join(f"{reason[:120]} ({count})" for reason, count in reasons.most_common(3))
    return f"{len(quarantine)} document{'s' if len(quarantine) != 1 else ''} quarantined: {common}."


def _excluded_sentences(excluded: Mapping[str, Any]) -> list[str]:
    documents, total = excluded.get("documents"), excluded.get("total_documents")
    if not isinstance(documents, int) or not isinstance(total, int) or not total:
        return []
    limits = {"tokens": excluded.get("seq_len"), **(excluded.get("media_budget") or {})}

    def needed(needs: Mapping[str, int] | None) -> str:
        return ", ".join(
            f"{need:,} {name}{' tokens' if name != 'tokens' else ''} (a sequence has {limits.get(name)})"
            for name, need in (needs or {}).items()
        )

    cut = excluded.get("cut") or {}
    kinds = cut.get("kinds") or {}
    split = [
        f"{sum(kinds.values()):,} fit only in chunks that do not attend to each other: {counts(kinds)}; "
        f"{cut.get('apart', 0):,} of these have media or a question. Whole they would need at most: "
        f"{needed(cut.get('needs'))}."
    ]
    if not documents:
        return ["Every training document fits a packed sequence.", *(split if kinds else [])]
    tokens = excluded.get("tokens", 0) / max(1, excluded.get("total_tokens", 0))
    return [
        f"{documents:,} of {total:,} training documents fit no packed sequence and were excluded "
        f"({percent(documents / total, 1)} of the documents, {percent(tokens, 1)} of the tokens): "
        f"{counts(excluded.get('kinds') or {})}. The first: {', '.join(map(str, excluded.get('first') or ()))}. "
        f"Needed at most: {needed(excluded.get('needs'))}.",
        *(split if kinds else []),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
