"""Every network under every objective: one denoiser trains them all, because each objective is a weight on the same error."""

import pytest
import torch
from network_list import NETWORKS

from diffx import EDM, Denoiser
from diffx.denoiser import EDMPrecond, EpsPrecond, FlowPrecond, VPrecond, X0Precond
from diffx.recipes.build import build
from diffx.recipes.compose import compose
from diffx.rng import noised
from diffx.schedules import Cosine, Flow, LogNormal
from diffx.tensors import mean_flat

OBJECTIVES = {
    "eps": (EpsPrecond(), Cosine(-10, 10)),
    "v": (VPrecond(), Cosine(-10, 10)),
    "x0": (X0Precond(), Cosine(-10, 10)),
    "edm": (EDMPrecond(0.5), LogNormal()),
    "flow": (FlowPrecond(), Flow(1e-2, 1e2)),
}
PAIRS = [pytest.param(name, objective, id=f"{name}-{objective}") for name in NETWORKS for objective in OBJECTIVES]
QUICK = {"unet": "v", "dit": "flow", "rin": "eps", "uvit": "edm", "mlp": "x0"}


def module(name, objective):
    case, (precond, schedule) = NETWORKS[name], OBJECTIVES[objective]
    torch.manual_seed(0)
    channels = case.shape[0]
    net = case.make()
    made = EDM(Denoiser(net, precond), shape=case.shape, schedule=schedule, drop=0.0)
    made.condition = lambda batch: case.cond(net, len(batch["latent"]))  # all that the network takes
    return made, channels


@pytest.mark.parametrize(("name", "objective"), PAIRS)
def test_the_loss_is_the_squared_error_of_what_the_network_predicts(name, objective):
    """The weighted error of x0 equals the plain one in the network's own space; SNR, SNR + 1 and so on are the factors between spaces."""
    case, (precond, schedule) = NETWORKS[name], OBJECTIVES[objective]
    denoiser = Denoiser(case.awake(), precond).double()
    x = case.data(5)[0].double()
    sigma = schedule.sigma(torch.linspace(0.1, 0.9, 5, dtype=torch.float64))
    state, cond = noised(x, sigma), case.cond(denoiser.net, 5).map(lambda t: t.double() if t.is_floating_point() else t)
    out = denoiser.raw(state, sigma, cond)[0][:, : x.shape[1]]
    error = mean_flat((denoiser(state, sigma, cond) - x).square())
    own = mean_flat((out - denoiser.target(state, sigma, x)).square())
    torch.testing.assert_close(denoiser.weight(sigma) * error, own, rtol=1e-9, atol=0)
    snr = sigma**-2
    factor = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr), "edm": snr + 4, "flow": ((1 + sigma) / sigma) ** 2}
    torch.testing.assert_close(denoiser.weight(sigma), factor[objective], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "objective"),
    [*[pytest.param(n, o, id=f"{n}-{o}") for n, o in QUICK.items()],
     *[pytest.param(*pair.values, id=pair.id, marks=pytest.mark.slow) for pair in PAIRS if QUICK.get(pair.values[0]) != pair.values[1]]],
)  # fmt: skip
def test_200_steps_lower_the_loss(name, objective):
    """By a tenth and more, on one batch of four smooth things under conditions of theirs, over the same 64 noises before and after."""
    made, _ = module(name, objective)
    cond = NETWORKS[name].cond(made.denoiser.net, 16)
    made.condition = lambda batch: cond
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *made.shape, generator=generator).cumsum(-1).tanh().repeat_interleave(4, 0)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)

    @torch.no_grad()
    def now():
        made.eval()
        torch.manual_seed(1)
        return torch.stack([made.loss({"latent": x})["loss"].mean() for _ in range(4)]).mean().item()

    before = now()
    made.train()
    for step in range(200):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        made.loss({"latent": x})["loss"].mean().backward()
        optimizer.step()
    assert now() < 0.9 * before


@pytest.mark.parametrize("precond", ["EpsPrecond", "VPrecond", "X0Precond", "EDMPrecond", "FlowPrecond"])
@pytest.mark.parametrize("experiment", ["digits/edm", "digits/dit", "digits/uvit"])
def test_the_objective_is_one_key_of_an_experiment(experiment, precond):
    target = f"{{_target_: diffx.denoiser.{precond}}}"
    given = f"module.denoiser.precond={target}"
    if experiment == "digits/dit":  # whose denoiser is a bare network
        net = compose(experiment).tree["module"]["denoiser"]
        given = f"module.denoiser={{_target_: diffx.Denoiser, net: {net}, precond: {target}}}"
    made = build(compose(experiment, [given]).tree["module"])
    assert type(made.denoiser.precond).__name__ == precond
    assert made.loss({"x": torch.zeros(2, 1, 8, 8), "label": torch.tensor([1, 2])})["loss"].isfinite().all()
