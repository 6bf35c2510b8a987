"""What is right for every video container and codec: the frame that is showing, how it is turned, its sound in time.

Each case states the answer, the number of the frame at k / fps.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from brine.data.config import EncodeConfig
from brine.data.document import Audio, DocumentError
from tests.data.media_formats import RED, STEADY, edited, film, grey_of, mp3, saved, turned

CONFIG = EncodeConfig(max_audio_s=10.0, max_video_s=20.0)

FILMS = [
    "plain.mp4",
    "b-frames.mp4",
    "uneven.mp4",
    "uneven.mkv",
    "late.mp4",
    "late.mkv",
    "vp9.webm",
    "vp8.webm",
    "hevc.mp4",
    "odd.mp4",
    "narrow.mp4",
    "one.mp4",
    "ten-bit.mp4",
    "grey.mkv",
    "fragments.mp4",
    "first.mp4",
]


def greys_of(frames) -> list[float]:
    return [float(frame[-4:, -4:].mean()) for frame in frames]


@pytest.mark.parametrize("name", FILMS)
def test_frames_are_those_that_were_put_in(films, name):
    """Frame times to 2 ms, and the pixels."""
    from brine.data.media.frames import open_frames

    path, start_s, frames_ms = films[name]
    frames = open_frames(path, CONFIG)
    np.testing.assert_allclose(frames.times_s, (np.array(frames_ms) - frames_ms[0]) / 1000, atol=2e-3)
    assert frames.start_s == pytest.approx(start_s, abs=2e-3)
    every = list(range(len(frames_ms)))
    pixels = np.stack(list(frames.fetch(every)))
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(
        greys_of(pixels), [grey_of(number) for number in every], atol=14 if "grey" in name else 4
    )


HARD = {
    "open-gop.mp4": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "open-gop.mkv": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "hevc.mkv": ("libx265", {"x265-params": "keyint=10"}),
    "hevc-2.mp4": ("libx265", {"x265-params": "keyint=10"}),
    "mpeg4-b.mkv": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4-b.3gp": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2-b.mp4": ("mpeg2video", {"g": "12", "bf": "2"}),
    "h264.m2ts": ("libx264", {"g": "12", "bf": "0"}),
    "mpeg4-b.m2ts": ("mpeg4", {"g": "12", "bf": "2"}),
    "wmv2.wmv": ("wmv2", {"g": "12"}),
    "h264-b.avi": ("libx264", {"g": "25", "bf": "2"}),
    "mpeg4-b.avi": ("mpeg4", {"g": "12", "bf": "2"}),
}


@pytest.mark.parametrize("name", HARD)
def test_frames_between_key_frames(tmp_path, name):
    """Few wanted frames of many, which a reader that seeks took from elsewhere: up to 0.6 s away, and going back."""
    from brine.data.media.frames import open_frames

    codec, options = HARD[name]
    path = film(tmp_path / name, list(range(100)), codec=codec, options=options, fps=25, ticks=25)
    frames = open_frames(path, CONFIG)
    assert len(frames.times_s) == 100 and np.diff(frames.times_s) == pytest.approx(0.04, abs=2e-3)
    wanted = [0, 12, 25, 37, 50, 62, 75, 87, 99]
    np.testing.assert_allclose(greys_of(frames.fetch(wanted)), [grey_of(number) for number in wanted], atol=6)


@pytest.mark.parametrize("name", FILMS)
def test_the_frame_that_is_showing(films, name):
    """At each k / fps the last frame whose time has come, whatever the rate of the file."""
    from brine.data.lengths import video_frames
    from brine.data.media.frames import open_frames
    from brine.data.media.video import frames_at

    path, _, frames_ms = films[name]
    frames = open_frames(path, CONFIG)
    last_s = (frames_ms[-1] - frames_ms[0]) / 1000 + 0.1
    assert frames.end_s == pytest.approx(last_s, abs=2e-3)
    wanted = frames_at(frames.times_s, video_frames(frames.end_s, CONFIG), CONFIG)
    since_ms = np.array(frames_ms) - frames_ms[0]
    assert wanted == [int(np.flatnonzero(since_ms <= 500 * k)[-1]) for k in range(int(np.ceil(last_s * 2)))]
    np.testing.assert_allclose(greys_of(frames.fetch(wanted)), [grey_of(number) for number in wanted], atol=14)


TURNS = {
    "upright": ((1, 0, 0, 1), (0, 0)),
    "90": ((0, 1, -1, 0), (0, -1)),
    "180": ((-1, 0, 0, -1), (-1, -1)),
    "270": ((0, -1, 1, 0), (-1, 0)),
    "mirrored": ((-1, 0, 0, 1), (0, -1)),
    "transposed": ((0, 1, 1, 0), (0, 0)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_display_matrix(films, tmp_path, turn):
    """The red corner ends where the matrix puts it."""
    from brine.data.media.frames import open_frames

    matrix, corner = TURNS[turn]
    path = tmp_path / "x.mp4"
    path.write_bytes(turned(films["plain.mp4"][0].read_bytes(), *matrix))
    (frame,) = open_frames(path, CONFIG).fetch([0])
    assert frame.shape == ((48, 64, 3) if matrix[0] else (64, 48, 3))
    red = {(i, j): frame[i, j, 0] - int(frame[i, j, 1]) > 200 for i in (0, -1) for j in (0, -1)}
    assert [place for place, is_red in red.items() if is_red] == [corner]


@pytest.mark.parametrize(("start_ms", "duration_ms"), [(500, 1500), (500, 700), (0, 600)])
def test_edit_lists_hide_frames(films, tmp_path, start_ms, duration_ms):
    """Hidden frames do not count: the first is the one at `start_ms`, the video lasts `duration_ms`.

    A reader that counts decoded frames against the times of all packets is off by as many as are hidden.
    """
    from brine.data.media.frames import open_frames

    path = tmp_path / "x.mp4"
    path.write_bytes(edited(films["b-frames.mp4"][0].read_bytes(), start_ms, duration_ms))
    frames = open_frames(path, CONFIG)
    first, count = start_ms // 100, duration_ms // 100
    assert len(frames.times_s) == count and frames.end_s == pytest.approx(duration_ms / 1000, abs=2e-3)
    expected = [grey_of(first + number) for number in range(count)]
    np.testing.assert_allclose(greys_of(frames.fetch(list(range(count)))), expected, atol=4)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("mkv", "aac"), ("webm", "libopus")])
@pytest.mark.parametrize(("picture_ms", "sound_s"), [(0, 0.5), (500, 0.0), (0, 0.0)], ids=["after", "before", "with"])
def test_sound_lies_on_the_clock_of_the_picture(tmp_path, container, codec, picture_ms, sound_s):
    """Sound that begins half a second later has that silence in front; one that began earlier loses its head."""
    pytest.importorskip("av", reason="PyAV makes the film")
    from brine.data.media.frames import open_frames
    from brine.data.media.video import _audio_track

    path = film(
        tmp_path / f"x.{container}",
        [picture_ms + time for time in STEADY],
        codec="libx264" if container != "webm" else "libvpx",
        sound=(sound_s, 1.0),
        sound_codec=codec,
    )
    samples = _audio_track(path, open_frames(path, CONFIG), CONFIG)
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    begins_s, ends_s = max(0.0, sound_s - picture_ms / 1000), sound_s + 1.0 - picture_ms / 1000
    assert loud[0] / 16000 == pytest.approx(begins_s, abs=0.02) and loud[-1] / 16000 == pytest.approx(ends_s, abs=0.02)


def test_a_gap_in_the_sound_stays_a_gap():
    """Pieces are laid down by their times: missing packets are silence, not a shift of all that follows."""
    from brine.data.media.audio_track import AudioTrack

    track = AudioTrack(1000, CONFIG.max_video_s)
    for start_s, value in ((-0.1, 1.0), (0.1, 2.0), (0.301, 3.0), (0.9, 4.0), (0.8, 5.0)):
        track.add(np.full(200, value, np.float32), start_s)
    expected = np.repeat([1, 2, 3, 0, 4], [100, 200, 200, 400, 200])
    np.testing.assert_array_equal(track.samples(), expected)
    with pytest.raises(DocumentError, match="beyond max_video_s"):
        track.add(np.zeros(10, np.float32), 50.0)


# (packet, seconds missing before it)
GAPS = {
    "four of 50 ms": {50: 0.05, 90: 0.05, 130: 0.05, 170: 0.05},
    "one of 30 ms": {100: 0.03},
    "many of 12 ms": dict.fromkeys(range(20, 200, 12), 0.012),
    "two within a window": {60: 0.04, 63: 0.06},
    "short, long, short": {40: 0.02, 80: 1.5, 160: 0.02},
    "the last packet": {199: 0.09},
    "heard twice": {80: -0.06, 140: 0.04},
}


@pytest.mark.parametrize("trembles_s", [0.0, 0.004], ids=["steady", "clock of 4 ms"])
@pytest.mark.parametrize("gaps", GAPS.values(), ids=GAPS)
def test_short_gaps_in_the_sound_do_not_add_up(gaps, trembles_s):
    """Gaps below 0.1 s were each let go, and four of 50 ms left the sound 85 ms early."""
    from brine.data.media.audio_track import AudioTrack

    rate, noise = 1000, np.random.default_rng(7)
    track, at_s, wanted, expected = AudioTrack(rate, 60.0), 0.0, {}, []
    for number in range(200):
        at_s += gaps.get(number, 0.0)
        late_s = trembles_s * noise.choice([0, 0, 0, 0, 1]) if number else 0.0
        track.add(np.full(20, number + 1.0, np.float32), at_s + late_s)
        expected.append(at_s)
        at_s += 0.02
    samples = track.samples()
    for number, start_s in enumerate(expected):
        heard = np.flatnonzero(samples == number + 1)
        if number in gaps or number - 1 in gaps or number + 1 in gaps or min(gaps.values()) < 0:
            heard = heard if len(heard) else [start_s * rate]
        wanted[number] = abs(heard[-1] - 19 - start_s * rate) / rate if len(heard) == 20 else 0.0
    assert max(wanted.values()) <= 0.0195, max(wanted, key=wanted.get)
    assert len(samples) / rate == pytest.approx(expected[-1] + 0.02, abs=0.0195)


def test_a_live_clock_cuts_nothing():
    """Declared times that tremble around the samples leave every sample where it is."""
    from brine.data.media.audio_track import AudioTrack

    noise, track = np.random.default_rng(1), AudioTrack(1000, 60.0)
    sound = noise.standard_normal(4000).astype(np.float32)
    for place in range(0, 4000, 20):
        late_s = noise.uniform(-0.02, 0.02) + (place % 300 == 0) * 0.2 if 0 < place < 3900 else 0.0
        track.add(sound[place : place + 20], place / 1000 + late_s)
    np.testing.assert_array_equal(track.samples(), sound)


def test_what_is_no_video(tmp_path):
    """A song's cover, an image and lists of other files are no videos, whatever they are called.

    FFmpeg guesses: it took a PNG called x.mp4 for a video of one frame, and would open the files and addresses that
    a playlist names, past every check of the path.
    """
    pytest.importorskip("av", reason="PyAV makes the song")
    from brine.data.media.video import decode_video

    cover = saved(Pillow.new("RGB", (16, 16), RED), "JPEG")
    for name, content in {
        "song.mp4": mp3(0.5, cover=cover),
        "png.mp4": saved(Pillow.new("RGB", (16, 16), RED), "PNG"),
        "list.mp4": b"ffconcat version 1.0\nfile x.mp3\n",
        "hls.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "text.mp4": b"words " * 500,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DocumentError, match="not a video that can be read: no MP4"):
            decode_video(tmp_path / name, CONFIG)


SOUND_ALONE = {
    "a.mp4": ("mp4", "aac"),
    "a.webm": ("webm", "libopus"),
    "a.mov": ("mov", "aac"),
    "a.3gp": ("3gp", "aac"),
    "a.mkv": ("matroska", "flac"),
    "a.avi": ("avi", "libmp3lame"),
    "a.ts": ("mpegts", "aac"),
    "a.flv": ("flv", "aac"),
}


@pytest.mark.parametrize("name", SOUND_ALONE)
def test_a_sound_called_a_film_is_read_once_it_is_renamed(tmp_path, name):
    """In a folder the ending says what a medium is, and `give it as audio` was no remedy there."""
    av = pytest.importorskip("av", reason="PyAV makes the sound")
    from brine.data.media.decode import decode_part
    from tests.data.format_files import media, read
    from tests.data.media_formats import _encode_tone

    form, codec = SOUND_ALONE[name]
    with av.open(str(tmp_path / name), "w", format=form) as container:
        stream = container.add_stream(codec, rate=48000 if codec == "libopus" else 44100, layout="mono")
        _encode_tone(container, stream, 0.0, 1.0)
    (tmp_path / "a.txt").write_text("a tone")
    root = tmp_path.resolve()
    (document,), _ = read(tmp_path, format="media")
    with pytest.raises(DocumentError, match=r"rename it to end in \.\w+\)") as caught:
        decode_part(document.parts[0], root, CONFIG)
    ending = str(caught.value).rpartition("to end in ")[2].rstrip(")")
    (tmp_path / name).rename(tmp_path / f"a{ending}")
    (document,), _ = read(tmp_path)
    assert media(document) == [(Audio, f"a{ending}")]
    assert len(decode_part(document.parts[0], root, CONFIG).tokens) > 5


def test_a_cover_picture_is_no_film(tmp_path):
    """An m4a with a cover has a video stream of one frame; it is refused as a video."""
    av = pytest.importorskip("av", reason="PyAV makes the song")
    from brine.data.media.video import decode_video
    from tests.data.media_formats import _encode_tone

    path = tmp_path / "x.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        picture = container.add_stream("mjpeg")
        picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        container.start_encoding()
        packet = av.Packet(saved(Pillow.new("RGB", (16, 16), RED), "JPEG"))
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        container.mux(packet)
        _encode_tone(container, sound, 0.0, 0.5)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(DocumentError, match="only an attached picture"):
        decode_video(path, CONFIG)


def test_absurd_rates_and_lengths_of_films(films, tmp_path):
    """A clock of a million ticks a second makes 50,000 frames a second; one of 1 Hz makes hours."""
    from brine.data.media.video import decode_video

    content = films["plain.mp4"][0].read_bytes()
    place = content.index(b"mdhd") + 16
    for scale, words in ((10**9, "claims"), (2, "lies outside 0..max_video_s")):
        (tmp_path / "x.mp4").write_bytes(content[:place] + struct.pack(">I", scale) + content[place + 4 :])
        with pytest.raises(DocumentError, match=words):
            decode_video(tmp_path / "x.mp4", CONFIG)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how many threads there are")
def test_frames_start_no_threads(tmp_path):
    """Each frame's own converter had two, until a server had hundreds and whole videos were refused."""
    from brine.data.media.frames import open_frames

    def num_threads() -> int:
        return int(Path("/proc/self/status").read_text().partition("Threads:")[2].split()[0])

    frames = open_frames(film(tmp_path / "x.mp4", STEADY, size=(640, 480)), CONFIG)
    before = num_threads()
    held = list(frames.fetch(list(range(len(STEADY)))))
    # threads of what ran before in this process may end meanwhile
    assert len(held) == len(STEADY) and num_threads() <= before
