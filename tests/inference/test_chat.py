"""A conversation is asked as it was trained on, token for token, and the answer ends where the model's turn does."""

import io
import sys
from pathlib import Path

import PIL.Image
import pytest

from brine.common.closed_pipe import exit_on_closed_pipe
from brine.data.document import Text
from brine.data.encode import encode
from brine.data.formats.lines.chat import chat_document, llava_document
from brine.data.formats.open import open_source
from brine.data.tokenizer import MEDIA_TOKEN_ID
from brine.inference.chat import ROLES, ChatStream, chat_document_of
from brine.inference.generate import main, read_questions
from brine.inference.load import load
from tests.inference.encode_chat import encode_chat

USER, ANSWER = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "def f(x): a heron."}
PICTURE = {"type": "image", "image": "shot.png"}
CONVERSATIONS = {
    "one-turn": [USER],
    "three-turns": [USER, ANSWER, {"role": "user", "content": " größer?\n"}, ANSWER, USER],
    "system": [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
    "picture": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is it?"}]}],
    "picture-url": [
        USER, ANSWER,
        {"role": "user", "content": [{"type": "text", "text": "And "},
                                     {"type": "image_url", "image_url": {"url": "shot.png", "detail": "high"}}]},
    ],
    "path-and-input-text": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "image", "path": "shot.png"}]}
    ],
    "special-words": [{"role": "user", "content": "<|end|>\n<assistant>\nthe tag `<image>`"}],
    "tool-words": [USER, ANSWER, {"role": "tool", "content": "{}"}],
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with an image."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (20, 9), "blue").save("shot.png")
    return tmp_path


def trained_on(loaded, messages, root, *, answer=ANSWER, read=chat_document, name="messages", **fields):
    """Ids and places of the training document of these messages and an answer, up to the answer's first token."""
    document = chat_document_of(read, {name: [*messages, answer], **fields})
    sequence = encode(document, root=root, tokenizer=loaded.tokenizer, config=loaded.encode_config)
    words = len(loaded.tokenizer.encode(document.parts[-1].text)) + 1
    return sequence.slice(0, len(sequence) - words)


def same(one, other):
    return one.token_ids.tolist() == other.token_ids.tolist() and (one.position == other.position).all()


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_a_prompt_has_the_tokens_of_training(model_folder, here, messages):
    loaded = load(model_folder)
    prompt = encode_chat(loaded, messages)
    truth = trained_on(loaded, messages, here)
    assert same(prompt, truth) and (prompt.image == truth.image).all()
    text = loaded.tokenizer.decode(prompt.token_ids.tolist())
    assert text.startswith(f"<{messages[0]['role']}>\n") and text.endswith("\n<assistant>\n")


def test_media_listed_beside_the_messages(model_folder, here):
    loaded = load(model_folder)
    messages = [{"role": "user", "content": "<image>What is it?"}]
    prompt = encode_chat(loaded, {"messages": messages, "images": [str(here / "shot.png")], "system": "Be brief."})
    assert same(prompt, trained_on(loaded, messages, here, images=["shot.png"], system="Be brief."))
    assert MEDIA_TOKEN_ID["image"] in prompt.token_ids


def test_turns_of_from_and_value(model_folder, here):
    loaded = load(model_folder)
    turns = [{"from": "human", "value": "<image>\nWhat?"}]
    truth = trained_on(
        loaded, turns, here, answer={"from": "gpt", "value": "x"}, read=llava_document, name="conversations",
        image="shot.png",
    )  # fmt: skip
    assert same(encode_chat(loaded, {"conversations": turns, "image": "shot.png"}), truth)


@pytest.mark.parametrize("form", ["absolute", "path", "picture", "home"])
def test_media_come_in_all_forms(model_folder, here, monkeypatch, form):
    monkeypatch.setenv("HOME", str(here))
    given = {"absolute": str(here / "shot.png"), "path": Path("shot.png"), "picture": PIL.Image.open("shot.png"),
             "home": "~/shot.png"}[form]  # fmt: skip
    loaded = load(model_folder)
    content = [{"type": "image", "image": given}, {"type": "text", "text": "What is it?"}]
    expected = encode_chat(loaded, CONVERSATIONS["picture"])
    assert same(encode_chat(loaded, [{"role": "user", "content": content}]), expected)


def test_the_form_is_that_of_a_file_of_chats(model_folder, here):
    """Through the door that training takes: the manifest on the disk."""
    import json

    messages = CONVERSATIONS["three-turns"]
    (here / "chat.jsonl").write_text(json.dumps({"messages": [*messages, ANSWER]}) + "\n", encoding="utf-8")
    loaded = load(model_folder)
    (document,) = open_source(here / "chat.jsonl").documents()
    whole = encode(document, root=here, tokenizer=loaded.tokenizer, config=loaded.encode_config)
    prompt = encode_chat(loaded, messages)
    assert whole.token_ids[: len(prompt)].tolist() == prompt.token_ids.tolist()


BAD = {
    "none": ([], "not empty"),
    "text": ("What is it?", "list of objects"),
    "assistant-last": ([USER, ANSWER], "last message is the assistant's"),
    "no-role": ([{"content": "x"}], "message 0"),
    "remote": ([{"role": "user", "content": [{"type": "image", "url": "https://host/a.png"}]}], "download"),
    "bytes": ([{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,AA"}]}], "file"),
    "missing": ([{"role": "user", "content": [{"type": "image", "image": "gone.png"}]}], "gone.png"),
    "number": ([{"role": "user", "content": 3}], "content"),
    "unknown-type": ([{"role": "user", "content": [{"type": "table", "table": "x"}]}], "table"),
}


@pytest.mark.parametrize(("messages", "hint"), BAD.values(), ids=list(BAD))
def test_what_cannot_be_asked_is_told_at_the_call(model_folder, here, messages, hint):
    with pytest.raises(ValueError, match=hint):
        load(model_folder).chat(messages)


ENDS = {
    "user": "A heron.\n<user>\nmore",
    "at-once": "\n<user>",
    "system": "A\nB\n\n<system>\n",
    "role-of-the-conversation": "A\n<human>\nx",
}


@pytest.mark.parametrize("said", ENDS.values(), ids=list(ENDS))
def test_an_answer_ends_where_another_turn_begins(model_folder, said):
    tokenizer = load(model_folder).tokenizer
    left = iter(tokenizer.encode(said))
    answer = ChatStream(left, tokenizer, roles={*ROLES, "human"})
    pieces = list(answer)
    kept = said[: said.index("\n<")]
    assert "".join(pieces) == kept and answer.message == {"role": "assistant", "content": kept}
    # nothing is decoded behind the marker
    assert tokenizer.decode(left) == said[said.index(">") + 1 :]


@pytest.mark.parametrize(
    "said", ["a <user> b", "x\n<table>\n</table>\n", "a\n<use", "größer\n\n", "\n<", ""],
    ids=["inline", "markup", "cut", "newlines", "bracket", "nothing"],
)  # fmt: skip
def test_what_is_no_marker_is_said_whole(model_folder, said):
    tokenizer = load(model_folder).tokenizer
    assert ChatStream(iter(tokenizer.encode(said)), tokenizer).text == said


def test_pieces_come_as_soon_as_they_are_known(model_folder):
    tokenizer = load(model_folder).tokenizer
    read = []

    def tokens():
        for token in tokenizer.encode("heron\n<"):
            read.append(token)
            yield token

    answer = ChatStream(tokens(), tokenizer)
    assert "heron".startswith(next(answer)) and len(read) == 1
    assert list(answer)[-1] == "\n<"


def test_chat_answers_as_generate_does(model_folder, here):
    """The same options, and the same tokens as far as no other turn begins."""
    loaded = load(model_folder)
    answer = loaded.chat(CONVERSATIONS["picture"], max_tokens=8, temperature=0.5, seed=3)
    said = answer.text
    assert said and answer.text == said
    content = ["<user>\n", "shot.png", "What is it?", "\n<assistant>\n"]
    assert said == "".join(loaded.generate(content, max_tokens=8, temperature=0.5, seed=3))
    with pytest.raises(ValueError, match="temperature"):
        loaded.chat([USER], temperature=-1.0)


def test_command_line_asks_one_question(model_folder, here, capsys):
    arguments = ["--chat", "--system", "Be brief.", "--image", "shot.png", "--message", "What is it?"]
    arguments += ["--max-tokens", "6", "--device", "cpu", "--dtype", "float32"]
    assert main([str(model_folder), *arguments]) == 0
    messages = [{"role": "system", "content": "Be brief."}, *CONVERSATIONS["picture"]]
    assert capsys.readouterr().out == load(model_folder).chat(messages, max_tokens=6).text + "\n"


def test_command_line_goes_on_talking(model_folder, here, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n\nAnd now?\n"))
    arguments = ["--chat", "--image", "shot.png", "--max-tokens", "6", "--device", "cpu", "--dtype", "float32"]
    assert main([str(model_folder), *arguments]) == 0
    loaded, messages, expected = load(model_folder), [*CONVERSATIONS["picture"]], ""
    for following in ("And now?", None):
        answer = loaded.chat(messages, max_tokens=6)
        expected += answer.text + "\n"
        content = [{"type": "text", "text": following}]
        messages += [answer.message, {"role": "user", "content": content}]
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--message", "x"], "--chat"),
        (["--system", "x", "--prompt", "x"], "--chat"),
        (["--chat", "--prompt", "x"], "--message"),
    ],
    ids=["message", "system", "prompt"],
)
def test_command_line_mistakes(model_folder, capsys, arguments, hint):
    assert main([str(model_folder), *arguments]) == 2
    assert hint in (said := capsys.readouterr().err) and said.startswith("error: ") and said.count("\n") == 1


def test_command_line_names_a_missing_picture(model_folder, here, capsys):
    assert main([str(model_folder), "--chat", "--image", "gone.png", "--message", "x", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "gone.png" in said and said.count("\n") == 1


BESIDE = {
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "instructions": ({"instructions": "Be brief."}, "instructions.*'system'"),
    "capital": ({"System": "Be brief."}, "System.*'system'"),
    "documents": ({"documents": ["a page"]}, "documents"),
    "settings": ({"temperature": 0.5}, "temperature.*arguments of chat"),
    "misspelt": ({"imagess": ["shot.png"]}, "imagess.*'images'"),
    "attachments": ({"attachments": ["shot.png"]}, "attachments"),
    "two-lists": ({"conversations": [{"from": "human", "value": "x"}]}, "conversations.*one list"),
    "no-medium": ({"file": "notes.txt"}, "file"),
}


@pytest.mark.parametrize(("beside", "hint"), BESIDE.values(), ids=list(BESIDE))
def test_a_field_beside_the_messages_that_nobody_reads_is_refused(model_folder, here, beside, hint):
    loaded = load(model_folder)
    with pytest.raises(ValueError, match=hint) as told:
        loaded.chat({"messages": [USER], **beside})
    assert "would not be read" in str(told.value)
    # one that is empty holds nothing
    empty = {name: type(value)() if not isinstance(value, float) else None for name, value in beside.items()}
    row = {"id": "7", "split": "test", "kind": "chat", "train_on_turn": True, "loss_mask": [1]}
    assert same(encode_chat(loaded, {"messages": [USER], **empty, **row}), encode_chat(loaded, [USER]))


OF_MESSAGE = {
    "attachments": {"attachments": ["shot.png"]},
    "files": {"files": [{"name": "a.pdf", "data": "x"}]},
    "documents": {"documents": [{"text": "a page"}]},
    "instructions": {"instructions": "Be brief."},
    "reasoning": {"reasoning_content": "I think"},
    "tool-calls": {"tool_calls": [{"function": {"name": "f"}}]},
    "name": {"name": "Ada"},
}


@pytest.mark.parametrize("beside", OF_MESSAGE.values(), ids=list(OF_MESSAGE))
def test_a_field_of_a_message_that_nobody_reads_is_refused(model_folder, here, beside):
    """What the reader of training counts as a note was dropped without a word here."""
    loaded, (name,) = load(model_folder), beside
    for message in (USER, {"role": "user", "content": [PICTURE]}, {"from": "human", "value": "x"}):
        with pytest.raises(ValueError, match=name.replace("_", "[_ ]")):
            loaded.chat([message | beside])
    harmless = {name: type(value)() for name, value in beside.items()} | {"id": "3", "weight": 0}
    assert same(encode_chat(loaded, [USER | harmless]), encode_chat(loaded, [USER]))


@pytest.mark.parametrize(
    "beside",
    [{"images": ["shot.png"]}, {"image": "shot.png"}, {"image_path": Path("shot.png")}, {"images": "picture"}],
    ids=["list", "path", "other-field", "picture"],
)
@pytest.mark.parametrize("words", ["What is it?", "<image>What is it?"], ids=["before", "placeholder"])
def test_media_beside_the_words_of_a_message_are_read_or_refused(model_folder, here, beside, words):
    """They are read where training reads them, and never dropped."""
    loaded = load(model_folder)
    given = {key: [PIL.Image.open("shot.png")] if value == "picture" else value for key, value in beside.items()}
    try:
        prompt = encode_chat(loaded, [{"role": "user", "content": words, **given}])
    except ValueError as error:
        assert next(iter(beside)) in str(error)
        return
    assert same(prompt, encode_chat(loaded, CONVERSATIONS["picture"]))


OF_PART = {
    "two-media": {"type": "image", "image": "shot.png", "path": "other.png"},
    "picture-in-a-text": {"type": "text", "text": "What?", "image": "shot.png"},
    "object-in-a-text": {"type": "text", "text": "What?", "image": PIL.Image.new("RGB", (3, 3))},
    "unknown": {"type": "text", "text": "What?", "citations": ["x"]},
    "url-and-path": {"type": "image_url", "image_url": {"url": "shot.png", "path": "other.png"}},
}


@pytest.mark.parametrize("part", OF_PART.values(), ids=list(OF_PART))
def test_a_field_of_a_part_that_nobody_reads_is_refused(model_folder, here, part):
    PIL.Image.new("RGB", (5, 9), "red").save("other.png")
    with pytest.raises(ValueError, match=r"not .*read"):
        load(model_folder).chat([{"role": "user", "content": [part]}])


def test_hints_to_a_service_mean_nothing(model_folder, here):
    part = PICTURE | {"detail": "high", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    loaded = load(model_folder)
    assert same(encode_chat(loaded, messages), encode_chat(loaded, CONVERSATIONS["picture"]))
    # the same path under two names is one medium
    beside = {"messages": [{"role": "user", "content": "<image>What is it?"}], "image": "shot.png"}
    both = beside | {"images": ["shot.png"]}
    assert same(encode_chat(loaded, both), encode_chat(loaded, beside))


def test_ids_do_not_hide_what_stands_beside_them(model_folder, here):
    said = {"role": "assistant", "content": "x", "token_ids": [33], "images": ["shot.png"]}
    with pytest.raises(ValueError, match="'images' beside token_ids"):
        load(model_folder).chat([USER, said, USER])


@pytest.mark.parametrize("edit", [str.upper, lambda text: text + ".", lambda text: [{"type": "text", "text": "No."}]])
def test_an_edited_answer_is_not_hidden_by_its_ids(model_folder, edit):
    loaded = load(model_folder)
    said = {"role": "assistant", "content": "a word", "token_ids": loaded.tokenizer.encode("a word")}
    whole = encode_chat(loaded, [USER, said, USER])
    assert same(whole, encode_chat(loaded, [USER, {**said, "content": ""}, USER]))
    with pytest.raises(ValueError, match=r"message 1: its text is .* but its token_ids.* say 'a word'"):
        loaded.chat([USER, said | {"content": edit("a word")}, USER])


@pytest.mark.parametrize("line", ["shot.png", "gone.png", "./shot.png", " shot.png"])
def test_a_line_that_is_a_path_is_told(model_folder, here, capsys, monkeypatch, line):
    """As --message is: it was read as words."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\nWhat is it?\n"))
    arguments = [str(model_folder), "--chat", "--max-tokens", "2", "--device", "cpu", "--dtype", "float32"]
    assert main(arguments) == 2
    assert line.strip() in (told := capsys.readouterr()).err and not told.out
    # a person at a terminal may go on
    terminal = io.StringIO(f"{line}\nWhat is it?\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert line.strip() in told.err and told.out == load(model_folder).chat([USER], max_tokens=2).text + "\n"


@pytest.mark.parametrize("line", [b"caf\xe9\n", b"\xff\n", b"gr\xf6\xdfer\n"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_line_that_is_no_utf8_is_told(model_folder, capsys, monkeypatch, line, errors):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line), encoding="utf-8", errors=errors))
    assert main([str(model_folder), "--chat", "--device", "cpu"]) == 2
    assert "error: " in (told := capsys.readouterr().err) and "UTF-8" in told and "Traceback" not in told


@pytest.mark.parametrize("said", ["<image>", "a <video> b", "<img>gone.png</img>", "<image_1>\n", "</s><audio>"])
def test_what_a_model_wrote_is_words(model_folder, here, said):
    """An answer with the place of an image in it must not end the conversation, nor read a file."""
    loaded = load(model_folder)
    for more in ({}, {"weight": 0}, {"id": "7"}):
        given = encode_chat(loaded, [*CONVERSATIONS["picture"], {"role": "assistant", "content": said, **more}, USER])
        parts = ["<user>\n", "shot.png", USER["content"], "\n<assistant>\n", Text(said), "\n<user>\n", USER["content"]]
        assert given.token_ids.tolist() == loaded.encode([*parts, "\n<assistant>\n"]).token_ids.tolist()


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_stream_that_is_closed_from_the_start(monkeypatch, stream):
    """`python -m brine.inference.generate RUN --chat <&-` ended in a stack trace."""
    monkeypatch.setattr(sys, stream, None)
    assert (
        exit_on_closed_pipe(lambda: len(list(read_questions())))() == 0
        if stream == "stdin"
        else exit_on_closed_pipe(int)() == 0
    )
