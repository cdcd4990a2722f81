"""Reports of an evaluation: as a table, as JSON, with a grid of the samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import files, media

__all__ = ["table", "write"]

SHOWN = {"sounds": 32, "pictures": 100}  # samples in the grid; spectra of sounds are large


def table(report: Mapping[str, Any]) -> str:
    """Figures, bounds, verdicts and what real data scores, one figure a line."""
    lines = [f"{report['samples']} samples, seed {report['seed']}, guidance {report['guidance']}"]
    for name, figure in report["figures"].items():
        entry = report["verdict"].get(name, {})
        met = {True: "met", False: "MISSED", None: "open" if entry else ""}[entry.get("met")]
        real = ", ".join(f"{key.replace('_', '-')} {figure[key]:.3f}" for key in ("floor", "held_out") if key in figure)
        shuffled = f"with shuffled prompts {figure['shuffled']:.3f}" if "shuffled" in figure else ""
        judge = f"on {figure['on']}" if "on" in figure else ""
        naive = f"the naive way {figure['naive']:.3f}" if "naive" in figure else ""
        notes = "; ".join(filter(None, [entry.get("reason", ""), f"real: {real}" if real else "", judge, shuffled, naive]))
        lines.append(f"  {name:<17}{figure['value']:>9.4f}  {entry.get('bound', ''):<18}{met:<7} {notes}".rstrip())
    lines += [f"  {name:<17}{'-':>9}  {entry['bound']:<18}open    {entry['reason']}" for name, entry in report["verdict"].items()
              if name not in report["figures"]]  # fmt: skip
    if report["claim"]:
        lines.append({True: "the claim is met", False: "the claim is MISSED", None: "no verdict on the claim"}[report["kept"]])
    return "\n".join([*lines, *(f"{kind}: {path}" for kind, path in report.get("files", {}).items())])


def write(report: Mapping[str, Any], samples: Tensor, labels: Tensor | None, folder: Path, name: str | None = None) -> dict[str, str]:
    """Write a report as JSON and its first samples as a grid, one column a class; give back the paths.

    Args:
        report: what `diffx.metrics.evaluate` returns.
        samples: (N, *) the samples; only pictures, clips and sounds get a grid.
        labels: (N,) the classes asked for in turn, if any.
        folder: where both files go.
        name: their name without suffix; says weights, count, sampler, guidance and seed by default.

    Raises:
        OSError: the folder cannot be written.
    """
    name = name or _name(report)
    paths = {"report": folder / f"{name}.json"}
    if media.showable(samples.shape[1:]):
        shown = SHOWN["sounds" if samples.ndim == 3 else "pictures"]
        classes = 0 if labels is None else len(labels[:shown].unique())
        sheet = media.grid(samples[:shown], columns=classes if 1 < classes <= 20 else None)
        paths["grid"] = media.save(sheet, folder / f"{name}.{'png' if sheet.ndim == 3 else 'gif'}")
    written = {kind: str(path) for kind, path in paths.items()}
    text = json.dumps({**report, "files": written}, indent=1)
    files.write(paths["report"], lambda file: file.write(text.encode()))
    return written


def _name(report: Mapping[str, Any]) -> str:
    walk = report["sampler"] if isinstance(report["sampler"], Mapping) else {}
    kind = str(walk.get("_target_", "sampler")).rpartition(".")[2].lower()
    guidance = report["guidance"] if isinstance(report["guidance"], (int, float)) else "guide"
    parts = [
        report.get("weights"),
        f"n{report['samples']}",
        f"{kind}{walk.get('steps', '')}",
        f"w{guidance:g}" if guidance != "guide" else guidance,
    ]
    return "-".join([*(str(part).replace(":", "_") for part in parts if part), f"seed{report['seed']}"])
