"""What each method of ``python -m diffx.edit`` does with an `Editor` and what was asked for: pictures, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .asked import conditions, pictures
from .conditions import Cond
from .editing import Editor, PromptToPrompt
from .guidance import PaintWithWords
from .techniques import InstructPix2Pix

if TYPE_CHECKING:
    from .edit import Options

__all__ = ["METHODS"]


def _told(editor: Editor, options: Options, n: int, name: str = "text", **wanted: Any) -> Cond:
    prompts = options.prompts(name, n)
    columns: dict[str, Any] = {} if prompts is None else {"text": prompts}
    if options.label is not None:
        columns["label"] = torch.full((n,), options.label, device=editor.module.device)
    return editor.told(**columns, **wanted)


def _img2img(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    return [x, editor.img2img(x, _told(editor, options, len(x)), **_strength(options))]


def _magic_mix(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    return [x, editor.magic_mix(x, _told(editor, options, len(x)))]


def _reconstruct(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    cond = _told(editor, options, len(x), "source")
    path = editor.invert(x, cond)
    rows = [x, editor.sample(path, cond, 1.0)]
    if options.guidance != 1:
        rows += [editor.sample(path, cond), editor.sample(path, cond, editor.null_text(path, cond, guidance=options.guidance))]
    return rows


def _inpaint(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    mask = _mask(options.mask)
    return [x, _shown(mask, x), editor.inpaint(x, mask, _told(editor, options, len(x)), **_strength(options))]


def _repaint(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    mask = _mask(options.mask)
    return [x, _shown(mask, x), editor.repaint(x, mask, _told(editor, options, len(x)))]


def _diffedit(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    source, target = (_told(editor, options, len(x), name) for name in ("source", "text"))
    mask = editor.difference(x, source, target)
    return [x, _shown(mask, x), editor.diffedit(x, source, target, mask, **_strength(options))]


def _prompt_to_prompt(editor: Editor, options: Options) -> list[Tensor]:
    x = None if options.image is None else _pictures(editor, options.image)
    n = len(x) if x is not None else max(len(p) if isinstance(p, list) else 1 for p in (options.source, options.text))
    source, target = (_told(editor, options, n, name, words=True) for name in ("source", "text"))
    blend = None if options.blend is None else (options.blend[0], options.blend[1])
    edit = PromptToPrompt(options.mode, options.cross, options.self_attention, options.weights or {}, blend=blend)
    path = None if x is None else editor.invert(x, source)
    guide = options.guidance
    if path is not None and options.null_text:
        guide = editor.null_text(path, source, guidance=options.guidance)  # type: ignore[assignment]
    out = editor.prompt_to_prompt(source, target, edit, path=path, guidance=guide)
    return [*([] if x is None else [x]), out.source, *([] if out.mask is None else [_shown(out.mask, out.source)]), out.target]


def _imagic(editor: Editor, options: Options) -> list[Tensor]:
    x = _pictures(editor, options.image)
    target = _told(editor, options, 1)
    fitted = editor.imagic(x, target)
    return [x, *(editor.blend(fitted, target, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0))]


def _instruct(editor: Editor, options: Options) -> list[Tensor]:
    x, module = _pictures(editor, options.image), editor.module
    if not isinstance(module, InstructPix2Pix) or module.text is None:
        raise ValueError(f"method=instruct needs an InstructPix2Pix with encoders of instructions, got {type(module).__name__}")
    told = {encoder.reads: options.prompts("text", len(x)) or [] for encoder in module.text.encoders.values()}
    cond = conditions(module, len(x), text=told, images=x)
    scales: dict[str, Any] = {"guidance": options.guidance, "picture_guidance": options.picture_guidance}
    return [x, module.sample(len(x), cond, sampler=editor.sampler, seed=options.seed, **scales)]


def _paint_with_words(editor: Editor, options: Options) -> list[Tensor]:
    n = len(options.text) if isinstance(options.text, list) else 8
    height, width = editor.module.shape[-2:]
    regions = {}
    for phrase, (top, left, bottom, right) in (options.regions or {}).items():
        regions[str(phrase)] = torch.zeros(height, width)
        regions[str(phrase)][round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 1
    cond = _told(editor, options, n, phrases=[list(regions)] * n)
    plain, after = (editor.paint(cond, regions, brush=PaintWithWords(weight)) for weight in (0.0, options.weight))
    return [plain, *(_shown(region[None, None], plain) for region in regions.values()), after]


def _attention(editor: Editor, options: Options) -> list[Tensor]:
    n = len(options.text) if isinstance(options.text, list) else 8
    out = editor.attention(_told(editor, options, n, words=True))
    for number, phrases in enumerate(out.phrases if isinstance(options.text, list) else out.phrases[:1]):
        print(f"rows of picture {number + 1}: {', '.join(phrases)}")
    return [out.pictures, *(_shown(out.maps[:, place : place + 1], out.pictures) for place in range(out.maps.shape[1]))]


METHODS: dict[str, Callable[[Editor, Options], list[Tensor]]] = {
    "img2img": _img2img,
    "magic_mix": _magic_mix,
    "reconstruct": _reconstruct,
    "inpaint": _inpaint,
    "repaint": _repaint,
    "diffedit": _diffedit,
    "prompt_to_prompt": _prompt_to_prompt,
    "imagic": _imagic,
    "instruct": _instruct,
    "paint_with_words": _paint_with_words,
    "attention": _attention,
}


# Files ------------------------------------------------------------------------------------------------------------------------------------


def _pictures(editor: Editor, path: str | None) -> Tensor:
    """The pictures of a file as (B, C, H, W) in [-1, 1], in the model's number of channels."""
    channels, height, width = editor.module.shape
    x = pictures(str(path), channels)
    if tuple(x.shape[1:]) != (channels, height, width):
        raise ValueError(f"{path} has pictures of {tuple(x.shape[1:])}, the model makes {(channels, height, width)}; resize them first")
    return x


def _mask(path: str | None) -> Tensor:
    return (pictures(str(path), 1) > 0).float()


def _strength(options: Options) -> dict[str, Any]:
    return {} if options.strength is None else {"strength": options.strength}


def _shown(mask: Tensor, x: Tensor) -> Tensor:
    """A mask as pictures: white is 1."""
    shown = torch.nn.functional.interpolate(mask.float(), size=x.shape[-2:])
    return (2 * shown - 1).expand(len(x), -1, -1, -1)
