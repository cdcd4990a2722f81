"""Cond: dropping, hiding, stacking and the checks at its border."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffx import rng
from diffx.conditions import Cond


def full(n=4, length=5):
    return Cond(
        label=torch.arange(n),
        tokens={"t5": torch.randn(n, length, 8), "clip": torch.randn(n, 3, 6)},
        masks={"t5": torch.arange(length).expand(n, length) < length - 1},
        vectors={"size": torch.randn(n, 2)},
        maps={"low": torch.randn(n, 3, 4, 4)},
        keep={"size": torch.arange(n) % 2 == 0},
        spans=[{"cat": [(0, 1)]}] * n,
    )


def test_names_and_length():
    assert full().names == ("label", "t5", "clip", "size")  # maps are structure
    assert len(full(3)) == 3
    assert len(Cond()) == 0
    assert Cond().names == ()


def test_hiding():
    cond = full().hidden()
    assert not any(cond.visible(name).any() for name in cond.names)
    assert cond.visible("low").all()
    some = full().hidden("t5", "low")
    assert not some.visible("t5").any() and not some.visible("low").any()
    assert some.visible("label").all()
    assert torch.equal(some.visible("size"), full().visible("size"))
    assert len(Cond().hidden()) == 0


def test_dropping_hides_all_names_together():
    cond = full(4000).drop(0.25, rng.generator(0))
    shown = cond.visible("label")
    assert (~shown).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(shown, cond.visible("t5")) and torch.equal(shown, cond.visible("clip"))
    assert torch.equal(cond.visible("size"), shown & full(4000).visible("size"))  # hidden before stays hidden
    assert cond.visible("low").all()


def test_dropping_by_name_is_independent():
    cond = full(4000).drop({"label": 0.5, "t5": 0.5, "low": 0.1, "*": 0.1}, rng.generator(0))
    shown = {name: cond.visible(name).float().mean().item() for name in ("label", "t5", "clip", "low")}
    assert shown == pytest.approx({"label": 0.45, "t5": 0.45, "clip": 0.9, "low": 0.9}, abs=0.03)
    both = (cond.visible("label") & cond.visible("t5")).float().mean().item()
    assert both == pytest.approx(0.9 * 0.25, abs=0.03)


def test_extreme_rates():
    assert full().drop(0).keep.keys() == full().keep.keys()
    assert not full().drop(1.0).visible("label").any()
    assert len(Cond().drop(0.5)) == 0


def test_stacking_and_taking_apart():
    first, second = full(2), full(3).hidden()
    both = first.cat(second)
    assert len(both) == 5
    for part, rows in ((first, slice(0, 2)), (second, slice(2, 5))):
        back = both.rows(rows)
        assert torch.equal(back.label, part.label)
        for name in ("t5", "clip"):
            assert torch.equal(back.tokens[name], part.tokens[name])
            assert torch.equal(back.mask(name), part.mask(name))
        assert torch.equal(back.vectors["size"], part.vectors["size"])
        assert torch.equal(back.maps["low"], part.maps["low"])
        for name in (*part.names, "low"):
            assert torch.equal(back.visible(name), part.visible(name))
        assert len(back.spans) == len(part)


def test_stacking_pads_and_masks_tokens():
    short, long = Cond(tokens={"t5": torch.ones(1, 2, 4)}), Cond(tokens={"t5": torch.ones(1, 5, 4)})
    both = short.cat(long)
    assert both.tokens["t5"].shape == (2, 5, 4)
    assert both.mask("t5").tolist() == [[True, True, False, False, False], [True] * 5]
    assert both.tokens["t5"][0].sum() == 8


def test_map_and_to_reach_every_tensor():
    doubled = full().map(lambda t: torch.cat([t, t]))
    assert len(doubled) == 8
    assert all(len(t) == 8 for t in doubled._tensors())
    assert torch.equal(full(2).to("cpu").label, torch.arange(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cond(tokens={"a": torch.zeros(2, 1, 1)}, vectors={"a": torch.zeros(2, 1)}), "unique"),
        (lambda: Cond(label=torch.zeros(2).long(), vectors={"a": torch.zeros(3, 1)}), "one batch size"),
        (lambda: Cond(label=torch.zeros(2)), "integers"),
        (lambda: Cond(label=torch.zeros(2, 1).long()), "integers"),
        (lambda: Cond(masks={"a": torch.ones(2, 1).bool()}), "masks names"),
        (lambda: Cond(tokens={"a": torch.zeros(2, 1, 1)}, masks={"a": torch.ones(2, 1)}), "boolean"),
        (lambda: Cond(keep={"label": torch.ones(2).bool()}), "keep names"),
        (lambda: full().drop(1.5), "lie in"),
        (lambda: full().drop({"lable": 0.5}), "cannot drop 'lable'"),
        (lambda: full().cat(Cond(label=torch.zeros(4).long())), "same conditions"),
        (lambda: full().hidden("nobody"), "keep names"),
    ],
)
def test_wrong_bundles_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        full().label = None
