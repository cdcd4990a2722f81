"""Sound as tensors ``(B, C, L)`` in [-1, 1], one value a sample time: files, spectra, pitch."""

from .files import Recording, duration, read_sound, wav_bytes, write_wav
from .pitch import cents, note_frequency, note_name, pitch, pitch_vector
from .spectra import STFT, from_mel, griffin_lim, mel_bank, mel_scale

__all__ = [
    "STFT", "Recording", "cents", "duration", "from_mel", "griffin_lim", "mel_bank", "mel_scale", "note_frequency", "note_name", "pitch",
    "pitch_vector", "read_sound", "wav_bytes", "write_wav",
]  # fmt: skip
