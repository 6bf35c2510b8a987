"""LLaVA's form: `{"id", "image": path, "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}`.

Every `<image>` in the text stands for the next picture of `image` (a path, or a list), every `<video>` for one of
`video`, `<audio>` for one of `audio`; a conversation without media is text. Their numbers must agree: where they
do not, words and pictures cannot be matched, and the document is set aside. `human` becomes the role user, `gpt`
assistant. Ids need not be unique in such files (one picture, several conversations): see `data.formats.source`.

Paths are relative to the file's own folder, which is where the pictures are expected.
"""

from data.document import Document, DocumentError, Part
from data.formats.parts import ASSISTANTS, MediaQueue, check_role, join_turns, split_placeholders
from data.formats.splits import UNASSIGNED

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}


def llava_document(fields: dict, *, name: str) -> Document:
    """A document from one entry; `name` is its id. Raises DocumentError naming what is wrong."""
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DocumentError("field 'conversations' must be a list of turns, and not empty")
    queue = MediaQueue.of(fields)
    spoken = []
    for number, turn in enumerate(turns):
        try:
            spoken.append(_turn(turn, queue))
        except DocumentError as error:
            raise DocumentError(f"turn {number}: {error}") from None
    queue.close()
    return Document(id=name, parts=join_turns(spoken), kind="chat", split=UNASSIGNED)


def _turn(turn, queue: MediaQueue) -> tuple[str, list[Part]]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DocumentError("must be an object with the strings 'from' and 'value'")
    speaker = check_role(turn.get("from"))
    role = _ROLES.get(speaker.lower(), speaker)
    return role, split_placeholders(turn["value"], queue, role=role, learn=role.lower() in ASSISTANTS)
