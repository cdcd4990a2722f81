"""Half an hour on an accelerator: does everything run, how fast, does anything wait, and what does one short training give.

    python -m benchmarks.gpu_half_hour --out runs/gpu                    all parts, one after the other, less than ten minutes each
    python -m benchmarks.gpu_half_hour --out runs/gpu --part speed       one part
    python -m benchmarks.gpu_half_hour --out runs/gpu --device cpu --tiny --part smoke       the program itself, tried without one

| part | what it does |
|---|---|
| smoke | every network in bfloat16, eager and compiled: loss and gradients finite, compiled near eager |
| speed | steps of DiT-S/2, B/2, XL/2, ADM-64 and a 32 x 32 U-Net, and of diffusers' and timm's where there are any: images/s, MFU, memory |
| waits | how often the processor waits for the accelerator in training steps of ``digits/edm`` and in a walk of its sampler |
| emoji | ``emoji/text`` at 64 pixels, in bf16 and compiled, as long as its time lasts |

Each finished item is written to ``results.json`` of the folder at once; what is there is not done again. An item that fails is written down
with its error, and the others go on. No item is begun after a part's time is over.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Setting, compare
from benchmarks.speed.images import dit_makers, steps, unet_makers
from benchmarks.speed.rows import Makers
from diffx import files
from diffx.networks import UNet

__all__ = ["PARTS", "Book", "main"]

ROOT = Path(__file__).resolve().parents[1]
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, from the data sheets
Items = Iterator[tuple[str, Callable[[], Any]]]


class Book:
    """Results of items by name, kept in a file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def work(self, items: Items, seconds: float) -> bool:
        """Do the items that have no result yet; False where time was over before all were begun."""
        end = time.monotonic() + seconds
        for name, do in items:
            if name in self.entries:
                continue
            if time.monotonic() > end:
                return False
            start = time.monotonic()
            try:
                entry = {"result": do()}
            except Exception as error:
                entry = {"error": f"{type(error).__name__}: {error}"[:500]}
            self.entries[name] = {**entry, "seconds": round(time.monotonic() - start, 1)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.entries, indent=1)
            files.write(self.path, lambda file, text=text: file.write(text.encode()))
            print(f"{name}: {json.dumps(self.entries[name])[:300]}", flush=True)
        return True


# Smoke ----------------------------------------------------------------------------------------------------------------------------------


def smoke(args: argparse.Namespace) -> Items:
    """The list of networks that the tests run over, each once."""
    sys.path.insert(0, str(ROOT / "tests"))
    from network_list import NETWORKS, output

    def one(name: str) -> dict[str, Any]:
        case = NETWORKS[name]
        torch.manual_seed(0)
        net = case.awake().to(args.device)
        x, noise = (t.to(args.device) for t in case.data())
        cond, handed = case.cond(net).to(args.device), {key: t.to(args.device) for key, t in case.handed().items()}
        outs, norms = [], []
        for compiled in (False, True):
            if compiled:
                net.compile()
            with torch.autocast(args.device, torch.bfloat16):
                out = output(net, x, noise, cond, **handed).float()
            net.zero_grad()
            out.square().mean().backward()
            norms.append(float(nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])))
            outs.append(out.detach())
        apart = float((outs[0] - outs[1]).norm() / outs[0].norm())
        if not all(map(torch.isfinite, map(torch.tensor, norms))) or not apart < 0.1:
            raise ArithmeticError(f"gradient norms {norms}, compiled differs from eager by {apart:.3g} of its size")
        return {"gradient_norms": norms, "compiled_apart": apart}

    for name in NETWORKS:
        yield f"smoke {name}", partial(one, name)


# Speed ----------------------------------------------------------------------------------------------------------------------------------


def adm_makers(batch: int, setting: Setting) -> Makers:
    """The ImageNet network of 64 pixels, as EDM trains it, without labels."""
    x, target = setting.randn(2, batch, 3, 64, 64)
    noise = setting.randn(batch)
    nets = {"diffx UNet.adm(64)": lambda: UNet.adm(64, classes=0)}
    return steps(setting, lambda net: (net(x, noise) - target).square().mean(), nets, batch)


def speed(args: argparse.Namespace) -> Items:
    """Each network by itself, so that memory is its own."""
    full: dict[str, tuple[Callable[[Setting], Makers], int]] = {
        "U-Net 32": (partial(_unets, 256), 256),
        "DiT-S/2": (partial(dit_makers, "S", 256), 256),
        "DiT-B/2": (partial(dit_makers, "B", 128), 128),
        "DiT-XL/2": (partial(dit_makers, "XL", 32), 32),
        "ADM-64": (partial(adm_makers, 64), 64),
    }
    chosen = {"U-Net 32": (partial(_unets, 1), 1)} if args.tiny else full
    plain = Setting(args.device)
    bf16 = replace(plain, precision="bf16")
    for name, (makers, _) in chosen.items():
        for subject in makers(plain):
            for setting in (plain, bf16, replace(bf16, compile=True))[: 1 if args.tiny else 3]:
                yield f"speed {name}, {subject}, {setting}", partial(_step, makers, subject, setting, args)


def _unets(batch: int, setting: Setting) -> Makers:
    return {name: make for name, make in unet_makers(setting, batch).items() if "dropout" not in name and "pytorch" not in name}


def _step(makers: Callable[[Setting], Makers], name: str, setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    torch.set_float32_matmul_precision("high")  # TF32 for what is not bfloat16
    outcome = compare([makers(setting)[name]()], 3 if args.tiny else 10, setting)
    (found,) = outcome["results"]
    kept = {key: found[key] for key in ("ms", "images_per_s", "gflop", "of_roof", "peak_mb", "parameters")}
    if not found["gflop"]:  # compiled: the operations are those of the eager one
        eager = compare([makers(replace(setting, compile=False))[name]()], 2, replace(setting, compile=False))["results"][0]
        kept.update({key: eager[key] for key in ("gflop", "peak_mb")}, of_roof=eager["gflop"] / found["ms"] * 1e3 / outcome["roof_gflops"])
        kept["peak_mb_is_of"] = "the eager one"
    kept["tflops"] = kept["gflop"] / kept["ms"]
    device = torch.cuda.get_device_name() if args.device == "cuda" else ""
    peak = next((value for known, value in PEAKS.items() if known in device), None)
    return {**kept, "roof_gflops": outcome["roof_gflops"], "mfu": None if peak is None else kept["tflops"] * 1e12 / peak}


# Waits ----------------------------------------------------------------------------------------------------------------------------------


def waits(args: argparse.Namespace) -> Items:
    """Warnings of torch's own watch over synchronisations; on a CPU there are none."""
    yield "waits training", partial(_training_waits, args)
    yield "waits walk", partial(_walk_waits, args)


class _Watched:
    """Counts the synchronisations inside a ``with`` block."""

    def __enter__(self) -> _Watched:
        self._caught = warnings.catch_warnings(record=True)
        self.seen = self._caught.__enter__()
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self.places = [f"{Path(w.filename).name}:{w.lineno}" for w in self.seen if "synchroniz" in str(w.message)]
        self._caught.__exit__(*error)


def _training_waits(args: argparse.Namespace) -> dict[str, Any]:
    import lightning as L

    from diffx.callbacks import EMA, Guard, Throughput
    from diffx.recipes.build import build
    from diffx.recipes.compose import compose

    tree = compose("digits/edm", ["small=true"] if args.tiny else []).tree
    found: dict[str, Any] = {}

    class Watch(L.Callback):
        """Steps 20 to 40, between two kept ones."""

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 20:
                self.watched = _Watched().__enter__()

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 40:
                self.watched.__exit__(None, None, None)
                found.update(steps=20, waits=len(self.watched.places), places=sorted(set(self.watched.places)))

    trainer = L.Trainer(accelerator="gpu" if args.device == "cuda" else "cpu", devices=1, max_steps=45, max_epochs=-1, logger=False,
                        callbacks=[EMA(), Guard(), Throughput(), Watch()], enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, check_val_every_n_epoch=None, val_check_interval=1000, num_sanity_val_steps=0,
                        use_distributed_sampler=False, default_root_dir=args.out)  # fmt: skip
    trainer.fit(build(tree["module"]), build(tree["data"]))
    return found


def _walk_waits(args: argparse.Namespace) -> dict[str, Any]:
    from diffx import Denoiser
    from diffx.samplers import Heun

    denoiser, noise = Denoiser(UNet(width=32, mults=(1, 2))).to(args.device).eval(), torch.randn(4, 3, 32, 32, device=args.device)
    sampler = Heun(6)
    with torch.no_grad():
        sampler(denoiser, noise)
        with _Watched() as watched:
            sampler(denoiser, noise)
    return {"steps": 6, "waits": len(watched.places), "places": sorted(set(watched.places))}


# Emoji ----------------------------------------------------------------------------------------------------------------------------------


def emoji(args: argparse.Namespace) -> Items:
    """One training, ended by its time, and continued by another call."""

    def train() -> dict[str, Any]:
        minutes = max(1, int(args.seconds // 60) - 1)
        keys = ["small=true"] if args.tiny else [
            "data.size=64", "module.shape=[3, 64, 64]", "module.denoiser.net.width=96", "module.denoiser.net.mults=[1, 2, 3, 4]",
            "module.denoiser.net.attention_levels=[3]", "data.batch_size=64", "trainer.max_steps=20000", "compile=true",
            "+trainer.precision=bf16-mixed", f"+trainer.max_time=00:00:{minutes:02}:00",
        ]  # fmt: skip
        command = [sys.executable, "-m", "diffx.fit", "experiment=emoji/text", f"runs={args.out}", "run=emoji", *keys]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-400:])
        return {"minutes": minutes, "said": done.stdout.splitlines()[-4:]}

    yield "emoji training", train


PARTS = {"smoke": smoke, "speed": speed, "waits": waits, "emoji": emoji}


def main(argv: Sequence[str] | None = None) -> int:
    """Do the parts; 0 when all items have a result that is no error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--part", choices=PARTS, action="append", help="all by default")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which a part begins no further item")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="to try the program itself: few and small items")
    args = parser.parse_args(argv)
    book = Book(args.out / "results.json")
    complete = [book.work(PARTS[part](args), args.seconds) for part in args.part or PARTS]
    wrong = [name for name, entry in book.entries.items() if "error" in entry]
    print(f"{len(book.entries)} items, {len(wrong)} with errors{': ' + ', '.join(wrong) if wrong else ''}"
          f"{'' if all(complete) else '; time was over: run again to go on'}")  # fmt: skip
    return int(bool(wrong) or not all(complete))


if __name__ == "__main__":
    sys.exit(main())
