"""Conversations as OpenAI, Hugging Face and LLaVA write them.

    {"messages": [{"role", "content": "words" or a list of parts}, ...]}               `chat_document`
    {"image": path, "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}    `llava_document`

A part is text or one image, audio or video, as `"image": path`, `"image_url": {"url": path}` and the like; one without
a path, or an `<image>` in words, is the next of a list `images` beside the messages, or that of its `index`. Media that
a turn names stand at its placeholders or before its words. Lists of `{"user", "assistant"}` pairs are read too.
Refused: remote and base64 media, tool calls beside the content, placeholders without media, conversations without loss.
"""

from collections import Counter

from brine.data.document import Document, DocumentError, Part, Text, Video
from brine.data.formats.lines.fields import CONVERSATIONS, note_nothing
from brine.data.formats.lines.loss_masks import (
    ROLES,
    TurnLossMasks,
    canonical_role,
    has_loss,
    is_absent,
    loss_keys_of,
    loss_polarity,
    note_unknown,
)
from brine.data.formats.lines.parts import MEDIA, MediaQueue, join_turns, local_path, split_placeholders
from brine.data.formats.lines.time_spans import check_part_time_span, check_time_span
from brine.data.formats.notes.unread_fields import check_message_fields
from brine.data.formats.splits.rules import UNASSIGNED

SYSTEM = ("system", "system_prompt", "system_message")  # fields beside the turns that hold a system prompt
PARTS_WITH_PATH = {"path", "url", "file", "source", *MEDIA} | {f"{kind}_url" for kind in MEDIA}
"""Fields of a content part that name its file."""
_OF_PAIR = ("source", "id", "input")
_OF_QUESTION = ("context", "choices", "options", "passage", "hint", "document", "table")
_OF_PART = {"type", "text", "role", "sound", "use_audio"} | PARTS_WITH_PATH
_LLAVA_KEYS = frozenset(("from", "value", "id", "type"))
_MESSAGE_KEYS = _LLAVA_KEYS | {"role", "content"}
Turn = tuple[str, list[Part]]


def chat_document(fields: dict, *, name: str, notes: Counter) -> Document:
    """A document from one conversation; `name` is its id. Raises DocumentError naming what is wrong."""
    turns = _turns(fields, next((key for key in CONVERSATIONS if key in fields), "messages"), "messages")
    if isinstance(turns[0], dict) and not {"role", "from"} & set(turns[0]) and len(turns[0]) > 1:
        messages = [message for number, pair in enumerate(turns) for message in _messages_of_pair(pair, number, notes)]
        return _conversation(fields, _with_media_first(fields, messages), "turn", name=name, notes=notes)
    return _conversation(fields, turns, "message", name=name, notes=notes)


def llava_document(fields: dict, *, name: str, notes: Counter) -> Document:
    """A document from LLaVA's form; `name` is its id. Raises DocumentError naming what is wrong."""
    turns = _turns(fields, "conversations", "turns")
    return _conversation(fields, turns, "turn", name=name, notes=notes, is_llava=True)


def _turns(fields: dict, key: str, word: str) -> list:
    if not isinstance(fields.get(key), list) or not fields[key]:
        raise DocumentError(f"field {key!r} must be a list of {word}, and not empty")
    return fields[key]


def _conversation(
    fields: dict, turns: list, word: str, *, name: str, notes: Counter, is_llava: bool = False
) -> Document:
    queue, masks, spoken = MediaQueue(fields), TurnLossMasks(fields, turns, notes), _system_turns(fields)
    if fields.get("tools") not in (None, "", "[]", []):
        notes["note: field 'tools' beside the turns was not read: write it into the system prompt to have it read"] += 1
    queue.match([_content(turn) for turn in turns if isinstance(turn, dict)])
    for number, turn in enumerate(turns):
        try:
            spoken.append(_turn(turn, queue, masks.default(number, turn), notes, is_llava=is_llava))
        except DocumentError as error:
            raise DocumentError(f"{word} {number}: {error}") from None
    queue.close()
    if unused := queue.num_unused():
        notes["note: media listed beside a conversation were not read, for no content part has their index"] += unused
    if all(isinstance(part, Text) for _, parts in spoken for part in parts):
        if queue.unmatched_placeholder:
            raise DocumentError(f"there are more {queue.unmatched_placeholder} placeholders than media (0 listed)")
        # a table has null in every row without media
        note_nothing({key: value for key, value in fields.items() if value not in (None, [])}, notes)
    parts = join_turns(spoken, masks.names or loss_keys_of(turns))
    return Document(id=name, parts=parts, kind="chat", split=UNASSIGNED)


def _content(turn: dict):
    return turn.get("content", turn.get("value"))


def _messages_of_pair(pair, number: int, notes: Counter) -> list[dict]:
    spoken: dict[str, str] = {}
    for key, value in pair.items() if isinstance(pair, dict) else ():
        role = ROLES.get(key.lower())
        if role and isinstance(value, str) and value and (role == "tool" or spoken.setdefault(role, value) != value):
            raise DocumentError(
                f"turn {number}: field {key[:40]!r} is a third speaker beside question and answer: write each as a "
                "message with 'role' and 'content'"
            )
    if not {"user", "assistant"} <= set(spoken):
        raise DocumentError(f"turn {number}: must have 'role' and 'content', or 'user' and 'assistant' as strings")
    if isinstance(pair.get("input"), str) and pair["input"].strip():
        # the matter that an instruction is about
        spoken["user"] += f"\n\n{pair['input']}"
    left = [key for key in pair if key.lower() not in ROLES and key not in _OF_PAIR]
    if lost := [key for key in left if key.lower() in _OF_QUESTION and pair[key] not in (None, "", [])]:
        raise DocumentError(f"turn {number}: field {lost[0]!r} belongs to the question: write it into that")
    check_message_fields(pair, left, "of turns", notes)
    marks = {key: value for key, value in pair.items() if loss_polarity(key) is not None}
    messages = [{"role": role, "content": spoken[role]} for role in ("system", "user", "assistant") if role in spoken]
    return [*messages[:-1], messages[-1] | marks]


def _with_media_first(fields: dict, messages: list[dict]) -> list[dict]:
    queue = MediaQueue(fields)
    if queue and not any(f"<{kind}>" in message["content"] for message in messages for kind in MEDIA):
        first = next(message for message in messages if message["role"] == "user")
        media = [{"type": kind} for kind, count in queue.counts.items() for _ in range(count)]
        first["content"] = [*media, {"type": "text", "text": first["content"]}]
    return messages


def _system_turns(fields: dict) -> list[Turn]:
    """The system prompts that stand beside the turns, each once. DocumentError for their type."""
    found: dict[str, Turn] = {}
    for key in SYSTEM:
        value = fields.get(key)
        if isinstance(value, list) and len(value) <= 1:
            value = value[0] if value else None
        if value is not None and not isinstance(value, str):
            raise DocumentError(f"field {key!r} must be a string or a list of one, not {type(value).__name__}")
        if value:
            found[value] = "system", [Text(value, loss_mask=False, role="system")]
    return list(found.values())


def _turn(turn, queue: MediaQueue, default: bool | None, notes: Counter, *, is_llava: bool) -> Turn:
    if is_llava and not (isinstance(turn, dict) and isinstance(turn.get("value"), str)):
        raise DocumentError("must be an object with the strings 'from' and 'value'")
    if not isinstance(turn, dict):
        raise DocumentError(f"must be an object, not {type(turn).__name__}")
    content = turn["value"] if is_llava else _content(turn)
    role, loss_mask = canonical_role(turn.get("role", turn.get("from")), notes, default)
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DocumentError("tool calls are not read: write them into the content as text")
    loss_mask, kind = has_loss(turn, loss_mask), turn.get("type") if is_llava else None
    known = _LLAVA_KEYS if is_llava else _MESSAGE_KEYS
    if kind in ("audio", "video"):
        known = known | check_time_span(turn, [content], notes)
    # media that the turn names itself
    inner = None
    if not known.issuperset(turn):
        left = {key: value for key, value in turn.items() if key not in known}
        inner = MediaQueue(left)
        read = {*inner.fields, *(check_time_span(turn, inner.paths, notes) if inner.paths else ())}
        where = "beside turns" if is_llava else "beside messages"
        check_message_fields(turn, [key for key in left if key not in read], where, notes)
        inner.match([content])
    # NeMo's turns are words or one media file each
    if kind in MEDIA:
        if inner:
            raise DocumentError(f"a turn of type {kind!r} has other media beside it: write each as a separate turn")
        return role, [MEDIA[kind](local_path(content, where=kind), role=role)]
    if kind not in (None, "text"):
        notes["note: field 'type' beside turns is not known and was not read"] += 1
    if isinstance(content, str):
        parts = split_placeholders(content, inner or queue, role=role, loss_mask=loss_mask)
        return role, inner.before(parts, role) if inner else parts
    if not isinstance(content, list):
        raise DocumentError(f"field 'content' must be a string or a list, not {type(content).__name__}")
    parts = []
    for number, part in enumerate(content):
        try:
            parts.append(_part(part, inner or queue, role, loss_mask, notes))
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
    return role, inner.before(parts, role) if inner else parts


def _part(fields, queue: MediaQueue, role: str, loss_mask: bool, notes: Counter) -> Part:
    if not isinstance(fields, dict):
        raise DocumentError(f"must be an object, not {type(fields).__name__}")
    given_kind, loss_mask = fields.get("type"), has_loss(fields, loss_mask)
    kind = str(given_kind).removeprefix("input_").removesuffix("_url")
    # tables fill the fields of other parts with null
    given = {key: value for key, value in fields.items() if value is not None and key not in ("type", "text", "role")}
    is_listed = kind in MEDIA and PARTS_WITH_PATH.isdisjoint(given)
    index_keys = ("index", f"{kind}_index", "idx", f"{kind}_idx") if is_listed else ()
    spans = check_part_time_span(fields, notes, listed=queue.paths)
    note_unknown(fields, _OF_PART.union(index_keys, spans), "of content parts", notes)
    if given_kind in ("text", "input_text", "output_text"):
        if not isinstance(fields.get("text"), str):
            raise DocumentError(f"field 'text' must be of type str, not {type(fields.get('text')).__name__}")
        queue.check_words(fields["text"])
        return Text(fields["text"], loss_mask=loss_mask, role=role)
    if given_kind == "input_audio":
        raise DocumentError("input_audio holds its bytes in the text: store it as a file and give the path")
    if kind not in MEDIA:
        raise DocumentError(f"type {str(given_kind)[:40]!r} is none of text, {', '.join(MEDIA)} or their _url forms")
    if is_listed:
        key = next((key for key in index_keys if not is_absent(given.get(key))), None)
        if key is None:
            return queue.take(kind, role)
        # a table whose column has a null holds fractions
        if isinstance(given[key], bool) or not isinstance(given[key], int | float) or given[key] % 1:
            raise DocumentError(
                f"field {key!r} must be a whole number (an index of media), not {str(given[key])[:40]!r}"
            )
        return queue.at(kind, int(given[key]), role)
    path, use_audio = local_path(given, where=kind), fields.get("use_audio", fields.get("sound"))
    if kind != "video":
        return MEDIA[kind](path, role=role)
    if use_audio is not None and not isinstance(use_audio, bool):
        raise DocumentError(f"field 'use_audio' must be of type bool, not {type(use_audio).__name__}")
    return Video(path, use_audio=use_audio is not False, role=role)
