"""Videos whose tracks start late on the file's clock: the image's first frame is time 0, sound keeps its distance.

MKV and WebM declare when they end, not how long they last; a video that began at 5 s was refused as cut, and one whose
sound began longer before the image than a video may last as too long.
"""

import numpy as np
import pytest

from brine.data.config import EncodeConfig
from brine.data.document import DocumentError
from tests.data.media_formats import STEADY, film, grey_of

pytestmark = pytest.mark.slow

pytest.importorskip("av", reason="PyAV makes the films")

CONFIG = EncodeConfig(max_audio_s=10.0, max_video_s=20.0)
CODECS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "flv": ("flv", "aac"),
    "ts": ("mpeg4", "aac"),
    "ogv": ("libvpx", "libopus"),
}
CASES = {
    # first frame in ms, (start and length of the tone in s), when it is heard after the first frame
    "silent-5s": (5000, None, None),
    "silent-100s": (100_000, None, None),
    "together-5s": (5000, (5.0, 2.0), (0.0, 2.0)),
    "sound-first": (3000, (0.0, 4.0), (0.0, 1.0)),
    "sound-long-before": (40_000, (0.0, 1.0), None),
    "picture-first": (0, (3.0, 1.0), (3.0, 4.0)),
    "both-late": (100_000, (101.0, 1.0), (1.0, 2.0)),
}


def late_film(path, first_ms: int, sound, **options):
    codec, sound_codec = CODECS[path.suffix[1:]]
    times = [first_ms + time for time in STEADY]
    return film(path, times, codec=codec, sound=sound, sound_codec=sound_codec, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("container", CODECS)
def test_tracks_that_start_late(tmp_path, container, case):
    """Four frames half a second apart, and the tone at its time after the first of them."""
    from brine.data.lengths import video_frames
    from brine.data.media.frames import open_frames
    from brine.data.media.video import _audio_track, frames_at

    first_ms, sound, heard = CASES[case]
    path = late_film(tmp_path / f"x.{container}", first_ms, sound)
    frames = open_frames(path, CONFIG)
    # FFmpeg writes VP8 into Ogg with the first two frames at one time
    rough = 0.2 if container == "ogv" else 0.02
    assert frames.times_s[0] == 0 and frames.end_s == pytest.approx(2.0, abs=rough)
    wanted = frames_at(frames.times_s, video_frames(frames.end_s, CONFIG), CONFIG)
    greys = [float(frame[-4:, -4:].mean()) for frame in frames.fetch(wanted)]
    exact = [grey_of(number) for number in (0, 5, 10, 15)]
    np.testing.assert_allclose(greys, exact, atol=14 if container == "ogv" else 4)
    samples = _audio_track(path, frames, CONFIG)
    loud = np.flatnonzero(np.abs(samples) > 0.2) / CONFIG.sample_rate if samples is not None else []
    assert [loud[0], loud[-1]] == pytest.approx(heard, abs=rough) if heard else not len(loud)


def test_tokens_of_a_late_track_lie_at_its_time(tmp_path):
    """Three seconds of silence are 75 tokens at the floor; a track that ended before the image leaves none."""
    from brine.data.media.video import decode_video

    _, _, late = decode_video(late_film(tmp_path / "late.mkv", 5000, (8.0, 1.0)), CONFIG)
    assert (late[:74] == -1).all() and late[76:99].max() > 0 and len(late) in (101, 102, 103)
    layout, _, early = decode_video(late_film(tmp_path / "early.mkv", 5000, (0.0, 1.0)), CONFIG)
    assert not len(early) and layout.num_audio_tokens == 0 and layout.num_video == len(layout.tubelet_s) * 12


@pytest.mark.parametrize("container", ["mkv", "webm"])
@pytest.mark.parametrize("first_ms", [0, 700, 5000, 100_000])
def test_a_cut_late_film_stays_refused(tmp_path, container, first_ms):
    """Of unknown size (so that only declared seconds tell), a video of 4 s that lost its end, however late it
    starts."""
    from brine.data.media.frames import open_frames

    codec, _ = CODECS[container]
    times = [first_ms + 2 * time for time in STEADY]
    path = film(tmp_path / f"x.{container}", times, codec=codec, options={"g": "5"})
    content = bytearray(path.read_bytes())
    place = content.index(b"\x18\x53\x80\x67") + 4
    content[place : place + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(content)
    assert len(open_frames(path, CONFIG).times_s) == 20
    for share in (0.65, 0.5):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DocumentError, match="truncated"):
            open_frames(path, CONFIG)


def test_an_avi_track_with_a_start(tmp_path):
    """AVI states a start for each track in its header, in units of the track's own rate."""
    from brine.data.media.frames import open_frames

    path = film(tmp_path / "x.avi", STEADY, codec="mpeg4")
    content = bytearray(path.read_bytes())
    place = content.index(b"strh") + 8 + 28
    content[place : place + 4] = (3000).to_bytes(4, "little")
    path.write_bytes(content)
    frames = open_frames(path, CONFIG)
    assert frames.start_s == pytest.approx(3.0, abs=0.1) and len(frames.times_s) == 20
    (frame,) = frames.fetch([5])
    assert frame[-4:, -4:].mean() == pytest.approx(grey_of(5), abs=4)


def test_sound_that_begins_beyond_the_longest_film_is_refused(tmp_path):
    from brine.data.media.video import decode_video

    with pytest.raises(DocumentError, match="begins 30 s after the first frame, beyond max_video_s"):
        decode_video(late_film(tmp_path / "x.mkv", 0, (30.0, 0.5)), CONFIG)


@pytest.mark.parametrize(("picture_ms", "sound_s"), [(0, 2.5), (1000, 3.0), (0, 4.0)])
def test_a_transport_stream_whose_sound_comes_late(tmp_path, picture_ms, sound_s):
    """Its head does not tell the sample rate then: "0 Hz" was refused."""
    from brine.data.media.video import decode_video

    times = [picture_ms + time for time in range(0, 5000, 100)]
    path = film(tmp_path / "x.m2ts", times, sound=(sound_s, 1.0))
    _, patches, sound = decode_video(path, CONFIG)
    loud = np.flatnonzero(sound.astype(np.float32).mean(axis=1) > sound.astype(np.float32).min() + 0.1)
    assert len(patches) and loud[0] / len(sound) * (sound_s + 1 - picture_ms / 1000) == pytest.approx(
        sound_s - picture_ms / 1000, abs=0.15
    )
