"""The page: Gradio's widgets around a `Studio`. The only file that knows Gradio."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from .actions import COLOURS, Studio

__all__ = ["build"]


def gradio() -> Any:
    """Import Gradio without its calls home.

    Raises:
        ImportError: it is not installed.
    """
    import os

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ImportError("the studio needs Gradio: pip install 'diffx[studio]'") from error
    return gr


def build(studio: Studio, title: str) -> Any:
    """The page of a model, a ``gradio.Blocks``.

    Args:
        studio: the model.
        title: of the page.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = gradio()
    blocks = gr.Blocks(title=title, analytics_enabled=False)
    with blocks:
        gr.Markdown(f"## {title}")
        page = Page(gr, studio)
        page.sample()
        if studio.reads_text:
            page.paint()
        page.inpaint()
        page.img2img()
        if studio.reads_text:
            page.reword()
            page.attention()
    return blocks.queue(default_concurrency_limit=1)  # one model, one walk at a time


class Page:
    """Builds one tab per kind of work.

    Args:
        gr: Gradio.
        studio: the model.
    """

    def __init__(self, gr: Any, studio: Studio) -> None:
        self.gr, self.studio = gr, studio

    def sample(self) -> None:
        """Pictures of a prompt or class."""
        with self.gr.Tab("Sample"):
            prompt, label = self._prompt(), self._label()
            n = self.gr.Slider(1, 16, 4, step=1, label="Pictures")
            self._go("Sample", self.studio.sample, [prompt, label, n, *self._walk()])

    def paint(self) -> None:
        """Phrases where they are painted."""
        gr = self.gr
        with gr.Tab("Paint with words"):
            prompt = self._prompt()
            with gr.Row():
                brush = gr.Brush(colors=[f"rgb{colour}" for colour in COLOURS.values()], color_mode="fixed", default_size=40)
                drawing = gr.ImageEditor(
                    label="Paint", type="numpy", canvas_size=_canvas(self.studio), brush=brush, fixed_canvas=True, sources=()
                )
                with gr.Column():
                    phrases = [gr.Textbox(label=f"Phrase of the {name} brush", max_lines=1) for name in COLOURS]
            weight = gr.Slider(0, 1, 0.3, label="Strength")
            n = gr.Slider(1, 8, 4, step=1, label="Pictures")

            def go(prompt: str, drawing: Any, weight: float, n: int, guidance: float, steps: int, seed: int, *phrases: str) -> Any:
                named = dict(zip(COLOURS, phrases, strict=True))
                return self.studio.paint(prompt, drawing, named, weight, int(n), guidance, int(steps), int(seed))

            self._go("Paint", go, [prompt, drawing, weight, n, *self._walk(), *phrases])

    def inpaint(self) -> None:
        """What is painted over is drawn anew."""
        gr = self.gr
        with gr.Tab("Inpaint"):
            label, brush = "Give a picture, paint over what is to be drawn anew", gr.Brush(colors=["rgb(230, 60, 60)"], default_size=40)
            drawing = gr.ImageEditor(label=label, type="numpy", canvas_size=_canvas(self.studio), brush=brush)
            self._go("Inpaint", self.studio.inpaint, [drawing, self._prompt(), self._label(), *self._walk()])

    def img2img(self) -> None:
        """A picture, noised and drawn again."""
        with self.gr.Tab("Image to image"):
            picture = self.gr.Image(label="Picture", type="numpy", sources=["upload", "clipboard"])
            strength = self.gr.Slider(0.05, 1, 0.6, label="Share of the steps")
            self._go("Draw again", self.studio.img2img, [picture, self._prompt(), self._label(), strength, *self._walk()])

    def reword(self) -> None:
        """Another prompt with the attention of the first."""
        gr = self.gr
        with gr.Tab("Reword"):
            source, target = self._prompt("Prompt"), self._prompt("Reworded")
            mode = gr.Radio(["replace", "refine"], value="replace", label="Words were")
            shares = [gr.Slider(0, 1, 0.8, label="Attention to words"), gr.Slider(0, 1, 0.4, label="Attention among positions")]
            self._go("Reword", self.studio.reword, [source, target, mode, *shares, *self._walk()])

    def attention(self) -> None:
        """Where words are looked for."""
        with self.gr.Tab("Attention"):
            self._go("Show", self.studio.attention, [self._prompt(), *self._walk()])

    # Widgets ----------------------------------------------------------------------------------------------------------------------------

    def _prompt(self, label: str = "Prompt") -> Any:
        return self.gr.Textbox(label=label, max_lines=3, visible=self.studio.reads_text)

    def _label(self) -> Any:
        known = self.studio.classes
        return self.gr.Number(label=f"Class, 0 to {known - 1}", value=0 if known else None, precision=0, visible=bool(known))

    def _walk(self) -> list[Any]:
        """Guidance, steps and seed."""
        gr = self.gr
        with gr.Row():
            return [
                gr.Slider(0, 10, 3.0 if self.studio.reads_text else 1.0, label="Guidance"),
                gr.Slider(1, 200, 30, step=1, label="Steps"),
                gr.Number(0, precision=0, label="Seed"),
            ]

    def _go(self, label: str, act: Callable[..., Any], inputs: list[Any]) -> None:
        """A button that fills a gallery; mistakes are shown as messages, not as a crash."""
        gr = self.gr
        button = gr.Button(label, variant="primary")
        gallery = gr.Gallery(label="Pictures", columns=4, format="png", object_fit="contain")

        @wraps(act)
        def answered(*values: Any) -> Any:
            try:
                return act(*values)
            except ValueError as error:
                raise gr.Error(str(error)) from error

        button.click(answered, inputs, gallery, api_name=False)


def _canvas(studio: Studio) -> tuple[int, int]:
    """Width and height of a canvas of the model's aspect, 384 pixels along the longer side."""
    height, width = studio.module.shape[-2:]
    by = 384 / max(height, width)
    return round(width * by), round(height * by)
