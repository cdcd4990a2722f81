"""Object detectors of torchvision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..data import Annotation, Detection, normalise
from ..recipes import recorded
from ..recipes.record import public_name
from ..text.encoder import hash_weights

__all__ = ["Detector"]


@recorded
class Detector(nn.Module):
    """A detection model of torchvision: Faster and Mask R-CNN, RetinaNet, FCOS, SSD.

    Args:
        path: file of published weights, or the folder that holds it (torchvision names such a file after the model, e.g.
            ``fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth``); None gives random weights. Nothing is downloaded.
        model: torchvision's name of the model, or a model that answers as theirs do.
        categories: what its labels mean, label 0 (background) first; None takes the list that torchvision keeps for the model.
        options: further arguments of torchvision's builder, e.g. ``{min_size: 400}``.
        threshold: objects with a lower score do not count.
        most: at most this many objects a picture, those with the highest scores.
        device: where it runs.
        seed: of random weights.

    Raises:
        FileNotFoundError: there is no file of weights at ``path``, or several.
        ValueError: a model without a list of categories, weights that do not fit, a threshold outside [0, 1].
    """

    def __init__(
        self, path: str | Path | None = None, model: str | nn.Module = "fasterrcnn_resnet50_fpn_v2", *,
        categories: Sequence[str] | None = None, options: Mapping[str, Any] | None = None, threshold: float = 0.5, most: int = 16,
        device: str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= threshold <= 1 or most < 1:
            raise ValueError(f"threshold must lie in [0, 1] and most be at least 1, got {threshold} and {most}")
        self.categories = _categories(model) if categories is None else list(categories)
        self.threshold, self.most, self.device = threshold, most, torch.device(device)
        self.model = _built(model, len(self.categories), dict(options or {}), seed)
        if path is not None:
            _fill(self.model, _file(Path(path), model))
        self.requires_grad_(False).eval().to(self.device)
        about = {"class": public_name(type(self)), "model": public_name(type(self.model)), "categories": self.categories,
                 "threshold": threshold, "most": most, "weights": hash_weights(self.model)}  # fmt: skip
        self.fingerprint = f"Detector {hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}"

    def train(self, mode: bool = True) -> Detector:
        """It stays in evaluation mode: in training it would ask for targets."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> list[Annotation]:
        """The objects in the pictures ``batch["x"]`` (B, 3, H, W), uint8 or floats in [-1, 1]; the best ones first."""
        x: Tensor = batch["x"]
        x = normalise(x) if x.dtype == torch.uint8 else x
        found = self.model([(picture.to(self.device) + 1) / 2 for picture in x])
        return [self._read({name: value.cpu() for name, value in one.items()}) for one in found]

    def _read(self, found: Mapping[str, Tensor]) -> Annotation:
        order = found["scores"].argsort(descending=True, stable=True)[: self.most].tolist()
        objects = []
        for place in order:
            left, top, right, bottom = found["boxes"][place].tolist()
            score = found["scores"][place].item()
            if score >= self.threshold:
                objects.append(Detection(self.categories[int(found["labels"][place])], (left, top, right, bottom), score))
        return Annotation(tuple(objects))


def _built(model: str | nn.Module, classes: int, options: dict[str, Any], seed: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    from torchvision.models import get_model

    with rng.forked("detector", seed):
        return get_model(model, weights=None, weights_backbone=None, num_classes=classes, **options)


def _categories(model: str | nn.Module) -> list[str]:
    from torchvision.models import detection as room
    from torchvision.models import get_model_weights, list_models

    known = list_models(module=room)
    if model not in known:
        raise ValueError(f"torchvision keeps no categories for {model if isinstance(model, str) else type(model).__name__}; give "
                         f"categories=, background first, or take one of {known}")  # fmt: skip
    weights: Any = get_model_weights(str(model))
    return list(weights.DEFAULT.meta["categories"])


def _file(path: Path, model: str | nn.Module) -> Path:
    if path.is_file():
        return path
    pattern = f"{model}*.pth" if isinstance(model, str) else "*.pth"
    files = sorted(path.glob(pattern)) if path.is_dir() else []
    if len(files) != 1:
        raise FileNotFoundError(f"{path} must be a file of weights or a folder with one file {pattern}, found {len(files)} there")
    return files[0]


def _fill(model: nn.Module, file: Path) -> None:
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{file} does not fit {type(model).__name__} with these options: {reason}") from error
