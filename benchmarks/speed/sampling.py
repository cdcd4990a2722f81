"""What samplers and averages cost beside the network: walks under a denoiser that has its answer ready, and updates of moving averages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Setting, Subject
from benchmarks.speed.peers import k_diffusion_sampling
from benchmarks.speed.rows import Goal, Makers, Row
from diffx.averages import HalfLife
from diffx.callbacks.shadows import Shadows
from diffx.networks import UNet
from diffx.samplers import DPMpp2M, Euler

__all__ = ["SAMPLING", "walk_makers"]

STEPS, SHAPE = 20, (3, 64, 64)
REPEATS = {1: 40, 64: 2}  # walks in one measured call


def walk_makers(batch: int, setting: Setting) -> Makers:
    """Twenty steps of Euler's method and of DPM-Solver++ (2M) over pictures of 64 x 64."""
    x, answer = setting.randn(2, batch, *SHAPE)

    def walks(name: str, walk: Callable[[], object]) -> Subject:
        def call() -> None:
            with torch.no_grad():
                for _ in range(REPEATS.get(batch, 4)):
                    walk()

        return Subject(name, call, counted=False, images=batch * REPEATS.get(batch, 4))

    def ours(name: str, sampler: Any) -> Subject:
        return walks(name, partial(sampler(STEPS), lambda x, sigma: answer, x))

    def k_diffusion(name: str, function: str) -> Subject:
        sampling = k_diffusion_sampling()
        sigmas = sampling.get_sigmas_karras(STEPS, 0.002, 80.0, device=setting.device)
        return walks(name, lambda: getattr(sampling, function)(lambda x, sigma: answer, x, sigmas, disable=True))

    def diffusers(name: str, scheduler: str) -> Subject:
        import diffusers as package

        schedule = getattr(package, scheduler)()

        def walk() -> Tensor:
            schedule.set_timesteps(STEPS)
            state = x
            for t in schedule.timesteps:
                state = schedule.step(answer, t, schedule.scale_model_input(state, t) if hasattr(schedule, "scale_model_input") else state)
                state = state.prev_sample
            return state

        return walks(name, walk)

    makers = {
        "k-diffusion Euler": partial(k_diffusion, function="sample_euler"),
        "k-diffusion 2M": partial(k_diffusion, function="sample_dpmpp_2m"),
        "diffx Euler": partial(ours, sampler=Euler),
        "diffx 2M": partial(ours, sampler=DPMpp2M),
        "diffusers EulerDiscrete": partial(diffusers, scheduler="EulerDiscreteScheduler"),
        "diffusers DPMSolverMultistep": partial(diffusers, scheduler="DPMSolverMultistepScheduler"),
        "diffusers FlowMatchEuler": partial(diffusers, scheduler="FlowMatchEulerDiscreteScheduler"),
    }
    return {name: partial(make, name) for name, make in makers.items()}


def average_makers(setting: Setting) -> Makers:
    """One update of the averages of the weights of a U-Net with 48 million parameters."""

    def net() -> UNet:
        return UNet(width=160, mults=(1, 2, 2), blocks=2).to(setting.device)

    def update(name: str, make: Callable[[nn.Module], Callable[[], object]]) -> Subject:
        module = net()
        return Subject(name, make(module), sum(p.numel() for p in module.parameters()), counted=False)

    def foreach(module: nn.Module) -> Callable[[], object]:
        sources = [p.detach() for p in module.parameters()]
        averages = [p.clone() for p in sources]
        return lambda: torch._foreach_lerp_(averages, sources, 0.001)

    def ours(module: nn.Module) -> Callable[[], object]:
        shadows = Shadows(dict(module.named_parameters()), {"ema": HalfLife(20_000)})
        return lambda: shadows.update(64)

    def ema_pytorch(module: nn.Module) -> Callable[[], object]:
        from ema_pytorch import EMA

        return EMA(module, update_after_step=0, update_every=1, use_foreach=True).update

    def diffusers(module: nn.Module) -> Callable[[], object]:
        from diffusers.training_utils import EMAModel

        ema = EMAModel(module.parameters(), foreach=True)
        return lambda: ema.step(module.parameters())

    def lightning(module: nn.Module) -> Callable[[], object]:
        from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

        averaged = AveragedModel(module, avg_fn=get_ema_avg_fn(0.999))  # what Lightning's EMAWeightAveraging does in a step
        averaged.update_parameters(module)
        return lambda: averaged.update_parameters(module)

    makers = {"torch._foreach_lerp_": foreach, "diffx EMA": ours, "ema-pytorch, foreach": ema_pytorch,
              "diffusers EMAModel, foreach": diffusers, "Lightning's EMAWeightAveraging": lightning}  # fmt: skip
    return {name: partial(update, name, make) for name, make in makers.items()}


def _walk_goals() -> tuple[Goal, ...]:
    return (
        Goal("diffx Euler", "k-diffusion Euler", 0.30),
        Goal("diffx Euler", "diffusers EulerDiscrete", 0.30),
        Goal("diffx Euler", "diffusers FlowMatchEuler", 0.60),
        Goal("diffx 2M", "k-diffusion 2M", 0.30),
        Goal("diffx 2M", "diffusers DPMSolverMultistep", 0.30),
    )


SAMPLING: tuple[Row, ...] = (
    Row("walk_1", "sampler without network, 20 steps, one picture of 3 x 64 x 64 (40 walks)", partial(walk_makers, 1), _walk_goals(),
        rounds=15, short=True),
    Row("walk_64", "the same, 64 pictures (2 walks)", partial(walk_makers, 64), _walk_goals(), rounds=9),
    Row("ema", "update of averages, 48 M parameters", average_makers, (
        Goal("diffx EMA", "torch._foreach_lerp_", 1.05),
        Goal("diffx EMA", "Lightning's EMAWeightAveraging", 0.32),
    ), rounds=9, short=True),
)  # fmt: skip
