"""Conversations: a model that was trained on chats is prompted in the form that it was trained on.

A prompt is the training document of these messages and one more, the assistant's, up to that one's first word, written
by the reader of conversations (`brine.data.formats.lines.chat`). The answer ends at the end token, or where the model
begins another speaker's turn. A field that training would note and ignore (tools, attachments) is refused by its name.
An assistant's `token_ids` are read in place of its content. Not done here: tool calls, keeping the cache.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import PIL.Image

from brine.data.document import Document, DocumentError, Part, Text
from brine.data.files.extensions import media_type_of
from brine.data.formats.lines.chat import SYSTEM, chat_document, llava_document
from brine.data.formats.lines.fields import CONVERSATIONS, FIELDS, is_media_path, media_of, path_of
from brine.data.formats.lines.loss_masks import MASKED_ROLE_KEYS, TRAINED_ROLE_KEYS, is_loss_key
from brine.data.formats.lines.parts import MEDIA
from brine.data.tokenizer import Tokenizer
from brine.inference.prompt import PromptPart, TokenIds, media_path_in, url_hint

Messages = Sequence[Mapping[str, Any]] | Mapping[str, Any]
ROLES = ("user", "system", "assistant", "tool")
"""Roles whose marker ends an answer, besides those of the conversation itself."""
_ANSWER = "answer"
_PLACEHOLDER_CHAR = "\ue0f5"
"""A private-use character, around the placeholder of token ids."""
_REMOTE = re.compile(r"data:|(https?|ftp|s3|gs|hf)://")
_IGNORED_KEYS = (
    "id", "kind", "split", "source", "metadata", "dataset", "language", "license", "score", *MASKED_ROLE_KEYS,
    *TRAINED_ROLE_KEYS,
)  # fmt: skip
"""Fields beside the messages that say where a record is from or what its loss is, and nothing to a model."""
_SERVICE_KEYS = ("detail", "cache_control")
"""Fields of content parts that tell a service how to compute."""
_ASSISTANT_ROLES = ("assistant", "gpt")
_MESSAGE_KEYS = ("role", "from", "content", "value", "token_ids", "id", "type")


class ChatStream(Iterator[str]):
    """An answer as it is decoded: iterate for chunks of text, each as soon as it is known."""

    def __init__(
        self, tokens: Iterator[int], tokenizer: Tokenizer, *, roles: Iterable[str] = ROLES, keep_token_ids: bool = False
    ):
        """roles: those whose marker ends the answer. keep_token_ids: whether its message holds its ids."""
        self.tokenizer, self.keep_token_ids = tokenizer, keep_token_ids
        self.stops = tuple(f"\n<{role}>" for role in sorted(set(roles)))
        self._ids: list[int] = []
        self._given: list[str] = []
        self._end: int | None = None
        self._chunks = self._read(tokens)

    def __next__(self) -> str:
        self._given.append(next(self._chunks))
        return self._given[-1]

    @property
    def text(self) -> str:
        """The whole answer; decodes the rest first."""
        for _ in self:
            pass
        return "".join(self._given)

    @property
    def message(self) -> dict[str, Any]:
        """The whole answer as a message, to be appended to the others."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        return message | {"token_ids": self.token_ids} if self.keep_token_ids else message

    @property
    def token_ids(self) -> list[int]:
        """The ids that were chosen, without a marker that ended the answer; decodes the rest first."""
        for _ in self:
            pass
        if self._end is None:
            return list(self._ids)
        ids, left = [], self._end
        for token in self._ids:
            word = self.tokenizer.token_bytes(token)
            if len(word) > left:
                # the token reaches into the marker: its bytes before that are tokenized again
                return ids + self.tokenizer.encode(word[:left].decode("utf-8", "replace"))
            ids.append(token)
            left -= len(word)
        return ids

    def _read(self, tokens: Iterator[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stop = re.compile("|".join(map(re.escape, self.stops)))
        held = ""
        for token in tokens:
            self._ids.append(token)
            held += decoder.decode(self.tokenizer.token_bytes(token))
            if found := stop.search(held):
                held = held[: found.start()]
                # the first of all markers, since this token completes it
                self._end = b"".join(map(self.tokenizer.token_bytes, self._ids)).index(found.group().encode())
                break
            start = held.rfind("\n")
            # a marker may begin with the end of the text
            free = start if start >= 0 and any(stop.startswith(held[start:]) for stop in self.stops) else len(held)
            if free:
                yield held[:free]
                held = held[free:]
        else:
            held += decoder.decode(b"", final=True)
        if held:
            yield held


def chat_prompt(messages: Messages) -> tuple[list[PromptPart], set[str]]:
    """(parts of the prompt, roles in it) of a conversation that waits for the assistant's answer.

    messages: a list, or an object of the chat format that holds it beside `images`, `system` and the like. Raises
    ValueError, naming the message, for what the format does not read, and where the last message is the assistant's.
    """
    given = messages if isinstance(messages, Mapping) else {"messages": messages}
    name = next((name for name in ("messages", "conversations") if given.get(name)), "messages")
    turns = given.get(name)
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns) or not turns:
        raise ValueError('messages must be a list of objects such as {"role": "user", "content": "..."}, and not empty')
    placeholders = _PlaceholderMap()
    fields = placeholders.beside(given, turns=name)
    asked = [placeholders.message(turn, number) for number, turn in enumerate(turns)]
    read, answer = chat_document, {"role": "assistant", "content": _ANSWER}
    if "from" in turns[0]:
        read, answer, name = llava_document, {"from": "gpt", "value": _ANSWER}, "conversations"
    try:
        parts = chat_document_of(read, fields | {name: [*asked, answer]}).parts[:-1]
    except DocumentError as error:
        raise ValueError(f"the conversation cannot be read: {error}") from None
    last = next((part for part in reversed(parts[:-1]) if part.role), None)
    if last is not None and last.role == parts[-1].role:
        raise ValueError("the last message is the assistant's: add another, such as the user's")
    restored = [placeholders.restore(part) for part in parts]
    placeholders.require_all_read()
    return restored, {part.role for part in parts if part.role}


def check_token_ids_match_content(messages: Messages, tokenizer: Tokenizer) -> None:
    """Raise ValueError for a message whose token ids, which are read, say another text than its content.

    messages: such as `chat_prompt` has read, with ids that the tokenizer has.
    """
    given = messages if isinstance(messages, Mapping) else {"messages": messages}
    for number, turn in enumerate(given.get("messages") or given.get("conversations")):
        ids, words = turn.get("token_ids"), turn.get("content", turn.get("value"))
        if ids is not None and words and words != (token_text := tokenizer.decode(ids)):
            raise ValueError(
                f"message {number}: its text is {_short(words)}, but its token_ids, which are read instead, say "
                f"{_short(token_text)}: remove one of the two"
            )


def _short(words: Any) -> str:
    return repr(words) if len(repr(words)) <= 60 else f"{repr(words)[:56]} ..."


def chat_document_of(read: Callable[..., Document], fields: dict[str, Any]) -> Document:
    """The training document of a conversation. Raises DocumentError for what its reader would note and ignore."""
    notes: Counter = Counter()
    document = read(fields, name="prompt", notes=notes)
    # for a speaker of an unknown name the reader notes how it was read
    if lost := [note.removeprefix("note: ") for note in notes if "not read" in note]:
        raise DocumentError(f"{'; '.join(lost[:3])}: write it into the content or remove it")
    return document


def check_question_is_text(content: Any, role: Any = "user") -> None:
    """Raise ValueError for a question that is only the path of a media file."""
    literal_hint = 'to give these words as text, give a content part {"type": "text", "text": ...}'
    if not isinstance(content, str) or role in _ASSISTANT_ROLES:
        return
    if (path := media_path_in(content, literal_hint=literal_hint)) is not None:
        kind = media_type_of(path).__name__.lower()
        raise ValueError(
            f'{path} is the path of a file: give a content part {{"type": "{kind}", "{kind}": ...}}; {literal_hint}'
        )


class _PlaceholderMap:
    """Placeholders for media and token ids, since the format's reader takes text and paths below one folder."""

    def __init__(self):
        self.media: dict[str, Any] = {}
        self.token_text: dict[str, Any] = {}
        self.names: dict[Any, str] = {}
        self.read: set[str] = set()
        self.has_media_field = False

    def beside(self, given: Mapping[str, Any], *, turns: str) -> dict[str, Any]:
        """The fields beside the turns that are read. Raises ValueError for one that would be dropped."""
        fields: dict[str, Any] = {}
        for name, value in given.items():
            if name == turns or value is None or (isinstance(value, str | list | tuple | dict) and not value):
                continue
            if name in FIELDS:
                fields[name] = self.replace_paths(value)
            elif name in SYSTEM:
                fields[name] = value
            elif name not in _IGNORED_KEYS and not is_loss_key(name):
                raise ValueError(_unread_field_message(name, turns))
        found = {path_of(reference) for _, _, reference in media_of(fields)}
        for name in FIELDS.keys() & fields.keys():
            values = fields[name] if isinstance(fields[name], list) else [fields[name]]
            if not {path_of(value) for value in values} <= found:
                raise ValueError(_unread_field_message(name, turns))
        self.has_media_field = not FIELDS.keys().isdisjoint(fields)
        return fields

    def message(self, fields: Mapping[str, Any], number: int) -> dict[str, Any]:
        """A message with placeholders."""
        try:
            if fields.get("token_ids") is not None:
                return self._of_token_ids(fields)
            message = {key: self.replace_paths(value) if key in FIELDS else value for key, value in fields.items()}
            content, role = fields.get("content", fields.get("value")), fields.get("role", fields.get("from"))
            if isinstance(content, list | tuple):
                message["content"] = [self._part(part) for part in content]
            elif fields.get("type") in MEDIA:
                message["value"] = self.replace_paths(content)
            elif role in _ASSISTANT_ROLES and isinstance(content, str) and "<" in content and self._is_plain(fields):
                # what a model wrote is text, even where a reader would see a media placeholder in it
                return self._with_placeholder(fields, Text(content, role="assistant"))
            else:
                check_question_is_text(content, role)
            return message
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None

    def _of_token_ids(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        ids = fields["token_ids"]
        if not isinstance(ids, TokenIds):
            raise ValueError(f"token_ids of a message must be a list of ids, not {type(ids).__name__}")
        if lost := [key for key, value in fields.items() if value and not _is_message_key(key)]:
            raise ValueError(f"field {lost[0]!r} beside token_ids would not be read: remove it")
        return self._with_placeholder(fields, ids)

    def _with_placeholder(self, fields: Mapping[str, Any], content: Any) -> dict[str, Any]:
        role, words = ("from", "value") if "from" in fields else ("role", "content")
        # an answer that ended immediately has no word, as in training
        is_empty = isinstance(content, TokenIds) and not len(content)
        name = "" if is_empty else f"{_PLACEHOLDER_CHAR}{len(self.token_text)}{_PLACEHOLDER_CHAR}"
        if name:
            self.token_text[name] = content
        return {role: fields.get(role), words: name}

    def _is_plain(self, fields: Mapping[str, Any]) -> bool:
        return not self.has_media_field and all(_is_message_key(key) or not value for key, value in fields.items())

    def _part(self, part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {
            key: value if key in ("type", "text", "role") else self.replace_paths(value)
            for key, value in part.items()
            if key not in _SERVICE_KEYS
        }

    def replace_paths(self, value: Any) -> Any:
        """The same value with a placeholder for every path and image in it."""
        if isinstance(value, Mapping):
            return {key: self.replace_paths(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.replace_paths(item) for item in value]
        is_path = isinstance(value, Path) or (isinstance(value, str) and value and not _REMOTE.match(value))
        if not is_path and not isinstance(value, PIL.Image.Image):
            return value
        if is_path and (remedy := url_hint(str(value))):
            raise ValueError(remedy)
        # a path in two fields is one file
        key = str(value) if is_path else id(value)
        if key not in self.names:
            name = f"media-{len(self.media)}{Path(key).suffix if is_path else '.png'}"
            self.names[key], self.media[name] = name, value
        return self.names[key]

    def restore(self, part: Part) -> PromptPart:
        """The part with what the user gave in place of a placeholder."""
        if isinstance(part, Text):
            # what others say is text, even where it is spelled like a placeholder
            return self.token_text.pop(part.text, part) if part.loss_mask else part
        # media that are written in text have no placeholder
        given = self.media.get(part.path, part.path)
        self.read.add(part.path)
        return given if isinstance(given, PIL.Image.Image) else replace(part, path=str(given))

    def require_all_read(self) -> None:
        """Raise ValueError for token ids and media that are in no part."""
        if self.token_text:
            raise ValueError("token_ids belong to messages of the assistant: give the others as content")
        for name, value in self.media.items():
            if name not in self.read and (not isinstance(value, str) or is_media_path(value)):
                what = "an image" if isinstance(value, PIL.Image.Image) else value
                raise ValueError(f"{what} would not be read: give each media file in a separate content part")


def _is_message_key(key: str) -> bool:
    return key in _MESSAGE_KEYS or is_loss_key(key)


def _unread_field_message(name: str, turns: str) -> str:
    if name in CONVERSATIONS:
        return f"field {name!r} beside {turns!r} would not be read: give one list of turns"
    close = ["system"] if "instruct" in name.lower() else get_close_matches(name.lower(), [*SYSTEM, *FIELDS])
    near = close[0] if close else ""
    hint = f"write it as {near!r}" if near and near != name else "write it into a message"
    return (
        f"field {name!r} beside {turns!r} would not be read: {hint} or remove it (settings such as temperature are "
        "arguments of chat)"
    )
