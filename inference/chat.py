"""Conversations: a model that was trained on chats is asked in the form that it was trained on.

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "image", "image": "heron.png"}, {"type": "text", "text": "What is this?"}]}]
    answer = brine.chat(messages)
    for piece in answer:
        print(piece, end="", flush=True)
    messages += [answer.message, {"role": "user", "content": "And where does it live?"}]

    python -m brine.inference.generate runs/chat --chat --image heron.png --message "What is this?"
    python -m brine.inference.generate runs/chat --chat --system "Be brief."                reads questions, a line each

A prompt is the training document of these messages and one more, the assistant's, as far as that one's first word. The
reader of conversations (`brine.data.formats.lines.chat`) writes it, so markers, roles and tokens are those that
training saw, whatever they are. Paths are the person's own: absolute, or relative to the working folder; a
`pathlib.Path` and a `PIL.Image` stand for a medium wherever a path may.

The answer ends at the end token, or where the model goes on to speak for somebody else and begins a turn's marker, such
as <user> at the beginning of a line, which is no part of it. Text that may become one is held back until it is known.

Nothing that a person hands over is dropped: media beside a message's words are read as they are in training, and a
field that training would note and pass over (tools, instructions, attachments, a second medium in one part) is refused
by its name. Marks of what is learned, ids and the like of rows mean nothing to a prompt and may stay.

An assistant's message may hold `token_ids`, which are then read in place of its content: text that a model wrote need
not be cut into the tokens that it chose. `chat(..., keep_token_ids=True)` gives such messages.
Content that says something else, since somebody edited it, is refused.

What this does not do: tool calls, several answers at once, or keeping the cache from one question to the next: each
question reads the whole conversation again.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image

from brine.data.document import Document, DocumentError, Part, Text
from brine.data.files.extensions import media_type_of
from brine.data.formats.lines.chat import chat_document, llava_document
from brine.data.formats.lines.fields import CONVERSATIONS, FIELDS, is_media_path, media_of, path_of
from brine.data.formats.lines.loss_masks import MASKED_ROLE_KEYS, TRAINED_ROLE_KEYS, is_loss_key
from brine.data.formats.lines.parts import MEDIA
from brine.data.tokenizer import Tokenizer
from brine.inference.prompt import PromptPart, TokenIds
from brine.inference.prompt_paths import media_path_in, url_hint

ROLES = ("user", "system", "assistant", "tool")
"""Speakers whose marker ends an answer, beside those of the conversation itself."""
_ANSWER = "answer"
_PLACEHOLDER_CHAR = "\ue0f5"
"""A character of nobody's, around what stands for token ids."""
_REMOTE = re.compile(r"data:|(https?|ftp|s3|gs|hf)://")
_SYSTEM = ("system", "system_prompt", "system_message")
_RECORD_KEYS = ("id", "kind", "split", "source", "metadata", "dataset", "language", "license", "score")
"""Fields beside the messages that say where a row is from, and nothing to a model."""
_SERVICE_KEYS = ("detail", "cache_control")
"""Fields of content parts that tell a service how to compute, and nothing to a model."""
_ASSISTANT_ROLES = ("assistant", "gpt")
_MESSAGE_KEYS = ("role", "from", "content", "value", "token_ids", "id", "type")


class ChatStream(Iterator[str]):
    """An answer as it comes: iterate for pieces of text, each as soon as it is known."""

    def __init__(
        self, tokens: Iterator[int], tokenizer: Tokenizer, *, roles: Iterable[str] = ROLES, keep_token_ids: bool = False
    ):
        """roles: those whose marker ends the answer. keep_token_ids: whether its message holds its ids."""
        self.tokenizer, self.keep_token_ids = tokenizer, keep_token_ids
        self.stops = tuple(f"\n<{role}>" for role in sorted(set(roles)))
        self._ids: list[int] = []
        self._given: list[str] = []
        self._cut: int | None = None
        self._pieces = self._read(tokens)

    def __next__(self) -> str:
        piece = next(self._pieces)
        self._given.append(piece)
        return piece

    @property
    def text(self) -> str:
        """The whole answer; waits for what has not come yet."""
        for _ in self:
            pass
        return "".join(self._given)

    @property
    def message(self) -> dict[str, Any]:
        """The whole answer as a message, to be put behind the others."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        return message | {"token_ids": self.token_ids} if self.keep_token_ids else message

    @property
    def token_ids(self) -> list[int]:
        """The ids that were chosen, without a marker that ended the answer; waits for what has not come yet."""
        for _ in self:
            pass
        if self._cut is None:
            return list(self._ids)
        ids, left = [], self._cut
        for token in self._ids:
            word = self.tokenizer.token_bytes(token)
            if len(word) > left:
                # a token that reaches into the marker: what of it stands before is cut anew
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
                # the first of all markers, since this is the token that completes it
                token_text = b"".join(map(self.tokenizer.token_bytes, self._ids))
                self._cut = token_text.index(found.group().encode())
                break
            free = len(held) - self._held_back(held)
            if free:
                yield held[:free]
                held = held[free:]
        else:
            held += decoder.decode(b"", final=True)
        if held:
            yield held

    def _held_back(self, text: str) -> int:
        """Characters at the end of a text that a marker may begin with."""
        start = text.rfind("\n")
        rest = text[start:] if start >= 0 else ""
        return len(rest) if rest and any(stop.startswith(rest) for stop in self.stops) else 0


def chat_prompt(messages: Items[Mapping[str, Any]] | Mapping[str, Any]) -> tuple[list[PromptPart], set[str]]:
    """(parts of the prompt, roles in it) of a conversation that waits for the assistant's answer.

    messages: a list of messages, or an object of the chat format that holds it beside `images`, `system` and the like.
    Raises ValueError, naming the message, for what the format does not read, and where the last is the assistant's.
    """
    given = messages if isinstance(messages, Mapping) else {"messages": messages}
    name = next((name for name in ("messages", "conversations") if given.get(name)), "messages")
    turns = given.get(name)
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns) or not turns:
        raise ValueError('messages must be a list of objects such as {"role": "user", "content": "..."}, and not empty')
    placeholders = _PlaceholderMap()
    fields = placeholders.beside(given, turns=name)
    asked = [placeholders.message(turn, number) for number, turn in enumerate(turns)]
    if "from" in turns[0]:
        read, answer = llava_document, {"from": "gpt", "value": _ANSWER}
        name = "conversations"
    else:
        read, answer = chat_document, {"role": "assistant", "content": _ANSWER}
    fields[name] = [*asked, answer]
    try:
        parts = chat_document_of(read, fields).parts[:-1]
    except DocumentError as error:
        raise ValueError(f"the conversation cannot be read: {error}") from None
    last = next((part for part in reversed(parts[:-1]) if part.role), None)
    if last is not None and last.role == parts[-1].role:
        raise ValueError("the last message is the assistant's own: let another's follow, such as the user's")
    restore = [placeholders.restore(part) for part in parts]
    placeholders.close()
    return restore, {part.role for part in parts if part.role}


def check_token_ids_match_content(messages: Items[Mapping[str, Any]] | Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Raise ValueError for a message of a conversation whose token ids, which are read, say other words than it does.

    messages: such as `chat_prompt` has read, with ids that the tokenizer has.
    """
    given = messages if isinstance(messages, Mapping) else {"messages": messages}
    for number, turn in enumerate(given.get("messages") or given.get("conversations")):
        ids, words = turn.get("token_ids"), turn.get("content", turn.get("value"))
        if ids is not None and words and words != (token_text := tokenizer.decode(ids)):
            raise ValueError(
                f"message {number}: its words are {_short(words)}, but its token_ids, which would be read in their "
                f"place, say {_short(token_text)}: take out those that are not meant"
            )


def _short(words: Any) -> str:
    return repr(words) if len(repr(words)) <= 60 else f"{repr(words)[:56]} ..."


def chat_document_of(read: Callable[..., Document], fields: dict[str, Any]) -> Document:
    """The training document of a conversation. Raises DocumentError for what its reader would note and pass over."""
    notes: Counter = Counter()
    document = read(fields, name="prompt", notes=notes)
    # of a speaker of an unknown name the reader notes how it was read
    if lost := [note.removeprefix("note: ") for note in notes if "not read" in note]:
        raise DocumentError(f"{'; '.join(lost[:3])}. Write into the content what the model is to read, or take it out")
    return document


def check_question_is_text(content: Any, role: Any = "user") -> None:
    """Raise ValueError for a question that is nothing but the path of a medium, which its owner meant."""
    literal_hint = 'to give these words as text, give a content part {"type": "text", "text": ...}'
    if not isinstance(content, str) or role in _ASSISTANT_ROLES:
        return
    if (path := media_path_in(content, literal_hint=literal_hint)) is not None:
        kind = media_type_of(path).__name__.lower()
        raise ValueError(
            f'{path} is the path of a file: give a content part {{"type": "{kind}", "{kind}": ...}}; {literal_hint}'
        )


class _PlaceholderMap:
    """Media and token ids under other names, since the format's reader takes words and paths below one folder."""

    def __init__(self):
        self.given: dict[str, Any] = {}
        self.token_text: dict[str, Any] = {}
        self.names: dict[Any, str] = {}
        self.read: set[str] = set()
        self.listed = False

    def beside(self, given: Mapping[str, Any], *, turns: str) -> dict[str, Any]:
        """What stands beside the turns and is read. Raises ValueError for a field that would be dropped."""
        fields: dict[str, Any] = {}
        for name, value in given.items():
            if name == turns or value is None or (isinstance(value, str | list | tuple | dict) and not value):
                continue
            if name in FIELDS:
                fields[name] = self.replace_paths(value)
            elif name in _SYSTEM:
                fields[name] = value
            elif not (name in _RECORD_KEYS or is_loss_key(name) or name in (*MASKED_ROLE_KEYS, *TRAINED_ROLE_KEYS)):
                raise ValueError(_ignored_field_message(name, turns))
        found = {path_of(reference) for _, _, reference in media_of(fields)}
        for name in FIELDS.keys() & fields.keys():
            entries = fields[name] if isinstance(fields[name], list) else [fields[name]]
            if not {path_of(entry) for entry in entries} <= found:
                raise ValueError(_ignored_field_message(name, turns))
        self.listed = not FIELDS.keys().isdisjoint(fields)
        return fields

    def message(self, fields: Mapping[str, Any], number: int) -> dict[str, Any]:
        """A message whose media have stand-ins."""
        try:
            if fields.get("token_ids") is not None:
                return self._said(fields)
            message = {key: self.replace_paths(value) if key in FIELDS else value for key, value in fields.items()}
            content, role = fields.get("content", fields.get("value")), fields.get("role", fields.get("from"))
            if isinstance(content, list | tuple):
                message["content"] = [self.part(part) for part in content]
            elif fields.get("type") in MEDIA:
                message["value"] = self.replace_paths(content)
            elif role in _ASSISTANT_ROLES and isinstance(content, str) and "<" in content and self.is_plain(fields):
                # what a model wrote is words, even where a reader would see the place of an image in them
                return self.with_placeholder(fields, Text(content, role="assistant"))
            else:
                check_question_is_text(content, role)
            return message
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None

    def _said(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A message of token ids, with a text in their place that nobody else writes."""
        ids = fields["token_ids"]
        if not isinstance(ids, TokenIds):
            raise ValueError(f"token_ids of a message must be a list of ids, not {type(ids).__name__}")
        if lost := [
            key for key, value in fields.items() if key not in _MESSAGE_KEYS and not is_loss_key(key) and value
        ]:
            raise ValueError(f"field {lost[0]!r} beside token_ids would not be read: take it out")
        return self.with_placeholder(fields, ids)

    def with_placeholder(self, fields: Mapping[str, Any], token_text: Any) -> dict[str, Any]:
        """A message with a text that nobody else writes in place of what was said."""
        canonical_role, words = ("from", "value") if "from" in fields else ("role", "content")
        # an answer that ended at once has no word, as in training
        name = (
            ""
            if isinstance(token_text, TokenIds) and not len(token_text)
            else f"{_PLACEHOLDER_CHAR}{len(self.token_text)}{_PLACEHOLDER_CHAR}"
        )
        if name:
            self.token_text[name] = token_text
        return {canonical_role: fields.get(canonical_role), words: name}

    def is_plain(self, fields: Mapping[str, Any]) -> bool:
        """Whether a message is words alone: no media are listed for its words, and nothing stands beside them."""
        return not self.listed and all(
            key in _MESSAGE_KEYS or is_loss_key(key) or not value for key, value in fields.items()
        )

    def part(self, part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        kept = ("type", "text", "role")
        return {
            key: value if key in kept else self.replace_paths(value)
            for key, value in part.items()
            if key not in _SERVICE_KEYS
        }

    def replace_paths(self, value: Any) -> Any:
        """The same value with a stand-in for every path and image in it."""
        if isinstance(value, Mapping):
            return {key: self.replace_paths(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.replace_paths(item) for item in value]
        is_path = isinstance(value, Path) or (isinstance(value, str) and value and not _REMOTE.match(value))
        if not is_path and not isinstance(value, PIL.Image.Image):
            return value
        if is_path and (remedy := url_hint(str(value))):
            raise ValueError(remedy)
        # a path that two fields name is one medium
        key = str(value) if is_path else id(value)
        if key not in self.names:
            name = f"medium-{len(self.given)}{Path(key).suffix if is_path else '.png'}"
            self.names[key], self.given[name] = name, value
        return self.names[key]

    def restore(self, part: Part) -> PromptPart:
        """The part with what the person gave in place of a stand-in."""
        if isinstance(part, Text):
            # what others say is text, even where it is spelled like a stand-in
            return self.token_text.pop(part.text, part) if part.loss_mask else part
        # media that are written out in words have no stand-in
        given = self.given.get(part.path, part.path)
        self.read.add(part.path)
        return given if isinstance(given, PIL.Image.Image) else replace(part, path=str(given))

    def close(self) -> None:
        """Raise ValueError for token ids and media that are in no part."""
        if self.token_text:
            raise ValueError("token_ids belong to messages of the assistant: give the others as content")
        for name, value in self.given.items():
            if name not in self.read and (not isinstance(value, str) or is_media_path(value)):
                what = "a picture" if isinstance(value, PIL.Image.Image) else value
                raise ValueError(f"{what} would not be read: give each medium a content part of its own")


def _ignored_field_message(name: str, turns: str) -> str:
    """What is said of a field beside the messages that nobody reads."""
    known = [*_SYSTEM, *FIELDS]
    near = "system" if "instruct" in name.lower() else next(iter(difflib.get_close_matches(name.lower(), known, 1)), "")
    if name in CONVERSATIONS:
        return f"field {name!r} beside {turns!r} would not be read: give one list of turns"
    hint = f"write it as {near!r} to have it read" if near and near != name else "write it into a message"
    return (
        f"field {name!r} beside {turns!r} would not be read: {hint}, or take it out (settings such as temperature are "
        "arguments of chat)"
    )
