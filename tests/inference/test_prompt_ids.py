"""Token ids as parts of a prompt: what a model said can be given back as it was chosen.

An answer put back as text may be cut into other tokens, and the model then reads what it never said.
"""

import numpy as np
import PIL.Image
import pytest
import torch

from brine.data.tokenizer import EOS_ID, MEDIA_TOKEN_ID
from brine.inference.chat import ChatStream
from brine.inference.load import load
from tests.inference.encode_chat import encode_chat

IDS = [60, 1, 200, 15]
RECORD_FORMATS = {
    "list": [IDS],
    "tuple": (tuple(IDS),),
    "numpy": np.array(IDS, np.int32),
    "numpy-in-a-list": [np.array(IDS, np.uint16)],
    "tensor": torch.tensor(IDS),
    "bare-numbers": IDS,
    "bare-tuple": tuple(IDS),
    "numpy-numbers": [[np.int64(token) for token in IDS]],
    "pieces": [IDS[:2], torch.tensor(IDS[2:])],
}


@pytest.mark.parametrize("parts", RECORD_FORMATS.values(), ids=list(RECORD_FORMATS))
def test_ids_are_taken_as_they_are(model_folder, parts):
    sequence = load(model_folder).encode(parts)
    assert sequence.token_ids.tolist() == IDS
    assert sequence.position.tolist() == [[place] * 3 for place in range(4)]


def test_ids_stand_among_other_parts(model_folder):
    loaded, picture = load(model_folder), PIL.Image.new("RGB", (9, 5), "red")
    words, more = loaded.tokenizer.encode("def "), loaded.tokenizer.encode(" x")
    as_text, as_ids = loaded.encode(["def ", picture, " x"]), loaded.encode([words, picture, more])
    assert (as_text.token_ids == as_ids.token_ids).all() and (as_text.position == as_ids.position).all()
    assert (as_text.image == as_ids.image).all()


BAD = {
    "negative": ([[5, -1]], "token id 1 is -1"),
    "over": ([[10**6]], "vocabulary has the ids 0 to"),
    "over-in-an-array": (np.array([2**40]), "vocabulary"),
    "float": ([[1.5]], "is a float"),
    "float-array": (np.array([1.0]), "is a float"),
    "bool": ([[True]], "is a bool"),
    "text": (["a", ["b"]], "part 1: token id 0 is a str"),
    "two-rows": (torch.zeros(1, 3, dtype=torch.long), "2 dims"),
    "scalar": ([np.array(3)], "0 dims"),
    "media_index": ([[MEDIA_TOKEN_ID["image"]]], r"patch \(image\)"),
    "half-numbers": ([60, 6.5], r"\[\[17, 18\]\]"),
    "none": ([[]], "holds no token"),
    "nested": ([[[60]]], "is a list"),
    "range": ([range(3)], r"a range is not a prompt part: .*\[\[17, 18\]\]"),
    "beyond-any-integer": ([[2**70]], "vocabulary"),
    "a-number": (60, r"a prompt is a part or a list of parts, not a int: .*\[\[17, 18\]\]"),
    "nothing": (None, "not a NoneType"),
}


@pytest.mark.parametrize(("parts", "hint"), BAD.values(), ids=list(BAD))
def test_what_cannot_be_ids_is_named(model_folder, parts, hint):
    with pytest.raises(ValueError, match=hint):
        load(model_folder).generate(parts, max_tokens=1)


def test_generate_tells_its_ids(model_folder):
    """What is told goes back in as it is, also where its text comes back as other tokens."""
    loaded, ids = load(model_folder), []
    said = "".join(loaded.generate(["def "], max_tokens=12, temperature=3.0, seed=1, on_token=ids.append))
    assert loaded.tokenizer.decode(ids) == said and 0 < len(ids) <= 12 and EOS_ID not in ids
    assert loaded.tokenizer.encode(said) != ids, "the seed should give an answer that text does not bring back"
    prompt = loaded.encode(["def ", ids, "?"])
    assert prompt.token_ids.tolist() == loaded.tokenizer.encode("def ") + ids + loaded.tokenizer.encode("?")


@pytest.mark.parametrize("keep", [False, True], ids=["text", "ids"])
def test_a_conversation_keeps_the_ids_where_asked(model_folder, keep):
    loaded, messages = load(model_folder), [{"role": "user", "content": "What?"}]
    answer = loaded.chat(messages, max_tokens=12, temperature=3.0, seed=1, keep_token_ids=keep)
    message = answer.message
    assert ("token_ids" in message) == keep
    ids, encode = answer.token_ids, loaded.tokenizer.encode
    assert encode(answer.text) != ids
    prompt = encode_chat(loaded, [*messages, message, {"role": "user", "content": "And?"}])
    turns = [
        "<user>\n",
        "What?",
        "\n<assistant>\n",
        ids if keep else answer.text,
        "\n<user>\n",
        "And?",
        "\n<assistant>\n",
    ]
    assert prompt.token_ids.tolist() == loaded.encode(turns).token_ids.tolist()


def test_turns_of_from_and_value_take_ids(model_folder):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "token_ids": IDS}, {"from": "human", "value": "b"}]
    loaded = load(model_folder)
    expected = ["<user>\n", "a", "\n<assistant>\n", IDS, "\n<user>\n", "b", "\n<assistant>\n"]
    assert encode_chat(loaded, turns).token_ids.tolist() == loaded.encode(expected).token_ids.tolist()


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ({"role": "assistant", "token_ids": "abc"}, "token_ids"),
        ({"role": "assistant", "token_ids": [10**6]}, "vocabulary"),
        ({"role": "user", "token_ids": [60]}, "belong to messages of the assistant"),
    ],
    ids=["text", "over", "user"],
)
def test_ids_of_messages_are_checked(model_folder, message, hint):
    with pytest.raises(ValueError, match=hint):
        load(model_folder).chat([message, {"role": "user", "content": "x"}])


def test_nobody_can_speak_for_the_assistant(model_folder):
    """A text that is spelled like the stand-in of ids stays text."""
    loaded = load(model_folder)
    spelled = "\ue0f50\ue0f5"
    messages = [{"role": "user", "content": spelled}, {"role": "assistant", "token_ids": IDS},
                {"role": "user", "content": spelled}]  # fmt: skip
    ids = encode_chat(loaded, messages).token_ids.tolist()
    text = loaded.tokenizer.encode(spelled)
    count = sum(ids[place : place + len(text)] == text for place in range(len(ids)))
    assert count == 2 and sum(ids[place : place + 4] == IDS for place in range(len(ids))) == 1


@pytest.mark.parametrize(("said", "kept"), [("a heron\n<user>\n", "a heron"), ("\n<user>", ""), ("a\n<b", "a\n<b")])
def test_ids_end_where_the_answer_does(model_folder, said, kept):
    tokenizer = load(model_folder).tokenizer
    answer = ChatStream(iter(tokenizer.encode(said)), tokenizer, keep_token_ids=True)
    assert tokenizer.decode(answer.token_ids) == answer.message["content"] == kept


def test_a_token_that_reaches_into_the_marker_is_cut():
    """The two newlines of ".\n" and "\n<" may be one token."""
    from brine.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["x\n\n\n\n\n\ny"] * 50, 300)
    said = tokenizer.encode("x\n\n\n") + tokenizer.encode("<user>")
    assert any(tokenizer.token_bytes(token).endswith(b"\n\n") for token in said)
    answer = ChatStream(iter(said), tokenizer)
    assert answer.text == "x\n\n" and tokenizer.decode(answer.token_ids) == "x\n\n"
