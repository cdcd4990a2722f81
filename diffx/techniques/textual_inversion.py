"""`TextualInversion`: a new word for what a few pictures show (Gal et al. 2022, arXiv:2208.01618)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Cond
from ..module import Batch, freeze
from ..text import NewWord, Sources, TextEncoder
from .edm import EDM
from .gaussian import Gaussian

__all__ = ["TextualInversion"]

ADAM = partial(torch.optim.Adam, lr=5e-3, fused=True)


class TextualInversion(EDM):
    """Learns the embedding of one word from pictures; the model and all other words stay bit for bit as they are.

    In training every picture is told one of the templates with the word in it, whatever its own caption says; the loss is the model's own.
    Afterwards prompts may use the word like any other. Each encoder of strings gets rows of its own, see `diffx.text.NewWord`. In an
    experiment the model is usually ``{_target_: diffx.load, path: RUN}``.

    Args:
        model: the trained module; its denoiser, text encoders, codec, shape, schedule, sampler and
            rates of hiding conditions are taken over.
        word: the new word.
        init: a word that the encoders know, whose embedding it begins with.
        vectors: rows of the new word.
        templates: prompts with ``{}`` where the word goes.
        optimizer: called with parameter groups whose weight decay is 0.
        options: see `EDM`.

    Raises:
        ValueError: a model without text encoders, with the null policy "empty", or a template without ``{}``.
    """

    trained = ("text",)
    averaged = ("text",)
    large = ("denoiser",)

    def __init__(
        self,
        model: Gaussian,
        *,
        word: str,
        init: str,
        vectors: int = 1,
        templates: Sequence[str] = ("a {}",),
        optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
        **options: Any,
    ) -> None:
        if model.text is None or not (encoders := [e for e in model.text.encoders.values() if isinstance(e, TextEncoder)]):
            raise ValueError(f"a word can be learnt by a model that reads text, but this {type(model).__name__} has no text encoder")
        if not templates or any("{}" not in template for template in templates):
            raise ValueError(f"templates need {{}} where the word goes, got {list(templates)}")
        if model.text.null == "empty":
            raise ValueError("a word cannot be learnt under null = 'empty', whose encoders must be frozen; train with null = 'learned'")
        text = Sources(
            {name: NewWord(e, word, init, vectors) if isinstance(e, TextEncoder) else e for name, e in model.text.encoders.items()}
        )
        super().__init__(
            denoiser=model.denoiser,
            text=text,
            optimizer=optimizer,
            drop=model.drop,
            shape=model.shape,
            codec=model.codec,
            schedule=model.schedule,
            sampler=model.sampler,
            **options,
        )
        freeze(self.denoiser)
        self.word, self.templates, self.reads = word, tuple(templates), sorted({encoder.reads for encoder in encoders})

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `EDM`, but every picture is told a template, drawn at random."""
        n = len(batch["latent"] if "latent" in batch else batch["x"])
        drawn = torch.randint(len(self.templates), (n,), device="cpu").tolist()
        return super().inputs(self._retold(batch, drawn))

    def request(self, batch: Batch) -> Cond:
        """The first template with the word, whatever the items say."""
        n = len(next(iter(batch.values())))
        return self.condition(self._retold(batch, [0] * n))

    def _retold(self, batch: Batch, drawn: Sequence[int]) -> dict[str, Any]:
        """A batch whose items are told the templates at the places ``drawn``."""
        prompts = [self.templates[place].replace("{}", self.word) for place in drawn]
        return {**batch, **dict.fromkeys(self.reads, prompts)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The rows of the new word, never decayed: there is nothing else to descend."""
        rows: list[nn.Parameter] = list(self.trained_parameters().values())
        return [{"params": rows, "weight_decay": 0.0}]
