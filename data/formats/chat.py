"""Chat messages as OpenAI and Hugging Face write them: `{"messages": [{"role", "content"}, ...]}`.

`content` is a string or a list of parts. Of each modality all spellings in use are read:

    {"type": "text", "text"}            also input_text, output_text
    {"type": "image", "image" | "path" | "url": ...}    {"type": "image_url", "image_url": {"url": ...} or a string}
    {"type": "audio", ...}, {"type": "video", ...}      also audio_url, video_url; a film's "sound": false
    {"type": "image"}                   with nothing in it: the next entry of a list `images` beside the messages
    {"type": "image", "index": 1}       that entry of the list, from 0 on; one may be meant twice, or never (noted)

and with such a list, `<image>` inside a string is a placeholder too. `conversations` of role and content is the same.
`texts` and other lists of `{"user", "assistant"}` turns are read too; their media stand before the first question
where no placeholder takes them. Media that a message names itself (`"images": ["a.png"]`) stand at its placeholders, or
before its words. A placeholder without a medium sets the conversation aside (`data.formats.placeholders`).

Who is learned from is told by `data.formats.roles`, and by marks on messages and parts (`data.formats.marks`). A
system prompt beside the messages is read before them. Refused with the reason: remote addresses, base64, tool
calls beside the content (there is no one way to write them as text), a conversation of which nothing is learned. Fields
of messages and parts that are not known, and a list of `tools`, are noted.
"""

from collections import Counter

from data.document import Document, DocumentError, Part, Text, Video
from data.formats.fields import CONVERSATIONS, note_nothing
from data.formats.marks import TurnMarks, is_absent, learned, marks_of, note_unknown, sense_of
from data.formats.parts import MEDIA, MediaQueue, join_turns, local_path, split_placeholders
from data.formats.placeholders import is_mentioned, waiting
from data.formats.roles import ROLES, speaker
from data.formats.splits import UNASSIGNED
from data.formats.stretches import check_part, check_stretch
from data.formats.unread import check_beside

_OF_PAIR = ("source", "id", "input")
_OF_QUESTION = ("context", "choices", "options", "passage", "hint", "document", "table")
_TEXT = ("text", "input_text", "output_text")
SYSTEM = ("system", "system_prompt", "system_message")
"""Fields beside the turns that hold a system prompt."""
_OF_MESSAGE = frozenset(("role", "content", "from", "value", "id", "type"))
PARTS_WITH_PATH = {"path", "url", "file", "source", *MEDIA} | {f"{kind}_url" for kind in MEDIA}
"""Fields of a content part that name its medium."""
_PLACES = ("index", "idx")
"""Fields of a content part that say which of the listed media it is, also behind the name of a kind (`image_index`)."""
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
    queue.match([turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, dict)])
    for number, turn in enumerate(turns):
        try:
            spoken.append(read(turn, queue, beside.default(number, turn), notes))
        except DocumentError as error:
            raise DocumentError(f"{word} {number}: {error}") from None
    queue.close()
    if unused := queue.num_unused():
        notes["note: media listed beside a conversation were not read, for no content part has their index"] += unused
    if queue.orphan and not any(not isinstance(part, Text) for _, parts in spoken for part in parts):
        raise DocumentError(f"there are more {queue.orphan} placeholders than media (0 listed)")
    if not any(not isinstance(part, Text) for _, parts in spoken for part in parts):
        # a table has null in every row without a medium
        note_nothing({key: value for key, value in fields.items() if value not in (None, [])}, notes)
    marked = beside.names or marks_of(turns)
    return Document(id=name, parts=join_turns(spoken, marked), kind="chat", split=UNASSIGNED)


def _asked(fields: dict, pairs: list, *, name: str, notes: Counter) -> Document:
    """A document from turns of a question and its answer each; without placeholders all media come first."""
    messages: list = []
    for number, pair in enumerate(pairs):
        spoken = {}
        for key, value in pair.items() if isinstance(pair, dict) else ():
            role = ROLES.get(key.lower()) if value not in (None, "") else None
            if not role or not isinstance(value, str):
                continue
            if role == "tool" or spoken.setdefault(role, value) != value:
                raise DocumentError(
                    f"turn {number}: field {key[:40]!r} is one more voice than a question and its answer: write each "
                    "as a message with 'role' and 'content'"
                )
        if not {"user", "assistant"} <= set(spoken):
            raise DocumentError(f"turn {number}: must have 'role' and 'content', or 'user' and 'assistant' as strings")
        if isinstance(pair.get("input"), str) and pair["input"].strip():
            # the matter that an instruction is about
            spoken["user"] += f"\n\n{pair['input']}"
        left = {key: value for key, value in pair.items() if key.lower() not in ROLES and key not in _OF_PAIR}
        lost = [key for key, value in left.items() if key.lower() in _OF_QUESTION and value not in (None, "", [])]
        if lost:
            raise DocumentError(f"turn {number}: field {lost[0]!r} belongs to the question: write it into that")
        check_beside(left, list(left), "of turns", notes)
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
    for key in SYSTEM:
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
    own = media_beside(message, _OF_MESSAGE, "beside messages", notes)
    content = message.get("content", message.get("value"))
    if isinstance(content, str):
        return role, said(content, queue, own, role=role, learn=learn)
    if not isinstance(content, list):
        raise DocumentError(f"field 'content' must be a string or a list, not {type(content).__name__}")
    parts = []
    for number, part in enumerate(content):
        try:
            parts.append(_part(part, own or queue, role, learn, notes))
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
    return role, own.before(parts, role) if own else parts


def media_beside(turn: dict, known: frozenset[str], where: str, notes: Counter) -> MediaQueue | None:
    """The media that fields beside a turn's words name; the other fields are noted. Raises DocumentError."""
    if turn.keys() <= known:
        return None
    left = [key for key in turn if key not in known]
    own = MediaQueue.of({key: turn[key] for key in left})
    is_told = own and (own.counts["audio"] or own.counts["video"])
    told = check_stretch(turn, own.paths, notes) if is_told else set()
    check_beside(turn, [key for key in left if key not in own.fields and key not in told], where, notes)
    if not own:
        return None
    own.match([turn.get("content", turn.get("value"))])
    return own


def said(text: str, queue: MediaQueue, own: MediaQueue | None, *, role: str, learn: bool) -> list[Part]:
    """Text and media of a turn's words; media of its own stand before them where no placeholder takes them."""
    parts = split_placeholders(text, own or queue, role=role, learn=learn)
    return own.before(parts, role) if own else parts


def _part(fields, queue: MediaQueue, role: str, learn: bool, notes: Counter) -> Part:
    if not isinstance(fields, dict):
        raise DocumentError(f"must be an object, not {type(fields).__name__}")
    kind, learn = fields.get("type"), learned(fields, learn)
    medium = str(kind).removeprefix("input_").removesuffix("_url")
    # tables fill the fields of other parts with null
    given = {key: value for key, value in fields.items() if value is not None and key not in ("type", "text", "role")}
    is_listed = medium in MEDIA and PARTS_WITH_PATH.isdisjoint(given)
    places = [key for name in _PLACES for key in (name, f"{medium}_{name}")] if is_listed else []
    told = check_part(fields, notes, listed=queue.paths)
    note_unknown(fields, _OF_PART.union(places, told), "of content parts", notes)
    places = [key for key in places if not is_absent(given.get(key)) and given[key] != ""]
    if kind in _TEXT:
        if not isinstance(fields.get("text"), str):
            raise DocumentError(f"field 'text' must be of type str, not {type(fields.get('text')).__name__}")
        if not queue and "<" in fields["text"] and not (queue.is_bare and is_mentioned(fields["text"])):
            queue.orphan = queue.orphan or waiting(fields["text"])
        return Text(fields["text"], learn=learn, role=role)
    if kind == "input_audio":
        raise DocumentError("input_audio holds its bytes in the text: store it as a file and give the path")
    if medium not in MEDIA:
        raise DocumentError(f"type {str(kind)[:40]!r} is none of text, {', '.join(MEDIA)} or their _url forms")
    if is_listed:
        return queue.at(medium, _place(given, places[0]), role) if places else queue.take(medium, role)
    path = local_path(given, where=medium)
    return Video(path, sound=_sound(fields), role=role) if medium == "video" else MEDIA[medium](path, role=role)


def _place(fields: dict, key: str) -> int:
    """The place in a list that a field says. DocumentError for what is no whole number."""
    place = fields[key]
    # a table whose column has a null holds fractions
    if isinstance(place, bool) or not isinstance(place, int | float) or place != place // 1:
        raise DocumentError(
            f"field {key!r} must be a whole number, the place in the list of media, not {str(place)[:40]!r}"
        )
    return int(place)


def _sound(fields: dict) -> bool:
    sound = fields.get("sound")
    if sound is not None and not isinstance(sound, bool):
        raise DocumentError(f"field 'sound' must be of type bool, not {type(sound).__name__}")
    return sound is not False
