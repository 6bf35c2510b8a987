"""Who speaks: the words of data sets for speakers, and what each means.

    role        meaning                     words
    system      read, not learned           system, developer, ...
    user        read, not learned           user, human, prompter, ...
    assistant   learned                     assistant, gpt, model, bot, ..., and function_call, tool_call: a call is
                                            what the model itself wrote
    tool        read, not learned           tool, observation, function, ipython, environment, ...

The role stands in the marker that opens a turn (`data.formats.parts`), so that every dialect trains the same markers.
Upper and lower case are one. A speaker that is not in the table is read under its own name, is not learned, and is
noted: a conversation between named people has no assistant, and is set aside because nothing in it is a target.
"""

import re
from collections import Counter

from data.document import DocumentError

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
LEARNED = ("assistant",)
"""Roles whose words are targets."""


def speaker(word, notes: Counter, learned: bool | None = None) -> tuple[str, bool]:
    """(role, whether it is learned) of a speaker. Raises DocumentError for what cannot stand in a marker.

    learned: what marks say of this turn.
    """
    if not isinstance(word, str) or not re.fullmatch(r"[A-Za-z0-9_. -]{1,40}", word):
        raise DocumentError("a role must be a short word such as user or assistant")
    role = ROLES.get(word.strip().lower())
    if role is None and learned is None:
        notes[f"note: speaker {word!r} is not known: read under that name, not learned"] += 1
    return role or word, role in LEARNED if learned is None else learned
