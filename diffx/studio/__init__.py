"""The studio: a web page on this machine to sample, paint with words, inpaint and edit with a model that was trained on text.

``python -m diffx.studio checkpoint=runs/shapes/text_unet/main`` opens it; `Studio` is what the page does, without the page.
"""

from .actions import COLOURS, Studio, strokes

__all__ = ["COLOURS", "Studio", "strokes"]
