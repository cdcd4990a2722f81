"""Steps that would ruin the weights are left out, written down, and end the run when they do not stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from ..dtensors import whole
from ..module import DiffusionModule
from ..recipes import recorded

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
    batch's entries and the gradients that are not finite. An allocation that fails is answered with what to change.

    The verdict is reached where the gradients are, and a fused optimizer (the default) is told there, so that the processor never waits for
    the accelerator: it looks at the verdicts of several steps at once, writes down what was left out, and only then ends a run that should
    end. No weights are spoilt by then, since every such step was left out. For other optimizers, and for sharded parameters, it looks in
    every step. Under float16 the gradient scaler leaves steps out by itself, so the loss is watched there, and spikes are not.

    Args:
        skips: steps in a row that may be left out; one more ends the run.
        spike: also leave out steps whose log gradient norm lies this many standard deviations above its running mean; None: no such check.
        window: steps over which mean and deviation run, and before which nothing is called a spike.
        look_every: optimizer steps between two looks; None: 1 on a CPU, where nothing has to wait, elsewhere the trainer's
            ``log_every_n_steps``. Checkpoints and the end of training look as well.

    Raises:
        ValueError: ``skips`` below 0, ``spike`` not positive, ``window`` below 2 or ``look_every`` below 1.
    """

    def __init__(self, skips: int = 10, spike: float | None = None, window: int = 200, look_every: int | None = None) -> None:
        if skips < 0 or window < 2 or (spike is not None and spike <= 0):
            raise ValueError(f"expected skips >= 0, spike > 0 or None and window >= 2, got {skips}, {spike} and {window}")
        if look_every is not None and look_every < 1:
            raise ValueError(f"look_every must be at least 1 or None, got {look_every}")
        self.skips, self.spike, self.window, self.look_every = skips, spike, window, look_every
        self._state = {"row": 0, "total": 0, "seen": 0, "mean": 0.0, "variance": 0.0}
        self._moments: Tensor | None = None  # seen, mean and variance, where the gradients are
        self._unseen: list[_Step] = []
        self._told: Any = None  # the optimizer that is told on the device
        self._run: tuple[Trainer, DiffusionModule] | None = None
        self._calls: list[dict[str, Any]] = []
        self._hooks: list[Any] = []

    @property
    def state_key(self) -> str:
        """Where the counters lie in a checkpoint's ``callbacks``."""
        return "diffx.Guard"

    @property
    def skipped(self) -> int:
        """Steps left out so far, resumed runs included."""
        self._look()
        return int(self._state["total"])

    def state_dict(self) -> dict[str, Any]:
        """Counters and running moments, so that a resumed run judges alike."""
        self._look()
        if self._moments is not None:
            self._state.update(zip(("seen", "mean", "variance"), self._moments.tolist(), strict=True))
            self._state["seen"] = int(self._state["seen"])
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._state, self._moments = dict(state_dict), None

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Watch which levels the trained parts are called with."""
        self._run = trainer, pl_module
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
        """Judge the step; one left out is not taken."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        calls, self._calls = self._calls, []
        norms = torch.zeros(1, device=pl_module.device)
        if parameters:
            norms = whole(torch.stack([norm.float() for norm in torch._foreach_norm([p.grad for p in parameters])]))
        norm = torch.linalg.vector_norm(norms)
        losses = [call["loss"] for call in calls if call["loss"] is not None]
        verdict = self._judged(torch.stack(losses).sum() if scaled and losses else norm, norm, spikes=not scaled)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(verdict, torch.distributed.ReduceOp.MAX)
        self._learn(norm, verdict)
        fused = getattr(optimizer, "_step_supports_amp_scaling", False) and not any(hasattr(p, "full_tensor") for p in parameters)
        self._unseen.append(_Step(trainer.global_step, verdict, norm, norms, parameters, [_noted(call) for call in calls]))
        if scaled:  # the scaler finds it, too, and insists on gradients to look at
            fused = True
        elif fused:
            optimizer.found_inf, self._told = verdict.clamp(max=1).float(), optimizer
        every = self.look_every or (1 if norm.device.type == "cpu" else trainer.log_every_n_steps or 50)
        if not fused or len(self._unseen) >= every:
            left_out = self._look()
            if left_out and not fused:
                for p in parameters:
                    p.grad = None

    def _judged(self, watched: Tensor, norm: Tensor, spikes: bool) -> Tensor:
        """0: a good step, 1: a spike, 2: not finite; int32 (), on the device."""
        verdict = torch.where(watched.isfinite(), 0, 2)
        if self.spike is not None and spikes:
            if self._moments is None or self._moments.device != norm.device:
                moments = [float(self._state[name]) for name in ("seen", "mean", "variance")]
                self._moments = torch.tensor(moments, dtype=torch.float64).to(norm.device, non_blocking=True)
            seen, mean, variance = self._moments
            high = norm.double().log() - mean > self.spike * variance.sqrt()
            verdict = torch.maximum(verdict, torch.where(high & (seen >= self.window) & (norm > 0) & norm.isfinite(), 1, 0))
        return verdict.int()

    def _learn(self, norm: Tensor, verdict: Tensor) -> None:
        """Running mean and variance of the log norm."""
        if self.spike is None or self._moments is None:
            return
        seen, mean, variance = self._moments
        share, gap = 1 / (seen + 1).clamp(max=self.window), norm.double().log() - mean
        learnt = torch.stack([seen + 1, mean + share * gap, (1 - share) * (variance + share * gap * gap)])
        self._moments = torch.where((verdict == 0) & (norm > 0) & norm.isfinite(), learnt, self._moments)

    def _look(self) -> bool:
        """Read the verdicts that nobody has seen; whether the last one was against its step.

        Raises:
            FloatingPointError: more steps in a row were left out than may be, or a step has spoilt a buffer.
        """
        steps, self._unseen = self._unseen, []
        verdicts = torch.stack([step.verdict for step in steps]).tolist() if steps else []
        for step, verdict in zip(steps, verdicts, strict=True):
            if verdict == 0:
                self._state["row"] = 0
            else:
                self._leave_out(step, "a spike" if verdict == 1 else "not finite")
        return bool(verdicts) and verdicts[-1] != 0

    def _leave_out(self, step: _Step, what: str) -> None:
        assert self._run is not None
        trainer, module = self._run
        self._state["row"] += 1
        self._state["total"] += 1
        rank, norm = trainer.global_rank, float(step.norm)
        path = Path(trainer.default_root_dir, "guard", f"step_{step.number:08d}_rank{rank}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        names = {id(p): name for name, p in module.named_parameters()}
        bad = [names.get(id(p), "?") for p, good in zip(step.parameters, step.norms.isfinite().tolist(), strict=False) if not good]
        about = {"step": step.number, "rank": rank, "gradient_norm": str(norm), "verdict": what, "gradients_not_finite": bad[:20],
                 "micro_batches": [_described(call) for call in step.calls]}  # fmt: skip
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        text = f"the gradient of step {step.number} is {what} (norm {norm:.4g}); {path} names the samples and noise levels"
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
        """Look for the last time."""
        self._look()
        self._release()

    def _release(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        if self._told is not None:
            self._told.found_inf = None
        self._hooks, self._told, self._run = [], None, None
        self._unseen.clear()
        self._calls.clear()

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        """Advice for an allocation that failed."""
        self._release()
        if isinstance(exception, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(exception):
            exception.add_note(ADVICE)


class _Step(NamedTuple):
    """An optimizer step that nobody has looked at yet; tensors are on the device.

    Attributes:
        number: the trainer's.
        verdict: 0 for a good one, 1 for a spike, 2 for one that is not finite.
        norm: of the gradient.
        norms: (P,) norms of the gradients of ``parameters``.
        parameters: what was to be changed.
        calls: what `_noted` kept of its micro-batches.
    """

    number: int
    verdict: Tensor
    norm: Tensor
    norms: Tensor
    parameters: list[nn.Parameter]
    calls: list[dict[str, Any]]


def _noted(call: Mapping[str, Any]) -> dict[str, Any]:
    """What may be needed of a micro-batch when it is gone: its samples, levels and loss, and which rows of its entries are not finite."""
    batch = call["batch"] if isinstance(call["batch"], Mapping) else {}
    floats = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point() and value.ndim}
    spoilt = {name: ~torch.isfinite(value).reshape(len(value), -1).all(1) for name, value in floats.items()}
    return {"index": batch.get("index"), "levels": call["levels"], "loss": call["loss"], "spoilt": spoilt}


def _described(call: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch in plain types."""
    index = call["index"]
    rows = {name: spoilt.nonzero().flatten().tolist() for name, spoilt in call["spoilt"].items()}
    return {
        "index": index.tolist() if isinstance(index, Tensor) else None,
        "levels": {name: [float(f"{level:.6g}") for level in levels.tolist()] for name, levels in call["levels"].items()},
        "loss": None if call["loss"] is None else str(float(call["loss"])),
        "rows_not_finite": {name: bad for name, bad in rows.items() if bad},
    }
