"""Students of a few steps beside their teacher, all from the same noise: ``python -m benchmarks.distillation``, or ``make distillation``.

Trains under ``runs/`` what is not there yet (about two hours on one core in all), draws 1,000 class-balanced samples with 1, 2, 4, 8 and 16
steps of every student and of the undistilled teacher, and writes the tables and curves of ``docs/techniques/distillation.md``. The
reference is the teacher with 64 Euler steps on the grid sigma(u) = sd tan(u atan(80 / sd)). Of every set of samples:

- ``accuracy``: share to which a judge of real digits gives the class asked for;
- ``frechet``: to the training digits, on pixels;
- ``nearest``: median distance to the nearest training digit (held-out digits have the yardstick);
- ``rms``: to the reference made from the same noise, and its ratio to that of the undistilled teacher with as many steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffx
from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser, train
from diffx import Cond, Digits
from diffx.guidance import classifier_free
from diffx.metrics import ClassJudge, frechet, nearest
from diffx.metrics.frechet import Moments
from diffx.metrics.real import real_items
from diffx.rng import forked, noised, stratified
from diffx.samplers import Euler, Heun, MultiStep, Sampler
from diffx.schedules import Levels, LogNormal, Tangent
from diffx.techniques.meanflow import Jumps

N, STEPS, REFERENCE = 1000, (1, 2, 4, 8, 16), 64
GRID = Tangent(0.752)
SCALES = (1.0, 2.0, 3.0, 5.0)
FLOW = ("module.denoiser.precond={_target_: diffx.FlowPrecond}",)
TOKENS = ("module.features=blocks.1", "module.discriminator.channels=96", "module.discriminator.axis=-1")
# What students of other teachers are called: the teacher's run, and what its features need.
TEACHERS: dict[str, tuple[Run, tuple[str, ...]]] = {
    "from_dit": (Run("digits/dit"), TOKENS),
    "from_flow": (Run("digits/edm", "flow_teacher", FLOW), ()),
}

Row = dict[str, float]


def planned(seeds: int) -> list[Run]:
    """All trainings, in their order."""
    runs = [Run(f"digits/{name}") for name in ("teacher", "progressive", "guided", "guided_few", "consistency")]
    runs += [Run(f"digits/{name}", f"seed{seed}", (f"module.seed={seed}",)) for seed in range(seeds) for name in ("dmd", "meanflow")]
    for name, (teacher, features) in TEACHERS.items():
        told = (f"module.teacher.path=runs/{teacher.experiment}/{teacher.name}",)
        runs += [teacher, *(Run(f"digits/{student}", name, told) for student in ("progressive", "guided", "consistency"))]
        runs.append(Run("digits/dmd", name, (*told, *features)))
    return runs


@dataclass(frozen=True)
class Yardstick:
    """What samples are measured with, fitted once to the real digits."""

    train: Mapping[str, Any]
    held_out: Mapping[str, Any]
    judge: ClassJudge
    moments: Moments

    @classmethod
    def of(cls, data: Digits) -> Yardstick:
        """Fit to the training part of ``data``."""
        train, held_out = real_items(data)
        assert held_out is not None
        return cls(train, held_out, ClassJudge().fit(train["x"], train["label"]), Moments(train["x"].flatten(1)))

    def figures(self, samples: Tensor, labels: Tensor, reference: Tensor) -> Row:
        """The figures of samples (N, 1, 8, 8) that were asked to show ``labels`` (N,)."""
        return {
            "accuracy": self.judge.accuracy(samples, labels),
            "frechet": frechet(samples.flatten(1), self.moments),
            "nearest": nearest(samples.flatten(1), self.train["x"].flatten(1))[0].median().item(),
            "rms": (samples - reference).square().mean().sqrt().item(),
        }


def labels() -> Tensor:
    """The classes asked for, balanced, (N,)."""
    return torch.arange(N) % 10


def draw(module: Any, sampler: Any = None, guidance: float = 1.0) -> Tensor:
    """N samples from the noise that every subject gets."""
    return module.sample(N, Cond(label=labels()), sampler=sampler, guidance=guidance, seed=0, chunk=250).float().cpu()


def jumps(steps: int) -> Sampler:
    """`MultiStep` from level 80; where there are more steps, the others lie evenly in ln sigma around 0.8."""
    between = [0.8] if steps == 2 else torch.logspace(0.4, -0.6, max(steps - 1, 0)).tolist()
    return MultiStep(steps, Levels((80.0, *between)))


@cache
def load(path: str, weights: str = "ema") -> Any:
    """A module from a run folder or a checkpoint."""
    return diffx.load(path, weights=weights)


def stages(folder: Path, first: int) -> Callable[[int], Any]:
    """Steps -> the student made for them, of a progressive distillation whose first student has ``first`` steps."""
    return lambda steps: load(str(folder / "checkpoints" / f"phase_{(first // steps).bit_length() - 1}.ckpt"), "raw")


# Measuring --------------------------------------------------------------------------------------------------------------------------------


def few_steps(teacher: Any, students: Mapping[str, Callable[[int], Tensor]], yardstick: Yardstick) -> dict[str, dict[int, Row]]:
    """Figures by subject and steps; the teacher itself is the subject ``undistilled``, and its row 64 the reference."""
    reference = draw(teacher, Euler(REFERENCE, GRID))
    subjects = {"undistilled": lambda steps: draw(teacher, Euler(steps, GRID)), **students}
    found = {name: {k: yardstick.figures(make(k), labels(), reference) for k in STEPS} for name, make in subjects.items()}
    for rows in found.values():
        for steps, row in rows.items():
            row["ratio"] = row["rms"] / found["undistilled"][steps]["rms"]
    found["undistilled"][REFERENCE] = yardstick.figures(reference, labels(), reference)
    return found


def guided_steps(teacher: Any, student: Callable[[int], Any], yardstick: Yardstick) -> dict[float, dict[str, dict[int, Row]]]:
    """As `few_steps`, under every scale: the guided teacher with two evaluations a step against the student that is told the scale."""
    found = {}
    for scale in SCALES:
        reference = draw(teacher, Euler(REFERENCE, GRID), scale)
        found[scale] = {
            "undistilled": {k: yardstick.figures(draw(teacher, Euler(k, GRID), scale), labels(), reference) for k in STEPS},
            "guided": {k: yardstick.figures(draw(student(k), guidance=scale), labels(), reference) for k in STEPS},
        }
        for k, row in found[scale]["guided"].items():
            row["ratio"] = row["rms"] / found[scale]["undistilled"][k]["rms"]
    return found


@torch.no_grad()
def first_stage(teacher: Any, module: Any, yardstick: Yardstick) -> dict[float, Row]:
    """How well one network that is told the scale w stands for two evaluations: D on noised training digits, and samples.

    ``error``: |D_student - D_w| / |D_w|. ``missed``: |D_student - D_w| / |D_w - D_c|, which is 1 for a student that ignores the scale.
    ``frechet``: of the student's samples to the teacher's, Heun with 12 steps.
    """
    x, label = yardstick.train["x"], yardstick.train["label"]
    whole = Cond(label=label)
    with forked("distillation"):
        sigma = LogNormal(-0.8, 1.2).sigma(stratified(len(x)))
        noisy = noised(x, sigma)
    plain, found = teacher.denoiser(noisy, sigma, whole), {}
    for scale in SCALES:
        wanted = classifier_free(teacher.denoiser, whole, whole.hidden(), scale)(noisy, sigma)
        apart = (module.denoiser(noisy, sigma, module.told(whole, len(x), scale)) - wanted).norm()
        effect = (wanted - plain).norm()
        theirs, ours = (draw(part, Heun(12), scale) for part in (teacher, module))
        found[scale] = {
            "error": (apart / wanted.norm()).item(),
            "missed": (apart / effect).item() if effect else float("nan"),
            "frechet": frechet(ours.flatten(1), Moments(theirs.flatten(1))),
        }
    return found


def students(folder: Path, run: str, dmd: str) -> dict[str, Callable[[int], Tensor]]:
    """Steps -> samples, of the students whose runs have this name; that of DMD2 is given apart."""
    few = stages(folder / "progressive" / run, REFERENCE // 2)
    tuned, matched = load(str(folder / "consistency" / run)), load(str(folder / "dmd" / dmd))
    return {
        "progressive": lambda k: draw(few(k)),
        "consistency": lambda k: draw(tuned, jumps(k)),
        "dmd": lambda k: draw(matched, jumps(k)),
    }


def measured(runs: Path, seeds: int) -> dict[str, Any]:
    """Everything that the page shows."""
    folder = runs / "digits"
    yardstick = Yardstick.of(Digits())
    teacher = load(str(folder / "teacher/main"))
    others = {name: load(str(run.folder(runs))) for name, (run, _) in TEACHERS.items()}
    meanflow = load(str(folder / "meanflow/seed0"))
    main = {**students(folder, "main", "seed0"), "meanflow": lambda k: draw(meanflow, Jumps(k))}
    held_out = nearest(yardstick.held_out["x"].flatten(1), yardstick.train["x"].flatten(1))[0].median().item()
    reference = draw(teacher, Euler(REFERENCE, GRID))
    return {
        "real": {"nearest": held_out, "frechet": frechet(yardstick.held_out["x"].flatten(1), yardstick.moments)},
        "teacher": few_steps(teacher, main, yardstick),
        **{name: few_steps(other, students(folder, name, name), yardstick) for name, other in others.items()},
        "guided": guided_steps(teacher, stages(folder / "guided_few/main", 16), yardstick),
        "first_stage": {
            "teacher": first_stage(teacher, load(str(folder / "guided/main")), yardstick),
            **{name: first_stage(other, load(str(folder / "guided" / name)), yardstick) for name, other in others.items()},
        },
        "seeds": {
            name: {seed: yardstick.figures(draw(load(str(folder / name / f"seed{seed}"))), labels(), reference) for seed in range(seeds)}
            for name in ("dmd", "meanflow")
        },
    }


# The page ---------------------------------------------------------------------------------------------------------------------------------

COLUMNS = ("accuracy", "frechet", "nearest", "rms", "ratio")


def claims(found: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """What is promised, what came out and the largest value that keeps the promise."""
    teacher, first = found["teacher"]["undistilled"], found["first_stage"]["teacher"]
    progressive, consistency = found["teacher"]["progressive"], found["teacher"]["consistency"]
    goal = teacher[REFERENCE]["frechet"]
    promised = [(f"progressive, {k} steps: rms over undistilled", progressive[k]["ratio"], bound) for k, bound in ((4, 0.60), (2, 0.50))]
    for k, bound in ((2, 1.6), (1, 2.2)):
        promised.append((f"progressive, {k} steps: Fréchet over the teacher's {REFERENCE} steps", progressive[k]["frechet"] / goal, bound))
    for k, bound in ((4, 0.70), (2, 0.35), (1, 0.15)):
        promised.append((f"progressive, {k} steps: Fréchet over undistilled", progressive[k]["frechet"] / teacher[k]["frechet"], bound))
    promised.append(("guided, first stage: share of the effect missed at scale 3", first[3.0]["missed"], 0.55))
    promised.append(("guided, first stage: relative error at scale 1", first[1.0]["error"], 0.13))
    for scale in (1.0, 2.0, 3.0):
        promised.append((f"guided, first stage: Fréchet to the teacher at scale {scale:g}", first[scale]["frechet"], 0.20))
    for k, bound in ((1, 1.0), (2, 0.5)):
        promised.append((f"consistency, {k} steps: Fréchet", consistency[k]["frechet"], bound))
    return promised


def page(found: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by their place."""
    verdicts = [[text, f"{value:.3f}", f"{bound:g}", "met" if value <= bound else "**missed**"] for text, value, bound in claims(found)]
    guided = [[f"{scale:g}", str(k), *numbers(pair["guided"][k]), *numbers(pair["undistilled"][k], ("rms",))]
              for scale, pair in found["guided"].items() for k in STEPS]  # fmt: skip
    first = [[name, f"{scale:g}", *numbers(row, ("error", "missed", "frechet"))]
             for name, rows in found["first_stage"].items() for scale, row in rows.items()]  # fmt: skip
    seeds = [[name, str(seed), *numbers(row, COLUMNS[:4])] for name, rows in found["seeds"].items() for seed, row in rows.items()]
    return {
        "claims": table(["Claim", "Measured", "At most", ""], verdicts),
        "teacher": steps_table(found["teacher"]),
        **{name: steps_table(found[name]) for name in TEACHERS},
        "guided": table(["Scale", "Steps", *COLUMNS, "undistilled rms"], guided),
        "first_stage": table(["Teacher", "Scale", "relative error", "share missed", "Fréchet to the teacher"], first),
        "seeds": table(["Technique", "Seed", *COLUMNS[:4]], seeds),
    }


def numbers(row: Row, columns: Sequence[str] = COLUMNS) -> list[str]:
    """Figures as the page shows them; what is not there, or not a number, is a dash."""
    return [f"{row[name]:.3f}" if row.get(name, float("nan")) == row.get(name) else "–" for name in columns]


def steps_table(rows: Mapping[str, Mapping[int, Row]]) -> str:
    """One line per subject and number of steps."""
    return table(["", "Steps", *COLUMNS], [[name, str(k), *numbers(row)] for name, by_steps in rows.items() for k, row in by_steps.items()])


def curves(found: Mapping[str, Mapping[int, Row]], path: Path) -> None:
    """Fréchet distance and rms over the number of steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, name, title in zip(
        axes, ("frechet", "rms"), ("Fréchet distance to the training digits", "rms to the teacher's 64 steps"), strict=True
    ):
        for subject, rows in found.items():
            axis.plot(STEPS, [rows[k][name] for k in STEPS], marker="o", markersize=3, label=subject)
        axis.set(xscale="log", yscale="log", xlabel="steps", title=title, xticks=STEPS, xticklabels=map(str, STEPS))
        axis.minorticks_off()
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    line = parser("python -m benchmarks.distillation", __doc__)
    line.add_argument("--seeds", type=int, default=5, help="training seeds of DMD and MeanFlow (default: 5)")
    given = line.parse_args(argv)
    runs: Path = given.runs
    train(runs, planned(given.seeds))
    found = measured(runs, given.seeds)
    (runs / "digits" / "distillation.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for place, text in page(found).items():
        fill("techniques/distillation.md", place, text)
    curves(found["teacher"], DOCS / "images" / "digits-distillation.png")
    for text, value, bound in claims(found):
        print(f"{text:70} {value:8.3f}  <= {bound:g}  {'met' if value <= bound else 'MISSED'}")


if __name__ == "__main__":
    main()
