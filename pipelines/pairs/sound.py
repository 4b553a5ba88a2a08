"""Sounds as waveforms and as mel spectrograms.

Shape suffixes: T samples, F frames, M mel bands, K frequencies of a window.
"""

from __future__ import annotations

import io
import re
from functools import cache
from typing import ClassVar

import numpy as np
from scipy.signal import resample_poly

from fastvicreg.contracts import Fault
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.pairs.config import FFT_SECONDS, HOP_SECONDS, PairConfig
from fastvicreg.pipelines.rng import below

FLOOR = 1e-6
"""Added to a band's power before the logarithm: what is below is silence."""
SILENCE = 1e-5
"""Standard deviation below which a clip is taken for silence, and stays as it is."""
_PLACE = re.compile(r" ?<_io.BytesIO[^>]*>")
"""What stands in libsndfile's messages for a file's name."""


def _refuse_cut(encoded: bytes | memoryview) -> None:
    """``DecodeError`` for a WAV file that is shorter than its header says, which libsndfile takes for a short sound.

    Programs that write to a pipe leave 0 or the largest number there.
    """
    if bytes(encoded[:4]) != b"RIFF" or bytes(encoded[8:12]) != b"WAVE":
        return
    promised = int.from_bytes(encoded[4:8], "little") + 8
    if 8 < promised < (1 << 32) - 1 and len(encoded) < promised - 1:  # a last byte that only pads is often left out
        raise DecodeError(Fault.UNDECODABLE, f"cut short: {len(encoded):,} bytes of {promised:,}")


class Waveform:
    """A mono clip at the run's sample rate, of mean 0 and standard deviation 1."""

    name: ClassVar[str] = "waveform"
    endings: ClassVar[tuple[str, ...]] = ("wav", "flac", "ogg", "mp3")

    def __init__(self, config: PairConfig) -> None:
        try:
            import soundfile
        except (ImportError, OSError) as error:  # OSError: without the library that it binds
            raise UserError(
                f"sounds need soundfile, which does not import ({error}): pip install 'fastvicreg[audio]'."
            ) from error
        self._soundfile = soundfile
        self._rate, self._samples = config.sample_rate, config.clip_samples

    def view(self, encoded: bytes | memoryview, key: np.uint64 | None) -> np.ndarray:
        """float32 (1, T): a clip from anywhere in the sound, in evaluation from its middle."""
        return standardised(self.clip(encoded, key))[None]

    def views(self, encoded: bytes | memoryview) -> list[np.ndarray]:
        """The one from the middle."""
        return [self.view(encoded, None)]

    def described(self) -> str:
        return f"waveform {self._rate} {self._samples}"

    def clip(self, encoded: bytes | memoryview, key: np.uint64 | None) -> np.ndarray:
        """float32 (T,): the channels' mean, resampled; where the sound is shorter silence follows it.

        Only the clip is decoded, however long the sound. ``DecodeError`` where libsndfile refuses the bytes.
        """
        _refuse_cut(encoded)
        try:
            with self._soundfile.SoundFile(io.BytesIO(encoded)) as file:
                rate, frames = int(file.samplerate), int(file.frames)
                wanted = min(frames, -(-self._samples * rate // self._rate))
                spare = frames - wanted
                file.seek(spare // 2 if key is None else below(key, 0, spare + 1))
                wave_TC = file.read(wanted, dtype="float32", always_2d=True)
        except (self._soundfile.SoundFileError, RuntimeError, ValueError, MemoryError, OverflowError) as error:
            reason = " ".join(_PLACE.sub("", str(error)).split())
            raise DecodeError(Fault.UNDECODABLE, reason or "no sound of a known type") from error
        if not len(wave_TC):
            raise DecodeError(Fault.UNDECODABLE, "a sound of no length")
        wave_T = wave_TC.mean(1)
        if not np.isfinite(wave_T).all():
            raise DecodeError(Fault.UNDECODABLE, "a sound with values that are not finite")
        if rate != self._rate:
            wave_T = resample_poly(wave_T, self._rate, rate).astype(np.float32)
        clip_T = np.zeros(self._samples, np.float32)
        kept = min(len(wave_T), self._samples)
        clip_T[:kept] = wave_T[:kept]
        return clip_T


class Spectrogram(Waveform):
    """The logarithm of a clip's power in mel bands, of mean 0 and standard deviation 1, as an image of three channels.

    A run that pairs it with the waveform of the same sound cuts both at the same place.
    """

    name: ClassVar[str] = "spectrogram"

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        self._mels, self._frames = config.mels, config.frames

    def view(self, encoded: bytes | memoryview, key: np.uint64 | None) -> np.ndarray:
        """float32 (1, M, F); the feed repeats the channel."""
        mel_MF = log_mel(self.clip(encoded, key), self._rate, self._mels)
        return standardised(mel_MF)[None]

    def described(self) -> str:
        return f"spectrogram {self._rate} {self._samples} {self._mels}"


def standardised(values: np.ndarray) -> np.ndarray:
    """Of mean 0 and standard deviation 1; silence is only centred."""
    centred = values - values.mean()
    return centred / deviation if (deviation := float(centred.std())) > SILENCE else centred


def log_mel(wave_T: np.ndarray, rate: int, mels: int) -> np.ndarray:
    """float32 (M, F): windows of 25 ms every 10 ms (Hann), power, triangular mel bands, natural logarithm."""
    window, hop = round(FFT_SECONDS * rate), round(HOP_SECONDS * rate)
    if len(wave_T) < window:
        wave_T = np.pad(wave_T, (0, window - len(wave_T)))
    windows_FW = np.lib.stride_tricks.sliding_window_view(wave_T, window)[::hop]
    length = 1 << (window - 1).bit_length()
    spectrum_FK = np.fft.rfft(windows_FW * _hann(window), length)
    power_FK = (spectrum_FK.real**2 + spectrum_FK.imag**2).astype(np.float32)
    return np.log(mel_bands(rate, length, mels) @ power_FK.T + np.float32(FLOOR))


@cache
def _hann(window: int) -> np.ndarray:
    return np.hanning(window + 1)[:-1].astype(np.float32)


@cache
def mel_bands(rate: int, length: int, mels: int) -> np.ndarray:
    """float32 (M, K): triangles of height 1 whose corners are evenly spaced in mel, from 0 Hz to half the rate.

    HTK's scale, mel = 2595 log10(1 + f / 700). A band narrower than the frequencies' distance takes the nearest one.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    frequency_K = np.arange(length // 2 + 1) * rate / length
    low_M1, centre_M1, high_M1 = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rise_MK = (frequency_K - low_M1) / (centre_M1 - low_M1)
    fall_MK = (high_M1 - frequency_K) / (high_M1 - centre_M1)
    bands_MK = np.maximum(0, np.minimum(rise_MK, fall_MK))
    empty_M = ~bands_MK.any(1)
    bands_MK[empty_M, np.abs(frequency_K - centre_M1).argmin(1)[empty_M]] = 1
    return bands_MK.astype(np.float32)
