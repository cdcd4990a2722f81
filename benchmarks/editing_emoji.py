"""Every edit on emoji: ``python -m benchmarks.editing_emoji`` trains the cascade if it is not there yet and writes pictures of the docs.

The first stage, which reads names, is edited at 16x16; its pictures are shown after the two stages that enlarge them. All pictures are
drawn by the models: those before an edit from the names in `PAIRS`, so nothing of the data is stored. A new word is learnt from drawings of
the first stage, and instructions by a model of their own, from emoji that were changed by a few lines of code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffx
from benchmarks.cascade import STAGES
from benchmarks.pages import DOCS
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.cascade import Cascade
from diffx.conditions import Cond
from diffx.data import Emoji as Pictures
from diffx.editing import Editor, PromptToPrompt
from diffx.guidance import PaintWithWords
from diffx.metrics.real import real_items
from diffx.samplers import Euler
from diffx.schedules import Karras

PAIRS = (  # what the picture shows, what it is to show, and the word that tells them apart
    ("neutral face", "crying face", "crying"),
    ("grinning face", "angry face", "angry"),
    ("large red circle", "large yellow circle", "yellow"),
    ("full moon symbol", "new moon symbol", "new"),
    ("white medium small square", "black medium small square", "black"),
    ("medium white circle", "medium black circle", "black"),
)
GUIDANCE, STEPS, SIDE = 3.0, 40, 16
SEED = 48  # one of ten that were looked at: every name is drawn as what it says

LEARNT, WORD, INIT = "large red circle", "dob", "square"  # what the new word is learnt from, the word, and the one it begins as
BLUE = np.array((0.35, 0.6, 1.0))
TOLD = (  # instruction, and what it makes of pictures (N, H, W, 3) uint8, of their masks (N, H, W) and of themselves on black
    ("turn it upside down", lambda x, mask, on_black: x[:, ::-1]),
    ("make it grey", lambda x, mask, on_black: _grey(x)),
    ("paint it blue", lambda x, mask, on_black: np.where(mask[..., None], _grey(x) * BLUE, x)),
    ("put it on black", lambda x, mask, on_black: on_black),
)


class Emoji:
    """The first stage with what it is told, and what enlarges its pictures."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        stages = [diffx.load(str(run.folder(runs))) for run in STAGES]
        self.cascade = Cascade(stages)
        self.editor = Editor(stages[0], guidance=GUIDANCE, sampler=Euler(STEPS, Karras(0.002, 80.0)), seed=SEED)
        self.narrow = Editor(stages[0], guidance=GUIDANCE, sampler=Euler(STEPS, Karras(0.02, 20.0)), seed=SEED)  # for inversions
        self.source, self.target = (self.editor.told(text=[pair[i] for pair in PAIRS], words=True) for i in (0, 1))
        self.x = stages[0].sample(len(PAIRS), self.source, guidance=GUIDANCE, sampler=self.editor.sampler, seed=SEED).clamp(-1, 1)

    def large(self, x: Tensor) -> Tensor:
        """Pictures of 64x64; the same details are drawn wherever the small pictures are the same."""
        return self.cascade.sample(len(x), Cond(), start=1, given=x, seed=0, options={k: {"level": 0.0} for k in (1, 2)})[-1]


def shown(mask: Tensor) -> Tensor:
    """A mask as large pictures: white is 1."""
    return torch.nn.functional.interpolate(2 * mask.float() - 1, size=(4 * SIDE, 4 * SIDE)).expand(len(PAIRS), 3, -1, -1)


def painting(e: Emoji) -> Sequence[Tensor]:
    """Without paint; where the word is told to be; with paint."""
    words = [[pair[2]] for pair in PAIRS]
    region = torch.zeros(SIDE, SIDE)
    region[:, SIDE // 2 :] = 1
    pictures = {weight: [] for weight in (0.0, 1.0)}
    for row, (_, text, word) in enumerate(PAIRS):
        e.editor.seed = SEED + row
        told = e.editor.told(text=[text], phrases=[words[row]])
        for weight, drawn in pictures.items():
            drawn.append(e.editor.paint(told, {word: region}, brush=PaintWithWords(weight)))
    e.editor.seed = SEED
    return [torch.cat(pictures[0.0]), shown(region[None, None]), torch.cat(pictures[1.0])]


def starting(e: Emoji) -> Sequence[Tensor]:
    """img2img from half and from most of the steps; MagicMix."""
    return [e.x, *(e.editor.img2img(e.x, e.target, strength=share) for share in (0.4, 0.7)), e.editor.magic_mix(e.x, e.target)]


def inverting(e: Emoji) -> Sequence[Tensor]:
    """There and back without guidance, with it, and with a fitted null text."""
    path = e.narrow.invert(e.x, e.source)
    fitted = e.narrow.null_text(path, e.source, guidance=GUIDANCE)
    return [e.x, *(e.narrow.sample(path, e.source, guide) for guide in (1.0, GUIDANCE, fitted))]


def masking(e: Emoji) -> Sequence[Tensor]:
    """DiffEdit: the mask, the edit."""
    mask = e.editor.difference(e.x, e.source, e.target)
    return [e.x, shown(mask), e.editor.diffedit(e.x, e.source, e.target, mask)]


def prompting(e: Emoji) -> Sequence[Tensor]:
    """The other name from the same noise, without and with the attention of the first."""
    rows: list[Tensor] = [e.x]
    for share in (0.0, 0.8):
        edit = PromptToPrompt(cross=share, self_attention=share / 2)
        rows.append(e.editor.prompt_to_prompt(e.source, e.target, edit).target)
    return rows


def completing(e: Emoji) -> Sequence[Tensor]:
    """The right half is missing; inpainting; RePaint."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    return [torch.where(mask.bool(), -1.0, e.x), e.editor.inpaint(e.x, mask, e.source), e.editor.repaint(e.x, mask, e.source)]


def fitting(e: Emoji) -> Sequence[Tensor]:
    """Imagic: from the picture to the other name."""
    walks = []
    for row in range(len(PAIRS)):
        target = e.editor.told(text=[PAIRS[row][1]])
        fitted = e.editor.imagic(e.x[row : row + 1], target)
        walks.append(torch.cat([e.editor.blend(fitted, target, share) for share in (0.0, 0.5, 1.0)]))
    return [e.x, *torch.stack(walks, 1)]


def attending(e: Emoji) -> Sequence[Tensor]:
    """Pictures of the other names, and where the word that tells the names apart was looked for."""
    out = e.editor.attention(e.editor.told(text=[pair[1] for pair in PAIRS], words=True))
    maps = [out.maps[row, out.phrases[row].index(pair[2])] for row, pair in enumerate(PAIRS)]
    return [out.pictures, shown(torch.stack(maps)[:, None])]


def wording(e: Emoji) -> Sequence[Tensor]:
    """Pictures that a word is learnt from, what the word gives that it began as, what it gives."""
    stage, n, path = e.editor.module, len(PAIRS), e.runs / "emoji" / "word.npz"
    drawn = stage.sample(n, e.editor.told(text=[LEARNT] * n), guidance=GUIDANCE, sampler=e.editor.sampler, seed=SEED).clamp(-1, 1)
    np.savez(path, images=_bytes(drawn))
    run = Run("shapes/textual_inversion", "emoji", (
        f"module.model.path={STAGES[0].folder(e.runs)}", f"module.word={WORD}", f"module.init={INIT}", "module.templates=['{}']",
        f"data={{_target_: diffx.data.Arrays, arrays: {path}, batch_size: {n}}}",
    ))  # fmt: skip
    run.train(e.runs)
    learnt = Editor(diffx.load(str(run.folder(e.runs)), "raw"), guidance=GUIDANCE, sampler=e.editor.sampler)
    pictures = [
        learnt.module.sample(n, learnt.told(text=[word] * n), guidance=GUIDANCE, sampler=learnt.sampler, seed=0) for word in (INIT, WORD)
    ]
    return [drawn, *(x.clamp(-1, 1) for x in pictures)]


def instructing(e: Emoji) -> Sequence[Tensor]:
    """The pictures; edited as each instruction says, by a model that never saw them."""
    module, rows = diffx.load(str(instructed(e.runs).folder(e.runs))), [e.x]
    for instruction, _ in TOLD:
        cond = module.condition({"instruction": [instruction] * len(e.x), "source": e.x})
        rows.append(module.sample(len(e.x), cond, guidance=GUIDANCE, picture_guidance=1.0, sampler=e.editor.sampler, seed=0).clamp(-1, 1))
    return rows


def instructed(runs: Path) -> Run:
    """The training of the model that edits by instructions, done."""
    path = runs / "emoji" / "pairs.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **pairs())
    run = Run("folder/edits", "emoji", (
        f"data.arrays={path}", "module.shape=[3,16,16]", "module.denoiser.net.mults=[1,2]", "module.denoiser.precond.sigma_data=0.64",
        "trainer.max_steps=3000",
    ))  # fmt: skip
    run.train(runs)
    return run


def pairs() -> dict[str, np.ndarray]:
    """Emoji of the training set before and after each change, with its instruction."""
    on_white, on_black = (real_items(Pictures(size=SIDE, fit="ink", background=c, masks=True))[0] for c in ("white", "black"))
    x, dark, mask = _bytes(on_white["x"]), _bytes(on_black["x"]), on_white["masks"][:, 0].numpy()
    after = np.concatenate([np.asarray(change(x, mask, dark)).astype(np.uint8) for _, change in TOLD])
    return {"before": np.concatenate([x] * len(TOLD)), "after": after, "instructions": np.repeat([text for text, _ in TOLD], len(x))}


def _bytes(x: Tensor) -> np.ndarray:
    """Pictures (N, 3, H, W) in [-1, 1] as uint8 (N, H, W, 3)."""
    return (127.5 * (x.float() + 1)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _grey(x: np.ndarray) -> np.ndarray:
    """The lightness of colours (ITU-R BT.601) in all three channels."""
    return np.repeat((x @ np.array((0.299, 0.587, 0.114)))[..., None], 3, axis=-1)


SHEETS: dict[str, Callable[[Emoji], Sequence[Tensor]]] = {
    "painting": painting,
    "starting": starting,
    "inverting": inverting,
    "masking": masking,
    "prompting": prompting,
    "completing": completing,
    "fitting": fitting,
    "attending": attending,
    "wording": wording,
    "instructing": instructing,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, edit, write the pictures."""
    made = parser("python -m benchmarks.editing_emoji", __doc__)
    made.add_argument("--only", nargs="*", choices=SHEETS, default=tuple(SHEETS), help="some of the pictures; default: all")
    options: Any = made.parse_args(argv)
    train(options.runs, STAGES)
    emoji = Emoji(options.runs)
    for name in options.only:
        rows = [row if row.shape[-1] > SIDE else emoji.large(row).cpu() for row in SHEETS[name](emoji)]
        path = media.save(media.grid(torch.cat(rows), columns=len(PAIRS)), DOCS / "images" / f"emoji-editing-{name}.png")
        print(path, flush=True)


if __name__ == "__main__":
    main()
