"""Sounds as waveforms and spectrograms."""

from __future__ import annotations

import io

import numpy as np
import pytest

from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.sound import Spectrogram, Waveform, log_mel, mel_bands

soundfile = pytest.importorskip("soundfile")


def wav(wave_TC: np.ndarray, rate: int, kind: str = "WAV") -> bytes:
    written = io.BytesIO()
    soundfile.write(written, wave_TC, rate, format=kind)
    return written.getvalue()


def tone(hertz: float, rate: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


CONFIG = PairConfig(sample_rate=8000, clip_seconds=0.5, mels=32)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_a_clip_has_the_runs_rate_and_length(kind: str, rate: int) -> None:
    view = Waveform(CONFIG).view(wav(np.stack([tone(500, rate, 2), tone(500, rate, 2)], 1), rate, kind), None)
    assert view.shape == (1, 4000)
    assert view.dtype == np.float32
    assert abs(view.mean()) < 1e-5
    assert abs(view.std() - 1) < 1e-3
    spectrum = np.abs(np.fft.rfft(view[0]))
    assert abs(spectrum.argmax() * 8000 / 4000 - 500) <= 2


def test_the_channels_mean() -> None:
    two = np.stack([tone(500, 8000, 1), -tone(500, 8000, 1)], 1)
    assert np.abs(Waveform(CONFIG).view(wav(two, 8000), None)).max() < 1e-3  # silence, and not divided by it


def test_training_cuts_anywhere_evaluation_the_middle() -> None:
    ramp = wav(np.linspace(-1, 1, 16000, dtype=np.float32)[:, None], 8000)
    made = Waveform(CONFIG)
    starts = [float(made.clip(ramp, np.uint64(2**63 + key))[0]) for key in range(100)]
    assert min(starts) < -0.9
    assert max(starts) > 0.4
    assert abs(made.clip(ramp, None)[2000]) < 1e-3
    assert made.clip(ramp, np.uint64(7)).tolist() == made.clip(ramp, np.uint64(7)).tolist()


def test_a_short_sound_ends_in_silence() -> None:
    clip = Waveform(CONFIG).clip(wav(tone(500, 8000, 0.1), 8000), np.uint64(1))
    assert clip.shape == (4000,)
    assert np.abs(clip[:800]).max() > 0.4
    assert not clip[800:].any()


@pytest.mark.parametrize("hertz", [200, 1000, 3000])
def test_a_tone_lies_in_its_mel_band(hertz: float) -> None:
    mel_MF = log_mel(tone(hertz, 8000, 0.5).astype(np.float32), 8000, 32)
    assert mel_MF.shape == (32, CONFIG.frames)
    top = 2595 * np.log10(1 + 4000 / 700)
    expected = 2595 * np.log10(1 + hertz / 700) / top * 33 - 1
    assert np.abs(mel_MF.argmax(0) - expected).max() <= 1


def test_bands_cover_all_frequencies_once() -> None:
    bands_MK = mel_bands(16000, 1024, 40)
    inner = bands_MK.sum(0)[3:470]  # between the first band's middle and the last one's
    assert bands_MK.any(1).all()
    assert abs(inner - 1).max() < 1e-5  # neighbouring triangles add up to 1


def test_a_spectrogram_is_of_the_waveforms_clip() -> None:
    long, key = wav(np.random.default_rng(0).normal(0, 0.1, (16000, 1)), 8000), np.uint64(5)
    own = log_mel(Waveform(CONFIG).clip(long, key), 8000, 32)
    view = Spectrogram(CONFIG).view(long, key)
    assert view.shape == (1, 32, CONFIG.frames)
    assert np.allclose(view[0], (own - own.mean()) / own.std(), atol=1e-4)


@pytest.mark.parametrize("encoded", [b"", b"RIFF", wav(np.zeros((0, 1)), 8000), b"\xff\xd8\xff" + bytes(100)])
def test_what_is_no_sound(encoded: bytes) -> None:
    with pytest.raises(DecodeError):
        Waveform(CONFIG).view(encoded, None)


def test_values_that_are_not_finite() -> None:
    written = io.BytesIO()
    soundfile.write(written, np.full((8000, 1), np.nan, np.float32), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(DecodeError, match="not finite"):
        Waveform(CONFIG).view(written.getvalue(), None)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_every_cut_of_a_file_is_a_sound_or_refused(kind: str) -> None:
    whole = wav(tone(500, 8000, 0.2), 8000, kind)
    told = []
    for end in range(0, len(whole) - 1, 37):
        try:
            assert np.isfinite(Waveform(CONFIG).view(whole[:end], None)).all()
        except DecodeError as error:
            told.append(str(error))
            continue
        assert kind != "WAV", end  # whose header tells how long it should be
    assert told
    assert not any("BytesIO" in one for one in told)
