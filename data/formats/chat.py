"""Chat messages as OpenAI and Hugging Face write them: `{"messages": [{"role", "content"}, ...]}`.

`content` is a string or a list of parts. Of each modality all spellings in use are read:

    {"type": "text", "text"}            also input_text, output_text
    {"type": "image", "image" | "path" | "url": ...}    {"type": "image_url", "image_url": {"url": ...} or a string}
    {"type": "audio", ...}, {"type": "video", ...}      also audio_url, video_url; a film's "sound": false
    {"type": "image"}                   with nothing in it: the next entry of a list `images` beside the messages

and with such a list, `<image>` inside a string is a placeholder too. `conversations` of role and content is the same.
`texts` and other lists of `{"user", "assistant"}` turns are read too; their media stand before the first question
where no placeholder takes them.

Who is learned from is told by `data.formats.roles`, and by marks on messages and parts (`data.formats.marks`). A
system prompt beside the messages is read before them. Refused with the reason: remote addresses, base64, tool
calls beside the content (there is no one way to write them as text), a conversation of which nothing is learned. Fields
of messages and parts that are not known, and a list of `tools`, are noted.
"""

from collections import Counter

from data.document import Document, DocumentError, Part, Text, Video
from data.formats.fields import CONVERSATIONS
from data.formats.marks import TurnMarks, learned, marks_of, note_unknown, sense_of
from data.formats.parts import MEDIA, MediaQueue, join_turns, local_path, split_placeholders
from data.formats.roles import ROLES, speaker
from data.formats.splits import UNASSIGNED

_TEXT = ("text", "input_text", "output_text")
_SYSTEM = ("system", "system_prompt", "system_message")
_OF_MESSAGE = {"role", "content", "from", "value", "id", "type"}
PARTS_WITH_PATH = {"path", "url", "file", "source", *MEDIA} | {f"{kind}_url" for kind in MEDIA}
"""Fields of a content part that name its medium."""
_OF_PART = {"type", "text", "role", "sound"} | PARTS_WITH_PATH


def chat_document(fields: dict, *, name: str, notes: Counter) -> Document:
    """A document from one conversation; `name` is its id. Raises DocumentError naming what is wrong."""
    key = next((key for key in CONVERSATIONS if key in fields), "messages")
    messages = fields.get(key)
    if not isinstance(messages, list) or not messages:
        raise DocumentError(f"field {key!r} must be a list of messages, and not empty")
    if isinstance(messages[0], dict) and not {"role", "from"} & set(messages[0]) and len(messages[0]) > 1:
        return _asked(fields, messages, name=name, notes=notes)
    return conversation(fields, messages, _turn, "message", name=name, notes=notes)


def conversation(fields: dict, turns: list, read, word: str, *, name: str, notes: Counter) -> Document:
    """A document from turns that `read(turn, queue, default, notes)` makes parts of, with what stands beside them.

    default: whether what has no mark of its own is learned; None where the speaker decides.
    """
    queue, beside, spoken = MediaQueue.of(fields), TurnMarks(fields, turns, notes), system_turns(fields)
    if fields.get("tools") not in (None, "", "[]", []):
        notes["note: field 'tools' beside the turns was not read: write it into the system prompt to have it read"] += 1
    for number, turn in enumerate(turns):
        try:
            spoken.append(read(turn, queue, beside.default(number, turn), notes))
        except DocumentError as error:
            raise DocumentError(f"{word} {number}: {error}") from None
    queue.close()
    marked = beside.names or marks_of(turns)
    return Document(id=name, parts=join_turns(spoken, marked), kind="chat", split=UNASSIGNED)


def _asked(fields: dict, pairs: list, *, name: str, notes: Counter) -> Document:
    """A document from turns of a question and its answer each; without placeholders all media come first."""
    messages: list = []
    for number, pair in enumerate(pairs):
        spoken = {}
        for key, value in pair.items() if isinstance(pair, dict) else ():
            if key.lower() in ROLES and isinstance(value, str):
                spoken.setdefault(ROLES[key.lower()], value)
        if not {"user", "assistant"} <= set(spoken):
            raise DocumentError(f"turn {number}: must have 'role' and 'content', or 'user' and 'assistant' as strings")
        note_unknown(
            {key: value for key, value in pair.items() if key.lower() not in ROLES}, {"source", "id"}, "of turns", notes
        )
        # a mark on the pair is one on its answer
        marks = {key: value for key, value in pair.items() if sense_of(key) is not None}
        for role in ("system", "user", "assistant"):
            if role in spoken:
                messages.append({"role": role, "content": spoken[role]} | (marks if role == "assistant" else {}))
    queue = MediaQueue.of(fields)
    if queue and not any(f"<{kind}>" in message["content"] for message in messages for kind in MEDIA):
        first = next(message for message in messages if message["role"] == "user")
        kinds = [kind for kind, count in queue.counts.items() for _ in range(count)]
        first["content"] = [*({"type": kind} for kind in kinds), {"type": "text", "text": first["content"]}]
    return conversation(fields, messages, _turn, "turn", name=name, notes=notes)


def system_turns(fields: dict) -> list[tuple[str, list[Part]]]:
    """The system prompt that stands beside the turns, under any of its names, as a turn. DocumentError for its type."""
    found = []
    for key in _SYSTEM:
        value = fields.get(key)
        if isinstance(value, list) and len(value) <= 1:
            value = value[0] if value else None
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise DocumentError(f"field {key!r} must be a string or a list of one, not {type(value).__name__}")
        if value not in found:
            found.append(value)
    return [("system", [Text(text, learn=False, role="system")]) for text in found]


def _turn(message, queue: MediaQueue, default: bool | None, notes: Counter) -> tuple[str, list[Part]]:
    if not isinstance(message, dict):
        raise DocumentError(f"must be an object, not {type(message).__name__}")
    role, learn = speaker(message.get("role", message.get("from")), notes, default)
    if message.get("tool_calls") or message.get("function_call"):
        raise DocumentError("tool calls are not read: write them into the content as text")
    learn = learned(message, learn)
    note_unknown(message, _OF_MESSAGE, "beside messages", notes)
    content = message.get("content", message.get("value"))
    if isinstance(content, str):
        if queue:
            return role, split_placeholders(content, queue, role=role, learn=learn)
        return role, [Text(content, learn=learn, role=role)] if content else []
    if not isinstance(content, list):
        raise DocumentError(f"field 'content' must be a string or a list, not {type(content).__name__}")
    parts = []
    for number, part in enumerate(content):
        try:
            parts.append(_part(part, queue, role, learn, notes))
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
    return role, parts


def _part(fields, queue: MediaQueue, role: str, learn: bool, notes: Counter) -> Part:
    if not isinstance(fields, dict):
        raise DocumentError(f"must be an object, not {type(fields).__name__}")
    kind, learn = fields.get("type"), learned(fields, learn)
    note_unknown(fields, _OF_PART, "of content parts", notes)
    if kind in _TEXT:
        if not isinstance(fields.get("text"), str):
            raise DocumentError(f"field 'text' must be of type str, not {type(fields.get('text')).__name__}")
        return Text(fields["text"], learn=learn, role=role)
    if kind == "input_audio":
        raise DocumentError("input_audio holds its bytes in the text: store it as a file and give the path")
    medium = str(kind).removeprefix("input_").removesuffix("_url")
    if medium not in MEDIA:
        raise DocumentError(f"type {str(kind)[:40]!r} is none of text, {', '.join(MEDIA)} or their _url forms")
    # tables fill the fields of other parts with null
    given = {key: value for key, value in fields.items() if value is not None and key not in ("type", "text", "role")}
    if PARTS_WITH_PATH.isdisjoint(given):
        return queue.take(medium, role)
    path = local_path(given, where=medium)
    return Video(path, sound=_sound(fields), role=role) if medium == "video" else MEDIA[medium](path, role=role)


def _sound(fields: dict) -> bool:
    sound = fields.get("sound")
    if sound is not None and not isinstance(sound, bool):
        raise DocumentError(f"field 'sound' must be of type bool, not {type(sound).__name__}")
    return sound is not False
