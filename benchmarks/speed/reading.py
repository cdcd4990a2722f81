"""Reading data: batches of what lies in memory, and of picture files."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.harness import Setting, Subject
from benchmarks.speed.rows import Goal, Makers, Row
from diffx.data import Arrays, Digits, ImageFolder
from diffx.data.module import normalise

__all__ = ["READING", "pictures"]

SIDE, FILES, CIFAR = 64, 64, 4096


def digit_makers(setting: Setting) -> Makers:
    """One epoch of the digits, 1,500 of 1 x 8 x 8, batches of 125."""

    def ours(name: str) -> Subject:
        loader = Digits(125).train_dataloader()
        return _subject(name, lambda: list(islice(loader, 12)))

    def usual(name: str) -> Subject:
        source = Digits().train
        loader = DataLoader(TensorDataset(source.x, source.label), 125, shuffle=True)
        return _subject(name, lambda: list(loader))

    return {"DataLoader over TensorDataset": partial(usual, "DataLoader over TensorDataset"), "diffx Digits": partial(ours, "diffx Digits")}


def cifar_makers(setting: Setting) -> Makers:
    """4,096 pictures of 3 x 32 x 32 held as bytes, to float batches of 128 in [-1, 1]."""
    pixels = np.random.default_rng(0).integers(0, 256, (CIFAR, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(CIFAR) % 10

    def ours(name: str) -> Subject:
        loader = Arrays({"images": pixels, "labels": labels}, 128, labels="labels").train_dataloader()
        return _subject(name, lambda: [normalise(batch["x"]) for batch in islice(loader, CIFAR // 128)])

    def usual(name: str) -> Subject:
        from torchvision import transforms as T

        change = T.Compose([T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)])

        class Items(Dataset[tuple[Tensor, int]]):
            def __len__(self) -> int:
                return CIFAR

            def __getitem__(self, index: int) -> tuple[Tensor, int]:
                return change(Image.fromarray(pixels[index])), int(labels[index])

        loader = DataLoader(Items(), 128, shuffle=True)
        return _subject(name, lambda: list(loader))

    names = ("DataLoader, ToTensor and Normalize", "diffx Arrays")
    return {name: partial(make, name) for name, make in zip(names, (usual, ours), strict=True)}


def pictures(folder: Path, count: int = FILES) -> list[Path]:
    """Photographs for the purpose: JPEG files of 256 x 256, blocks of colour under grain, about 20 kB each."""
    draw = np.random.default_rng(0)
    paths = []
    for i in range(count):
        blocks = np.kron(draw.integers(0, 256, (16, 16, 3)), np.ones((16, 16, 1)))
        grain = draw.normal(0, 12, (256, 256, 3))
        path = folder / f"class_{i % 4}" / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((blocks + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
        paths.append(path)
    return paths


def jpeg_makers(setting: Setting) -> Makers:
    """64 JPEG files of 256 x 256 to float batches of 3 x 64 x 64."""
    folder = tempfile.TemporaryDirectory()  # lives as long as a maker
    root = Path(folder.name, "pictures")
    files = pictures(root)

    def read(loader: Any, finish: Callable[[Any], Tensor]) -> Callable[[], object]:
        return lambda: [finish(batch) for batch in islice(loader, FILES // 32)]

    def ours(name: str, **options: Any) -> Subject:
        keep = folder
        loader = ImageFolder(root, 32, size=SIDE, val=0.0, **options).train_dataloader()
        for _ in islice(loader, FILES // 32):  # a cache is filled
            assert keep
        return _subject(name, read(loader, lambda batch: normalise(batch["x"])), FILES)

    def usual(name: str) -> Subject:
        from torchvision import datasets
        from torchvision import transforms as T

        change = T.Compose([T.Resize(SIDE), T.CenterCrop(SIDE), T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)])
        return _subject(name, read(DataLoader(datasets.ImageFolder(str(root), change), 32, shuffle=True), lambda batch: batch[0]), FILES)

    def tar(name: str) -> Subject:
        import webdataset
        from torchvision import transforms as T

        shard = Path(folder.name, "shard.tar")
        with tarfile.open(shard, "w") as archive:
            for path in files:
                archive.add(path, f"{path.stem}.jpg")
        change = T.Compose([T.Resize(SIDE), T.CenterCrop(SIDE), T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)])
        items = webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("jpg").map_tuple(change).batched(32)
        return _subject(name, lambda: list(items), FILES)

    makers = {"ImageFolder of torchvision": usual, "webdataset": tar, "diffx ImageFolder": ours,
              "diffx ImageFolder, draft": partial(ours, draft=True),
              "diffx ImageFolder, cache": partial(ours, cache=Path(folder.name, "cache"))}  # fmt: skip
    return {name: partial(make, name) for name, make in makers.items()}


def _subject(name: str, call: Callable[[], object], images: int = 0) -> Subject:
    return Subject(name, call, counted=False, images=images)


READING: tuple[Row, ...] = (
    Row("digits", "one epoch of 1,500 digits in memory", digit_makers, (
        Goal("diffx Digits", "DataLoader over TensorDataset", 0.20),
    ), rounds=15, short=True),
    Row("cifar", "4,096 pictures of 3 x 32 x 32 in memory, normalised", cifar_makers, (
        Goal("diffx Arrays", "DataLoader, ToTensor and Normalize", 0.10),
    ), rounds=9, short=True),
    Row("jpeg", "64 JPEG files of 256 x 256 to 64 x 64", jpeg_makers, (
        Goal("diffx ImageFolder", "ImageFolder of torchvision", 0.80),
        Goal("diffx ImageFolder, draft", "ImageFolder of torchvision", 0.80),
        Goal("diffx ImageFolder, cache", "ImageFolder of torchvision", 0.05),
    ), rounds=9),
)  # fmt: skip
