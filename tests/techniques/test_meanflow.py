"""MeanFlow: the identity in closed form, forward derivatives through networks, the two ways of sampling."""

import pytest
import torch
from gaussians import column
from network_list import NETWORKS, output
from technique_list import labels, pictures, unet
from torch import nn

from diffx import Cond, Denoiser, rng
from diffx.denoiser import EDMPrecond, FlowPrecond, FlowTime
from diffx.samplers import Euler
from diffx.schedules import Flow
from diffx.techniques import MeanFlow
from diffx.techniques.meanflow import Jumps, average_target, total_derivative
from diffx.tensors import expand

MEAN, STD = 0.3, 0.5


def spread(t):
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def velocity(z, t):
    """E[n - x | z] on the straight path between N(MEAN, STD^2) and unit noise."""
    t = expand(t, z)
    return (t - (1 - t) * STD**2) / spread(t) ** 2 * (z - (1 - t) * MEAN) - MEAN


def average(z, r, t):
    """(z_t - z_r) / (t - r), the flow of the same Gaussian being a map of its quantiles."""
    r, t = expand(r, z), expand(t, z)
    return (z - (1 - r) * MEAN - (z - (1 - t) * MEAN) * spread(r) / spread(t)) / (t - r)


def test_the_identity_holds_for_a_gaussian():
    z, t, r = column(0.9), column(0.8)[0], column(0.2)[0]
    assert velocity(z, t).item() == pytest.approx(0.66923077, abs=5e-9)
    assert average(z, r, t).item() == pytest.approx(0.32341973, abs=5e-9)
    assert average_target(average, z, r, t, velocity(z, t)).item() == pytest.approx(average(z, r, t).item(), abs=1e-10)


def test_any_number_of_jumps_with_exact_averages_gives_the_quantile_of_the_noise():
    noise = column(1.3, -2.0)
    for steps in (1, 2, 5):
        torch.testing.assert_close(Jumps(steps)(average, noise), MEAN + STD * noise, atol=1e-6, rtol=0)  # times are float32


def test_an_exact_consistency_function_stands_still_along_its_trajectory():
    """Hence the tangent of continuous-time consistency models vanishes; here on N(0, 0.3^2) with the path x = cos(t) x0 + sin(t) n / 2."""
    sd, std = 0.5, 0.3
    x, t = column(0.4), column(1.1)[0]

    def width(t):
        return ((t.cos() * std) ** 2 + (t.sin() * sd) ** 2).sqrt()

    def consistency(x, t):
        return x * expand(std / width(t), x)

    slope = torch.func.jvp(width, (t,), (torch.ones_like(t),))[1]
    along = x * expand(slope / width(t), x)
    assert total_derivative(consistency, x, t, along).abs().item() < 1e-12

    def network(x, t):  # F of the consistency function cos(t) x - sin(t) sd F
        return (expand(t.cos(), x) * x - consistency(x, t)) / (sd * expand(t.sin(), x))

    f, df = network(x, t), total_derivative(network, x, t, along)
    tangent = -(t.cos() ** 2) * (sd * f - along) - t.cos() * t.sin() * (x + sd * df)
    assert tangent.abs().item() < 1e-12


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS.keys())
def test_forward_derivatives_pass_through_every_network(case):
    """Compared with central differences; attention, resampling and norms are all on the way."""
    net = case.awake().double()
    x, noise = (value.double() for value in case.data())
    cond, direction, h = case.cond(net).map(lambda t: t.double() if t.is_floating_point() else t), torch.randn_like(x), 1e-7
    exact = total_derivative(lambda x, noise: output(net, x, noise, cond), x, noise, direction)
    ends = [output(net, x + end * direction, noise + end, cond) for end in (h, -h)]
    torch.testing.assert_close(exact, (ends[0] - ends[1]) / (2 * h), atol=1e-6, rtol=1e-5)
    assert not exact.requires_grad and exact.abs().max() > 1e-3


def meanflow(**options):
    net = unet(vectors={"duration": 1})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return MeanFlow(Denoiser(net, FlowPrecond(FlowTime(4.0))), shape=(1, 8, 8), **options)


class Exact(nn.Module):
    """The network that knows the average velocity of the Gaussian; it keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z, noise, cond):
        t, span = noise / 4, cond.vectors["duration"][:, 0]
        r = t - span
        still = span < 1e-3
        jump = average(z, torch.where(still, t - 0.5, r), t)
        return self.weight * torch.where(expand(still, z), velocity(z, t), jump)


def test_the_loss_is_least_at_the_exact_average_velocity():
    """Its gradient vanishes there in expectation, the network being any function; a shifted network is pulled back."""
    module = MeanFlow(Denoiser(Exact(), FlowPrecond(FlowTime(4.0))), shape=(1, 1, 1), spans=1.0, power=0.0)
    batch = {"x": MEAN + STD * torch.randn(100_000, 1, 1, 1)}
    slopes = []
    for weight in (0.9, 1.0, 1.1):
        module.zero_grad()
        with torch.no_grad():
            module.denoiser.net.weight.fill_(weight)
        rng.seed_default("slope")
        module.loss(batch)["loss"].mean().backward()
        slopes.append(module.denoiser.net.weight.grad.item())
    assert slopes[0] < -0.05 and abs(slopes[1]) < 0.02 and slopes[2] > 0.05


def test_times_are_ordered_and_mostly_equal():
    module = meanflow(schedule=Flow())
    seen = []
    module.average = lambda z, r, t, cond: seen.append((r, t)) or z  # type: ignore[method-assign]
    for _ in range(200):
        module.loss(pictures(6))
    r, t = (torch.cat(column) for column in zip(*(pair for pair in seen if len(pair[0]) == 6), strict=True))
    assert (r <= t).all() and (r >= 0).all() and (t <= 1).all()
    assert (r < t).float().mean().item() == pytest.approx(0.25, abs=0.04)
    r, t = module.times(4, torch.tensor([0.1, 0.4, 0.6, 0.9]))
    assert t.tolist() == pytest.approx([0.1, 0.4, 0.6, 0.9], rel=1e-5) and (r <= t).all()


def test_the_weight_holds_the_loss_near_one_and_keeps_the_direction_of_the_gradient():
    module, plain = meanflow(drop=0.0), None
    for power in (0.0, 1.0):
        module.power = power
        module.zero_grad()
        rng.seed_default("same")
        parts = module.loss({"x": pictures(1)["x"], "label": torch.tensor([1])})
        parts["loss"].mean().backward()
        grad = torch.cat([p.grad.flatten() for p in module.trained_parameters().values()])
        if plain is None:
            plain, total = grad, parts["loss"].item()
    torch.testing.assert_close(grad, plain / (total + module.floor), rtol=1e-4, atol=1e-7)
    assert parts["loss"].item() == pytest.approx(total / (total + module.floor))


def test_a_network_without_duration_is_a_flow_denoiser():
    """Duration 0 and no duration are one, so ordinary samplers follow the instantaneous velocity: many of either kind of step agree."""
    module = meanflow().eval()
    z, t = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9])
    sigma = t / (1 - t)
    x0 = module.denoiser(z * expand(1 + sigma, z), sigma, labels(3))
    torch.testing.assert_close(module.average(z, t, t, labels(3)), (z - x0) / expand(t, z), atol=1e-4, rtol=1e-4)
    guided = module.sample(2, labels(2), guidance=2.0, sampler=Euler(3, Flow()), seed=0)
    assert guided.shape == (2, 1, 8, 8) and not torch.equal(guided, module.sample(2, labels(2), sampler=Euler(3, Flow()), seed=0))


def test_one_evaluation_per_jump():
    module, calls = meanflow(), []
    module.denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    for steps in (1, 3):
        calls.clear()
        module.sample(2, labels(2), sampler=Jumps(steps), seed=0)
        assert len(calls) == steps
    noise = rng.randn((2, 1, 8, 8), rng.sample_generators(0, 2))
    one = noise - module.eval().average(noise, torch.zeros(2), torch.ones(2), labels(2))
    torch.testing.assert_close(module.sample(2, labels(2), seed=0), one.clamp(-1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanFlow(Denoiser(unet(vectors={"duration": 1}), EDMPrecond()), shape=(1, 8, 8)), "got EDMPrecond"),
        (lambda: MeanFlow(Denoiser(unet(vectors={"duration": 1}), FlowPrecond()), shape=(1, 8, 8)), "got FlowPrecond with LogSigma"),
        (lambda: MeanFlow(Denoiser(unet(), FlowPrecond(FlowTime())), shape=(1, 8, 8)), "vectors={'duration': 1"),
        (lambda: meanflow(spans=0.0), "got 0.0"),
        (lambda: Jumps(0), "got steps=0"),
        (lambda: meanflow().sample(2, labels(2), guidance=2.0), "cannot be guided"),
        (lambda: meanflow().sample(2, Cond(), guidance=2.0, sampler=Euler(2)), "needs conditions"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
