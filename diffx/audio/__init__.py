"""Sound as tensors ``(B, C, L)`` in [-1, 1], one value a sample time: files, spectra, pitch."""

from .files import Recording, duration, read_sound, wav_bytes, write_wav
from .pitch import cents, note_frequency, note_name, pitch, pitch_vector
from .spectra import STFT, from_mel, griffin_lim, mel_bank, mel_scale
from .spectrogram import Spectrogram, open_spectrogram, save_spectrogram

__all__ = [
    "STFT", "Recording", "Spectrogram", "cents", "duration", "from_mel", "griffin_lim", "mel_bank", "mel_scale", "note_frequency",
    "note_name", "open_spectrogram", "pitch", "pitch_vector", "read_sound", "save_spectrogram", "wav_bytes", "write_wav",
]  # fmt: skip
