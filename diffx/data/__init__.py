"""DataModules: one per source of data, all with the same resumable order. Foreign LightningDataModules are equal citizens."""

from .arrays import Arrays, Memory
from .digits import Digits
from .emoji import Emoji
from .folder import ImageFolder
from .latents import Latents
from .mapped import Mapped, TorchvisionSet
from .module import DataModule, normalise
from .order import Order, shard, split, stream
from .pictures import PictureReader
from .shapes import Shapes
from .source import Batch, Items, Source

__all__ = [
    "Arrays", "Batch", "DataModule", "Digits", "Emoji", "ImageFolder", "Items", "Latents", "Mapped", "Memory", "Order", "PictureReader",
    "Shapes",
    "Source", "TorchvisionSet", "normalise", "shard", "split", "stream",
]  # fmt: skip
