"""Decoding: together equals alone, seeds decide, text streams, and the command line says what is wrong."""

import dataclasses
import inspect
import io
import sys
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from brine.data.document import Audio, Image, Text
from brine.data.tokenizer import EOS_ID, MEDIA_TOKEN_ID, SPECIAL_TOKENS
from brine.inference.decode import generate_batch, stream_text, stream_tokens
from brine.inference.generate import main, read_request
from brine.inference.load import LoadedModel, load
from brine.inference.prompt import TextFile, batch_prompts, encode_prompt
from brine.inference.sampling import GenerationConfig
from tests.batches import followed_by


@pytest.fixture
def prompts(make_document):
    """Six prompts of unequal length, some without any medium."""
    return [
        make_document(seed, head=2 + 3 * seed, tail=1 + seed % 3, picture=6 * (seed % 2), sound=5 * (seed % 3), film=6)
        for seed in range(6)
    ]


def greedy_without_cache(model, prompt, max_tokens):
    """The slow truth: a whole forward for each token."""
    inputs = batch_prompts([prompt])
    answer = []
    for _ in range(max_tokens):
        logits = (model(inputs)[0, -1] @ model.head_weight.T).detach()
        logits[[number for number in range(len(SPECIAL_TOKENS)) if number != EOS_ID]] = -torch.inf
        token = int(logits.argmax())
        if token == EOS_ID:
            break
        answer.append(token)
        inputs = followed_by(inputs, [token])
    return answer


@pytest.mark.slow
def test_transcribe_equals_one_by_one(make_model, prompts):
    """In batches that pad, with rows that end early, against a decoding that has no cache and no batch."""
    model = make_model(vocab_size=40)
    with torch.no_grad():
        # make the end token likely, so that rows leave the batch at different times
        model.head_weight[EOS_ID] *= 1.5
    for prompt in prompts:
        text = prompt.token_ids >= 20
        prompt.token_ids[text] = 20 + prompt.token_ids[text] % 20
    together = generate_batch(model, prompts, 12, batch_size=4)
    assert together == [greedy_without_cache(model, prompt, 12) for prompt in prompts]
    assert together == [list(stream_tokens(model, prompt, max_tokens=12)) for prompt in prompts]
    assert len({len(answer) for answer in together}) > 1, "the rows should not all end together"


def test_answers_hold_no_special_token(make_model, prompts):
    model = make_model()
    with torch.no_grad():
        model.head_weight[MEDIA_TOKEN_ID["image"]] = 100 * model.head_weight[200]
    ids = [token for answer in generate_batch(model, prompts[:2], 30, vocab_size=267) for token in answer]
    assert ids and all(len(SPECIAL_TOKENS) <= token < 267 for token in ids)


def test_seed_decides_the_answer(make_model, prompts):
    model = make_model()

    def answer(seed):
        torch.rand(1)
        return list(stream_tokens(model, prompts[1], max_tokens=12, temperature=2.0, seed=seed))

    assert answer(3) == answer(3) != answer(4)


@pytest.mark.slow
def test_decoding_does_not_compile(make_model, prompts):
    """Blocks compiled for training would be compiled anew for every length of an answer."""
    model, compile_blocks = make_model(), make_model()

    def refuse(graph, inputs):
        raise AssertionError("compiled while decoding")

    for block in compile_blocks.blocks:
        block.compile(backend=refuse)
    assert generate_batch(compile_blocks, prompts[:2], 5) == generate_batch(model, prompts[:2], 5)


def test_text_streams_in_whole_characters(model_folder):
    tokenizer = load(model_folder).tokenizer
    text = "größer → 🙂 end"
    ids = tokenizer.encode(text)
    pieces = list(stream_text(iter(ids), tokenizer))
    assert "".join(pieces) == text and len(pieces) > 5
    assert all("\ufffd" not in piece for piece in pieces)
    # an answer cut inside a character ends with the replacement sign instead of an error
    arrow = [
        token for token in range(len(SPECIAL_TOKENS), tokenizer.vocab_size) if tokenizer.token_bytes(token) == b"\xe2"
    ]
    assert list(stream_text(iter(arrow), tokenizer)) == ["\ufffd"]


def test_generate_streams(model_folder):
    """A piece can be read before the answer is complete, and the pieces are the whole answer."""
    loaded = load(model_folder)
    forwards = []
    loaded.model.final_out.register_forward_hook(lambda module, args, out: forwards.append(out.shape[1]))
    pieces = loaded.generate(["def ", PIL.Image.new("RGB", (9, 5), "red")], max_tokens=12)
    first = next(pieces)
    assert 1 <= len(forwards) < 12
    whole = first + "".join(pieces)
    assert whole == "".join(loaded.generate(["def ", PIL.Image.new("RGB", (9, 5), "red")], max_tokens=12))
    # the prompt was read once, then one token at a time
    assert forwards[0] > 1 and set(forwards[1:12]) == {1}


@pytest.fixture
def media(tmp_path):
    """Files of an image and a sound."""
    PIL.Image.new("RGB", (20, 9), "blue").save(tmp_path / "shot.png")
    soundfile.write(tmp_path / "note.wav", np.sin(np.arange(8000) / 9).astype(np.float32), 16000)
    return tmp_path


def test_parts_come_in_all_forms(model_folder, media):
    """A path as a string, as a Path and as a part of the data package, and an image in memory, are the same prompt."""
    loaded = load(model_folder)
    picture = media / "shot.png"
    forms = [str(picture), picture, Image(str(picture)), PIL.Image.open(picture)]
    ids = [loaded.encode(["see ", form, Audio(str(media / "note.wav"))]).token_ids.tolist() for form in forms]
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert ids[0].count(MEDIA_TOKEN_ID["image"]) == 5 * 3 and ids[0].count(MEDIA_TOKEN_ID["audio"]) == 13
    assert EOS_ID not in ids[0]
    # a path that is wrapped in Text stays text
    assert MEDIA_TOKEN_ID["image"] not in loaded.encode([Text(str(picture))]).token_ids


@pytest.mark.parametrize(
    "parts, options, hint",
    [
        ([], {}, "prompt is empty"),
        ([""], {}, "holds no token"),
        ([3.5], {}, "part 0: a float is not a prompt part"),
        ([Image("nowhere.png")], {}, "nowhere.png.*does not exist"),
        (["a"], {"temperature": -1.0}, "temperature"),
        (["a"], {"top_p": 0.0}, "top_p"),
        (["a"], {"max_tokens": 0}, "max_tokens"),
    ],
    ids=["none", "empty", "number", "missing", "temperature", "top_p", "max_tokens"],
)
def test_bad_prompts_are_refused_at_the_call(model_folder, parts, options, hint):
    with pytest.raises(ValueError, match=hint):
        load(model_folder).generate(parts, **options)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(GenerationConfig)])
def test_a_default_is_given_in_one_place(name):
    """`generate`, `chat`, the command line and `stream_tokens` each had their own."""
    for function in (LoadedModel.generate, LoadedModel.chat, LoadedModel._tokens, stream_tokens):
        assert name not in inspect.signature(function).parameters
    assert getattr(read_request(["run"]).answer, name) == getattr(GenerationConfig, name)


@pytest.mark.parametrize("call", ["generate", "chat"])
def test_an_option_that_does_not_exist_is_named_at_the_call(model_folder, call):
    asked = {"generate": ["a"], "chat": [{"role": "user", "content": "a"}]}[call]
    with pytest.raises(TypeError, match="no option 'max_new_tokens' of an answer: there are temperature, top_k"):
        getattr(load(model_folder), call)(asked, max_new_tokens=3)


def test_command_line_keeps_the_order(media):
    request = read_request(
        ["run", "--prompt", "a", "--image", "b.png", "--prompt=c", "--audio", "d", "--prompt_file", "e"]
    )
    assert request.parts == (Text("a"), Image("b.png"), Text("c"), Audio("d"), TextFile("e"))


def test_command_line_reads_a_text_file(model_folder, tmp_path, capsys):
    """Long prompts come from a file, in its place among the other parts, and are read in chunks."""
    (tmp_path / "long.txt").write_text("def größer(x):\n" * 30, encoding="utf-8")
    arguments = ["--prompt", "# ", "--prompt-file", str(tmp_path / "long.txt"), "--max-tokens", "8"]
    arguments += ["--device", "cpu"]
    assert read_request(["run", *arguments]).parts == (Text("# "), TextFile(str(tmp_path / "long.txt")))
    expected = "".join(load(model_folder).generate([Text("# " + "def größer(x):\n" * 30)], max_tokens=8))
    assert main([str(model_folder), *arguments, "--prefill-tokens", "50", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert main([str(model_folder), *arguments, "--dtype", "bfloat16"]) == 0
    rounded = "".join(
        load(model_folder).generate([Text("# " + "def größer(x):\n" * 30)], max_tokens=8, compute_dtype=torch.bfloat16)
    )
    assert capsys.readouterr().out == rounded + "\n"


def test_text_files_are_bounded(model_folder, tmp_path):
    loaded = load(model_folder)
    config = replace(loaded.encode_config, max_file_mib=10 / 2**20)
    for content, hint in ((b"0123456789", None), (b"0123456789a", "over max_file_mib"), (b"ab\xff", "byte 2 is 0xff")):
        (tmp_path / "file").write_bytes(content)
        if hint is None:
            assert len(encode_prompt(TextFile(str(tmp_path / "file")), tokenizer=loaded.tokenizer, config=config)) == 10
            continue
        with pytest.raises(ValueError, match=f"prompt part 0: .*{hint}"):
            encode_prompt(TextFile(str(tmp_path / "file")), tokenizer=loaded.tokenizer, config=config)


class Terminal(io.StringIO):
    """A standard error that shows bars."""

    def isatty(self):
        return True


@pytest.mark.parametrize("delay_s, shown", [(0.0, True), (60.0, False)], ids=["long", "short"])
def test_reading_shows_a_bar_only_when_it_lasts(model_folder, monkeypatch, delay_s, shown):
    monkeypatch.setattr(sys, "stderr", Terminal())
    # by the module: the package exports the function `load` under the same name
    monkeypatch.setattr(sys.modules["brine.inference.load"], "BAR_DELAY_S", delay_s)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    list(load(model_folder).generate(["def " * 40], max_tokens=2, prefill_tokens=8, progress=True))
    assert ("reading" in sys.stderr.getvalue()) == shown


def test_command_line_answers(model_folder, media, capsys):
    arguments = [str(model_folder), "--image", str(media / "shot.png"), "--prompt", "def ", "--max-tokens", "8"]
    assert main([*arguments, "--device", "cpu", "--dtype", "float32"]) == 0
    expected = "".join(load(model_folder).generate([media / "shot.png", "def "], max_tokens=8))
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--image", "no-such.png"], "no-such.png"),
        (["--prompt", "x", "--temperature", "-2"], "temperature"),
        (["--prompt", "x", "--top-p", "3"], "top_p"),
        (["--prompt", "x", "--top-k", "-1"], "top_k"),
        (["--prompt", "x", "--prefill-tokens", "0"], "prefill_tokens"),
        (["--prompt", "x", "--device", "tpu-of-mine"], "device"),
        (["--prompt", "x", "--device", "cuda:77"], "cuda:77"),
        (["--prompt-file", "no-such.txt"], "no-such.txt cannot be read"),
        (["--prompt-file", "."], "cannot be read (Is a directory)"),
    ],
    ids=["image", "temperature", "top-p", "top-k", "prefill-tokens", "device", "card", "no-file", "folder"],
)
def test_command_line_mistakes_are_one_line(model_folder, capsys, arguments, hint):
    assert main([str(model_folder), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and hint in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "file", "hint"),
    [
        ("--audio", "note.wav", "takes soundfile, which is not installed: `uv sync` installs it, or pip install"),
        ("--video", "film.mp4", "takes PyAV, which is not installed: `uv sync` installs it, or pip install"),
    ],
)
def test_a_library_that_is_missing_is_named(model_folder, media, capsys, monkeypatch, option, file, hint):
    """Sounds ended in a traceback."""
    for name in ("soundfile", "av"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "brine.data.media.audio", raising=False)
    (media / "film.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(200))
    assert main([str(model_folder), option, str(media / file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: prompt part 0") and hint in said and said.count("\n") == 1


def test_command_line_without_a_prompt_or_model(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "--prompt" in capsys.readouterr().err
    assert main([str(tmp_path), "--prompt", "x"]) == 2
    assert "uv run train.py" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--prompt", "def "], ["--chat", "--message", "hi"], ["--chat"]], ids=" ".join)
def test_a_reader_that_stops_early_is_no_mistake(model_folder, capsys, monkeypatch, more):
    """`... | head -c 5` ended in a stack trace."""
    import io
    import os

    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nAnd now?\n"))
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main([str(model_folder), *more, "--max-tokens", "3", "--device", "cpu", "--dtype", "float32"]) == 0
    assert "rror" not in capsys.readouterr().err
