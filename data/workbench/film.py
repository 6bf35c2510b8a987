"""Films code being typed or scrolled, or cards: real H.264 in MP4, with narration as an AAC sound track where wanted.

The region is drawn once (picture.py); a typed frame covers what is not yet typed with the background, a
scrolled frame is a window on the picture, a card one line of it. Sound is mixed at its times and made exactly as
long as the picture, so that both start and end together on one clock. One encoding thread: with more, x264's output
depends on the machine. A 25-frame film of one line takes about 7 ms and 4 KB.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction

from data.workbench.levels import FRAMES_PER_SECOND, MAX_FILM_S, SAMPLE_RATE
from data.workbench.picture import draw_code
from data.workbench.speech import Speaker

X264 = {"preset": "ultrafast", "crf": "18"}
"""Small text needs its edges: at this setting a pixel is off by less than one step of 255 on average."""
AAC_BITS_PER_SECOND = 48000


def render_video(recipe: dict, speaker: Speaker) -> bytes:
    """The MP4 file of a video recipe: 10 frames a second, yuv420p, and mono 16 kHz AAC where it has sound.

    The recipe's `frames` is a least length: a narration that takes longer extends the last frame, to 8 s at
    most. Raises SpeechError from the narration, ValueError when it does not fit into 8 s.
    """
    import numpy as np

    sound = _mix(recipe["sound"], speaker)
    count = recipe["frames"]
    if sound is not None:
        count = max(count, math.ceil((len(sound) / SAMPLE_RATE + 0.1) * FRAMES_PER_SECOND))
        if count > MAX_FILM_S * FRAMES_PER_SECOND:
            raise ValueError(f"its narration takes {len(sound) / SAMPLE_RATE:.1f} s, a film has {MAX_FILM_S:g} s")
        sound = np.pad(sound, (0, count * SAMPLE_RATE // FRAMES_PER_SECOND - len(sound)))
    return encode(frames(recipe, count=count), sound=sound)


def frames(recipe: dict, *, count: int):
    """(count, H, W, 3) uint8: the film's pictures. Typing or scrolling is over after `moved_by` frames."""
    import numpy as np

    drawing = draw_code(recipe)
    whole = np.asarray(drawing.picture)
    if recipe["mode"] == "scroll":
        return _scrolled(whole, recipe, count=count, pitch=drawing.pitch)
    if recipe["mode"] == "cards":
        # line by line through a window of one line; a line stays for `moved_by` frames
        rows = np.minimum(np.arange(count) // recipe["moved_by"], len(recipe["lines"]) - 1)
        height = -(-drawing.pitch // 16) * 16
        return np.stack([whole[row * drawing.pitch : row * drawing.pitch + height] for row in rows])
    lengths = [len(line) for line in recipe["lines"]]
    film = np.repeat(whole[None], count, axis=0)
    for index in range(min(count, recipe["moved_by"])):
        typed = sum(lengths) * index // recipe["moved_by"]
        for row, length in enumerate(lengths):
            shown = min(length, typed)
            typed -= shown
            top = recipe["top"] + row * drawing.pitch
            # the last row's cell may reach a pixel below its pitch
            bottom = None if row == len(lengths) - 1 else top + drawing.pitch
            film[index, top:bottom, recipe["left"] + shown * drawing.advance :] = drawing.background
    return film


def encode(film, *, sound=None) -> bytes:
    """An MP4 file of (N, H, W, 3) uint8 frames with even sides and, where given, (n,) int16 sound at 16 kHz."""
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=dict(X264))
        video.height, video.width = film.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            audio.bit_rate = AAC_BITS_PER_SECOND
            audio.codec_context.thread_count = 1
        for index, pixels in enumerate(film):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            _encode_sound(container, audio, sound)
    return stream.getvalue()


def _encode_sound(container, audio, sound) -> None:
    import av
    import numpy as np

    step = audio.codec_context.frame_size or 1024
    scaled = (sound.astype(np.float32) / 32768.0).reshape(1, -1)
    for start in range(0, scaled.shape[1], step):
        piece = np.ascontiguousarray(scaled[:, start : start + step])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts, frame.time_base = start, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(frame))
    container.mux(audio.encode(None))


def _scrolled(whole, recipe: dict, *, count: int, pitch: int):
    import numpy as np

    height = -(-(recipe["top"] + recipe["view"] * pitch) // 16) * 16
    # the last line ends at the bottom of the last view
    distance = max(0, whole.shape[0] - height)
    film = np.empty((count, height, *whole.shape[1:]), np.uint8)
    for index in range(count):
        offset = round(distance * min(1.0, index / max(1, recipe["moved_by"] - 1)))
        film[index] = whole[offset : offset + height]
    return film


def _mix(sound: list[dict], speaker: Speaker):
    """(n,) int16: the utterances at their times, a late one after the one before it; None when there are none."""
    import numpy as np

    if not sound:
        return None
    track = np.zeros(0, np.int16)
    for item in sound:
        said = speaker.say(item["text"], voice=item["voice"], rate=item["rate"], pitch=item["pitch"])
        start = max(len(track), int(item["at_s"] * SAMPLE_RATE))
        track = np.concatenate([track, np.zeros(start - len(track), np.int16), said])
    return track
