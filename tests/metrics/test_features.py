from __future__ import annotations

import hashlib
import warnings

import pytest
import torch
from torch import nn

from diffx.metrics import Evidence, Pixels, TorchScript, extract, measure, remembered


class Means(nn.Module):
    """Channel means of what arrives and its height, or a number that nobody wants."""

    def forward(self, x, features: bool = False):
        if features:
            return torch.cat([x.mean((2, 3)), torch.full((x.shape[0], 1), float(x.shape[2]))], 1)
        return torch.zeros(x.shape[0], 1)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "means.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the format is old, which is why published networks have it
        torch.jit.script(Means()).save(path)
    return path


def test_pixels_are_clipped_and_flat():
    x = torch.tensor([[[[-3.0, 0.25], [1.0, 7.0]]]])
    found = extract(Pixels(), x)
    assert found.dtype == torch.float64
    assert found.tolist() == [[-1, 0.25, 1, 1]]


def test_torchscript_gets_bytes_in_three_channels(archive):
    net = TorchScript(archive, name="fid", size=16, options={"features": True})
    x = torch.stack([torch.full((1, 8, 8), v) for v in (-1.0, 0.0, 1.0, 9.0)])
    assert extract(net, x, chunk=3).tolist() == [[0, 0, 0, 16], [127.5, 127.5, 127.5, 16], [255, 255, 255, 16], [255, 255, 255, 16]]
    assert TorchScript(archive)(x).tolist() == [[0]] * 4
    assert net.name == "fid"
    assert net.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_torchscript_gets_clips_frame_by_frame_of_its_size(tmp_path):
    class Frames(nn.Module):
        """The mean of each frame of the first channel, and the height."""

        def forward(self, x):
            return torch.cat([x[:, 0].mean((2, 3)), torch.full((x.shape[0], 1), float(x.shape[3]))], 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Frames()).save(tmp_path / "frames.pt")
    x = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3, 1, 1).expand(2, 1, 3, 8, 8)
    net = TorchScript(tmp_path / "frames.pt", name="fvd", size=16)
    assert extract(net, x).tolist() == [[0, 127.5, 255, 16]] * 2
    figures, _ = measure(Evidence(torch.rand(6, 1, 3, 8, 8), torch.rand(9, 1, 3, 8, 8), features=net))
    assert "fvd" in figures and "kid_fvd" in figures


def test_chunks_do_not_matter():
    x = torch.randn(7, 3, 4, 4)
    assert torch.equal(extract(Pixels(), x, chunk=2), extract(Pixels(), x))


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        TorchScript(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(ValueError, match="not a TorchScript archive"):
        TorchScript(tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"must be \(4, D\), got \(2, 32\)"):
        extract(lambda x: x.reshape(2, -1), torch.zeros(4, 1, 4, 4))


class Counting:
    """Sevenths of the first pixels, which no short float holds exactly; it knows how many items it was shown."""

    name = "counting"

    def __init__(self, identity="one"):
        self.identity, self.seen = identity, 0

    def __call__(self, x):
        self.seen += len(x)
        return x.flatten(1)[:, :5].double() / 7


def test_real_items_are_looked_at_once(tmp_path):
    x = torch.rand(300, 1, 4, 4)
    first, again, asked_otherwise = Counting(), Counting(), Counting("two")
    kept = remembered(tmp_path / "kept")
    measure(Evidence(torch.rand(6, 1, 4, 4), x, held_out=x[:20] / 2, features=first, real_features=kept))
    assert first.seen == 326
    assert torch.equal(kept(again, x), extract(Counting(), x)) and again.seen == 0
    assert torch.equal(kept(asked_otherwise, x), extract(Counting(), x)) and asked_otherwise.seen == 300
    other = x.clone()
    other[299, 0, 0, 0] += 1e-6
    assert torch.equal(kept(again, other), extract(Counting(), other)) and again.seen == 300
    assert torch.equal(kept(Pixels(), x), extract(Pixels(), x)) and len(list((tmp_path / "kept").iterdir())) == 4


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(remembered(tmp_path / "file")(Counting(), x), extract(Counting(), x))
    assert "are not kept: " in caplog.text and "cache=" in caplog.text


def test_what_is_kept_knows_the_file_and_how_it_is_asked(archive, tmp_path):
    nets = [
        TorchScript(archive),
        TorchScript(archive, size=16),
        TorchScript(archive, options={"features": True}),
        TorchScript(archive, high=1),
    ]
    archive.rename(tmp_path / "elsewhere.pt")
    assert TorchScript(tmp_path / "elsewhere.pt").identity == nets[0].identity
    assert len({net.identity for net in nets}) == 4
