"""Small media files made on the spot, and counting of targets, for the tests of the data package."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """A PNG of noise; returns its pixels (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(seed, height, width, 3)
    Image.fromarray(pixels).save(path)
    return pixels


def sound(path: Path, seconds: float, *, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A sound of noise and a tone; returns its samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = max(1, round(seconds * rate))
    samples = 0.1 * np.random.default_rng(seed).standard_normal((count, channels)).astype(np.float32)
    samples += 0.3 * np.sin(2 * np.pi * 440 / rate * np.arange(count, dtype=np.float32))[:, None]
    soundfile.write(path, samples, rate)
    return samples


def film(path: Path, seconds: float, *, fps: int = 10, width: int = 48, height: int = 32, tone_s: float = 0.0) -> None:
    """An H.264 mp4 whose frame n is of one grey, 2 n mod 256, with a tone of `tone_s` seconds beside it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"threads": "1", "crf": "10"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if tone_s else None
        for number in range(round(seconds * fps)):
            pixels = np.full((height, width, 3), 2 * number % 256, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            wave = (0.3 * np.sin(np.arange(round(tone_s * 16000)) / 5)).astype(np.float32)[None]
            for first in range(0, wave.shape[1], 1024):
                piece = np.ascontiguousarray(wave[:, first : first + 1024])
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, first
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


def line(name: str, *content, **fields) -> dict:
    """A native manifest line; content entries are strings (text) or one-item dicts {"image": path}."""
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": next(iter(part))} | part
        for part in content
    ]
    return {"id": name, "content": parts} | fields


def manifest(folder: Path, lines: list) -> Path:
    """manifest.jsonl in `folder`; entries are dicts, or bytes to be written as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.jsonl"
    path.write_bytes(
        b"".join((entry if isinstance(entry, bytes) else json.dumps(entry).encode()) + b"\n" for entry in lines)
    )
    return path


def targets(corpus, entries) -> Counter:
    """How often each target (document, token) is predicted by a list of entries."""
    seen = Counter()
    for document, start, stop, _ in entries:
        loss_mask = corpus.tokens(document).loss_mask
        seen.update((document, token) for token in range(start + 1, stop) if loss_mask[token])
    return seen
