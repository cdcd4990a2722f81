"""DataModules: one per source of data, all with the same resumable order. Foreign LightningDataModules are equal citizens."""

from .annotated import Annotated
from .annotations import Annotation, AnnotationFile, Annotator, Detection, annotate
from .arrays import Arrays, Memory
from .digits import Digits
from .emoji import Emoji
from .folder import ImageFolder
from .latents import Latents
from .mapped import Mapped, TorchvisionSet
from .module import DataModule, normalise
from .order import Order, shard, split, stream
from .pictures import PictureReader
from .shapes import Shapes, ShapesOracle
from .source import Batch, Items, Source

__all__ = [
    "Annotated", "Annotation", "AnnotationFile", "Annotator", "Arrays", "Batch", "DataModule", "Detection", "Digits", "Emoji",
    "ImageFolder", "Items", "Latents", "Mapped", "Memory", "Order", "PictureReader", "Shapes", "ShapesOracle", "Source", "TorchvisionSet",
    "annotate", "normalise", "shard", "split", "stream",
]  # fmt: skip
