"""Draw samples from a checkpoint: ``python -m diffx.sample checkpoint=runs/digits/edm/ID n=16 label=3 guidance=2``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import cli
from .recipes.errors import RecipeError, hint

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Options", "check_sampler", "main"]

USAGE = """
python -m diffx.sample checkpoint=PATH [key=value ...]

keys
  checkpoint=PATH        a checkpoint, or a run folder (its newest good checkpoint)
  n=16                   number of samples; with labels=[...] or text=[...] as many as there are of them
  label=3                one class for all; labels=[0, 1, 2] one class each, repeated up to n; neither: no condition
  text="a red circle"    one prompt for all; text=[...] one each, repeated up to n, null for a sample without one;
                         text={COLUMN: ...} for a model whose encoders read other columns than "text"
  images=FILE.npz        pictures or sounds that the model refines (super-resolution), as save=npz writes them, repeated up to n;
                         or one picture, or one sound file at the rate that the model takes
  size=[64, 96]          height and width in pixels, for a model trained in buckets; the module's own by default
  guidance=1             1 is off, 0 ignores the condition
  tile=512 overlap=128   draw large pictures in tiles of so many pixels, blended where they overlap; no tiles by default
  steps=18               sampling steps; the model's own by default
  sampler=Euler          by name, or as a mapping with _target_; the model's own by default
  seed=0                 sample i is a function of seed + i alone
  weights=ema            ema, ema:NAME or raw
  chunk=64               samples drawn at once
  out=FOLDER             samples/ of the run folder by default, else samples/
  save=png               png, or npz or safetensors beside it: the samples themselves, float32 in [-1, 1]
  rate=HZ                samples per second of a model of sound, to write wav files; the run's own data say it by default
  device=auto            auto, cpu, cuda, cuda:1, ...
  trust=false            true: let the checkpoint build classes of any package; only for files whose origin you know

examples
  python -m diffx.sample checkpoint=runs/digits/edm/20260101-120000 n=100 'labels=[0,1,2,3,4,5,6,7,8,9]' guidance=2
  python -m diffx.sample checkpoint=last.ckpt sampler=DPMpp2M steps=12 save=npz out=pictures
  python -m diffx.sample checkpoint=runs/shapes/text_unet/ID 'text=[a red circle, a blue square]' guidance=3
"""


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.sample --help``."""

    checkpoint: str
    n: int | None = None
    label: int | None = None
    labels: list[int] | None = None
    text: str | list[str | None] | dict | None = None
    images: str | None = None
    size: list[int] | None = None
    guidance: float = 1.0
    tile: int | None = None
    overlap: int = 0
    steps: int | None = None
    sampler: str | dict | None = None
    seed: int = 0
    weights: str = "ema"
    chunk: int = 64
    out: str | None = None
    save: Literal["png", "npz", "safetensors"] = "png"
    rate: int | None = None
    device: str = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        problems = []
        for name in ("n", "steps", "chunk", "rate", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} must be at least 1, got {value}")
        if self.label is not None and self.labels is not None:
            problems.append("give label=N for all samples or labels=[...] one by one, not both")
        if self.overlap and self.tile is None:
            problems.append(f"overlap={self.overlap} belongs to tiles; give tile=PIXELS with it")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            problems.append(f"size must be a height and a width in pixels, got {self.size}")
        if self.labels == []:
            problems.append("labels must hold at least one class, got []")
        if any(not column or not all(isinstance(entry, str | None) for entry in column) for column in self._columns.values()):
            problems.append(f"text must be a prompt, a list of prompts or a mapping of such by column, got {self.text!r}")
        if self.images is not None and not Path(self.images).is_file():
            problems.append(f"images={self.images}: there is no such file")
        if not Path(self.checkpoint).exists():
            problems.append(f"checkpoint={self.checkpoint}: there is no such file or folder")
        problems += check_sampler(self.sampler)
        if problems:
            raise RecipeError(*problems)

    @property
    def classes(self) -> list[int] | None:
        """One class per sample, None without condition."""
        given = self.labels if self.labels is not None else None if self.label is None else [self.label]
        return None if given is None else [given[i % len(given)] for i in range(self.count)]

    @property
    def texts(self) -> dict[str, list[str | None]]:
        """Batch columns of prompts, one entry per sample."""
        return {name: [column[i % len(column)] for i in range(self.count)] for name, column in self._columns.items()}

    @property
    def count(self) -> int:
        """Number of samples."""
        listed = [given for given in (self.labels, *self._texts.values()) if isinstance(given, list)]
        return self.n or max((len(given) for given in listed), default=16)

    @property
    def _texts(self) -> dict[str, Any]:
        return {} if self.text is None else self.text if isinstance(self.text, dict) else {"text": self.text}

    @property
    def _columns(self) -> dict[str, list[str | None]]:
        return {str(name): given if isinstance(given, list) else [given] for name, given in self._texts.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    line = cli.parse(argv, USAGE)
    options = cli.options(line, Options)

    from .asked import sampler_for
    from .guidance import Tiled

    module, file = _load(options)
    cond = _conditions(module, options, file)
    walk = sampler_for(module, options.sampler, options.steps)
    guidance = options.guidance if options.tile is None else Tiled(options.tile, options.overlap, options.guidance)
    given: dict[str, Any] = {"guidance": guidance, "seed": options.seed, "chunk": options.chunk}
    given |= {} if options.size is None else {"shape": (*module.shape[:-2], *options.size)}
    x = module.sample(options.count, cond, **given, **({} if walk is None else {"sampler": walk}))
    for path in _write(options, file, x.float().cpu()):
        print(path)


def _conditions(module: Any, options: Options, file: Path) -> Any:
    """What the samples are to show."""
    from .asked import conditions

    images = None if options.images is None else _given(module, options, file)
    return conditions(module, options.count, labels=options.classes, text=options.texts, images=images, size=options.size)


def _given(module: Any, options: Options, file: Path) -> Tensor:
    """What the module is to refine, (n, C, *).

    Raises:
        ValueError: a sound of another rate than the model takes.
    """
    from .asked import pictures
    from .audio.files import SUFFIXES, read_sound

    path = Path(options.images or "")
    if path.suffix.lower() not in SUFFIXES:
        return pictures(str(path), module.shape[0])
    sound, rate = read_sound(path)
    made, factor = options.rate or _rate(file, options.trust), getattr(module, "factors", (1,))[-1]
    if made is not None and rate * factor != made:
        raise ValueError(f"{path} has {rate} samples per second, but the model makes {made} out of {made / factor:g}; resample it")
    return sound[None]


def check_sampler(sampler: str | dict[str, Any] | None) -> list[str]:
    """Whether there is a sampler of that name, answered from the source."""
    from .recipes.source import find

    if not isinstance(sampler, str):
        return [] if sampler is None or "_target_" in sampler else [f"sampler must be a name or a mapping with _target_, got {sampler}"]
    try:
        find(f"diffx.samplers.{sampler}")
    except LookupError as error:
        names = [name for name in error.args[1] if name[:1].isupper() and name != "Sampler"]
        return [f"there is no sampler {sampler!r}{hint(sampler, names) or '; there are ' + ', '.join(names)}"]
    return []


def _load(options: Options) -> tuple[Any, Path]:

    from .recipes.load import load, locate

    device = cli.device(options.device)
    file = locate(options.checkpoint)
    return load(file, options.weights, device=device, trust=options.trust), file


def _write(options: Options, file: Path, x: Tensor) -> list[Path]:
    """The grid where samples can be seen, and the samples themselves where they were asked for."""
    from . import files, media

    folder = (
        Path(options.out) if options.out else file.parent.with_name("samples") if file.parent.name == "checkpoints" else Path("samples")
    )
    weights = options.weights.replace(":", "_")
    prompt = next((f"-{_slug(text)}" for column in options.texts.values() for text in column if text), "")
    size = "" if options.size is None else "-{}x{}".format(*options.size)
    stem = folder / f"{file.stem}-{weights}-n{options.count}{size}-w{options.guidance:g}-seed{options.seed}{prompt}"
    written = []
    if media.showable(x.shape[1:]):
        written.append(media.save(media.grid(x), f"{stem}{'.gif' if x.ndim == 5 else '.png'}"))
    if media.showable(x.shape[1:]) and x.ndim == 3 and (rate := options.rate or _rate(file, options.trust)) is not None:
        written += [media.save_sound(sound, f"{stem}-{i:03d}.wav", rate) for i, sound in enumerate(x)]
    if options.save != "png" or not written:
        kind = "npz" if options.save == "png" else options.save
        written.append(stem.with_name(f"{stem.name}.{kind}"))
        files.write(written[-1], lambda handle: handle.write(_bytes(kind, x, options.classes)))
    return written


def _rate(file: Path, trust: bool) -> int | None:
    """Samples per second of the data of the run that a checkpoint belongs to, where there is a run and its data have such.

    The run's configuration is as much of unknown origin as the checkpoint: what may not be built from that is not built here.
    """
    from .recipes.build import build, resolve
    from .recipes.compose import compose
    from .recipes.load import allowed

    written = file.resolve().parents[1] / "config.yaml"
    data = compose(str(written)).tree.get("data") if written.is_file() else None
    try:
        return getattr(build(data, at="data", allow=resolve if trust else allowed), "sample_rate", None)
    except RecipeError:
        return None


def _slug(text: str) -> str:
    """The beginning of a prompt as part of a file name."""
    return re.sub(r"[^\w]+", "_", text)[:40].strip("_")


def _bytes(kind: str, x: Tensor, classes: list[int] | None) -> bytes:
    import io

    import torch

    arrays = {"images": x.contiguous(), **({} if classes is None else {"labels": torch.tensor(classes)})}
    if kind == "safetensors":
        from safetensors.torch import save

        return save(arrays)
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
