"""Videos of code being typed or scrolled, or of cards: H.264 in MP4, with narration as an AAC audio track.

The region is drawn once (code_image.py); a typed frame covers what is not yet typed, a scrolled frame is a window on
the image, a card one line of it. Audio is made exactly as long as the frames. One encoding thread: with more, x264's
output depends on the machine. A 25-frame video of one line takes about 7 ms and 4 KB.
"""

import io
import math
from fractions import Fraction

import av
import numpy as np

from brine.synth.kinds.levels import FRAMES_PER_SECOND, MAX_VIDEO_S, SAMPLE_RATE
from brine.synth.render.code_image import draw_code, round_up
from brine.synth.speech.voice import SpeechSynthesizer

X264 = {"preset": "ultrafast", "crf": "18"}
"""Small text needs its edges: at this setting a pixel is off by less than one step of 255 on average."""
AAC_BITS_PER_SECOND = 48000


def render(spec: dict, synthesizer: SpeechSynthesizer) -> bytes:
    """The MP4 file of a video spec: 10 frames per second, yuv420p, and mono 16 kHz AAC where it has narration.

    The spec's `frames` is a least length: a narration that takes longer extends the last frame, to 8 s at most. Raises
    SpeechError from the narration, ValueError when it does not fit into 8 s.
    """
    count = spec["frames"]
    # each utterance at its time, a late one after the one before it
    track = np.zeros(0, np.int16)
    for item in spec["narration"]:
        said = synthesizer.synthesize(item["text"], voice=item["voice"], rate=item["rate"], pitch=item["pitch"])
        silence = max(0, int(item["start_s"] * SAMPLE_RATE) - len(track))
        track = np.concatenate([track, np.zeros(silence, np.int16), said])
    if spec["narration"]:
        count = max(count, math.ceil((len(track) / SAMPLE_RATE + 0.1) * FRAMES_PER_SECOND))
        if count > MAX_VIDEO_S * FRAMES_PER_SECOND:
            raise ValueError(f"its narration takes {len(track) / SAMPLE_RATE:.1f} s, a video has {MAX_VIDEO_S:g} s")
        track = np.pad(track, (0, count * SAMPLE_RATE // FRAMES_PER_SECOND - len(track)))
    return encode(frames(spec, count=count), narration=track if spec["narration"] else None)


def frames(spec: dict, *, count: int) -> np.ndarray:
    """(count, H, W, 3) uint8: the video's images. Typing or scrolling is over after `motion_frames` frames."""
    canvas = draw_code(spec)
    whole, motion, lines = np.asarray(canvas.image), spec["motion_frames"], spec["lines"]
    if spec["mode"] == "scroll":
        height = round_up(canvas.y(spec["visible_lines"]))
        # the last line ends at the bottom of the last view
        distance = max(0, whole.shape[0] - height)
        offsets = [round(distance * min(1.0, index / max(1, motion - 1))) for index in range(count)]
        return np.stack([whole[offset : offset + height] for offset in offsets])
    if spec["mode"] == "cards":
        # line by line through a window of one line; a line stays for `motion_frames` frames
        rows = np.minimum(np.arange(count) // motion, len(lines) - 1)
        return np.stack([whole[row * canvas.pitch :][: round_up(canvas.pitch)] for row in rows])
    clip = np.repeat(whole[None], count, axis=0)
    for index in range(min(count, motion)):
        typed = sum(map(len, lines)) * index // motion
        for row, line in enumerate(lines):
            shown = min(len(line), typed)
            typed -= shown
            # the last row's cell may reach a pixel below its pitch
            bottom = None if row == len(lines) - 1 else canvas.y(row + 1)
            clip[index, canvas.y(row) : bottom, canvas.x(shown) :] = canvas.background
    return clip


def encode(clip: np.ndarray, *, narration: np.ndarray | None = None) -> bytes:
    """An MP4 file of (N, H, W, 3) uint8 frames with even sides and, if given, (n,) int16 audio at 16 kHz."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=dict(X264))
        video.height, video.width = clip.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        if narration is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            audio.bit_rate = AAC_BITS_PER_SECOND
            audio.codec_context.thread_count = 1
        for index, pixels in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if narration is not None:
            step = audio.codec_context.frame_size or 1024
            scaled = (narration.astype(np.float32) / 32768.0).reshape(1, -1)
            for start in range(0, scaled.shape[1], step):
                chunk = np.ascontiguousarray(scaled[:, start : start + step])
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return stream.getvalue()
