"""Batched reading must stay far below per-item collation. Ratios of CPU time, interleaved, so that the machine does not matter."""

from __future__ import annotations

from itertools import islice
from statistics import median
from time import process_time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from diffx.data import Arrays, Digits, normalise


@pytest.fixture(autouse=True)
def one_thread():
    """Spinning pool threads count as CPU time: compare per core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cpu(fn):
    start = process_time()
    fn()
    return process_time() - start


def ratio(ours, theirs, rounds=7):
    ours(), theirs()
    return median(cpu(ours) / cpu(theirs) for _ in range(rounds))


def test_digits_epoch_against_a_data_loader_over_tensors(record_property):
    data = Digits(128)
    dataset = TensorDataset(data.train.x, data.train.label)
    stream = iter(data.train_dataloader())

    def ours():
        assert sum(len(batch["x"]) for batch in islice(stream, 60)) == 60 * 128

    def theirs():
        for _ in range(5):
            assert sum(len(x) for x, _ in DataLoader(dataset, 128, shuffle=True)) == 1500

    measured = ratio(ours, theirs)
    record_property("ratio", measured)
    assert measured <= 0.20


def test_uint8_pictures_against_pillow_items(record_property):
    torchvision = pytest.importorskip("torchvision")
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), dtype=np.uint8)
    stream = iter(Arrays({"images": images}, 128, flip=True).train_dataloader())
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.RandomHorizontalFlip(),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    class PerItem(torch.utils.data.Dataset):
        def __len__(self):
            return 1024

        def __getitem__(self, i):
            return transform(Image.fromarray(images[i]))

    def ours():
        for batch in islice(stream, 8):
            normalise(batch["x"])

    def theirs():
        for _ in DataLoader(PerItem(), 128, shuffle=True):
            pass

    measured = ratio(ours, theirs)
    record_property("ratio", measured)
    assert measured <= 0.20
