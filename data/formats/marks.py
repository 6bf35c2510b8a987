"""Marks that say whether a text is learned: `{"role": "assistant", "content": "...", "weight": 0}`.

Data sets write the same mark in many words. These are read, on a message, on a part of its content and on the whole
object:

    learn, train, trainable, weight, loss, loss_mask ...     true or 1: learned; false or 0: read only
    mask, masked, ignore, no_loss ...                        the other way round

The nearest mark decides: a part's before its message's, a message's before its speaker's (`data.formats.roles`). So a
user's turn with `train: true` is learned. On the whole object only "not learned" counts, for every turn without a mark
of its own: `train: true` there does not make a user's words a target. null is no mark. Other values (0.5, "no") and
marks that contradict each other set the document aside, since a guess would teach what was not to be taught.
"""

from collections import Counter

from data.document import DocumentError

ON = (
    *("learn", "learnable", "train", "trainable", "training", "is_trainable", "train_on", "train_on_turn"),
    *("weight", "loss", "loss_mask", "loss_weight", "compute_loss", "calculate_loss", "is_target"),
)
"""Marks whose truth means learned."""
OFF = (
    *("mask", "masked", "is_masked", "ignore", "ignored", "ignore_loss", "mask_loss", "loss_masked"),
    *("no_loss", "no_train", "skip_loss", "exclude_from_loss"),
)
"""Marks whose truth means not learned."""
MARKS = (*ON, *OFF)
_MARKS = frozenset(MARKS)
_NATIVE = {"type", "text", "image", "audio", "video", "role", "sound"}
_STRETCHES = ("train_detail", "training_detail", "train_details")


def learned(fields: dict, default: bool) -> bool:
    """Whether the marks of a message or part let its text be learned. Raises DocumentError naming the mark."""
    found: dict[str, bool] = {}
    for key in _marks_in(fields):
        value = fields[key]
        if not _is_switch(value):
            raise DocumentError(f"mark {key!r} must be true, false, 0 or 1, not {value!r}"[:200])
        found[key] = bool(value) == (key in ON)
    for key in _STRETCHES:
        if fields.get(key):
            raise DocumentError(f"{key!r} marks stretches of the text: write them as content parts with 'learn' each")
    if len(set(found.values())) > 1:
        raise DocumentError(f"the marks {', '.join(map(repr, found))} contradict each other")
    return next(iter(found.values()), default)


def object_switch(fields: dict, notes: Counter) -> str:
    """The mark beside the turns that says "not learned" for all of them; "" when there is none.

    A value that is no switch (a weight in a mixture, the picture of a mask) is no such mark, and is noted. Lists are
    refused: they may well be marks for each turn.
    """
    off = ""
    for key in _marks_in(fields):
        value = fields[key]
        if isinstance(value, list) and value and all(map(_is_switch, value)):
            raise DocumentError(f"field {key!r} is a list of marks: put each into its own message")
        if not _is_switch(value):
            notes[f"note: field {key!r} beside the content is neither true, false, 0 nor 1 and was not read"] += 1
        elif bool(value) != (key in ON):
            off = off or key
    return off


def marks_of(turns: list) -> list[str]:
    """The marks that turns and the parts of their content have, once each."""
    contents = (turn["content"] for turn in turns if isinstance(turn.get("content"), list))
    parts = [part for content in contents for part in content]
    found = {key for fields in (*turns, *parts) for key in _marks_in(fields)}
    return sorted(found, key=MARKS.index)


def marked_parts(fields: dict, notes: Counter) -> dict:
    """The native form with every mark of its parts as `learn`. DocumentError when foreign marks leave no target."""
    off, content = object_switch(fields, notes), fields.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return fields
    parts, marks = [], [off] if off else marks_of([fields])
    for number, part in enumerate(content):
        try:
            # its own word is held to its own type
            learn = part["learn"] if "learn" in part and not isinstance(part["learn"], bool) else learned(part, not off)
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
        note_unknown(part, _NATIVE, "of content parts", notes)
        parts.append(part | ({"learn": learn} if part.get("type") == "text" and (marks or "learn" in part) else {}))
    words = [part for part in parts if part.get("type") == "text"]
    # the form's own word alone may leave a document that is only read
    if set(marks) - {"learn"} and words and not any(part.get("learn") is not False for part in words):
        names = ", ".join(map(repr, marks))
        raise DocumentError(f"everything is marked as not to be learned ({names}): there is nothing to learn from")
    return fields | {"content": parts}


def note_unknown(fields: dict, known: set[str], where: str, notes: Counter) -> None:
    """Count a note for each field that is neither known nor a mark, and not empty."""
    for key, value in fields.items():
        if key not in known and key not in _MARKS and value not in (None, "", [], {}):
            notes[f"note: field {key[:40]!r} {where} is not known and was not read"] += 1


def _marks_in(fields: dict) -> list[str]:
    # few objects have any, and every message is asked
    found = _MARKS & fields.keys()
    return sorted((key for key in found if not _is_absent(fields[key])), key=MARKS.index) if found else []


def _is_absent(value) -> bool:
    # tables made from partly marked messages fill the rest with null or NaN
    return value is None or (isinstance(value, float) and value != value)


def _is_switch(value) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)
