"""The results book: every experiment with a claim, trained, measured and judged: ``python -m benchmarks.results``, or ``make results``.

Trains under ``runs/`` what is not finished there (and first what an experiment begins from), measures it as ``diffx.evaluate`` does, and
writes ``docs/results/<experiment>.json`` with a picture beside it, then the table of ``docs/results.md`` from all such files. A result
whose recipe has not changed since is not made again; a training that was interrupted goes on. A missed claim is written down like any
other. ``--only digits`` takes one family, ``--only digits/dit`` one experiment; ``--seeds 0 1 2`` trains each three times.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser
from diffx.recipes.compose import compose
from diffx.recipes.errors import RecipeError
from diffx.recipes.lookup import names, search_path
from diffx.recipes.runs import environment

BOOK = "results"  # below docs/
ASIDE = {"runs", "run", "resume", "logger", "experiment", "description", "claim"}  # what does not change what is trained
BEGUN = re.compile(r"runs/([\w/]+)/main")

# What the source of a technique says it achieves, in few words; the figures beside it are ours, on our data.
SAYS = {
    "Autoencoder": "fewer numbers that keep what is seen",
    "ColdDiffusion": "degradations without noise can be undone and generate",
    "ConsistencyDistillation": "one or two steps instead of many",
    "DMD": "one step whose samples follow the teacher's law",
    "DiTDiffusion": "transformers on patches replace the U-Net",
    "EDM": "good samples in few deterministic steps",
    "GuidanceDistillation": "one network for all guidance scales",
    "InstructPix2Pix": "pictures changed as an instruction says",
    "KnowledgeEnhanced": "attention to key words makes prompts heard",
    "MaskedTokens": "all tokens in a few parallel rounds",
    "MeanFlow": "one step, from scratch",
    "NoiseBandExperts": "experts for bands of noise do better than one network",
    "Paella": "tokens from random ones in few steps",
    "Prior": "embeddings of pictures from captions",
    "ProgressiveDistillation": "half the steps, again and again",
    "RINDiffusion": "a few latents do the work of many patches",
    "SequenceDiffusion": "sound that can be continued",
    "SuperResolution": "large pictures from small, noisy ones",
    "TextualInversion": "a word for what a few pictures show",
    "VQAutoencoder": "pictures as a few codes from a book",
    "VideoDiffusion": "clips whose frames belong together",
}


def planned(only: str | None = None) -> list[str]:
    """Experiments with a claim whose names begin with ``only``, those that others begin from first.

    Raises:
        SystemExit: there is none.
    """
    known = names(search_path())
    chosen = [name for name in known if (only is None or name == only or name.startswith(f"{only}/")) and claims(name)]
    if not chosen:
        raise SystemExit(
            f"there is no experiment {only!r} with a claim; try one of {', '.join(sorted({name.split('/')[0] for name in known}))}"
        )
    ordered: list[str] = []
    for name in chosen:
        ordered += [first for first in [*begins(name), name] if first in chosen and first not in ordered]
    return ordered


def claims(experiment: str) -> bool:
    """Whether it makes a claim; one that needs files of the user's own makes none."""
    try:
        return bool(compose(experiment).tree.get("claim"))
    except RecipeError:
        return False


def begins(experiment: str) -> list[str]:
    """The experiments whose trained parts an experiment loads, in the order in which they must be trained."""
    found: list[str] = []
    for name in dict.fromkeys(BEGUN.findall(json.dumps(compose(experiment).tree))):
        found += [first for first in [*begins(name), name] if first not in found]
    return found


def fingerprint(experiment: str) -> str:
    """Hash of all that decides what is trained and measured, that of the experiments it begins from included."""
    trees = [{key: value for key, value in compose(name).tree.items() if key not in ASIDE} for name in [*begins(experiment), experiment]]
    return hashlib.sha256(json.dumps([*trees, compose(experiment).tree["claim"]], sort_keys=True).encode()).hexdigest()


def is_fresh(path: Path, experiment: str, seeds: Sequence[int]) -> bool:
    """Whether a file holds the result of this very recipe for these seeds."""
    if not path.is_file():
        return False
    held = json.loads(path.read_text(encoding="utf-8"))
    return held["recipe_sha256"] == fingerprint(experiment) and held["seeds"] == list(seeds)


def result(experiment: str, seeds: Sequence[int], runs: Path, picture: Path) -> dict[str, Any]:
    """Train and measure an experiment once for each seed; ``picture``, without suffix, gets samples of the first."""
    for name in begins(experiment):
        Run(name).train(runs)
    tree = compose(experiment).tree
    made = [_one(Run(experiment, *_variant(seed, seeds)), seed, runs) for seed in seeds]
    grid = Path(made[0].pop("grid", ""))
    for other in made[1:]:
        other.pop("grid", None)
    shown = None
    if grid.is_file():
        picture.parent.mkdir(parents=True, exist_ok=True)
        shown = picture.with_suffix(grid.suffix)
        shutil.copyfile(grid, shown)
    about = environment([])
    return {
        "experiment": experiment,
        "description": tree["description"],
        "technique": tree["module"]["_target_"].rpartition(".")[2],
        "begins_from": begins(experiment),
        "recipe_sha256": fingerprint(experiment),
        "commands": [f"python -m diffx.fit experiment={experiment} run=main", f"python -m diffx.evaluate experiment={experiment} run=main"],
        "commit": about["git"],
        "versions": about["versions"],
        "hardware": hardware(),
        "seeds": list(seeds),
        "claim": dict(tree["claim"]),
        "runs": made,
        "kept": _all(run["kept"] for run in made),
        "picture": None if shown is None else shown.name,
    }


def hardware() -> str:
    """The machine in words, without its name."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()} CPU, {os.cpu_count()} cores of which {torch.get_num_threads()} used, {memory:.0f} GiB{gpu}"


def _variant(seed: int, seeds: Sequence[int]) -> tuple[str, tuple[str, ...]]:
    """Name and overrides of the run with a seed; the first one is the one that others begin from."""
    return ("main", () if seed == 0 else (f"seed={seed}",)) if seed == seeds[0] else (f"seed{seed}", (f"seed={seed}",))


def _one(run: Run, seed: int, runs: Path) -> dict[str, Any]:
    run.train(runs)
    folder = run.folder(runs)
    out = folder / "evaluate" / "book"
    shutil.rmtree(out, ignore_errors=True)
    asked = [f"checkpoint={folder}", f"experiment={run.experiment}", f"out={out}"]  # judged by the claim of today, not of the run
    subprocess.run([sys.executable, "-m", "diffx.evaluate", *asked], check=True)
    report = json.loads(next(out.glob("*.json")).read_text(encoding="utf-8"))
    cost = folder / "cost.json"
    return {
        "seed": seed,
        "steps": compose(run.experiment, run.overrides).tree["trainer"]["max_steps"],
        "images_seen": report["images_seen"],
        "training": json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else None,
        "evaluation_cpu_seconds": report["cpu_seconds"],
        "samples": report["samples"],
        "sampler": report["sampler"],
        "guidance": report["guidance"],
        "figures": report["figures"],
        "verdict": report["verdict"],
        "kept": report["kept"],
        "grid": report.get("files", {}).get("grid", ""),
    }


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False where one is missed, None where one is open."""
    found = list(verdicts)
    return False if False in found else None if None in found else True


def row(held: Mapping[str, Any]) -> list[str]:
    """A line of the table: technique, what its source says, our figures, the verdict with its file, cost, picture, command."""
    said = []
    for name, bound in held["claim"].items():
        values = [run["figures"][name]["value"] for run in held["runs"] if name in run["figures"]]
        if name == "samples" or not values:
            continue
        figure = held["runs"][0]["figures"][name]
        real = next((f", real {figure[key]:.3g}" for key in ("floor", "held_out") if key in figure), "")
        met = {True: "", False: " **missed**", None: " open"}[_all(run["verdict"][name]["met"] for run in held["runs"])]
        spread = f"{values[0]:.3g}" if len(values) == 1 else f"{min(values):.3g} to {max(values):.3g}"
        said.append(f"{name} {spread} ({bound}{real}){met}")
    costs = [run["training"] for run in held["runs"] if run["training"]]
    cost = f"{costs[0]['cpu_seconds']:.0f} CPU s, {costs[0]['peak_memory_mib']:.0f} MiB" if costs else "not recorded"
    place = f"{BOOK}/{held['experiment']}"
    picture = f"![{held['experiment']}]({Path(place).parent.as_posix()}/{held['picture']})" if held["picture"] else ""
    verdict = {True: "met", False: "**missed**", None: "open"}[held["kept"]]
    judged = f"[{verdict}]({place}.json)"
    return [linked(held["technique"]), SAYS.get(held["technique"], ""), "; ".join(said), judged, cost, picture, f"`{held['commands'][0]}`"]


def linked(technique: str) -> str:
    """Its name, which leads to the page that explains it."""
    explained = f"autoclass:: diffx.techniques.{technique}\n"
    about = next(path for path in sorted((DOCS / "techniques").glob("*.md")) if explained in path.read_text(encoding="utf-8"))
    return f"[`{technique}`](techniques/{about.name})"


def page() -> str:
    """The table of all results there are."""
    held = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / BOOK).rglob("*.json"))]
    head = ["Technique", "Its source says", "Measured here (claimed, real data)", "Claim", "Training", "Samples", "Command"]
    return table(head, [row(one) for one in sorted(held, key=lambda one: (one["technique"], one["experiment"]))])


def main(argv: Sequence[str] | None = None) -> None:
    """Make what is not fresh, then the page."""
    read = parser("python -m benchmarks.results", __doc__)
    read.add_argument("--only", help="a family such as digits, or an experiment")
    read.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    options = read.parse_args(argv)
    for experiment in planned(options.only):
        path = DOCS / BOOK / f"{experiment}.json"
        if is_fresh(path, experiment, options.seeds):
            print(f"{experiment}: fresh")
            continue
        held = result(experiment, options.seeds, options.runs, path.with_suffix(""))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        fill("results.md", "book", page())
        print(f"{experiment}: {'the claim is met' if held['kept'] else 'the claim is missed' if held['kept'] is False else 'no verdict'}")
    fill("results.md", "book", page())


if __name__ == "__main__":
    main()
