"""Techniques: one LightningModule per file."""

from .edm import EDM

__all__ = ["EDM"]
