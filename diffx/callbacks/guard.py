"""Steps that would ruin the weights are left out, written down, and end the run when they do not stop."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from ..dtensors import whole
from ..module import DiffusionModule
from ..recipes import recorded
from .agreement import Agreement

__all__ = ["Guard"]

log = logging.getLogger(__name__)

ADVICE = """to need less memory:
  data.batch_size halved with +trainer.accumulate_grad_batches=2: the same global batch, levels and noise, hence the same training
  +trainer.precision=bf16-mixed
  +callbacks.ema.device=cpu: the averages leave the accelerator
  callbacks.samples.chunk, where pictures drawn at once are what does not fit"""


@recorded
class Guard(Callback):
    """Leave out optimizer steps whose gradient is not finite, on all ranks alike, and say which samples and noise levels they came from.

    A step left out changes neither weights nor the optimizer's state; its images count as seen. Each is described in
    ``<run folder>/guard/step_<n>_rank<r>.json``: the samples' ``index``, the levels that the trained parts were called with, the loss, the
    batch's entries and the gradients that are not finite. Under float16 the gradient scaler leaves steps out by itself, so the loss is
    watched there. An allocation that fails is answered with what to change. The norm is read in every step, for which the processor waits
    for the accelerator.

    Args:
        skips: steps in a row that may be left out; one more ends the run.
        spike: also leave out steps whose log gradient norm lies this many standard deviations above its running mean; None: no such check.
        window: steps over which mean and deviation run, and before which nothing is called a spike.

    Raises:
        ValueError: ``skips`` below 0, ``spike`` not positive or ``window`` below 2.
    """

    def __init__(self, skips: int = 10, spike: float | None = None, window: int = 200) -> None:
        if skips < 0 or window < 2 or (spike is not None and spike <= 0):
            raise ValueError(f"expected skips >= 0, spike > 0 or None and window >= 2, got {skips}, {spike} and {window}")
        self.skips, self.spike, self.window = skips, spike, window
        self._state = {"row": 0, "total": 0, "seen": 0, "mean": 0.0, "variance": 0.0}
        self._agreement: Agreement | None = None
        self._calls: list[dict[str, Any]] = []
        self._hooks: list[Any] = []

    @property
    def state_key(self) -> str:
        """Where the counters lie in a checkpoint's ``callbacks``."""
        return "diffx.Guard"

    @property
    def skipped(self) -> int:
        """Steps left out so far, resumed runs included."""
        return int(self._state["total"])

    def state_dict(self) -> dict[str, Any]:
        """Counters and running moments, so that a resumed run judges alike."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._state = dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Watch which levels the trained parts are called with."""
        self._agreement = Agreement(trainer)
        for name in pl_module.trained:
            part = getattr(pl_module, name, None)
            net = getattr(part, "net", None)
            for label, module in ((name, part), (f"{name}.net", net)):
                if isinstance(module, nn.Module) and module._compiled_call_impl is None:
                    self._hooks.append(module.register_forward_pre_hook(self._watch(label)))

    def _watch(self, label: str) -> Any:
        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            if self._calls and len(given) > 1 and isinstance(given[1], Tensor) and given[1].ndim == 1:
                self._calls[-1]["levels"][label] = given[1].detach()

        return note

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        """Remember the micro-batch until the optimizer step."""
        self._calls.append({"batch": batch, "levels": {}, "loss": None})

    def on_before_backward(self, trainer: Trainer, pl_module: DiffusionModule, loss: Tensor) -> None:
        """Remember its loss."""
        self._calls[-1]["loss"] = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: DiffusionModule, optimizer: Any) -> None:
        """Judge the step; one left out has no gradients."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(whole(nn.utils.get_total_norm([p.grad for p in parameters]))) if parameters else 0.0
        watched = sum(float(call["loss"]) for call in self._calls) if scaled else norm
        assert self._agreement is not None
        verdict = self._agreement.highest(0 if math.isfinite(watched) and not self._is_spike(norm) else 1 if math.isfinite(watched) else 2)
        if verdict == 0:
            self._state["row"] = 0
            self._learn(norm)
        else:
            self._leave_out(trainer, pl_module, norm, "a spike" if verdict == 1 else "not finite")
            if not scaled:  # a scaler sees it too, and insists on gradients to look at
                for p in parameters:
                    p.grad = None
        self._calls.clear()

    def _is_spike(self, norm: float) -> bool:
        state = self._state
        if self.spike is None or state["seen"] < self.window or not 0 < norm < math.inf:
            return False
        return (math.log(norm) - state["mean"]) > self.spike * math.sqrt(state["variance"])

    def _learn(self, norm: float) -> None:
        """Running mean and variance of the log norm."""
        if self.spike is None or not 0 < norm < math.inf:
            return
        self._state["seen"] += 1
        share, gap = 1 / min(self._state["seen"], self.window), math.log(norm) - self._state["mean"]
        self._state["mean"] += share * gap
        self._state["variance"] = (1 - share) * (self._state["variance"] + share * gap * gap)

    def _leave_out(self, trainer: Trainer, module: DiffusionModule, norm: float, what: str) -> None:
        self._state["row"] += 1
        self._state["total"] += 1
        step, rank = trainer.global_step, trainer.global_rank
        path = Path(trainer.default_root_dir, "guard", f"step_{step:08d}_rank{rank}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        gradients = [name for name, p in module.named_parameters() if p.grad is not None and not bool(whole(p.grad).isfinite().all())]
        about = {"step": step, "rank": rank, "gradient_norm": str(norm), "verdict": what, "gradients_not_finite": gradients[:20],
                 "micro_batches": [_described(call) for call in self._calls]}  # fmt: skip
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        text = f"the gradient of step {step} is {what} (norm {norm:.4g}); {path} names the samples and noise levels"
        spoilt = [name for name, buffer in module.named_buffers() if buffer.is_floating_point() and not bool(buffer.isfinite().all())]
        if spoilt:
            raise FloatingPointError(
                f"{text}. The step has already spoilt {spoilt[0]}, so it cannot be left out; resume from the last checkpoint"
            )
        if self._state["row"] > self.skips:
            raise FloatingPointError(f"{text}. {self._state['row']} steps in a row were left out, {self.skips} may be: look at the data, "
                                     "lower the learning rate, or resume from an earlier checkpoint")  # fmt: skip
        log.warning("%s; left out, %d in a row", text, self._state["row"])

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._agreement = [], None
        self._calls.clear()

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        """Advice for an allocation that failed."""
        self.on_train_end(trainer, pl_module)
        if isinstance(exception, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(exception):
            exception.add_note(ADVICE)


def _described(call: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch in plain types: its samples, levels and loss, and which of its entries are not finite."""
    batch = call["batch"] if isinstance(call["batch"], Mapping) else {}
    floats = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()}
    rows = {name: (~v.isfinite()).reshape(len(v), -1).any(1).nonzero().flatten().tolist() for name, v in floats.items() if v.ndim}
    index = batch.get("index")
    return {
        "index": index.tolist() if isinstance(index, Tensor) else None,
        "levels": {name: [float(f"{level:.6g}") for level in levels.tolist()] for name, levels in call["levels"].items()},
        "loss": None if call["loss"] is None else str(float(call["loss"])),
        "rows_not_finite": {name: bad for name, bad in rows.items() if bad},
    }
