"""The codebook: nearest codes, moving averages, revival, ranks that keep one codebook; tokenizers made of it and of k-means."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from diffx.codebook import Codebook
from diffx.data import Digits
from diffx.networks import ConvAutoencoder
from diffx.recipes import recipe_of
from diffx.recipes.build import build
from diffx.tokenizers import VQ, DiffusersVQ, KMeansPatches, Tokenizer


def placed(size=4, dim=3, **options):
    """A codebook whose codes are all in even use."""
    book = Codebook(size, dim, **options)
    book.count.fill_(8)
    book.total.copy_(8 * book.codes)
    return book


def test_the_nearest_code_is_that_of_brute_force():
    book, z = Codebook(50, 3), torch.randn(2, 3, 5, 7)
    brute = torch.cdist(z.movedim(1, -1).reshape(-1, 3), book.codes).argmin(1).view(2, 5, 7)
    assert torch.equal(book.nearest(z), brute)
    torch.testing.assert_close(book.vectors(brute)[1, :, 2, 3], book.codes[brute[1, 2, 3]])


def test_codes_are_moving_averages():
    book, z = placed(decay=0.9), torch.randn(6, 3, 4)
    ids = book.nearest(z)
    flat, hit = z.movedim(1, -1).reshape(-1, 3), ids.flatten()
    count = torch.stack([(hit == k).float().sum() for k in range(4)])
    total = torch.stack([flat[hit == k].sum(0) for k in range(4)])
    expected = (0.9 * book.total + 0.1 * total) / (0.9 * book.count + 0.1 * count)[:, None]
    book.update(z, ids)
    torch.testing.assert_close(book.codes, expected)


def test_codes_settle_on_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [5, 0], [0, 5], [5, 5]])
    book = Codebook(12, 2, decay=0.9)
    for _ in range(200):
        z = (centres[torch.randint(4, (256,))] + 0.1 * torch.randn(256, 2))[..., None]
        book.update(z, book.nearest(z))
    assert torch.cdist(centres, book.codes).min(1).values.max() < 0.05


def test_a_dead_code_is_revived_and_used():
    torch.manual_seed(0)
    book = placed(8, 2, decay=0.95, revive=0.2)
    book.codes[3:] += 100
    book.total.copy_(8 * book.codes)
    for _ in range(100):
        z = torch.randn(64, 2, 1)
        ids = book.nearest(z)
        book.update(z, ids)
    assert book.nearest(torch.randn(2000, 2, 1)).unique().numel() == 8


def test_a_codebook_of_one():
    book, z = Codebook(1, 2), torch.randn(32, 2, 3)
    for _ in range(3):
        book.update(z, book.nearest(z))
    assert (book.nearest(z) == 0).all() and book.codes.isfinite().all()


def test_the_first_batch_places_all_codes():
    torch.manual_seed(0)
    book, z = Codebook(16, 2), 7 + torch.randn(64, 2, 1)
    book.update(z, book.nearest(z))
    assert ((book.codes[:, None] - z[..., 0]).abs().amax(2) < 1e-4).any(1).all()


RANK = """
import sys, torch, torch.distributed as dist
from diffx.codebook import Codebook
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
book = Codebook(4, 3)
book.count[:3], book.total[:3] = 8, 8 * book.codes[:3]
z = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0)).chunk(2)[rank]
torch.manual_seed(rank)
book.update(z, book.nearest(z))
torch.save(book.state_dict(), f"{out}/{rank}.pt")
"""


def test_ranks_keep_one_codebook(tmp_path):
    """Each sees half of a batch; sums are those of the whole, and the dead code goes where rank 0 says."""
    words = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*words, str(rank), str(tmp_path / "store"), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole = Codebook(4, 3)
    whole.count[:3], whole.total[:3] = 8, 8 * whole.codes[:3]
    z = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    whole.update(z, whole.nearest(z))
    alive = whole.count > 1
    torch.testing.assert_close(first["codes"][:3], whole.codes[:3])
    assert alive.sum() >= 3


def test_tokenizers_agree_on_their_grid():
    x = Digits().train.fetch(np.arange(200), 0)["x"]
    for tokenizer in (VQ(ConvAutoencoder(1, 4, 8, (1, 2), moments=False), Codebook(6, 4)), KMeansPatches(16).fit(x)):
        assert isinstance(tokenizer, Tokenizer)
        ids = tokenizer.encode(x)
        assert ids.shape == (200, *tokenizer.shape((1, 8, 8))) == (200, 4, 4) and ids.dtype == torch.int64
        assert tokenizer.decode(ids).shape == x.shape
        with pytest.raises(ValueError, match="divisible by 2, got \\(8, 9\\); the nearest valid size is \\(8, 10\\)"):
            tokenizer.shape((1, 8, 9))
        with pytest.raises(ValueError, match=r"takes pictures \(1, H, W\), got \(3, 8, 8\)"):
            tokenizer.encode(torch.zeros(1, 3, 8, 8))
        with pytest.raises(ValueError, match="ids must lie in"):
            tokenizer.decode(ids + tokenizer.codebook_size)


def test_squares_of_k_means_are_the_nearest_ones():
    x = Digits().train.fetch(np.arange(300), 0)["x"]
    tokenizer = KMeansPatches(32).fit(x)
    back = tokenizer.decode(tokenizer.encode(x))
    assert (back - x).square().mean() < 0.1 * x.var()
    assert torch.equal(tokenizer.encode(back), tokenizer.encode(x))


@pytest.mark.parametrize("options", [{"size": 0}, {"dim": 0}, {"decay": 1.0}, {"revive": 1.0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="size and dim must be >= 1"):
        Codebook(**{"size": 4, "dim": 2, **options})
    with pytest.raises(ValueError, match="have length 4, those of the codebook 5"):
        VQ(ConvAutoencoder(1, 4, 8, (1, 2), moments=False), Codebook(6, 5))


TINY = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "num_vq_embeddings": 12, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip


def test_a_model_of_diffusers_is_a_tokenizer(tmp_path):
    torch.manual_seed(0)
    tokenizer, x = DiffusersVQ(config=TINY), torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        ids = tokenizer.encode(x)
        assert ids.shape == (2, *tokenizer.shape((3, 16, 24))) == (2, 8, 12)
        model = tokenizer.model
        torch.testing.assert_close(tokenizer.decode(ids), model.decode(model.encode(x).latents).sample, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    again = DiffusersVQ(tmp_path)
    assert torch.equal(again.encode(x), ids) and isinstance(again, Tokenizer)
    assert build(recipe_of(again)).codebook_size == 12  # the folder may be gone
    with pytest.raises(FileNotFoundError, match=r"no VQModel in .*nowhere"):
        DiffusersVQ(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a folder or a config"):
        DiffusersVQ()


def test_tokenizers_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        KMeansPatches(0)
    with pytest.raises(RuntimeError, match="call fit"):
        KMeansPatches(4).encode(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="9 codes need as many squares of finite values, got 8 squares"):
        KMeansPatches(9).fit(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match="of which 4 are finite"):
        KMeansPatches(2).fit(torch.stack([torch.full((1, 4, 4), torch.nan), torch.zeros(1, 4, 4)]))
    with pytest.raises(ValueError, match="moments=False"):
        VQ(ConvAutoencoder(1, 4, 8, (1, 2)), Codebook(6, 4))
