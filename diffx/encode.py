"""Encode data once, train on latents: ``python -m diffx.encode checkpoint=runs/digits/autoencoder/ID data=... out=FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import cli
from .recipes.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from .data import Batch, DataModule, Source

__all__ = ["Options", "encode", "main"]

USAGE = """
python -m diffx.encode checkpoint=PATH | codec=... | experiment=NAME  data=... | experiment=NAME  out=FOLDER [key=value ...]

Writes what the codec makes of every picture into safetensors files with a manifest, for diffx.data.Latents. A run that was killed goes on
where it stopped when the same command is given again; a folder that holds anything else is refused.

the codec, the first one that is given
  codec=PATH             a folder with a diffusers autoencoder; or a mapping with _target_
  checkpoint=PATH        the codec of a checkpoint or run folder, e.g. of an autoencoder trained here
  experiment=NAME        the codec of its module
the data
  data={_target_: ...}   a DataModule of diffx, e.g. {_target_: diffx.data.ImageFolder, root: pictures, size: 256}
  experiment=NAME        else the experiment's data

keys
  out=FOLDER             gets the sets train/ and, if there is validation data, val/
  flip=false             true: store the mirrored pictures as well
  keep=[label, text]     what else of a batch is stored, where it is there; with x, the pictures, `evaluate` can read the cache
  dtype=float16          of the stored moments: float16, bfloat16 or float32
  rows=8192              items per file: what a kill can cost
  batch=64               pictures encoded at once
  weights=ema            of the checkpoint: ema, ema:NAME or raw
  device=auto            auto, cpu, cuda, cuda:1, ...
  trust=false            true: let the checkpoint build classes of any package; only for files whose origin you know

examples
  python -m diffx.encode codec=sd-vae data='{_target_: diffx.data.ImageFolder, root: pictures, size: 256}' flip=true out=latents
  python -m diffx.encode experiment=digits/latent_edm out=latents/digits dtype=float32
"""


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.encode --help``."""

    out: str
    checkpoint: str | None = None
    codec: str | dict | None = None
    experiment: str | None = None
    data: dict | None = None
    flip: bool = False
    keep: list[str] = field(default_factory=lambda: ["label", "text"])
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    rows: int = 8192
    batch: int = 64
    weights: str = "ema"
    device: str = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        problems = [f"{name} must be at least 1, got {getattr(self, name)}" for name in ("rows", "batch") if getattr(self, name) < 1]
        if self.checkpoint is self.codec is self.experiment is None:
            problems.append("name the codec: checkpoint=PATH, codec=PATH or experiment=NAME")
        if self.checkpoint is not None and self.codec is not None:
            problems.append("give checkpoint=... or codec=..., not both")
        if self.data is self.experiment is None:
            problems.append("name the data: data={_target_: ...} or experiment=NAME")
        if self.data is not None and "_target_" not in self.data:
            problems.append(f"data must be a mapping with _target_, got {self.data}")
        if problems:
            raise RecipeError(*problems)


def encode(
    codec: Any,
    data: DataModule,
    out: str | Path,
    *,
    flip: bool = False,
    keep: Sequence[str] = ("label", "text"),
    dtype: str = "float16",
    rows: int = 8192,
    batch: int = 64,
    device: Any = "cpu",
) -> None:
    """Write what ``codec`` makes of all items of ``data`` below ``out``, or finish what was begun there.

    Of a codec with moments (`diffx.codecs.KL`) the moments are stored, so that each epoch can draw its latents; of any other one its
    codes. Integer codes keep their type.

    Args:
        codec: moved to ``device``.
        data: a DataModule without random augmentation.
        out: gets the sets ``train`` and ``val``.
        flip: store the mirrored pictures too.
        keep: further names of a batch to store: tensors and texts, one per item.
        dtype: of stored floats.
        rows: items per file.
        batch: pictures encoded at once; part of what makes two runs equal bit by bit.
        device: where to encode.

    Raises:
        ValueError: the data is augmented at random; ``out`` holds another cache; the codec gives numbers that are not finite in ``dtype``;
            a size that the codec cannot encode.
    """
    from .codecs import fingerprint
    from .recipes.record import public_name

    codec = codec.to(device).eval() if hasattr(codec, "to") else codec
    about = {
        "codec": {
            "name": public_name(type(codec)),
            "sha256": fingerprint(codec),
            "latent_shape": codec.shape(data.shape),
            **{name: getattr(codec, name).flatten().tolist() for name in ("shift", "scale") if hasattr(codec, "moments")},
        },
        "moments": hasattr(codec, "moments"),
        "flip": flip,
        "dtype": dtype,
        "keep": list(keep),
        "batch": batch,
    }
    for name, source in (("train", data.train), ("val", data.val)):
        if source is not None and len(source):
            _encode_set(codec, data, source, Path(out) / name, about, rows, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    line = cli.parse(argv, USAGE, flags=("list",))
    options = cli.options(line, Options)
    tree = _experiment(options, line.folders)

    from .recipes.build import build
    from .recipes.check import takes

    device = cli.device(options.device)
    recipe = options.data or tree["data"]
    if "batch_size" not in recipe and takes(recipe["_target_"], "batch_size"):
        recipe = {**recipe, "batch_size": options.batch}
    encode(
        _codec(options, tree),
        build(recipe, at="data"),
        options.out,
        flip=options.flip,
        keep=options.keep,
        dtype=options.dtype,
        rows=options.rows,
        batch=options.batch,
        device=device,
    )


def _experiment(options: Options, folders: Sequence[str]) -> Mapping[str, Any]:
    from .recipes.check import check
    from .recipes.compose import compose

    if options.experiment is None:
        return {}
    config = compose(options.experiment, folders=folders)
    check(config)
    return config.tree


def _codec(options: Options, tree: Mapping[str, Any]) -> Any:
    from .recipes.build import build
    from .recipes.load import load

    if isinstance(options.codec, str):
        from .codecs import KL

        return KL(options.codec)
    if options.codec is not None:
        return build(options.codec, at="codec")
    if options.checkpoint is not None:
        return load(options.checkpoint, options.weights, trust=options.trust).codec
    if "codec" not in tree["module"]:
        raise RecipeError(f"experiment={options.experiment}: its module has no codec; name one with codec=... or checkpoint=...")
    return build(tree["module"]["codec"], at="module.codec")


def _encode_set(codec: Any, data: DataModule, source: Source, folder: Path, about: Mapping[str, Any], rows: int, device: Any) -> None:
    """One set; batches are cut by row numbers alone, so that an interrupted set equals an uninterrupted one."""
    import numpy as np

    from .data.loader import SizedLoader
    from .precomputed import PrecomputedWriter

    writer = PrecomputedWriter(folder, {**about, "data": _identity(data, source)}, len(source), rows)
    pieces = writer.pieces(about["batch"])
    _say(f"{folder}: {writer.done} of {len(source)} items are there" + ("" if pieces else ", nothing to do"))
    loader = SizedLoader(source, [[(0, np.asarray(piece))] for piece in pieces], data.num_workers)
    before = writer.done
    try:
        for batch in loader:
            writer.add(_encoded(codec, batch, about, device))
            if writer.done != before:
                before = writer.done
                _say(f"{folder}: {before} of {len(source)} items")
    finally:
        loader.close()


def _encoded(codec: Any, batch: Batch, about: Mapping[str, Any], device: Any) -> dict[str, Tensor | list[str]]:
    """The columns that a batch becomes: "code", "mirrored", and what else is kept."""
    import torch

    from .data import normalise
    from .data.checks import check_range

    check_range(batch["x"])
    pictures = batch["x"].to(device)
    pictures = pictures if pictures.is_floating_point() else normalise(pictures)
    columns: dict[str, Tensor | list[str]] = {name: batch[name] for name in about["keep"] if name in batch}
    for name, x in (("code", pictures), *([("mirrored", pictures.flip(-1))] if about["flip"] else [])):
        with torch.no_grad():
            codes = codec.moments(x) if about["moments"] else codec.encode(x)
        codes = codes.to("cpu", getattr(torch, about["dtype"]) if codes.is_floating_point() else codes.dtype)
        if not codes.isfinite().all():
            first = int(batch["index"][(~codes.isfinite()).flatten(1).any(1).nonzero()[0, 0]])
            raise ValueError(f"the codec gives numbers for item {first} that are not finite as {about['dtype']}; try dtype=float32")
        columns[name] = codes
    return columns


def _identity(data: DataModule, source: Source) -> dict[str, Any]:
    """What a set was made from: shape after resizing and cropping, classes, and a hash of a few items.

    Raises:
        ValueError: the items change from epoch to epoch.
    """
    import hashlib

    import numpy as np

    probe = np.unique(np.linspace(0, len(source) - 1, 32).astype(np.int64))
    once, again = (source.fetch(probe, epoch)["x"] for epoch in (0, 1))
    if not once.equal(again):
        raise ValueError(
            f"the data is augmented at random ({type(data).__name__} gives other pictures in another epoch), and a cache would keep one "
            "draw for ever; turn the augmentation off, and for mirrored pictures give flip=true to this verb"
        )
    return {
        "name": type(data).__name__,
        "sha256": hashlib.sha256(once.contiguous().numpy().tobytes()).hexdigest(),
        "shape": list(once.shape[1:]),
        "classes": data.classes,
        "class_names": None if data.class_names is None else list(data.class_names),
    }


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
