"""Figures of drawn embeddings: what they say of known vectors, and of which modules."""

import pytest
import torch
from torch.nn.functional import normalize

from diffx import Cond
from diffx.data import Shapes
from diffx.metrics import evaluate
from diffx.metrics.embedded import draws_embeddings
from diffx.metrics.own import own_figures
from diffx.metrics.real import asked_rows, real_items, take


class Oracle:
    """Draws the embedding of what it is told, turned away from it by ``noise``; it is told the embedding itself."""

    device = "cpu"

    def __init__(self, noise):
        self.noise = noise

    def embedding(self, batch):
        return normalize(batch["attributes"], dim=1)

    def condition(self, batch):
        return Cond(vectors={"told": self.embedding(batch)})

    def sample(self, n, cond=Cond(), *, seed, **options):
        told = cond.vectors["told"]
        return normalize(told + self.noise * torch.randn(told.shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def data():
    return Shapes(batch_size=8, size=16, items=64, val_items=16, spans=False)


def test_the_cosine_is_that_with_what_was_told():
    report = evaluate(Oracle(0.0), data(), claim={"samples": 20, "cosine": ">= 0.999", "cosine_gain": ">= 0.3"})
    held = real_items(data())[1]
    told = normalize(take(held, asked_rows(held, 20))["attributes"], dim=1)
    other = (told * told.roll(1, 0)).sum(1).mean().item()
    figures = report["figures"]
    assert report["kept"] is True
    assert figures["cosine"]["value"] == pytest.approx(1, abs=1e-6)
    assert figures["cosine_gain"]["value"] == pytest.approx(1 - other, abs=1e-6)
    assert figures["frechet"]["value"] < 1  # compared with embeddings, not with pictures
    assert not {name for figure in own_figures(data(), {}) for name in figure.names} & set(figures)


def test_what_does_not_listen_gains_nothing():
    figures = evaluate(Oracle(100.0), data(), n=400)["figures"]
    assert abs(figures["cosine"]["value"]) < 0.1 and abs(figures["cosine_gain"]["value"]) < 0.1


def test_a_layer_of_that_name_draws_none():
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(3, 4)
    assert not draws_embeddings(module) and draws_embeddings(Oracle(0.0))
