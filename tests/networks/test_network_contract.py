"""What every network promises, over the one list of networks."""

import copy

import pytest
import torch
from network_list import NETWORKS, Case, output
from torch import nn

from diffx.conditions import Cond
from diffx.networks import MLP, PriorTransformer
from diffx.recipes import recipe_of
from diffx.recipes.build import build

PICTURES = {name: case for name, case in NETWORKS.items() if len(case.shape) == 3}
# One network of each family is traced in every run, the others in the long one: a trace takes seconds.
TRACED = {"unet_all", "dit_all", "rin_all", "uvit_all", "mlp", "prior"}
every = pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS.keys())


def out_shape(case: Case, net: nn.Module, n: int) -> tuple[int, ...]:
    return (
        (n, *case.shape)
        if isinstance(net, (MLP, PriorTransformer))
        else (n, net.out_channels if hasattr(net, "out_channels") else net.head.out_channels, *case.shape[1:])
    )


def without(cond: Cond, net: nn.Module) -> Cond:
    """Only what must not be missing: the maps."""
    return Cond(maps=cond.maps)


def rows(cond: Cond, order: list[int]) -> Cond:
    return cond.map(lambda t: t[order])


@every
def test_output_has_the_shape_of_x(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    for bundle in (cond, without(cond, net)):
        out = output(net, x, noise, bundle)
        assert out.shape == out_shape(case, net, 3) and out.isfinite().all() and out.std() > 1e-3


@every
def test_a_fresh_network_returns_zero_where_promised(case):
    net = case.make()
    out = output(net, *case.data(), case.cond(net))
    if case.fresh_zero:
        assert torch.equal(out, torch.zeros_like(out))
    elif case.fresh_zero is False:
        assert 0 < out.abs().max() < 0.01


@every
def test_no_parameter_is_dead_after_two_steps(case):
    net = case.make()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x, noise = case.data(4)
    cond, target = case.cond(net, 4), torch.randn(out_shape(case, net, 4))
    for _ in range(3):
        optimizer.zero_grad()
        (output(net, x, noise, cond, **case.handed(4)) - target).square().mean().backward()
        optimizer.step()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@every
def test_every_condition_changes_the_output(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    out = output(net, x, noise, cond)
    for name in net.conditions.names:
        assert (output(net, x, noise, cond.hidden(name)) - out).abs().max() > 1e-4, name
    assert (output(net, x, noise + 0.5, cond) - out).abs().max() > 1e-4


@every
def test_a_hidden_row_equals_the_null_condition_bitwise(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    if not net.conditions.names:
        assert torch.equal(output(net, x, noise), output(net, x, noise, Cond()))
    for name in net.conditions.names:
        one = Cond(**{**cond.__dict__, "keep": {name: torch.tensor([True, False, True])}})
        assert torch.equal(output(net, x, noise, one)[1], output(net, x, noise, cond.hidden(name))[1]), name
    if cond.names:
        hidden, absent = (output(net, x, noise, told) for told in (cond.hidden(), without(cond, net)))
        torch.testing.assert_close(hidden, absent, atol=case.rounding, rtol=0)
    if net.conditions.classes:
        null = Cond(**{**cond.__dict__, "label": torch.full((3,), net.conditions.classes)})
        assert torch.equal(output(net, x, noise, cond.hidden("label")), output(net, x, noise, null))


@every
def test_two_bundles_in_one_batch_equal_two_calls(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    other = rows(case.cond(net), [2, 0, 1]).hidden() if cond.names else cond
    both = output(net, torch.cat([x, x]), torch.cat([noise, noise]), cond.cat(other))
    torch.testing.assert_close(both, torch.cat([output(net, x, noise, cond), output(net, x, noise, other)]), atol=1e-5, rtol=0)


@every
def test_samples_do_not_see_each_other(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    order = [2, 0, 1]
    moved = output(net, x[order], noise[order], rows(cond, order))
    torch.testing.assert_close(moved, output(net, x, noise, cond)[order], atol=1e-5, rtol=0)


@every
def test_double_precision_agrees_with_single(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    single = output(net, x, noise, cond)
    double = output(copy.deepcopy(net).double(), x.double(), noise.double(), cond.map(lambda t: t.double() if t.is_floating_point() else t))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-4)


@every
def test_bfloat16_weights_take_float32_data(case):
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    single = output(net, x, noise, cond)
    half = output(net.bfloat16(), x, noise, cond)
    assert half.dtype == torch.bfloat16
    assert (half.float() - single).square().mean().sqrt() < 0.1 * single.std()


@pytest.mark.parametrize("case", PICTURES.values(), ids=PICTURES.keys())
def test_channels_last_and_oblong_pictures(case):
    net = case.awake()
    oblong = Case(case.make, (case.shape[0], 8, 12))
    x, noise = oblong.data()
    cond = oblong.cond(net)
    plain = output(net, x, noise, cond)
    assert plain.shape == out_shape(oblong, net, 3)
    last = output(net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), noise, cond)
    torch.testing.assert_close(last, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=() if name in TRACED else pytest.mark.slow) for name, case in NETWORKS.items()]
)
def test_compiles_without_graph_breaks(case):
    torch.compiler.reset()  # the tests before must not have used up the limit of recompilations
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, x, noise, cond), output(net, x, noise, cond), atol=1e-5, rtol=0)


@every
def test_the_recipe_rebuilds_the_network(case):
    net = case.make()
    recipe = dict(recipe_of(net))
    twin = build(recipe)
    assert recipe["_target_"] == f"diffx.networks.{type(net).__name__}"
    assert {n: p.shape for n, p in twin.state_dict().items()} == {n: p.shape for n, p in net.state_dict().items()}
