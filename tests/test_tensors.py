"""Arcs between noises, and losses that one thing alone feels."""

import pytest
import torch

from diffx.tensors import felt_by, slerp


def test_the_arc_keeps_unit_noise_and_its_ends():
    a, b = torch.randn(2, 4, 1, 4096)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-5) and torch.allclose(slerp(a, b, 1.0), b, atol=1e-5)
    for share in (0.25, 0.5, 0.9):
        assert slerp(a, b, share).std() == pytest.approx(1, abs=0.03)
    assert torch.lerp(a, b, 0.5).std() == pytest.approx(0.5**0.5, abs=0.03)
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(b, a, 0.7), atol=1e-5, rtol=0)


def test_in_the_plane_it_is_a_rotation():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    expected = torch.tensor([[0.75**0.5, 0.5], [1.0, 3**0.5]])
    torch.testing.assert_close(slerp(a, b, torch.tensor([1 / 3, 1 / 3])), expected)
    torch.testing.assert_close(slerp(a, a * 1.5, 0.5), a * 1.25)
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, b[:1], 0.5)


def test_a_loss_is_felt_by_one_thing_alone():
    weight = torch.randn(3, 5, requires_grad=True)
    x = torch.randn(4, 5, requires_grad=True)

    def loss(y):
        return (y @ weight.T).tanh().square().sum(1)

    plain = loss(x)
    (wanted,) = torch.autograd.grad(plain.sum(), x)
    felt = felt_by(x, loss)
    torch.testing.assert_close(felt, plain)
    felt.sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    assert weight.grad is None and not felt_by(x.detach(), loss).requires_grad
