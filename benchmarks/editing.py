"""Edits on the coloured shapes: ``python -m benchmarks.editing``, or ``make editing``.

Trains a model of the coloured shapes and a new word for it under ``runs/`` if they are not there yet (about twenty minutes on one core),
edits pictures of the validation scenes with it, lets a judge look at them, and writes a table of ``docs/techniques/editing.md``; for the
first model its pictures, too. ``--model`` takes another one: the same U-Net trained on v, a DiT, or a U-Net that is told the pooled text,
too. Every row has the threshold that it is held to; the program ends with an error if one is missed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import media, rng
from diffx.data import Shapes
from diffx.data.shapes import COLOURS, SHAPES
from diffx.editing import Editor, PromptToPrompt
from diffx.guidance import PaintWithWords
from diffx.metrics.real import real_items
from diffx.metrics.shapes_judge import ShapesJudge, prompt_figures
from diffx.networks import AttentionController, added_control
from diffx.samplers import Euler
from diffx.schedules import Karras
from diffx.tensors import psnr

V = ("module.denoiser.precond={_target_: diffx.VPrecond}", "module.schedule={_target_: diffx.schedules.Cosine}")
MODELS = {
    "unet": Run("shapes/text_unet"),
    "v": Run("shapes/text_unet", "v", V),
    "dit": Run("shapes/text_dit"),
    "pooled": Run("shapes/text_pooled"),
}
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
LEVELS, NARROW = Karras(0.002, 80.0), Karras(0.02, 20.0)  # inversion wants its steps where the data is
N, STEPS, SIDE = 48, 24, 7
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the target in what a model fitted to a picture is told
HANDED = {f"{share:.0%} of the steps": PromptToPrompt(cross=share, self_attention=share) for share in (0.0, 0.4, 0.8)} | {
    "80% of the steps to words, 40% among positions": PromptToPrompt()
}
JUDGE = ShapesJudge()
VERDICT = {True: "yes", False: "no", None: "none"}

Row = tuple[str, Sequence[str], bool | None]
"""What was measured, its figures, and whether the threshold was met; None where there is none."""


def scenes(n: int, **options: Any) -> Mapping[str, Any]:
    """The first validation scenes as one batch, pictures in [-1, 1]."""
    _, held = real_items(Shapes(size=16, val_items=n, **options))
    assert held is not None
    return held


def editor(module: Any, levels: Karras = LEVELS) -> Editor:
    """An editor that walks Euler's steps."""
    return Editor(module, guidance=3.0, sampler=Euler(STEPS, levels))


# Rows -------------------------------------------------------------------------------------------------------------------------------------


def plain(module: Any) -> tuple[list[Row], None]:
    """Whether the model draws what it is told at all."""
    prompts = scenes(N, spans=False)["text"]
    rows: list[Row] = []
    for scale, floor in ((1.0, 0.75), (3.0, 0.75)):
        with torch.no_grad():
            cond = module.condition({"text": prompts})
        pictures = module.sample(N, cond, guidance=scale, sampler=Euler(STEPS, LEVELS), seed=0)
        own, other = (prompt_figures(JUDGE(pictures), texts) for texts in (prompts, prompts[1:] + prompts[:1]))
        good = own["colour_presence"] >= floor and own["pair_recall"] >= other["pair_recall"] + 0.08
        figures = (
            f"colours {own['colour_presence']:.2f}",
            f"pairs {own['pair_recall']:.2f}",
            f"another's pairs {other['pair_recall']:.2f}",
        )
        rows.append((f"sampling, guidance {scale:g}", figures, good))
    return rows, None


class Mass(AttentionController):
    """Which share of the attention to painted tokens comes from their regions."""

    def __init__(self, spans: Sequence[Sequence[Any]], regions: Tensor) -> None:
        self.spans, self.regions, self.shares = spans, regions, []

    def wants(self, site: Any) -> bool:
        return site.kind == "cross" and len(site.grid) == 2

    def probs(self, probs: Tensor, site: Any) -> Tensor:
        cells = torch.nn.functional.interpolate(self.regions[:, None], size=site.grid, mode="area").flatten(1)
        start = site.key_slices["text"].start
        for row, spans in enumerate(self.spans):
            paid = probs[row, :, :, [start + token for span in spans for token in range(span.start, span.stop)]].mean((0, 2))
            self.shares.append(float((paid * cells[row]).sum() / paid.sum()))
        return probs


def painting(module: Any) -> tuple[list[Row], Tensor]:
    """Paint-with-words: the first object's words in a 7x7 square of the 16x16 pixels, which is drawn anew for every picture."""
    held = scenes(N)
    phrases = [next(span[0] for span in spans) for spans in held["spans"]]
    colours = held["colours"][:, 0]
    corners = torch.randint(0, 16 - SIDE + 1, (N, 2), generator=rng.generator("regions")).tolist()
    regions = torch.zeros(N, 16, 16)
    for region, (top, left) in zip(regions, corners, strict=True):
        region[top : top + SIDE, left : left + SIDE] = 1
    tool = editor(module)
    found: dict[tuple[str, float], tuple[float, float, float]] = {}
    shown = {}
    for form, weight in [("max", w) for w in (0.0, 0.1, 0.3, 1.0, 3.0)] + [("std", w) for w in (1.0, 3.0)]:
        pictures, shares = [], []
        for row in range(0, N, 8):  # phrases differ from picture to picture, so each is painted under its own name
            part = slice(row, row + 8)
            cond = tool.told(text=held["text"][part], phrases=[[phrase] for phrase in phrases[part]])
            spans = [[span._replace(phrase="painted") for span in row] for row in cond.spans or ()]
            renamed = replace(cond, spans=spans)
            tool.seed = row
            with added_control(Mass(spans, regions[part])) as chain:
                pictures.append(tool.paint(renamed, {"painted": regions[part]}, brush=PaintWithWords(weight, form)))
            shares += chain.first.shares
        x = torch.cat(pictures)
        seen = JUDGE(x).masks[torch.arange(N), colours].float()
        inside = ((seen * regions).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)).mean().item()
        present = prompt_figures(JUDGE(x), held["text"])["colour_presence"]
        found[form, weight], shown[form, weight] = (inside, sum(shares) / len(shares), present), x
    best = [found["max", w] for w in (0.0, 0.1, 0.3, 1.0, 3.0)]
    rising = all(a[1] < b[1] for a, b in pairwise(best))
    good = best[2][0] >= best[0][0] + 0.12 and rising and best[2][2] >= best[0][2] - 0.1
    rows: list[Row] = [
        (f"paint-with-words, {form} {weight:g}", (f"inside {a:.2f}", f"attention {b:.2f}", f"colours {c:.2f}"), good)
        for (form, weight), (a, b, c) in found.items()
    ]
    outlined = regions[:, None].expand(-1, 3, -1, -1) * 1.2 - 0.6
    return rows, torch.cat([outlined[:8], shown["max", 0.0][:8], shown["max", 0.3][:8], shown["max", 1.0][:8]])


def inverting(module: Any) -> tuple[list[Row], Tensor]:
    """DDIM inversion without guidance and reconstruction with it, and null-text inversion."""
    held = scenes(12, spans=False)
    tool, wide = editor(module, NARROW), editor(module)
    cond = tool.told(text=held["text"])
    path = tool.invert(held["x"], cond)
    pictures = {f"DDIM inversion, guidance {g:g}": tool.sample(path, cond, g) for g in (1.0, 3.0, 6.0)}
    pictures["on levels up to 80, guidance 1"] = wide.sample(wide.invert(held["x"], cond), cond, 1.0)
    exact = tool.invert(held["x"], cond, fixed_point=10)
    pictures["fixed point of 10 rounds, guidance 1"] = tool.sample(exact, cond, 1.0)
    for g in (3.0, 6.0):
        pictures[f"null-text inversion, guidance {g:g}"] = tool.sample(path, cond, tool.null_text(path, cond, guidance=g))
    db = {name: psnr(held["x"], x).mean().item() for name, x in pictures.items()}
    ddim = {g: db[f"DDIM inversion, guidance {g}"] for g in (1, 3, 6)}
    null = {g: db[f"null-text inversion, guidance {g}"] for g in (3, 6)}
    verdicts = {
        "DDIM": ddim[1] >= 27 and ddim[1] > ddim[3] > ddim[6],
        "on l": db["on levels up to 80, guidance 1"] >= 27,
        "fixe": db["fixed point of 10 rounds, guidance 1"] > ddim[1],
        "null": null[3] >= max(ddim[3] + 6, ddim[1] - 1.5) and null[6] >= ddim[6] + 2,
    }
    rows: list[Row] = [(name, (f"{value:.1f} dB",), verdicts[name[:4]]) for name, value in db.items()]
    names = ("DDIM inversion, guidance 1", "DDIM inversion, guidance 3", "null-text inversion, guidance 3")
    return rows, torch.cat([held["x"][:8], *(pictures[name][:8] for name in names)])


def starting(module: Any) -> tuple[list[Row], Tensor]:
    """SDEdit from five levels, told what the picture shows; MagicMix told another scene."""
    held = scenes(N, edits="colour", spans=False)
    x, found, shown = held["source"], [], []
    for sigma in (0.1, 0.5, 1.7, 4.4, 10.0):
        tool = Editor(module, guidance=3.0, sampler=Euler(STEPS, Karras(0.002, sigma)))
        same = tool.img2img(x, tool.told(text=held["source_text"]), strength=1.0)
        found.append((sigma, psnr(x, same).mean().item()))
        shown.append(tool.img2img(x, tool.told(text=held["text"]), strength=1.0))
    db = [value for _, value in found]
    good = all(a > b for a, b in pairwise(db)) and db[0] >= 33 and db[-1] <= 15
    rows: list[Row] = [(f"img2img from level {sigma:g}", (f"{value:.1f} dB",), good) for sigma, value in found]
    tool = editor(module)
    mixed = tool.magic_mix(x, tool.told(text=held["text"]))
    rows.append(("MagicMix told the edited prompt", (*changed(mixed, held), f"{psnr(x, mixed).mean().item():.1f} dB"), None))
    return rows, torch.cat([x[:8], shown[1][:8], shown[2][:8], shown[3][:8], mixed[:8]])


def changed(pictures: Tensor, held: Mapping[str, Any]) -> tuple[str, str]:
    """Whether edited pictures show the new colour, and how much they differ from the source where nothing was to change."""
    rows = torch.arange(len(pictures))
    new = JUDGE(pictures).present[rows, held["colours"][rows, held["edited"]]].float().mean().item()
    keep = ~held["edit_mask"]
    moved = ((pictures - held["source"]).abs() * keep).sum() / keep.sum() / 3
    return f"new colour {new:.2f}", f"background {moved.item():.3f}"


def masking(module: Any) -> tuple[list[Row], Tensor]:
    """DiffEdit: the mask it finds when one object is to change its colour, and the edit."""
    held = scenes(N, edits="colour", spans=False)
    tool, x, truth = editor(module), held["source"], held["edit_mask"].float()
    source, target = tool.told(text=held["source_text"]), tool.told(text=held["text"])
    overlaps, masks = {}, {}
    for sigma in (0.5, 1.0, 2.0, 4.0):
        mask = masks[sigma] = tool.difference(x, source, target, sigma=sigma, draws=8)
        overlaps[sigma] = ((mask * truth).sum((1, 2, 3)) / torch.maximum(mask, truth).sum((1, 2, 3))).mean().item()
    good = max(overlaps.values()) >= 0.5
    rows: list[Row] = [(f"DiffEdit, mask at level {sigma:g}", (f"overlap {value:.2f}",), good) for sigma, value in overlaps.items()]
    edited = tool.diffedit(x, source, target, masks[1.0], strength=0.8)
    rows.append(("DiffEdit, edit", changed(edited, held), None))
    return rows, torch.cat([x[:8], masks[1.0][:8].expand(-1, 3, -1, -1) * 2 - 1, edited[:8]])


def prompting(module: Any) -> tuple[list[Row], Tensor]:
    """Prompt-to-prompt: another colour for one object, of drawn pictures and of pictures that exist."""
    held = scenes(N, edits="colour", spans=False)
    tool, rows = editor(module), []
    source, target = (tool.told(words=True, text=held[name]) for name in ("source_text", "text"))
    order = torch.arange(N)
    wanted = held["colours"][order, held["edited"]]
    found = {}
    for name, edit in HANDED.items():
        out = tool.prompt_to_prompt(source, target, edit)
        before, after = JUDGE(out.source), JUDGE(out.target)
        old = _old_colour(held)
        away = ~(before.masks[order, old] | after.masks[order, wanted])[:, None]
        moved = ((out.target - out.source).abs() * away).sum() / away.sum() / 3
        found[name] = (after.present[order, wanted].float().mean().item(), moved.item(), out)
    free, handed = found["0% of the steps"], found["80% of the steps"]
    for name, (new, moved, _) in found.items():
        good = moved <= 0.6 * free[1] and new >= 0.6 if HANDED[name].cross == 0.8 else None
        rows.append((f"prompt-to-prompt, attention of {name}", (f"new colour {new:.2f}", f"background {moved:.3f}"), good))
    x, tool = held["source"], editor(module, NARROW)
    path = tool.invert(x, source)
    nulls = tool.null_text(path, source, guidance=3.0)
    edit = HANDED["80% of the steps"]
    real = {name: tool.prompt_to_prompt(source, target, edit, path=path, guidance=g) for name, g in (("DDIM", 3.0), ("null text", nulls))}
    for name, out in real.items():
        rows.append((f"pictures inverted by {name}, then prompt-to-prompt, 80%", changed(out.target, held), None))
    drawn = handed[2]
    return rows, torch.cat([drawn.source[:8], free[2].target[:8], drawn.target[:8], x[:8], real["null text"].target[:8]])


def _old_colour(held: Mapping[str, Any]) -> Tensor:
    """The colour that the changed object had: the word before its shape in "make the blue circle red"."""
    return torch.tensor([COLOURS.index(text.split()[2]) for text in held["instruction"]])


def completing(module: Any) -> tuple[list[Row], Tensor]:
    """Inpainting: the right half of the first object is missing."""
    held = scenes(N, spans=False)
    x, tool = held["x"], editor(module)
    mask = torch.zeros(N, 1, 16, 16)
    for row, (left, top, right, bottom) in enumerate(held["boxes"][:, 0].tolist()):
        mask[row, :, max(0, top - 1) : bottom + 1, (left + right) // 2 : right + 1] = 1
    cond = tool.told(text=held["text"])
    pictures = {"inpainting": tool.inpaint(x, mask, cond), "RePaint, 5 times": tool.repaint(x, mask, cond, jump=4, resamples=5)}
    order, truth = torch.arange(N), JUDGE(x)
    share, rows = {}, []
    for name, out in pictures.items():
        assert torch.equal(out * (1 - mask), x * (1 - mask))
        seen = JUDGE(out)
        colour = held["colours"][:, 0]
        same = seen.present[order, colour] & (seen.shape[order, colour] == truth.shape[order, colour])
        share[name] = same.float().mean().item()
    good = share["RePaint, 5 times"] >= share["inpainting"] - 0.02
    for name, value in share.items():
        rows.append((f"{name}: half an object", (f"same colour and shape {value:.2f}",), good and value >= 0.6))
    holes = torch.where(mask.bool(), -1.0, x)
    return rows, torch.cat([holes[:8], *(out[:8] for out in pictures.values())])


def fitting(module: Any) -> tuple[list[Row], Tensor]:
    """Imagic: a picture and a copy of the model that was fitted to it, told another colour by five shares."""
    held = scenes(8, edits="colour", spans=False)
    x, tool, walks = held["source"], editor(module), []
    for row in range(len(x)):
        target = tool.told(text=held["text"][row : row + 1])
        fitted = tool.imagic(x[row : row + 1], target)
        walks.append(torch.cat([tool.blend(fitted, target, share) for share in SHARES]))
    by_share = torch.stack(walks, 1)
    db = [psnr(x, pictures).mean().item() for pictures in by_share]
    good = db[0] >= 25 and bool(spearmanr(SHARES, db).statistic < -0.8)
    rows: list[Row] = [
        (f"Imagic, {share:g} of the target", (*changed(pictures, held), f"{value:.1f} dB"), good)
        for share, pictures, value in zip(SHARES, by_share, db, strict=True)
    ]
    return rows, torch.cat([x, *by_share])


def wording(module: Any, learnt: Any) -> tuple[list[Row], Tensor]:
    """Textual inversion: eight pictures of red circles become the word "thing"."""
    others = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if (colour, shape) != ("red", "circle")]
    red = real_items(Shapes(size=16, items=8, val_items=0, objects=(1, 1), held_out=others))[0]["x"]

    def loss(word: str) -> float:
        with rng.forked("wording"), torch.no_grad():
            batch = {"x": red.repeat(32, 1, 1, 1)}
            noisy = learnt.levels(len(batch["x"]))
            cond = learnt.condition({"text": [f"a {word}"] * len(batch["x"])})
            estimate = learnt.estimate(rng.noised(batch["x"], noisy), noisy, cond)
            return learnt.errors(estimate, batch["x"], noisy, batch)["loss"].mean().item()

    before, after = loss("object"), loss("thing")
    pictures = learnt.sample(64, learnt.condition({"text": ["a thing"] * 64}), guidance=3.0, sampler=Euler(STEPS, LEVELS), seed=0)
    seen = JUDGE(pictures)
    colour, circle = seen.present[:, 0].float().mean().item(), (seen.shape[:, 0] == 0).float().mean().item()
    same = all(torch.equal(value, dict(learnt.named_parameters())[_within(name)]) for name, value in module.named_parameters())
    figures = (f"loss {before:.4f} to {after:.4f}", f"red {colour:.2f}", f"red circle {circle:.2f}", f"other weights equal: {same}")
    good = after <= 0.95 * before and colour >= 0.6 and same
    return [("textual inversion, one vector, told 'a thing'", figures, good)], torch.cat([red[:8], pictures[:8]])


def _within(name: str) -> str:
    """Where a parameter of the model is in the module that learnt the word."""
    return name.replace("text.text.", "text.text.encoder.")


PARTS: dict[str, Callable[..., tuple[list[Row], Tensor | None]]] = {
    "plain": plain,
    "painting": painting,
    "starting": starting,
    "inverting": inverting,
    "masking": masking,
    "prompting": prompting,
    "completing": completing,
    "fitting": fitting,
    "wording": wording,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, edit, write the page."""
    made = parser("python -m benchmarks.editing", __doc__)
    made.add_argument("--only", nargs="*", choices=PARTS, help="some of the parts; the page is written once all have been measured")
    made.add_argument("--model", choices=MODELS, default="unet", help="default: unet")
    options = made.parse_args(argv)
    run = MODELS[options.model]
    path = run.folder(options.runs)
    word = Run("shapes/textual_inversion", options.model, (f"module.model.path={path}",))
    train(options.runs, [run, word])
    module, learnt = diffx.load(str(path)), diffx.load(str(word.folder(options.runs)), "raw")
    folder = options.runs / "editing" / options.model
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.only or PARTS:
        rows, sheet = PARTS[name](*([module, learnt] if name == "wording" else [module]))
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        for line, figures, good in rows:
            print(f"{line:55}", *figures, "MISSED" if good is False else "", sep="  ", flush=True)
        if sheet is not None:
            shown = IMAGES / f"shapes-editing-{name}.png" if options.model == "unet" else folder / f"{name}.png"
            media.save(media.grid(sheet, columns=8), shown)
    found = [json.loads(file.read_text(encoding="utf-8")) for name in PARTS if (file := folder / f"{name}.json").exists()]
    if len(found) == len(PARTS):
        lines = [[line, ", ".join(figures), VERDICT[good]] for rows in found for line, figures, good in rows]
        fill("techniques/editing.md", options.model, table(["Edit", "Measured", "Threshold met"], lines))
    if missed := [line for rows in found for line, _, good in rows if good is False]:
        raise SystemExit(f"thresholds missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
