"""Lengths, places, blocks and targets of encoded documents, in this process."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from brine.data import lengths
from brine.data.config import EncodeConfig
from brine.data.document import Audio, Document, Image, Text, Video
from brine.data.encode import encode
from brine.data.media.audio import decode_audio, mel_tokens
from brine.data.media.images import decode_image, patchify
from brine.data.sequence import MODALITY_CONTEXTS
from brine.data.tokenizer import EOS_ID, MEDIA_END_ID, MEDIA_START_ID, MEDIA_TOKEN_ID
from tests.data.media_files import film, noise, picture, sound

CONFIG = EncodeConfig(max_image_tokens=64, max_video_tokens=256, max_video_s=30.0)


def one(root, tokenizer, *parts, config=CONFIG):
    return encode(Document("x", parts), root=root, tokenizer=tokenizer, config=config)


def check_invariants(sequence):
    """What every sequence keeps: boundary tokens and text outside blocks, targets only text, places ascending."""
    media_positions = np.isin(sequence.token_ids, list(MEDIA_TOKEN_ID.values()))
    assert ((sequence.block > 0) == media_positions).all()
    assert not (sequence.loss_mask & media_positions).any()
    assert not sequence.loss_mask[np.isin(sequence.token_ids, [*MEDIA_START_ID.values(), *MEDIA_END_ID.values()])].any()
    plain = np.flatnonzero(~media_positions)
    assert (np.diff(sequence.position[plain, 0]) >= 1).all()
    assert (sequence.position[plain] == sequence.position[plain, :1]).all()
    # a block is one run: its number comes up once
    runs = sequence.block[np.flatnonzero(np.diff(sequence.block, prepend=0))]
    assert len(set(runs[runs > 0].tolist())) == (runs > 0).sum()


@pytest.mark.parametrize(
    "width,height",
    [
        (16, 16),
        (17, 33),
        (1, 1),
        (5, 300),
        (300, 5),
        (128, 128),
        (129, 128),
        (1000, 40),
        (28, 28),
        (3, 4000),
        (640, 481),
    ],
    ids=lambda n: str(n),
)
def test_image_length_equals_encoder(tmp_path, tokenizer, width, height):
    picture(tmp_path / "x.png", width, height)
    sequence = one(tmp_path, tokenizer, Image("x.png"))
    rows, cols = lengths.image_grid(width, height, CONFIG)
    assert rows * cols == len(sequence.image) == (sequence.token_ids == MEDIA_TOKEN_ID["image"]).sum() <= 64
    assert rows and cols
    check_invariants(sequence)


def test_image_size_never_exceeds_the_budget_and_keeps_the_aspect():
    generator = np.random.default_rng(0)
    for width, height in np.exp(generator.uniform(0, np.log(20000), (400, 2))).astype(int) + 1:
        for budget in (1, 7, 64, 1024):
            wide, high, resampled = lengths.image_size(int(width), int(height), 16, budget)
            assert wide % 16 == high % 16 == 0 and (wide // 16) * (high // 16) <= budget
            if min(width, height) >= 16 and -(-width // 16) * -(-height // 16) <= budget:
                assert not resampled and 0 <= wide - width < 16 and 0 <= high - height < 16


def test_image_within_budget_is_not_resampled(tmp_path, tokenizer):
    pixels = picture(tmp_path / "x.png", 48, 32)
    sequence = one(tmp_path, tokenizer, Image("x.png"))
    back = sequence.image.reshape(2, 3, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(32, 48, 3)
    assert (back == pixels).all()


def test_image_padding_repeats_the_edge(tmp_path):
    pixels = picture(tmp_path / "x.png", 20, 16)
    decoded = decode_image(tmp_path / "x.png", CONFIG)
    right = decoded.patches[1].reshape(16, 16, 3)
    assert (right[:, :4] == pixels[:, 16:]).all() and (right[:, 4:] == pixels[:, 19:20]).all()


def test_patchify_raster_order():
    pixels = noise(0, 32, 48, 3)
    patches = patchify(pixels, 16)
    for number in range(6):
        row, col = divmod(number, 3)
        expected = pixels[16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
        assert (patches[number].reshape(16, 16, 3) == expected).all()


def test_image_modes(tmp_path):
    """Alpha lies over white, palettes and 16 bits become 8-bit RGB, EXIF turns the image upright."""

    def first(image, **options):
        image.save(tmp_path / "x.png", **options)
        return decode_image(tmp_path / "x.png", CONFIG).patches.reshape(-1, 3)

    assert (first(Pillow.new("RGBA", (16, 16), (9, 9, 9, 0))) == 255).all()
    assert (first(Pillow.new("LA", (16, 16), (100, 255))) == 100).all()
    palette = Pillow.new("RGB", (16, 16), (200, 10, 30)).quantize(4)
    assert (first(palette) == [200, 10, 30]).all()
    clear = Pillow.new("P", (16, 16), 0)
    assert (first(clear, transparency=0) == 255).all()
    assert (first(Pillow.fromarray(np.full((16, 16), 0x8000, np.uint16))) == 128).all()
    turned = Pillow.fromarray(noise(1, 16, 32, 3))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "x.png", exif=exif)
    assert decode_image(tmp_path / "x.png", CONFIG).grid == (2, 1)
    upright = turned.transpose(Pillow.Transpose.ROTATE_270)
    assert (decode_image(tmp_path / "x.png", CONFIG).patches == patchify(np.asarray(upright), 16)).all()


def test_image_positions(tmp_path, tokenizer):
    picture(tmp_path / "x.png", 48, 32)
    sequence = one(tmp_path, tokenizer, Text("ab"), Image("x.png"), Text("c"))
    before = len(tokenizer.encode("ab"))
    base = before + 1
    expected = [(base, base + i, base + j) for i in range(2) for j in range(3)]
    assert sequence.position[before].tolist() == [before] * 3
    assert sequence.position[base : base + 6].tolist() == [list(place) for place in expected]
    # after the medium text goes on at the largest coordinate plus one
    assert sequence.position[base + 6 :, 0].tolist() == [base + 3, base + 4, base + 5]
    assert sequence.token_ids[[before, base + 6, -1]].tolist() == [
        MEDIA_START_ID["image"],
        MEDIA_END_ID["image"],
        EOS_ID,
    ]
    image = MODALITY_CONTEXTS.index("image")
    assert sequence.modality_context.tolist() == [0] * before + [image] * (len(sequence) - before)
    check_invariants(sequence)


@pytest.mark.parametrize("samples", [1, 159, 160, 479, 480, 639, 640, 15999, 16000, 16001, 40123])
def test_audio_length_equals_encoder(samples):
    tokens = mel_tokens(0.1 * np.sin(np.arange(samples, dtype=np.float32)), CONFIG)
    assert tokens.shape == (lengths.audio_tokens(samples, CONFIG), 256) == (-(-(samples // 160 + 1) // 4), 256)
    assert np.isfinite(tokens).all() and tokens.min() >= -1 and tokens.max() <= 1


def test_audio_positions_and_blocks(tmp_path, tokenizer):
    sound(tmp_path / "x.wav", 2.3)
    sequence = one(tmp_path, tokenizer, Audio("x.wav"), Text("w"))
    count = lengths.audio_tokens(36800, CONFIG)
    assert sequence.position[1 : 1 + count].tolist() == [[1 + k] * 3 for k in range(count)]
    assert sequence.block[1 : 1 + count].tolist() == [1 + k // 25 for k in range(count)]
    assert sequence.position[1 + count, 0] == 1 + count
    check_invariants(sequence)


def test_audio_scale_is_fixed_and_silence_is_the_floor():
    """Log-mel is never scaled per clip: half the amplitude is the same step lower everywhere, whatever the clip."""
    wave = 0.5 * np.sin(np.arange(16000, dtype=np.float32))
    loud, soft = (mel_tokens(gain * wave, CONFIG).astype(np.float32) for gain in (1.0, 0.5))
    inner = (soft > -0.9) & (loud < 0.99)
    assert inner.any()
    np.testing.assert_allclose((loud - soft)[inner], 2 * np.log10(2) / 5, atol=2e-3)
    assert (mel_tokens(np.zeros(8000, np.float32), CONFIG) == -1).all()


@pytest.mark.parametrize("rate", [8000, 11025, 11127, 22050, 44100, 48000, 96000])
def test_audio_rates_and_channels_meet_at_16_khz(tmp_path, rate):
    sound(tmp_path / "x.wav", 1.0, rate=rate, channels=2)
    tokens = decode_audio(tmp_path / "x.wav", CONFIG)
    assert 25 <= len(tokens) <= 26
    tone = tokens.reshape(-1, 64)[20:80].astype(np.float32).mean(axis=0)
    assert 7 <= tone.argmax() <= 11


@pytest.mark.parametrize("seconds,tone_s", [(0.3, 0.0), (2.0, 0.0), (3.3, 1.7), (2.0, 4.1)])
def test_video_layout(tmp_path, tokenizer, seconds, tone_s):
    film(tmp_path / "x.mp4", seconds, tone_s=tone_s)
    sequence = one(tmp_path, tokenizer, Text("a"), Video("x.mp4"), Text("b"))
    check_invariants(sequence)
    tubelets = -(-round(np.ceil(seconds * 2 - 1e-6)) // 2)
    assert len(sequence.video) == tubelets * 6
    base = len(tokenizer.encode("a")) + 1
    frames, track = sequence.media_positions("video"), sequence.media_positions("audio")
    places = sequence.position[frames].reshape(tubelets, 6, 3)
    for number in range(tubelets):
        start = base + number * 25
        expected = [(start, start + i, start + j) for i in range(2) for j in range(3)]
        assert places[number].tolist() == [list(map(float, place)) for place in expected]
        assert len(set(sequence.block[frames].reshape(tubelets, 6)[number])) == 1
    assert sequence.position[track, 0].tolist() == [base + k for k in range(len(track))]
    assert (len(track) > 0) == (tone_s > 0)
    # second by second: whatever begins in second n stands before whatever begins in second n + 1, frames first
    inside = np.sort(np.concatenate([frames, track]))
    seconds_of = (sequence.position[inside, 0] - base) // 25
    assert (np.diff(seconds_of) >= 0).all()
    for first, after in pairwise(inside):
        if (
            sequence.token_ids[first] == MEDIA_TOKEN_ID["audio"]
            and sequence.token_ids[after] == MEDIA_TOKEN_ID["video"]
        ):
            assert (sequence.position[first, 0] - base) // 25 < (sequence.position[after, 0] - base) // 25
    assert sequence.position[inside[-1] + 1, 0] > sequence.position[inside].max()
    assert not len(one(tmp_path, tokenizer, Video("x.mp4", use_audio=False)).audio)


def test_video_frames_are_taken_by_absolute_time(tmp_path, tokenizer):
    """At 10 frames a second the frames at 0, 0.5, 1.0, ... are numbers 0, 5, 10; a short tubelet repeats its last."""
    film(tmp_path / "x.mp4", 2.3)
    sequence = one(tmp_path, tokenizer, Video("x.mp4"))
    grey = sequence.video.reshape(3, 6, 2, -1).astype(np.float32).mean(axis=(1, 3))
    np.testing.assert_allclose(grey.reshape(-1), [0, 10, 20, 30, 40, 40], atol=3)


def test_targets(tmp_path, tokenizer):
    picture(tmp_path / "x.png", 16, 16)
    asked = one(tmp_path, tokenizer, Text("what?", loss_mask=False), Image("x.png"), Text("yes"))
    assert asked.loss_mask.sum() == len(tokenizer.encode("yes")) + 1 and asked.loss_mask[-1]
    shown = one(tmp_path, tokenizer, Text("yes"), Image("x.png"))
    assert shown.loss_mask.sum() == len(tokenizer.encode("yes")) and not shown.loss_mask[-1]
    given = one(tmp_path, tokenizer, Text("no", loss_mask=False))
    assert not given.loss_mask.any()


def test_blanked(corpus):
    film_at = next(i for i in range(len(corpus)) if corpus.num_media["video"][i] and corpus.num_media["audio"][i])
    own = corpus.encoded_document(film_at)
    silent = own.with_blank_media({"video"})
    assert (silent.video == 128).all() and silent.video.shape == own.video.shape
    assert (silent.audio == own.audio).all() and (silent.token_ids == own.token_ids).all()
    assert (own.with_blank_media().audio == -1).all()
    with pytest.raises(ValueError, match="unknown modality"):
        own.with_blank_media({"smell"})


def test_slice_and_cuts(corpus):
    for number in range(len(corpus)):
        own = corpus.encoded_document(number)
        split_points = own.split_points()
        assert split_points[0] == 0 and split_points[-1] == len(own)
        for start, stop in pairwise(split_points[:: max(1, len(split_points) // 7)]):
            part = own.slice(start, stop).validate()
            for name in ("image", "audio", "video"):
                counts = (np.isin(part.token_ids, [table[name]]).sum() for table in (MEDIA_START_ID, MEDIA_END_ID))
                assert len(set(counts)) == 1


def test_default_mel_bands_are_all_used():
    from brine.data.media.audio import _mel

    assert (_mel(16000, 400, 160, 64).mel_scale.fb.sum(dim=0) > 0).all()
    assert torch.get_default_dtype() == torch.float32
