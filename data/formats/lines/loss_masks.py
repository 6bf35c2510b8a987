"""Who speaks, and whether a text is a target of the loss: `{"role": "assistant", "content": "...", "weight": 0}`.

Of the roles system, user, assistant and tool only the assistant's words are targets, unless a loss mask says otherwise;
data sets write that in many words (LOSS_ON_KEYS, LOSS_OFF_KEYS). The nearest mask decides: a part's before its
message's, that before its speaker's. On the whole object only "off" counts, for turns without a mask. Contradictions,
masks of another tokenizer's tokens, answers labelled as bad and settings that leave turns out are refused, since a
guess would train on the wrong text.
"""

import re
from collections import Counter
from collections.abc import Collection

from brine.data.document import DocumentError
from brine.data.formats.lines.provenance import plain_name
from brine.data.formats.lines.time_spans import check_part_time_span
from brine.data.formats.splits.names import flag_value, split_field_kind


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LOSS_ON_KEYS = _names(
    "learn learnable train trainable training is_trainable train_on train_on_turn weight loss loss_mask loss_weight "
    "compute_loss calculate_loss is_target has_loss use_loss with_loss enable_loss in_loss include_in_loss loss_on "
    "loss_enabled to_train do_train should_train can_train can_train_on train_this_turn include_in_training loss_scale "
    "loss_factor train_weight training_weight supervise supervised is_supervised unmasked is_unmasked train_mask "
    "turn_mask learned"
)
LOSS_OFF_KEYS = _names(
    "mask masked is_masked ignore ignored ignore_loss mask_loss loss_masked no_loss no_train skip_loss mask_turn "
    "exclude_from_loss ignore_in_loss exclude_from_training skip_training skip_train do_not_train dont_train "
    "not_trainable no_learn no_grad"
)
LOSS_KEYS = (*LOSS_ON_KEYS, *LOSS_OFF_KEYS)
MASKED_ROLE_KEYS = _names("mask mask_role mask_roles masked_role masked_roles roles_to_mask masked_speakers")
"""Fields beside the turns that name the speakers without loss."""
TRAINED_ROLE_KEYS = _names("roles_to_train train_roles train_on_roles trainable_roles roles_to_learn learned_roles")
"""Fields beside the turns that name the speakers with loss."""
TOKEN_MASK_KEYS = _names(
    "assistant_masks assistant_mask assistant_tokens_mask completion_mask prompt_mask response_mask label_mask "
    "labels_mask target_mask token_mask token_weights labels"
)
"""Lists with one value per token."""
NEGATIVE_LABEL_KEYS = _names("label kto_tag kto_label is_desirable desirable")
"""Fields whose false says that the answer is a bad one."""
_TURN_EXCLUDING_KEYS = _names(
    "mask_history last_turn_only train_on_last_turn train_on_last_turn_only last_assistant_only"
)
_OFF_SETTINGS = _names(
    "train_on_eos train_on_eot train_on_eom train_on_input train_on_inputs train_on_prompt train_on_prompts "
    "train_on_source"
)
_ON_SETTINGS = _names(
    "assistant_only_loss completion_only_loss train_on_responses_only mask_prompt mask_input mask_inputs mask_prompts "
    "train_on_completions_only"
)
# setting -> the value that changes nothing
_SETTINGS = dict.fromkeys(_OFF_SETTINGS, False) | dict.fromkeys(_ON_SETTINGS, True)
_SPEAKERS = {
    "system": "system developer system_prompt sys instructions",
    "user": "user human prompter person customer question questioner instruction prompt q client usr",
    "assistant": (
        "assistant gpt model bot ai chatgpt chatbot bing bard claude gemini llama llm agent answer response output "
        "completion a chat_assistant function_call function-call tool_call tool_calls tool-call"
    ),
    "tool": (
        "tool observation function ipython environment env tool_response tool-response tool_result tool_output "
        "tool_results function_response function-response function_result function_output code_output execution"
    ),
}
ROLES = {word: role for role, words in _SPEAKERS.items() for word in words.split()}
"""Speaker, in lower case -> one of system, user, assistant, tool."""
KNOWN_CHAT_KEYS = {*MASKED_ROLE_KEYS, *TRAINED_ROLE_KEYS, *_TURN_EXCLUDING_KEYS, *_SETTINGS, "chosen", "rejected"}
"""Fields beside the turns that `TurnLossMasks` reads or notes."""
_LIKE_A_MARK = re.compile(r"mask|loss|train|learn|supervis")
_NO_MARKS = {"attention_mask", "pixel_mask", "special_tokens_mask"}
_NATIVE = {"type", "text", "image", "audio", "video", "role", "sound", "use_audio"}
_OWN_KEYS = {"learn", "loss_mask"}
_POLARITY = {plain_name(key): key in LOSS_ON_KEYS for key in LOSS_KEYS}


def canonical_role(word, notes: Counter, has_loss: bool | None = None) -> tuple[str, bool]:
    """(role, whether it has loss) of a speaker; `has_loss` is what masks say. DocumentError for an unusable name."""
    if not isinstance(word, str) or not re.fullmatch(r"[A-Za-z0-9_. -]{1,40}", word):
        raise DocumentError("a role must be a short word such as user or assistant")
    role = ROLES.get(word.strip().lower())
    if role is None and has_loss is None:
        notes[f"note: speaker {word!r} is not known: read under that name, without loss"] += 1
    return role or word, role == "assistant" if has_loss is None else has_loss


def loss_polarity(field: str) -> bool | None:
    """Whether the truth of a field means loss (True) or none (False); None for a field that is no loss mask."""
    return _POLARITY.get(plain_name(field))


def _values(fields: dict) -> dict[str, bool | None]:
    """Loss mask -> whether it asks for loss; None for a value that is neither true nor false."""
    marks = ((key, loss_polarity(key), value) for key, value in fields.items() if not is_absent(value))
    return {
        key: None if flag_value(value) is None else flag_value(value) == polarity
        for key, polarity, value in marks
        if polarity is not None
    }


def has_loss(fields: dict, default: bool) -> bool:
    """Whether the masks of a message or part ask for loss on its text. Raises DocumentError naming the mask."""
    found = _values(fields)
    if wrong := next((key for key, value in found.items() if value is None), None):
        raise DocumentError(f"loss mask {wrong!r} must be true, false, 0 or 1, not {fields[wrong]!r}"[:200])
    if key := next((key for key in ("train_detail", "training_detail", "train_details") if fields.get(key)), None):
        raise DocumentError(f"{key!r} masks spans of the text: write them as content parts with 'loss_mask' each")
    if len(set(found.values())) > 1:
        raise DocumentError(f"the loss masks {', '.join(map(repr, found))} contradict each other")
    return next(iter(found.values()), default)


def sample_loss_off_key(fields: dict, notes: Counter, *, read: Collection[str] = ()) -> str:
    """The field that turns loss off for the whole sample, or "". DocumentError for a list of masks."""
    off = ""
    for key, value in fields.items():
        polarity = loss_polarity(key)
        if is_absent(value) or key in read:
            continue
        # without -100 labels are classes
        is_list = isinstance(value, list) and bool(value)
        is_token_list = key != "labels" or (is_list and -100 in value and all(isinstance(each, int) for each in value))
        if key in TOKEN_MASK_KEYS and is_list and is_token_list:
            raise DocumentError(f"field {key!r} masks tokens of another tokenizer: mask messages or parts instead")
        if polarity is None:
            if looks_like_loss_key(key) and value not in ("", [], {}):
                notes[f"note: field {key[:40]!r} beside the content looks like a loss mask and was not read"] += 1
        elif isinstance(value, list) and value and None not in map(flag_value, value):
            raise DocumentError(f"field {key!r} is a list of loss masks: put each into its message")
        elif flag_value(value) is None:
            notes[f"note: field {key!r} beside the content is neither true, false, 0 nor 1 and was not read"] += 1
        elif flag_value(value) != polarity:
            off = off or key
    return off


class TurnLossMasks:
    """What fields beside the turns say about the loss of each turn. DocumentError for what cannot be followed."""

    def __init__(self, fields: dict, turns: list, notes: Counter):
        self.masked_roles, masked = _named_roles(fields, MASKED_ROLE_KEYS, {_speaker(turn) for turn in turns})
        self.trained_roles, trained = _named_roles(fields, TRAINED_ROLE_KEYS, None)
        # field -> whether each turn has loss, of every list of masks with one for each turn
        self.per_turn: dict[str, list[bool]] = {}
        for key, value in fields.items():
            # `weights` and `loss_masks` are lists of one each
            polarity = loss_polarity(key) if loss_polarity(key) is not None else loss_polarity(key.removesuffix("s"))
            flags = list(map(flag_value, value)) if polarity is not None and isinstance(value, list) else [None]
            if len(flags) == len(turns) and None not in flags:
                self.per_turn[key] = [flag == polarity for flag in flags]
        given = {key for key, value in fields.items() if not is_absent(value)}
        for key in NEGATIVE_LABEL_KEYS:
            if is_negative_label(fields.get(key)):
                raise DocumentError(f"field {key!r} says that the answer is a bad one: there is nothing to learn from")
        for key in _TURN_EXCLUDING_KEYS:
            if key in given and flag_value(fields[key]) is not False:
                raise DocumentError(f"field {key!r} leaves turns out: mask these by 'weight': 0 instead")
        settings = [key for key in _SETTINGS if key in given]
        for key in settings:
            if flag_value(fields[key]) is not _SETTINGS[key]:
                notes[f"note: field {key!r} beside the turns is a setting of other programs and was not read"] += 1
        for key in ("chosen", "rejected"):
            if fields.get(key):
                notes[f"note: field {key!r} beside the turns was not read"] += 1
        read = (masked, trained, *self.per_turn, *settings, *_TURN_EXCLUDING_KEYS)
        self.off = sample_loss_off_key(fields, notes, read=read)
        self.names = [name for name in (self.off, masked, trained, *self.per_turn) if name]
        """Fields that may be why no turn has loss."""

    def default(self, number: int, turn) -> bool | None:
        """Whether a turn without a mask has loss; None where its speaker decides."""
        marks, roles = {each[number] for each in self.per_turn.values()}, {_speaker(turn), ROLES.get(_speaker(turn))}
        if self.off or marks:
            return not self.off and False not in marks
        if self.trained_roles:
            return bool(roles & self.trained_roles)
        if self.masked_roles:
            # of two speakers with names, the one that is not masked has loss
            return False if roles & self.masked_roles else None if _speaker(turn) in ROLES else True
        return None


def _speaker(turn) -> str:
    word = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return word.strip().lower() if isinstance(word, str) else ""


def _named_roles(fields: dict, keys: tuple[str, ...], speakers: set[str] | None) -> tuple[set[str], str]:
    """(speakers and their roles, field) of the first field that names any, with `speakers` only some of these."""
    for key in keys:
        value = fields.get(key)
        words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if words and all(isinstance(word, str) for word in words):
            words = {word.strip().lower() for word in words}
            if speakers is None or words <= speakers | ROLES.keys():
                return words | {ROLES[word] for word in words if word in ROLES}, key
    return set(), ""


def is_negative_label(value) -> bool:
    """Whether the value of one of NEGATIVE_LABEL_KEYS says that what it stands beside is a bad one."""
    if isinstance(value, str):
        return value.strip().casefold() in ("false", "undesirable", "unwanted", "rejected", "bad")
    return value is False


def loss_keys_of(turns: list) -> list[str]:
    """The masks of turns and of the parts of their content, once each."""
    contents = (turn["content"] for turn in turns if isinstance(turn.get("content"), list))
    every = [*turns, *(part for content in contents for part in content)]
    return list(dict.fromkeys(key for fields in every for key in _values(fields)))


def with_loss_masks(fields: dict, notes: Counter) -> dict:
    """The native form with every mask of its parts as `loss_mask`. DocumentError when foreign masks leave no target."""
    off, content = sample_loss_off_key(fields, notes), fields.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return fields
    parts, marks = [], [off] if off else loss_keys_of([fields])
    for number, part in enumerate(content):
        try:
            note_unknown(part, _NATIVE | check_part_time_span(part, notes), "of content parts", notes)
            # a `learn` of a wrong type is refused by `parse_document`
            is_own = "learn" in part and not isinstance(part["learn"], bool)
            loss_mask = part["learn"] if is_own else has_loss(part, not off)
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
        is_marked = part.get("type") == "text" and (marks or not _OWN_KEYS.isdisjoint(part))
        kept = {key: value for key, value in part.items() if key not in _OWN_KEYS}
        parts.append(kept | ({"loss_mask": loss_mask} if is_marked else {}))
    words = [part for part in parts if part.get("type") == "text"]
    # the native masks of parts alone may leave a document without loss
    foreign = set(marks) - ({"learn"} if off else _OWN_KEYS)
    if foreign and words and all(part.get("loss_mask") is False for part in words):
        names = ", ".join(map(repr, marks))
        raise DocumentError(f"all text is masked from the loss ({names}): there is nothing to learn from")
    return fields | {"content": parts}


def note_unknown(fields: dict, known: set[str], where: str, notes: Counter) -> None:
    """Count a note for each field that is neither known nor a mask, and not empty."""
    for key, value in fields.items():
        if key not in known and loss_polarity(key) is None and value not in (None, "", [], {}):
            notes[f"note: field {key[:40]!r} {where} is not known and was not read"] += 1


def looks_like_loss_key(field: str) -> bool:
    """Whether a field is named like a loss mask; `sample_loss_off_key` notes it."""
    return field not in _NO_MARKS and not split_field_kind(field) and _LIKE_A_MARK.search(field.lower()) is not None


def is_loss_key(field: str) -> bool:
    return loss_polarity(field) is not None or field in TOKEN_MASK_KEYS


def is_absent(value) -> bool:
    """Whether a cell is empty: tables of partly marked messages fill the rest with null, NaN or an empty text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
