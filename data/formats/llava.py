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
from data.formats.chat import conversation, media_beside, said
from data.formats.marks import learned
from data.formats.parts import MEDIA, MediaQueue, local_path
from data.formats.roles import speaker
from data.formats.stretches import check_stretch

_OF_TURN = frozenset(("from", "value", "id", "type"))


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
    told = check_stretch(turn, [turn["value"]], notes) if turn.get("type") in ("audio", "video") else set()
    own = media_beside(turn, _OF_TURN | told, "beside turns", notes)
    # NeMo's turns are words or one medium each
    if turn.get("type") in MEDIA:
        if own:
            raise DocumentError("a turn of a medium has another beside it: write each as a turn of its own")
        path = local_path(turn["value"], where=turn["type"])
        return role, [MEDIA[turn["type"]](path, role=role)]
    if turn.get("type") not in (None, "text"):
        notes["note: field 'type' beside turns is not known and was not read"] += 1
    return role, said(turn["value"], queue, own, role=role, learn=learn)
