"""Model cards: what a trained model is, what it was trained on, what it reaches, under which licence, in Markdown."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recipes import recipe_of
from ..recipes.record import public_name
from ..recipes.text import parse, show

__all__ = ["Run", "card", "run_of"]

UNSAID = "not said"
UNMEASURED = "## Figures\n\nNothing was measured: there is no evaluation of these weights.\n"


class Run:
    """What the run folder of a checkpoint says; everything is empty where there is none.

    Args:
        folder: the run folder, or None.
        checkpoint: the file, whose name an evaluation must bear to count.
        weights: likewise.
    """

    def __init__(self, folder: Path | None = None, checkpoint: str = "", weights: str = "ema") -> None:
        self.folder = folder
        config = {} if folder is None else parse((folder / "config.yaml").read_text(encoding="utf-8")) or {}
        self.config: dict[str, Any] = {key: value for key, value in config.items() if key != "runs"}  # a place on somebody's machine
        self.environment = {} if folder is None or not (folder / "env.json").is_file() else json.loads((folder / "env.json").read_text())
        self.reports = [] if folder is None else _reports(folder / "evaluate", checkpoint, weights)


def run_of(checkpoint: Path, weights: str = "ema") -> Run:
    """The run that a checkpoint lies in: ``<run>/checkpoints/<file>`` beside ``<run>/config.yaml``."""
    folder = checkpoint.resolve().parent.parent
    return Run(folder, checkpoint.name, weights) if (folder / "config.yaml").is_file() else Run()


def card(module: Any, run: Run, *, weights: str = "ema", form: str = "diffusers", license: str | None = None,
         data_license: str | None = None) -> str:  # fmt: skip
    """The card of a module; ``{sha256}`` in it stands for the checksum of its weights.

    Args:
        module: a `DiffusionModule`.
        run: where it comes from.
        weights: which weights of its checkpoint.
        form: ``"diffusers"``, ``"stock"`` or ``"safetensors"``; how the card says to load it.
        license: of the weights, an identifier such as ``apache-2.0``; None says that nobody said.
        data_license: of the data.
    """
    name = type(module).__name__
    front = {
        "license": license or "unknown",
        "library_name": "diffx" if form == "safetensors" else "diffusers",
        "tags": ["diffx", "diffusion", name],
    }
    first = (inspect.getdoc(type(module)) or name).split("\n\n")[0].replace("\n", " ")
    recipe = run.config or {"module": recipe_of(module)}
    parts = [
        f"---\n{show(front)}---\n\n# {run.config.get('description') or name}\n",
        f"{name} (`{public_name(type(module))}`): {first}\n",
        _table(
            {
                **_facts(module, run, weights, form),
                "licence of the weights": license or UNSAID,
                "licence of the data": data_license or UNSAID,
            }
        ),
        f"## Use\n\n{_use(module, form)}",
        *([_figures(report) for report in run.reports] or [UNMEASURED]),
        f"## Recipe\n\n```yaml\n{show(recipe)}```\n",
    ]
    return "\n".join(parts)


def _facts(module: Any, run: Run, weights: str, form: str) -> dict[str, Any]:
    from ..version import __version__

    data = run.config.get("data", {})
    git = run.environment.get("git") or {}
    dirty = ", and changes that were not committed" if git.get("dirty") else ""
    return {
        "data": f"`{data['_target_']}`" if "_target_" in data else UNSAID,
        "shape of a sample": tuple(module.shape),
        "images seen in training": module.images_seen,
        "weights": weights,
        **({} if form == "stock" else {"sha256 of the weights' file": "{sha256}"}),
        "exported by": f"diffx {__version__}",
        **({"source revision of the training": f"{git['revision']}{dirty}"} if git.get("revision") else {}),
    }


def _use(module: Any, form: str) -> str:
    takes = getattr(getattr(getattr(module, "denoiser", None), "net", None), "conditions", None)
    if form == "safetensors":
        return "```python\nimport diffx\n\nmodule = diffx.load(FILE)\npictures = module.sample(4, seed=0)\n```\n"
    if form == "stock" and hasattr(module, "reconstruct"):
        return "```python\nfrom diffusers import AutoencoderKL\n\nautoencoder = AutoencoderKL.from_pretrained(FOLDER)\n```\n"
    if form == "stock":
        lines = ["from diffusers import DiffusionPipeline", "", "pipe = DiffusionPipeline.from_pretrained(FOLDER)",
                 f"images = pipe(batch_size=4, num_inference_steps={module.sampler.steps}).images"]  # fmt: skip
        return "```python\n{}\n```\n".format("\n".join(lines))
    asked = ", class_labels=0" if getattr(takes, "classes", 0) else ', prompt="..."' if getattr(module, "text", None) is not None else ""
    lines = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)  # runs pipeline.py, which imports diffx",
        f"images = pipe(4{asked}, generator=torch.Generator().manual_seed(0)).{'audios' if len(module.shape) == 2 else 'images'}",
    ]
    return "```python\n{}\n```\n\n`diffx.load(FOLDER)` gives the module, to train it further or to distil it.\n".format("\n".join(lines))


def _figures(report: Mapping[str, Any]) -> str:
    """Figures of an evaluation, with the claim's bounds and what real data scores."""
    rows = []
    for name, figure in report["figures"].items():
        verdict = report["verdict"].get(name, {})
        met = {True: "met", False: "missed", None: "open" if verdict else ""}[verdict.get("met")]
        real = ", ".join(f"{key.replace('_', '-')} {figure[key]:.4f}" for key in ("floor", "held_out") if key in figure)
        rows.append(f"| {name} | {figure['value']:.4f} | {verdict.get('bound', '')} | {met} | {real} |")
    kept = {True: "The claim is met.", False: "The claim is missed.", None: "There is no verdict on a claim."}[report["kept"]]
    return (
        f"## Figures\n\nOf {report['samples']} samples, seed {report['seed']}, guidance {report['guidance']}. {kept}\n\n"
        f"| figure | value | claimed | | real data |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Measured by `{report.get('command', 'diffx.metrics.evaluate')}`.\n"
    )


def _reports(folder: Path, checkpoint: str, weights: str) -> list[dict[str, Any]]:
    """Evaluations of these very weights, the oldest first."""
    found = []
    for path in sorted(folder.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict) and Path(report.get("checkpoint", "")).name == checkpoint and report.get("weights") == weights:
            found.append(report)
    return found


def _table(facts: Mapping[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in facts.items())
