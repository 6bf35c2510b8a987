"""Chat messages as OpenAI and Hugging Face write them: `{"messages": [{"role", "content"}, ...]}`.

`content` is a string or a list of parts. Of each modality all spellings in use are read:

    {"type": "text", "text"}            also input_text, output_text
    {"type": "image", "image" | "path" | "url": ...}    {"type": "image_url", "image_url": {"url": ...} or a string}
    {"type": "audio", ...}, {"type": "video", ...}      also audio_url, video_url
    {"type": "image"}                   with nothing in it: the next entry of a list `images` beside the messages

and with such a list, `<image>` inside a string is a placeholder too. `conversations` of role and content is the same.
Roles are kept; only assistants are learned from (`data.formats.parts` has the form). Refused with the reason: remote
addresses, base64, tool calls (there is no one way to write them as text), a conversation in which no assistant speaks.
"""

from data.document import Document, DocumentError, Part, Text
from data.formats.parts import ASSISTANTS, MEDIA, MediaQueue, check_role, join_turns, local_path, split_placeholders
from data.formats.splits import UNASSIGNED

_TEXT = ("text", "input_text", "output_text")


def chat_document(fields: dict, *, name: str) -> Document:
    """A document from one conversation; `name` is its id. Raises DocumentError naming what is wrong."""
    messages = fields.get("messages", fields.get("conversations"))
    if not isinstance(messages, list) or not messages:
        raise DocumentError("field 'messages' must be a list of messages, and not empty")
    queue = MediaQueue.of(fields)
    turns = []
    if isinstance(fields.get("system"), str) and fields["system"]:
        turns.append(("system", [Text(fields["system"], learn=False, role="system")]))
    for number, message in enumerate(messages):
        try:
            turns.append(_turn(message, queue))
        except DocumentError as error:
            raise DocumentError(f"message {number}: {error}") from None
    queue.close()
    return Document(id=name, parts=join_turns(turns), kind="chat", split=UNASSIGNED)


def _turn(message, queue: MediaQueue) -> tuple[str, list[Part]]:
    if not isinstance(message, dict):
        raise DocumentError(f"must be an object, not {type(message).__name__}")
    role = check_role(message.get("role"))
    if message.get("tool_calls") or message.get("function_call"):
        raise DocumentError("tool calls are not read: write them into the content as text")
    learn = role.lower() in ASSISTANTS
    content = message.get("content")
    if isinstance(content, str):
        if queue:
            return role, split_placeholders(content, queue, role=role, learn=learn)
        return role, [Text(content, learn=learn, role=role)] if content else []
    if not isinstance(content, list):
        raise DocumentError(f"field 'content' must be a string or a list, not {type(content).__name__}")
    parts = []
    for number, part in enumerate(content):
        try:
            parts.append(_part(part, queue, role, learn))
        except DocumentError as error:
            raise DocumentError(f"content part {number}: {error}") from None
    return role, parts


def _part(fields, queue: MediaQueue, role: str, learn: bool) -> Part:
    if not isinstance(fields, dict):
        raise DocumentError(f"must be an object, not {type(fields).__name__}")
    kind = fields.get("type")
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
    if not any(key.removesuffix("_url") in MEDIA or key in ("path", "url", "file") for key in given):
        return queue.take(medium, role)
    return MEDIA[medium](local_path(given, where=medium), role=role)
