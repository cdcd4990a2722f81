"""DataModules: one per source of data, all with the same resumable order. Foreign LightningDataModules are equal citizens."""

from .annotated import Annotated
from .annotations import Annotation, AnnotationFile, Annotator, Detection, annotate
from .arrays import Arrays, Memory
from .buckets import Buckets, Placed, equal_area_buckets, grid_buckets
from .digits import Digits
from .emoji import Emoji
from .folder import ImageFolder
from .latents import Latents
from .mapped import Mapped, TorchvisionSet
from .module import DataModule, normalise
from .order import BucketOrder, Order, shard, split, stream
from .picture_module import PictureItems, PictureModule
from .pictures import PictureReader, size_crop
from .shapes import Shapes, ShapesOracle
from .shards import Shards
from .sounds import SoundArrays, SoundFolder
from .source import Batch, Items, Source
from .strings import Strings
from .video import ClipFolder, MovingDigits, MovingShapes

__all__ = [
    "Annotated", "Annotation", "AnnotationFile", "Annotator", "Arrays", "Batch", "BucketOrder", "Buckets", "ClipFolder", "DataModule",
    "Detection", "Digits", "Emoji", "ImageFolder", "Items", "Latents", "Mapped", "Memory", "MovingDigits", "MovingShapes", "Order",
    "PictureItems", "PictureModule", "PictureReader", "Placed", "Shapes", "ShapesOracle", "Shards", "SoundArrays", "SoundFolder",
    "Source", "Strings", "TorchvisionSet", "annotate", "equal_area_buckets", "grid_buckets", "normalise", "shard", "size_crop", "split",
    "stream",
]  # fmt: skip
