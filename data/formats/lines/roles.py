"""Speakers of conversations: the words of data sets, and the roles (system, user, assistant, tool) that they mean.

Only the assistant's words are targets; a tool call is what the model itself wrote. The role stands in the marker that
opens a turn (`parts.join_turns`), so that every dialect trains the same markers. An unknown speaker keeps its name, has
no loss, and is noted.
"""

import re
from collections import Counter

from brine.data.document import DocumentError

_WORDS = {
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
ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
"""Speaker, in lower case -> one of system, user, assistant, tool."""


def canonical_role(word, notes: Counter, has_loss: bool | None = None) -> tuple[str, bool]:
    """(role, whether it has loss) of a speaker; `has_loss` is what marks say. DocumentError for an unusable name."""
    if not isinstance(word, str) or not re.fullmatch(r"[A-Za-z0-9_. -]{1,40}", word):
        raise DocumentError("a role must be a short word such as user or assistant")
    role = ROLES.get(word.strip().lower())
    if role is None and has_loss is None:
        notes[f"note: speaker {word!r} is not known: read under that name, not learned"] += 1
    return role or word, role == "assistant" if has_loss is None else has_loss
