"""LLaVA's form: `{"id", "image": path, "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}`.

Every `<image>` in the text stands for the next picture of `image` (a path, or a list), every `<video>` for one of
`video`, `<audio>` for one of `audio`; a conversation without media is text. Their numbers must agree: where they
do not, words and pictures cannot be matched, and the document is set aside. Speakers (`human`, `gpt`,
`function_call`, `observation` ...) become roles by `data.formats.roles`; marks on turns and a system prompt beside
them count as in `data.formats.chat`. Ids need not be unique in such files (one picture, several conversations): see
`data.formats.source`.

Paths are relative to the file's own folder, which is where the pictures are expected.
"""

from collections import Counter

from data.document import Document, DocumentError, Part
from data.formats.chat import conversation
from data.formats.marks import learned, note_unknown
from data.formats.parts import MediaQueue, split_placeholders
from data.formats.roles import speaker


def llava_document(fields: dict, *, name: str, notes: Counter) -> Document:
    """A document from one entry; `name` is its id. Raises DocumentError naming what is wrong."""
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DocumentError("field 'conversations' must be a list of turns, and not empty")
    return conversation(fields, turns, _turn, "turn", name=name, notes=notes)


def _turn(turn, queue: MediaQueue, default: bool | None, notes: Counter) -> tuple[str, list[Part]]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DocumentError("must be an object with the strings 'from' and 'value'")
    role, learn = speaker(turn.get("from"), notes, default)
    learn = learned(turn, learn)
    note_unknown(turn, {"from", "value", "id"}, "beside turns", notes)
    return role, split_placeholders(turn["value"], queue, role=role, learn=learn)
