"""Sounds: tones of three instruments, beeps, glides, and spoken-like syllables, all at 8 kHz."""

from collections.abc import Sequence

import numpy as np

RATE = 8000  # Hz
LOW, HIGH = (220.0, 330.0), (880.0, 1320.0)  # Hz, fundamentals: an octave and a half apart
INSTRUMENTS = ("flute", "buzzer", "bell")
# Partials of an instrument: (multiple of the fundamental, amplitude, decay per second).
PARTIALS = {
    "flute": [(1.0, 1.0, 0.0), (2.0, 0.08, 0.0)],
    "buzzer": [(float(k), k**-0.5, 0.0) for k in range(1, 9)],
    "bell": [(1.0, 1.0, 5.0), (2.76, 0.7, 8.0), (5.4, 0.4, 12.0)],
}

# Vowels by their first two resonances in Hz. Consonants: the resonances the voice starts from (None: those of the
# vowel), and where the noise before it is strongest in Hz (None: a voiced murmur instead).
VOWELS = {"a": (800.0, 1250.0), "i": (290.0, 2350.0), "u": (340.0, 800.0)}
CONSONANTS = {
    "b": ((250.0, 500.0), 400.0),
    "d": ((300.0, 1800.0), 3200.0),
    "k": (None, 1800.0),
    "s": (None, 3400.0),
    "m": ((250.0, 1000.0), None),
}
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)


def frequency(rng: np.random.Generator, high: bool) -> float:
    """A fundamental in Hz from the high or the low range."""
    bottom, top = HIGH if high else LOW
    return bottom * (top / bottom) ** rng.random()


def tone(start: float, seconds: float, instrument: str = "flute", end: float | None = None) -> np.ndarray:
    """A tone of `start` Hz, gliding evenly in pitch to `end` Hz if given: float32 (samples,), peak 1."""
    time = np.arange(round(seconds * RATE)) / RATE
    cycles = start * time
    top = start
    if end is not None:
        rise = np.log(end / start) / seconds
        cycles, top = start * np.expm1(rise * time) / rise, max(start, end)
    sound = np.zeros(len(time), np.float32)
    for multiple, amplitude, decay in PARTIALS[instrument]:
        if multiple * top < RATE / 2:
            turns = multiple * cycles
            turns = (turns - np.floor(turns)).astype(np.float32)  # within its turn, so single precision is enough
            partial = np.float32(amplitude) * np.sin(np.float32(2 * np.pi) * turns)
            sound += partial * np.exp((-decay * time).astype(np.float32)) if decay else partial
    return _fade(sound / np.abs(sound).max(), 0.004 if instrument == "bell" else 0.015)


def beeps(rng: np.random.Generator, count: int) -> np.ndarray:
    """So many beeps of one pitch and instrument, evenly paced: a finished sound."""
    length, gap = rng.uniform(0.09, 0.14), rng.uniform(0.10, 0.15)
    beep = tone(frequency(rng, bool(rng.integers(2))), length, INSTRUMENTS[rng.integers(len(INSTRUMENTS))])
    return finish(rng, [beep] * count, gap)


def finish(rng: np.random.Generator, sounds: Sequence[np.ndarray], gap: float) -> np.ndarray:
    """The sounds one after the other, `gap` seconds apart, with silence around them, a random loudness, faint noise.

    The silence around them is random, so the length tells little about what is heard. Float32 (samples,), 0.5 to
    about 1.3 seconds.
    """
    pause = np.zeros(round(gap * RATE), np.float32)
    parts = [part for sound in sounds for part in (pause, sound)][1:]
    samples = sum(map(len, parts))
    before = rng.uniform(0.02, 0.1)
    after = rng.uniform(0.05, max(0.1, 1.15 - before - samples / RATE))
    total = max(round((before + after) * RATE) + samples, RATE // 2)
    sound = (0.002 * rng.standard_normal(total, dtype=np.float32)).astype(np.float32)
    start = round(before * RATE)
    sound[start : start + samples] += rng.uniform(0.25, 0.8) * np.concatenate(parts)
    return sound


def speak(rng: np.random.Generator, syllables: Sequence[str]) -> np.ndarray:
    """The syllables spoken by a random voice at a random speed: a finished sound."""
    pitch, size, speed = rng.uniform(100, 230), rng.uniform(0.94, 1.06), rng.uniform(0.85, 1.2)
    return finish(rng, [_syllable(rng, s, pitch, size, speed) for s in syllables], rng.uniform(0.03, 0.06) / speed)


def _syllable(rng: np.random.Generator, syllable: str, pitch: float, size: float, speed: float) -> np.ndarray:
    """A consonant's noise or murmur, then a voice that moves from the consonant's resonances to the vowel's."""
    consonant, vowel = syllable
    locus, noise = CONSONANTS[consonant]
    resonances = VOWELS[vowel]
    seconds = rng.uniform(0.12, 0.18) / speed
    samples = round(seconds * RATE)
    melody = pitch * rng.uniform(0.9, 1.1) * np.linspace(1.08, 0.92, samples)
    pulses = np.diff(np.floor(np.cumsum(melody) / RATE), prepend=0.0)
    spectrum = np.fft.rfft(pulses)
    voice = _shape(spectrum, samples, [size * f for f in resonances])
    if locus is not None:
        blend = np.clip(np.arange(samples) / (0.045 * RATE), 0, 1)
        voice = blend * voice + (1 - blend) * _shape(spectrum, samples, [size * f for f in locus])
    voice = _fade(voice, 0.012)
    if noise is None:
        length = round(rng.uniform(0.07, 0.09) / speed * RATE)
        murmur = np.diff(np.floor(np.arange(length + 1) * pitch / RATE))
        onset = 0.5 * _fade(_shape(np.fft.rfft(murmur), length, [250.0]), 0.01)
    else:
        seconds = {"s": 0.1, "k": 0.05}.get(consonant, 0.025) / speed
        length = round(seconds * RATE)
        onset = _shape(np.fft.rfft(rng.standard_normal(length)), length, [noise], 350.0)
        onset = {"s": 0.5, "k": 0.6}.get(consonant, 0.8) * _fade(onset, 0.004)
        if consonant == "k":  # the breath before the voice sets in
            onset = np.concatenate([onset, np.zeros(round(0.025 * RATE))])
    return np.concatenate([onset, voice]).astype(np.float32)


def _shape(spectrum: np.ndarray, samples: int, resonances: Sequence[float], width: float = 90.0) -> np.ndarray:
    """The sound of this spectrum through resonances at these frequencies, `width` Hz wide; peak 1."""
    hertz = np.linspace(0, RATE / 2, len(spectrum))
    gain = sum(1 / (1 + ((hertz - resonance) / width) ** 2) for resonance in resonances)
    sound = np.fft.irfft(spectrum * gain, samples)
    return sound / np.abs(sound).max()


def _fade(sound: np.ndarray, seconds: float) -> np.ndarray:
    """The sound faded in and out, so that it does not click."""
    ramp = np.linspace(0, 1, round(seconds * RATE), dtype=np.float32)
    sound = sound.astype(np.float32)
    sound[: len(ramp)] *= ramp
    sound[-len(ramp) :] *= ramp[::-1]
    return sound
