"""Decoding servers: bad media, time-outs, crashes, order, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from brine.data.config import EncodeConfig
from brine.data.document import Audio, Document, Image, Text, Video
from brine.data.encode import encode
from brine.data.media.pool import DecodePool
from tests.data.media_files import film, picture, sound
from tests.paths import ROOT

pytestmark = pytest.mark.slow


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of some size and holds almost nothing: a decompression bomb's header."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_bad_media_are_set_aside_one_by_one(tmp_path, tokenizer, config):
    """One broken document after another; each is named with its file and reason and the good ones come through."""
    good = tmp_path / "good.png"
    picture(good, 40, 40)
    sound(tmp_path / "good.wav", 0.5)
    sound(tmp_path / "good.flac", 1.0)
    sound(tmp_path / "good.ogg", 1.0)
    film(tmp_path / "good.mp4", 1.0)
    bad = {}

    def put(name: str, content: bytes, words: str) -> None:
        (tmp_path / name).write_bytes(content)
        bad[name] = words

    for name in ("good.png", "good.wav", "good.flac", "good.ogg"):
        whole = (tmp_path / name).read_bytes()
        words = {"good.png": "broken image", "good.flac": "not an audio file that can be read"}.get(name, "truncated")
        put(f"cut-{name}", whole[: len(whole) // 2], words)
    whole = (tmp_path / "good.mp4").read_bytes()
    put("cut-good.mp4", whole[: len(whole) // 2], "not a video that can be read")
    put("zero.png", b"", "empty")
    put("zero.wav", b"", "empty")
    put("text.png", b"this is no picture " * 20, "not an image of a known format")
    put("text.wav", b"this is no sound " * 20, "not an audio file that can be read")
    put("text.mp4", b"this is no film " * 20, "not a video that can be read")
    put("picture.wav", good.read_bytes(), "not an audio file")
    put("vast.png", png_header(30_000, 30_000), "far over max_pixels")
    put("large.png", png_header(10_000, 10_000), "10000 x 10000 pixels is over max_pixels")
    put("hollow.png", png_header(500, 500), "broken image")
    put("post.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format")
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 11, np.float32), 8000)
    bad["long.wav"] = "11.0 s is over the limit of 10 s"
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan, np.float32), 8000, subtype="FLOAT")
    bad["nan.wav"] = "not finite"
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 8000)
    bad["none.wav"] = "no samples"
    soundfile.write(tmp_path / "rate.wav", np.zeros(100, np.float32), 1000)
    bad["rate.wav"] = "sample rate of 1000 Hz"
    film(tmp_path / "long.mp4", 31, fps=2)
    bad["long.mp4"] = "31.0 s lies outside 0..max_video_s=30"
    bad["missing.png"] = "does not exist"
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    bad["out.png"] = "link out of the manifest's folder"
    os.mkfifo(tmp_path / "pipe.wav")
    bad["pipe.wav"] = "not a regular file"
    sorts = {".png": Image, ".wav": Audio, ".flac": Audio, ".ogg": Audio, ".mp4": Video}
    names = [name for broken in bad for name in (broken, "good.png")]
    names += [f"good.{end}" for end in ("wav", "flac", "ogg", "mp4")]
    documents = [Document(f"{n}", (sorts[Path(name).suffix](name), Text("x"))) for n, name in enumerate(names)]
    with DecodePool(root=tmp_path, tokenizer=tokenizer, config=config, num_servers=1, batch_documents=5) as pool:
        results = list(pool.encode(documents))
    assert [result.document for result in results] == documents
    for name, result in zip(names, results, strict=True):
        if name in bad:
            assert result.encoded is None, name
            assert bad[name] in result.quarantined.reason, (name, result.quarantined.reason)
            assert (result.quarantined.file, result.quarantined.id) == (name, result.document.id)
        else:
            assert result.quarantined is None, (name, result.quarantined)


def test_pictures_at_the_limit_of_a_format(tmp_path, tokenizer, config):
    """The first frame of an animation; a JPEG in CMYK; a mislabelled but readable file."""
    frames = [Pillow.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    Pillow.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "b.jpg")
    frames[1].save(tmp_path / "c.jpg", format="PNG")
    for name, color in (("a.gif", (255, 0, 0)), ("b.jpg", (255, 255, 255)), ("c.jpg", (0, 255, 0))):
        sequence = encode(Document("x", (Image(name),)), root=tmp_path, tokenizer=tokenizer, config=config)
        assert (sequence.image.reshape(-1, 3) == color).all()


FAULTY = """
import os, time
from pathlib import Path
import brine.data.encode
from brine.data.media import server as decode_server

encode = brine.data.encode.encode

def faulty(document, **options):
    if document.id.startswith("hang"):
        time.sleep(600)
    if document.id.startswith("slow"):
        time.sleep(1.0)
    if document.id.startswith("die"):
        os.abort()
    once = Path(options["root"]) / document.id
    if document.id.startswith("once") and not once.exists():
        once.touch()
        os.abort()
    return encode(document, **options)

brine.data.encode.encode = faulty
decode_server.main()
"""


def test_hanging_and_dying_decoders_cost_one_document_each(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "faulty_server.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(DecodePool, "server_module", "faulty_server")
    ids = ["a", "hang-1", "b", "die-1", "c", "once-1", "d", "hang-2", "e", "f", "die-2"]
    documents = [Document(name, (Text(name),)) for name in ids]
    config = EncodeConfig(decode_timeout_s=1.0)
    with DecodePool(root=tmp_path, tokenizer=tokenizer, config=config, num_servers=2, batch_documents=4) as pool:
        results = list(pool.encode(documents))
        again = list(pool.encode(documents[:1]))
    assert [result.document.id for result in results] == ids
    reasons = {result.document.id: result.quarantined.reason for result in results if result.quarantined}
    assert set(reasons) == {"hang-1", "hang-2", "die-1", "die-2"}
    assert "longer than decode_timeout_s=1" in reasons["hang-1"] and "SIGABRT" in reasons["die-1"]
    assert again[0].encoded is not None


def test_servers_that_cannot_start_say_why(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(DecodePool, "server_module", "no_such_module")
    with (
        DecodePool(root=tmp_path, tokenizer=tokenizer, config=EncodeConfig(), num_servers=1) as pool,
        pytest.raises(RuntimeError, match="no_such_module"),
    ):
        list(pool.encode([Document("a", (Text("a"),))]))


def test_an_abandoned_iteration_leaves_the_pool_usable(tmp_path, tokenizer):
    documents = [Document(str(number), (Text("word " * number),)) for number in range(1, 60)]
    with DecodePool(root=tmp_path, tokenizer=tokenizer, config=EncodeConfig(), batch_documents=3) as pool:
        for result in pool.encode(documents):
            if result.document.id == "5":
                break
        ids = [result.document.id for result in pool.encode(documents)]
        pids = [server.process.pid for server in pool._servers]
    assert ids == [document.id for document in documents]
    # closed means gone and waited for: no zombies
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_idle_servers_that_an_abandoned_iteration_killed_are_not_used_again(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "faulty_server.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(DecodePool, "server_module", "faulty_server")
    slow, texts = ([Document(f"{name}{n}", (Text("word"),)) for n in range(3)] for name in ("slow", "text"))
    config = EncodeConfig(decode_timeout_s=60)
    with DecodePool(root=tmp_path, tokenizer=tokenizer, config=config, num_servers=3, batch_documents=1) as pool:
        # a server for each; one then hangs, and is killed when nobody waits for it
        assert len(list(pool.encode(slow))) == len(pool._servers) == 3
        hanging = pool.encode([texts[0], Document("hang", (Text("word"),))])
        next(hanging)
        hanging.close()
        (result,) = pool.encode(texts[2:])
        assert result.quarantined is None


ORPHAN = """
import sys
from brine.data.config import EncodeConfig
from brine.data.media.pool import DecodePool
from brine.data.document import Document, Text
from brine.data.tokenizer import train_tokenizer
pool = DecodePool(root=sys.argv[1], tokenizer=train_tokenizer([], 267), config=EncodeConfig(), num_servers=1)
list(pool.encode([Document("a", (Text("a"),))]))
print(pool._servers[0].process.pid, flush=True)
sys.stdin.read()
"""


def test_servers_end_with_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    server = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    for _ in range(300):
        try:
            state = (
                Path(f"/proc/{server}/stat").read_text().rsplit(")", 1)[1].split()[0]
                if os.path.exists("/proc")
                else os.kill(server, 0)
            )
        except (OSError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent by 30 s")
