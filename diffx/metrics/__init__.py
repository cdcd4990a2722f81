"""Metrics: distances between sets of samples and real data, on features that the caller names. Nothing here downloads weights."""

from .claim import Bound, Claim
from .evaluation import evaluate
from .features import Features, Pixels, TorchScript, extract
from .figures import FIGURES, Evidence, Figure, Unsuited, figure_names, measure
from .frechet import Moments, frechet
from .judge import ClassJudge
from .kid import kid, mmd
from .motion import MOTION, ClipFeatures, Motion, motion
from .nearest import kth_distance, median_interval, nearest
from .pitch_judge import PitchJudge
from .precision_recall import precision_recall
from .remembered import remembered
from .restored import psnr, restored_figures
from .sound import LogMel, SpectralDistance, log_spectral_distance, multi_resolution_stft, si_sdr, spectral_convergence

__all__ = [
    "FIGURES",
    "MOTION",
    "Bound",
    "Claim",
    "ClassJudge",
    "ClipFeatures",
    "Evidence",
    "Features",
    "Figure",
    "LogMel",
    "Moments",
    "Motion",
    "PitchJudge",
    "Pixels",
    "SpectralDistance",
    "TorchScript",
    "Unsuited",
    "evaluate",
    "extract",
    "figure_names",
    "frechet",
    "kid",
    "kth_distance",
    "log_spectral_distance",
    "measure",
    "median_interval",
    "mmd",
    "motion",
    "multi_resolution_stft",
    "nearest",
    "precision_recall",
    "psnr",
    "remembered",
    "restored_figures",
    "si_sdr",
    "spectral_convergence",
]
