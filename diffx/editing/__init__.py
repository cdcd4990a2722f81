"""Edits of data with trained models: walks over a `Denoise`, and controllers of a network's attention.

What is told in levels or needs no network takes ``denoise(x, sigma)``, whatever it was trained to predict; what looks into a network takes
a `diffx.Denoiser`. Both work on pixels and on latents. Masks say 1 = regenerate, 0 = keep.
"""

from .attention import Attended, WatchedAttention
from .diffedit import diffedit, difference_mask
from .editor import Editor
from .imagic import Imagic, fit_imagic
from .inpainting import inpaint, repaint, repaint_plan
from .inversion import Inversion, invert
from .masks import checked_mask
from .null_text import NullText, null_text_inversion
from .prompt_to_prompt import Edited, PromptToPrompt, prompt_to_prompt
from .starts import img2img, magic_mix

__all__ = [
    "Attended",
    "Edited",
    "Editor",
    "Imagic",
    "Inversion",
    "NullText",
    "PromptToPrompt",
    "WatchedAttention",
    "checked_mask",
    "diffedit",
    "difference_mask",
    "fit_imagic",
    "img2img",
    "inpaint",
    "invert",
    "magic_mix",
    "null_text_inversion",
    "prompt_to_prompt",
    "repaint",
    "repaint_plan",
]
