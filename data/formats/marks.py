"""Marks that say whether a text is learned: `{"role": "assistant", "content": "...", "weight": 0}`.

Data sets write the same mark in many words. These are read, on a message, on a part of its content and on the whole
object, however they are spelt (`loss_mask`, `lossMask`, `Loss-Mask`):

    learn, train, trainable, weight, loss, loss_mask ...     true or 1: learned; false or 0: read only
    mask, masked, ignore, no_loss ...                        the other way round

Tables hold them as text, which is read as what it says: "0", "0.0", "false", "False", "no", and the same for true.

The nearest mark decides: a part's before its message's, a message's before its speaker's (`data.formats.roles`). So a
user's turn with `train: true` is learned. On the whole object only "not learned" counts, for every turn without a mark
of its own: `train: true` there does not make a user's words a target. null and an empty text are no mark. Other values
(0.5, "perhaps") and marks that contradict each other set the document aside, since a guess would teach what was not to
be taught; on the whole object another value may be a weight in a mixture, or the picture of a mask, and is noted.

What stands beside the turns for some of them is `TurnMarks`: a list of marks as long as the turns, the speakers that
are not learned (`"mask": "User"`, as NeMo writes it) and those that are (`roles_to_train`). Marks of tokens
(`completion_mask`, `labels` with -100) belong to another tokenizer and set the document aside, as do an answer that is
said to be unwanted (`"label": false`) and settings that leave turns out (`mask_history`). Other settings, and fields
whose names look like marks, are noted.
"""

import functools
import re
from collections import Counter

from data.document import DocumentError
from data.formats.roles import ROLES
from data.formats.stretches import check_part
from data.split_names import flag_value, sort_of_field

ON = (
    *("learn", "learnable", "train", "trainable", "training", "is_trainable", "train_on", "train_on_turn"),
    *("weight", "loss", "loss_mask", "loss_weight", "compute_loss", "calculate_loss", "is_target"),
    *("has_loss", "use_loss", "with_loss", "enable_loss", "in_loss", "include_in_loss", "loss_enabled", "loss_on"),
    *("to_train", "do_train", "should_train", "can_train", "can_train_on", "train_this_turn", "include_in_training"),
    *("loss_scale", "loss_factor", "train_weight", "training_weight"),
    *("supervise", "supervised", "is_supervised", "unmasked", "is_unmasked", "train_mask", "turn_mask", "learned"),
)
"""Marks whose truth means learned."""
OFF = (
    *("mask", "masked", "is_masked", "ignore", "ignored", "ignore_loss", "mask_loss", "loss_masked"),
    *("no_loss", "no_train", "skip_loss", "exclude_from_loss", "ignore_in_loss", "exclude_from_training"),
    *("skip_training", "skip_train", "do_not_train", "dont_train", "not_trainable", "no_learn", "no_grad", "mask_turn"),
)
"""Marks whose truth means not learned."""
MARKS = (*ON, *OFF)
SILENT_ROLES = ("mask", "mask_role", "mask_roles", "masked_role", "masked_roles", "roles_to_mask", "masked_speakers")
"""Fields beside the turns that name the speakers which are not learned."""
LEARNED_ROLES = (
    "roles_to_train",
    "train_roles",
    "train_on_roles",
    "trainable_roles",
    "roles_to_learn",
    "learned_roles",
)
"""Fields beside the turns that name the speakers which are learned."""
TOKEN_MARKS = (
    *("assistant_masks", "assistant_mask", "assistant_tokens_mask", "completion_mask", "prompt_mask", "response_mask"),
    *("label_mask", "labels_mask", "target_mask", "token_mask", "token_weights", "labels"),
)
"""Lists of an entry a token."""
UNWANTED = ("label", "kto_tag", "kto_label", "is_desirable", "desirable")
"""Fields whose false says that the answer is a bad one."""
_NARROWER = ("mask_history", "last_turn_only", "train_on_last_turn", "train_on_last_turn_only", "last_assistant_only")
# setting -> the value that says what is done anyway
_SETTINGS = {
    **dict.fromkeys(("train_on_eos", "train_on_eot", "train_on_eom", "train_on_input", "train_on_inputs"), False),
    **dict.fromkeys(("train_on_prompt", "train_on_prompts", "train_on_source"), False),
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss", "train_on_responses_only", "mask_prompt"), True),
    **dict.fromkeys(("mask_input", "mask_inputs", "mask_prompts", "train_on_completions_only"), True),
}
READ_BESIDE = frozenset((*SILENT_ROLES, *LEARNED_ROLES, *_NARROWER, *_SETTINGS, "chosen", "rejected"))
"""Fields beside the turns that `TurnMarks` reads or notes."""
_LIKE_A_MARK = re.compile(r"mask|loss|train|learn|supervis")
_NO_MARKS = {"attention_mask", "pixel_mask", "special_tokens_mask"}
_NATIVE = {"type", "text", "image", "audio", "video", "role", "sound"}
_STRETCHES = ("train_detail", "training_detail", "train_details")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


_SENSES = {_plain(key): key in ON for key in MARKS}


@functools.lru_cache(maxsize=4096)
def sense_of(field: str) -> bool | None:
    """Whether the truth of a field means learned (True) or not (False); None for a field that is no mark."""
    return _SENSES.get(_plain(field)) if len(field) < 40 else None


def learned(fields: dict, default: bool) -> bool:
    """Whether the marks of a message or part let its text be learned. Raises DocumentError naming the mark."""
    found: dict[str, bool] = {}
    for key, value in fields.items():
        sense = sense_of(key)
        if sense is None or is_absent(value):
            continue
        if not _is_switch(value):
            raise DocumentError(f"mark {key!r} must be true, false, 0 or 1, not {value!r}"[:200])
        found[key] = flag_value(value) == sense
    for key in _STRETCHES:
        if fields.get(key):
            raise DocumentError(f"{key!r} marks stretches of the text: write them as content parts with 'learn' each")
    if len(set(found.values())) > 1:
        raise DocumentError(f"the marks {', '.join(map(repr, found))} contradict each other")
    return next(iter(found.values()), default)


def object_switch(fields: dict, notes: Counter, *, read: tuple[str, ...] = ()) -> str:
    """The mark beside the content that says "not learned" for all of it; "" when there is none.

    A value that is no switch (a weight in a mixture, the picture of a mask) is no such mark, and is noted. Lists are
    refused: they may well be marks for each turn or token. read: fields that somebody has read already.
    """
    off = ""
    for key, value in fields.items():
        sense = sense_of(key)
        if is_absent(value) or key in read:
            continue
        if key in TOKEN_MARKS and _marks_tokens(key, value):
            raise DocumentError(f"field {key!r} marks the tokens of another tokenizer: mark messages or parts instead")
        if sense is None:
            if looks_like_mark(key) and value not in ("", [], {}):
                notes[f"note: field {key[:40]!r} beside the content looks like a mark and was not read"] += 1
        elif isinstance(value, list) and value and all(map(_is_switch, value)):
            raise DocumentError(f"field {key!r} is a list of marks: put each into its own message")
        elif not _is_switch(value):
            notes[f"note: field {key!r} beside the content is neither true, false, 0 nor 1 and was not read"] += 1
        elif flag_value(value) != sense:
            off = off or key
    return off


class TurnMarks:
    """What the fields beside the turns say about which of these are learned.

    Raises DocumentError for what cannot be followed.
    """

    def __init__(self, fields: dict, turns: list, notes: Counter):
        speakers = {_speaker(turn) for turn in turns}
        self.silent, silent = _named(fields, SILENT_ROLES, speakers)
        self.alone, alone = _named(fields, LEARNED_ROLES, None)
        self.each, each = _one_a_turn(fields, len(turns))
        for key in UNWANTED:
            if is_unwanted(fields.get(key)):
                raise DocumentError(f"field {key!r} says that the answer is a bad one: there is nothing to learn from")
        for key in _NARROWER:
            if not is_absent(fields.get(key)) and flag_value(fields[key]) is not False:
                raise DocumentError(f"field {key!r} leaves turns out: mark these by 'weight': 0 instead")
        settings = [key for key in _SETTINGS if not is_absent(fields.get(key))]
        for key in settings:
            if flag_value(fields[key]) is not _SETTINGS[key]:
                notes[f"note: field {key!r} beside the turns is a setting of other programs and was not read"] += 1
        for key in ("chosen", "rejected"):
            if fields.get(key):
                notes[f"note: field {key!r} beside the turns was not read"] += 1
        read = (silent, alone, *each, *settings, *_NARROWER)
        self.off = object_switch(fields, notes, read=read)
        self.names = [name for name in (self.off, silent, alone, *each) if name]
        """Fields that may be why nothing is learned."""

    def default(self, number: int, turn) -> bool | None:
        """Whether a turn without a mark of its own is learned; None where its speaker decides."""
        said = [marks[number] for marks in self.each]
        if self.off or False in said:
            return False
        if True in said:
            return True
        role = _speaker(turn)
        if self.alone:
            return bool({role, ROLES.get(role)} & self.alone)
        if self.silent:
            # whoever is neither silent nor of a known role is the other one of two speakers with names
            return False if {role, ROLES.get(role)} & self.silent else None if role in ROLES else True
        return None


def _speaker(turn) -> str:
    word = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return word.strip().lower() if isinstance(word, str) else ""


def _named(fields: dict, names: tuple[str, ...], there: set[str] | None) -> tuple[set[str], str]:
    """(speakers and their roles, field) of the first field that names any; with `there` only those among these."""
    for key in names:
        value = fields.get(key)
        words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if not words or not all(isinstance(word, str) for word in words):
            continue
        words = [word.strip().lower() for word in words]
        if there is None or all(word in there or word in ROLES for word in words):
            return {role for word in words for role in (word, ROLES.get(word)) if role}, key
    return set(), ""


def _one_a_turn(fields: dict, num_turns: int) -> tuple[list[list[bool]], list[str]]:
    """(whether each turn is learned, field) of every list of marks that has as many entries as there are turns."""
    found, names = [], []
    for key, value in fields.items():
        # `weights` and `loss_masks` are lists of one each
        sense = sense_of(key) if sense_of(key) is not None else sense_of(key.removesuffix("s"))
        if sense is None or not isinstance(value, list) or len(value) != num_turns:
            continue
        if all(map(_is_switch, value)):
            found.append([flag_value(entry) == sense for entry in value])
            names.append(key)
    return found, names


def _marks_tokens(key: str, value) -> bool:
    if not isinstance(value, list) or not value:
        return False
    # without -100 labels are classes
    return key != "labels" or (all(isinstance(entry, int) for entry in value) and -100 in value)


def is_unwanted(value) -> bool:
    """Whether the value of one of UNWANTED says that what it stands beside is a bad one."""
    if isinstance(value, str):
        return value.strip().casefold() in ("false", "undesirable", "unwanted", "rejected", "bad")
    return value is False


def marks_of(turns: list) -> list[str]:
    """The marks that turns and the parts of their content have, once each."""
    contents = (turn["content"] for turn in turns if isinstance(turn.get("content"), list))
    every = [*turns, *(part for content in contents for part in content)]
    found = (key for fields in every for key, value in fields.items() if not is_absent(value))
    return [key for key in dict.fromkeys(found) if sense_of(key) is not None]


def marked_parts(fields: dict, notes: Counter) -> dict:
    """The native form with every mark of its parts as `learn`. DocumentError when foreign marks leave no target."""
    off, content = object_switch(fields, notes), fields.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return fields
    parts, marks = [], [off] if off else marks_of([fields])
    for number, part in enumerate(content):
        try:
            # its own word is held to its own type
            note_unknown(part, _NATIVE | check_part(part, notes), "of content parts", notes)
            learn = part["learn"] if "learn" in part and not isinstance(part["learn"], bool) else learned(part, not off)
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
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
        if key not in known and sense_of(key) is None and value not in (None, "", [], {}):
            notes[f"note: field {key[:40]!r} {where} is not known and was not read"] += 1


def looks_like_mark(field: str) -> bool:
    """Whether the name of a field looks like that of a mark; `object_switch` notes it."""
    return field not in _NO_MARKS and not sort_of_field(field) and _LIKE_A_MARK.search(field.lower()) is not None


def is_mark(field: str) -> bool:
    """Whether a field is a mark, of words or of tokens."""
    return sense_of(field) is not None or field in TOKEN_MARKS


def is_absent(value) -> bool:
    # tables made from partly marked messages fill the rest with null, NaN or nothing
    return (
        value is None or (isinstance(value, float) and value != value) or (isinstance(value, str) and not value.strip())
    )


def _is_switch(value) -> bool:
    return flag_value(value) is not None
