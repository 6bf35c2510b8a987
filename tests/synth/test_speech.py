"""An utterance is a pure function of its words and its voice."""

import subprocess
import sys
import time

import numpy as np
import pytest

from brine.synth.speech.voice import SpeechError, SpeechSynthesizer, resample, trim
from tests.paths import ROOT

LINE = {"text": "path name value", "voice": "en-us", "rate": 150, "pitch": 50}
# a voice with breath: noise from a random generator is part of it
BREATH = {**LINE, "voice": "en-us+f5"}


@pytest.fixture
def synthesizer():
    with SpeechSynthesizer() as found:
        yield found


def test_say_does_not_depend_on_what_was_said_before(synthesizer):
    first, breath = synthesizer.synthesize(**LINE), synthesizer.synthesize(**BREATH)
    started = time.monotonic()
    for text, rate, pitch in (("a longer sentence, with a pause", 220, 80), ("zip", 120, 20)):
        synthesizer.synthesize(text, voice="en-us", rate=rate, pitch=pitch)
        synthesizer.synthesize(text, voice="en-us+f5", rate=rate, pitch=pitch)
    assert np.array_equal(synthesizer.synthesize(**LINE), first)
    # espeak-ng seeds its noise with the second in which it starts: another server, in another second
    time.sleep(max(0.0, 1.1 - (time.monotonic() - started)))
    with SpeechSynthesizer() as other:
        assert np.array_equal(other.synthesize(**BREATH), breath)
        assert np.array_equal(other.synthesize(**LINE), first)


def test_say_differs_by_words_voice_rate_and_pitch(synthesizer):
    sounds = [LINE, {**LINE, "text": "path name values"}, {**LINE, "voice": "en"}, {**LINE, "rate": 180}]
    sounds.append({**LINE, "pitch": 70})
    assert len({synthesizer.synthesize(**sound).tobytes() for sound in sounds}) == len(sounds)


def test_say_names_what_went_wrong_and_goes_on(synthesizer):
    with pytest.raises(SpeechError, match="no voice 'xx-none'"):
        synthesizer.synthesize("hello", voice="xx-none", rate=150, pitch=50)
    with pytest.raises(SpeechError, match="said nothing"):
        synthesizer.synthesize("", voice="en-us", rate=150, pitch=50)
    assert len(synthesizer.synthesize(**LINE)) > 8000


def test_say_gives_up_after_its_time():
    with SpeechSynthesizer(timeout_s=0.001) as hurried, pytest.raises(SpeechError, match="not said within"):
        hurried.synthesize(" ".join(["value"] * 200), voice="en-us", rate=100, pitch=50)


def test_say_starts_a_server_again_after_it_died(synthesizer):
    expected = synthesizer.synthesize(**LINE)
    process = synthesizer._servers["en-us"].process
    process.kill()
    process.wait()
    with pytest.raises(SpeechError):
        synthesizer.synthesize(**LINE)
    assert np.array_equal(synthesizer.synthesize(**LINE), expected)


def test_resample_keeps_a_tone_and_its_length():
    time_s = np.arange(22050) / 22050
    tone = (10000 * np.sin(2 * np.pi * 1000 * time_s)).astype(np.int16)
    found = resample(tone)
    assert abs(len(found) - 16000) <= 1
    spectrum = np.abs(np.fft.rfft(found[1000:15000]))
    assert abs(np.argmax(spectrum) * 16000 / 14000 - 1000) < 2
    assert abs(int(np.abs(found[1000:15000]).max()) - 10000) < 100


def test_trim_leaves_40_ms_around_the_sound():
    samples = np.zeros(5000, np.int16)
    samples[2000:3001] = 5000
    assert len(trim(samples)) == 1001 + 2 * 640
    # no silence in the recording: it is added
    assert len(trim(np.full(100, 5000, np.int16))) == 100 + 2 * 640


def test_rendering_processes_import_no_torch():
    code = (
        "import sys, brine.synth.render_worker, brine.synth.render.video, brine.synth.render.code_image\n"
        "from brine.synth.speech.voice import resample; import numpy, soundfile, av\n"
        "resample(numpy.zeros(100, numpy.int16)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
