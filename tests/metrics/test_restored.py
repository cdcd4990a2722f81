"""Restoration of held-out items: what its figures say of known answers, and that claims on it are judged."""

import math

import pytest
import torch

from diffx import Cond
from diffx.data import Digits
from diffx.metrics import evaluate, frechet, psnr, restored_figures
from diffx.metrics.real import real_items
from diffx.metrics.report import table


class Restorer:
    """Its own way is off by ``own`` in every pixel, the naive one by 0.4; it draws noise."""

    device = "cpu"

    def __init__(self, own=0.1):
        self.own, self.asked = own, []

    def condition(self, batch):
        return Cond(label=batch["label"])

    def sample(self, n, cond=Cond(), **options):
        return torch.rand(n, 1, 8, 8) * 2 - 1

    def restorations(self, x, cond, sampler=None):
        assert len(cond) == len(x)
        self.asked.append((len(x), sampler))
        return {"own": x + self.own, "naive": x + 0.4}


def test_decibels_of_a_known_error():
    x = torch.zeros(3, 1, 8, 8)
    assert psnr(x, x + 0.2) == pytest.approx(20, abs=1e-5)  # 4 / 0.04
    assert psnr(x, x) == pytest.approx(120)
    half = torch.cat([x + 0.2, x])  # the mean is taken over all values before the logarithm
    assert psnr(torch.cat([x, x]), half) == pytest.approx(20 + 10 * math.log10(2), abs=1e-5)


def test_claims_on_restoration_are_judged():
    claim = {"samples": 20, "psnr": ">= 22", "psnr_gain": ">= 12, <= 12.1", "restored_accuracy": ">= 0.95", "frechet_ratio": "<= 0.3"}
    module = Restorer()
    report = evaluate(module, Digits(), claim=claim, chunk=100)
    assert report["kept"] is True and module.asked == [(100, None), (100, None), (97, None)]
    figures = report["figures"]
    assert figures["psnr"]["value"] == pytest.approx(20 * math.log10(20), abs=1e-4)
    assert figures["psnr_gain"]["naive"] == pytest.approx(20 * math.log10(5), abs=1e-4)
    distance = figures["frechet_ratio"]
    assert distance["value"] == pytest.approx(distance["own"] / distance["naive"])
    train, held_out = (items["x"].flatten(1) for items in real_items(Digits()))
    assert distance["own"] == pytest.approx(frechet((held_out + 0.1).clamp(-1, 1), train))
    assert distance["items"] == pytest.approx(frechet(held_out, train))
    assert "the naive way" in next(line for line in table(report).splitlines() if "psnr_gain" in line)
    assert evaluate(Restorer(0.5), Digits(), claim=claim)["kept"] is False


class NoneHeldOut(Digits):
    def sources(self):
        return super().sources()[0], None


def test_without_held_out_items_nothing_is_said():
    report = evaluate(Restorer(), NoneHeldOut(), n=10, claim={"psnr": ">= 22"})
    assert report["skipped"]["psnr"] == "there are no held_out" and report["kept"] is None


def test_other_modules_have_none():
    assert restored_figures(torch.nn.Identity(), {}) == ()
    assert [name for figure in restored_figures(Restorer(), {}) for name in figure.names] == [
        "psnr", "psnr_gain", "frechet_ratio", "restored_accuracy",
    ]  # fmt: skip
