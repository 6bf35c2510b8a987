"""A path in a prompt that leads to no medium is told, and words stay words.

A misspelt path was read as words in silence, and the model answered something about them.
"""

from pathlib import Path

import PIL.Image
import pytest

from brine.data.document import Image, Text
from brine.data.files import extensions as endings
from brine.data.tokenizer import MEDIA_TOKEN_ID
from brine.inference.generate import main
from brine.inference.load import load
from brine.inference.prompt import TextFile, media_path_in
from tests.inference.encode_chat import encode_chat


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with an image, a text, and a folder with a space in its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(endings.UNSUPPORTED, "odd", "convert it to PNG")
    PIL.Image.new("RGB", (9, 5), "red").save("shot.png")
    Path("notes.txt").write_text("words")
    Path("my trip").mkdir()
    PIL.Image.new("RGB", (9, 5), "red").save("my trip/day 1.png")
    Path("dir.png").mkdir()
    Path("shot.odd").write_bytes(b"x")
    return tmp_path


MISSING = {
    "absolute": ("/tmp/definitely/missing.png", "missing.png does not exist"),
    "relative": ("gone.jpg", "gone.jpg does not exist"),
    "sound": ("sounds/note.WAV", "note.WAV does not exist"),
    "video": ("./clip.mp4", "clip.mp4 does not exist"),
    "home": ("~/no such trip/1.webm", "1.webm does not exist"),
    "unknown-home": ("~nobody-of-this-name/a.png", "a.png does not exist"),
    "space-in-a-folder-that-is-there": ("my trip/day 2.png", "day 2.png does not exist"),
    "absolute-with-space": ("/no such place/a b.flac", "a b.flac does not exist"),
    "too-long-for-a-name": ("a" * 400 + ".png", "does not exist"),
    "unread": ("gone.odd", "not read: convert it to PNG"),
    "unread-and-there": ("shot.odd", "not read: convert it to PNG"),
    "no-medium": ("/tmp/definitely/words.txt", "words.txt does not exist"),
    "text-file": ("notes.txt", "TextFile"),
    "folder": ("./my", "Text"),
    "folder-like-a-picture": ("dir.png", "dir.png"),
    "address": ("https://example.org/a.png?size=3", "download"),
    "file-address": ("file:///tmp/a.png", "give the path alone"),
    "bytes": ("data:image/png;base64,AAAA", "write them to a file"),
    "member": ("gone.tar::a.png", "does not exist"),
}


@pytest.mark.parametrize(("text", "hint"), MISSING.values(), ids=list(MISSING))
def test_what_looks_like_a_path_is_told(model_folder, here, text, hint):
    (here / "my").mkdir()
    loaded = load(model_folder)
    for parts in (text, ["see ", text]):
        with pytest.raises(ValueError, match="prompt part") as told:
            loaded.generate(parts, max_tokens=2)
        assert hint in str(told.value) and "Text" in str(told.value)
    # the same string, meant as words
    assert loaded.encode([Text(text)]).token_ids.tolist() == loaded.tokenizer.encode(text)


ADDRESSES = {
    "remote": ("https://host/c.png", "download it"),
    "one-slash": (Path("https://host/c.png"), "download it"),
    "bucket": ("s3://bucket/a.wav", "download it"),
    "file": ("file:///tmp/a.png", "give the path alone, /tmp/a.png"),
    "bytes": ("data:image/png;base64,AAAA", "write them to a file"),
}


@pytest.mark.parametrize(("path", "hint"), ADDRESSES.values(), ids=list(ADDRESSES))
def test_an_address_that_is_named_as_a_file_is_told(model_folder, here, path, hint, capsys):
    """`--image https://...` was looked for in a folder `https:`."""
    for part in (Image(str(path)), TextFile(str(path)), *([path] if isinstance(path, Path) else [])):
        with pytest.raises(ValueError, match="prompt part 0") as told:
            load(model_folder).encode([part])
        assert hint in str(told.value)
    for option in ("--image", "--prompt-file"):
        assert main([str(model_folder), option, str(path), "--device", "cpu"]) == 2
        assert hint in capsys.readouterr().err


def test_a_medium_given_as_text_is_told(model_folder, here, capsys):
    assert main([str(model_folder), "--prompt-file", "shot.png", "--device", "cpu"]) == 2
    assert "shot.png is media, not text" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--system", "--message"])
@pytest.mark.parametrize("path", ["shot.png", "gone.png"])
def test_words_of_a_chat_that_are_a_path_are_told(model_folder, here, capsys, option, path):
    said = ["--message", "hi", option, path] if option == "--system" else [option, path]
    assert main([str(model_folder), "--chat", *said, "--device", "cpu"]) == 2
    assert path in capsys.readouterr().err
    messages = [{"role": option[2:].replace("message", "user"), "content": path}, {"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match=path) as told:
        load(model_folder).chat(messages)
    assert 'a content part {"type": "text"' in str(told.value)
    # meant as words, and what a model said
    for content in ([{"type": "text", "text": path}], path):
        messages[0] = {"role": "user" if isinstance(content, list) else "assistant", "content": content}
        encode_chat(load(model_folder), messages)


WORDS = ("def ", "What is in heron.png", "see (a.png)", "a.png\n", "import os.path", "model", "/help", "no/such/folder",
         "https://example.org/page", "3.14", "e.g.", "x" * 2000 + ".png", "day 1.png", "see shot.png",
         "shot.png\nshot.png", "gone.png ", "a\0.png", "\x1b[2Jshot.png")  # fmt: skip


@pytest.mark.parametrize("text", WORDS, ids=lambda text: text[:20].strip())
def test_words_stay_words(model_folder, here, text):
    (here / "model").mkdir()
    loaded = load(model_folder)
    assert loaded.encode([text]).token_ids.tolist() == loaded.tokenizer.encode(text)


@pytest.mark.parametrize("path", ["shot.png", "./shot.png", "my trip/day 1.png"])
def test_existing_media_are_read(model_folder, here, path):
    for form in (path, str(here / path), Path(path)):
        assert MEDIA_TOKEN_ID["image"] in load(model_folder).encode([form]).token_ids


NAMES = {
    "narrow-space": "Screenshot 2026-11-28 at 9.41.05\u202fPM.png",
    "no-break-space": "Capture\u00a0d\u2019\u00e9cran.png",
    "joined-emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",
    "tab": "a\tb.png",
    "escape": "a\x1b[2J.png",
    "right-to-left": "\u200f\u05e9.png",
    "soft-hyphen": "sho\u00ads.png",
    "private-use": "icon \ue000.png",
    "trailing-space": "shot.png ",
    "deep": "/".join(["d" * 200] * 6) + "/a.png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_an_existing_picture_is_one_whatever_its_name(model_folder, here, capsys, name):
    """str.isprintable is false of the narrow space in the names of screenshots: these were read as words."""
    if name.strip() == name:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (9, 5), "red").save(name)
    loaded = load(model_folder)
    for given in (name, f"{name}\n", f" {name}", ["see ", name]):
        assert MEDIA_TOKEN_ID["image"] in loaded.encode(given).token_ids
    with pytest.raises(ValueError, match="is the path of a file"):
        loaded.chat([{"role": "user", "content": name}])
    assert main([str(model_folder), "--prompt", name, "--device", "cpu"]) == 2
    assert "with --image" in capsys.readouterr().err
    content = [{"type": "image", "image": name.strip()}]
    assert MEDIA_TOKEN_ID["image"] in encode_chat(loaded, [{"role": "user", "content": content}]).token_ids


@pytest.mark.parametrize("name", ["go\u200dne.png", "my trip/day\u202f2.png", "gone\u00ad.png"], ids=ascii)
def test_a_picture_of_an_odd_name_that_is_not_there_is_told(model_folder, here, name):
    with pytest.raises(ValueError, match="does not exist"):
        load(model_folder).encode(name)


RECORD_FORMATS = {
    "object": {"type": "image", "image": "shot.png"},
    "set": {"shot.png"},
    "bytes": b"def ",
    "buffer": bytearray(b"def "),
    "number": 3.5,
}


@pytest.mark.parametrize("given", RECORD_FORMATS.values(), ids=list(RECORD_FORMATS))
def test_what_is_no_list_of_parts_is_told(model_folder, here, given):
    """The keys of an object were read as words: typeimage."""
    loaded = load(model_folder)
    for parts, what in (
        (given, "a prompt is a part or a list of parts"),
        ([given], "prompt part 0: .* is not a prompt part"),
    ):
        with pytest.raises(ValueError, match=what) as told:
            loaded.generate(parts)
        assert type(given).__name__ in str(told.value)
    with open("notes.txt") as file, pytest.raises(ValueError, match="TextIOWrapper"):
        loaded.encode(file)
    assert MEDIA_TOKEN_ID["image"] in loaded.encode(part for part in ("see", "shot.png")).token_ids


FILES = {
    "space": ("file:///tmp/SHOT%20UP.PNG", "/tmp/SHOT UP.PNG"),
    "umlaut": ("file:///tmp/gr%C3%B6%C3%9Fer.jpg", "/tmp/größer.jpg"),
    "percent": ("file:///tmp/100%25.webp", "/tmp/100%.webp"),
    "host": ("file://localhost/tmp/a.png", "/tmp/a.png"),
    "capitals": ("FILE:///tmp/a%2Cb.png", "/tmp/a,b.png"),
}


@pytest.mark.parametrize(("address", "path"), FILES.values(), ids=list(FILES))
def test_the_path_of_an_address_is_told_as_it_is(model_folder, here, address, path):
    loaded = load(model_folder)
    messages = [{"role": "user", "content": [{"type": "image", "image": address}]}]
    for ask, given in ((loaded.encode, address), (loaded.encode, [Image(address)]), (loaded.chat, messages)):
        with pytest.raises(ValueError, match="give the path alone") as told:
            ask(given)
        assert f"give the path alone, {path}" in str(told.value)


@pytest.mark.parametrize("path", [".", "..", "dir.png", "my trip", "./dir.png/"])
def test_a_folder_is_told_as_one(model_folder, here, capsys, path):
    for part in (Path(path), Image(path), *([path] if path.endswith(".png") else [])):
        with pytest.raises(ValueError, match="is a folder: give a file in it"):
            load(model_folder).encode([part])
    assert main([str(model_folder), "--image", path, "--device", "cpu"]) == 2
    assert f"{path} is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["gone.png", "notes.txt", "gone.odd", "dir.png", ".", "gone.txt"])
def test_paths_of_no_medium_are_told(model_folder, here, path):
    with pytest.raises(ValueError, match="prompt part 0") as told:
        load(model_folder).encode([Path(path)])
    assert path in str(told.value)


def test_a_wrapped_path_names_its_file(model_folder, here):
    with pytest.raises(ValueError, match=r"part 1.*gone\.png"):
        load(model_folder).encode(["a", Image("gone.png")])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gone.png", "does not exist"),
        ("shot.png", "--image"),
        ("/tmp/x y/z.mp4", "z.mp4"),
        ("notes.txt", "--prompt-file"),
    ],
    ids=["missing", "there", "space", "text-file"],
)
def test_the_command_line_tells_too(model_folder, here, capsys, text, hint):
    assert main([str(model_folder), "--prompt", text, "--max-tokens", "2", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and text in said and hint in said and said.count("\n") == 1
    # in the words of the command line
    assert "TextFile" not in said and "brine.data.document" not in said


@pytest.mark.parametrize(
    "words", ["caf\udce9", "\udcff", "a\ud800b", "größer \udcf6"], ids=["latin-1", "byte", "half", "mixed"]
)
def test_words_that_are_no_utf8_are_told(model_folder, capsys, words):
    """Bytes of another encoding reach Python as half characters, and ended in a stack trace of the tokenizer."""
    loaded = load(model_folder)
    messages = [{"role": "user", "content": words}]
    for ask, given in ((loaded.generate, words), (loaded.generate, [Text(words)]), (loaded.chat, messages)):
        with pytest.raises(ValueError, match="not in UTF-8"):
            ask(given)
    for option in ("--prompt", "--message"):
        said = [option, words, *(["--chat"] if option == "--message" else []), "--device", "cpu"]
        assert main([str(model_folder), *said]) == 2
        assert "error: " in (told := capsys.readouterr().err) and "UTF-8" in told


def test_nothing_is_opened(here):
    """A pipe named like an image must not block."""
    import os

    os.mkfifo(here / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png"):
        media_path_in("pipe.png")
