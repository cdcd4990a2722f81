"""What a run survives, tried: ``python -m benchmarks.faults``, or ``make faults``; writes the table of ``docs/reliability.md``.

Every fault is done to the small form of ``digits/edm`` in a temporary folder, through the same entrance as ``python -m diffx.fit``. Runs
are forked from this process, which has loaded everything, so that fifty of them take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import torch

from benchmarks.pages import fill, table
from diffx import files, fit, folders
from diffx.recipes import runs

WORDS = ["experiment=digits/edm", "small=true", "trainer.accelerator=cpu", "callbacks.samples=null", "callbacks.bands=null",
         "logger.tensorboard=null", "callbacks.progress.every_n_steps=1000000"]  # fmt: skip
EVERY = 2
SHARDED = "+trainer.strategy={_target_: diffx.FSDP, checkpoints: sharded}"


class Tell(L.Callback):
    """Write the number of every finished step to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        os.write(self.descriptor, f"{trainer.global_step}\n".encode())


class Spoil(L.Callback):
    """Put a number that is not finite into one sample of the batch of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            batch["x"][1] = float("nan")


class Terminate(L.Callback):
    """SIGTERM in the middle of a validation."""

    def on_validation_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def start(folder: Path, run: str, *more: str) -> int:
    """Fork a run; its process number."""
    child = os.fork()
    if child:
        return child
    with open(folder / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.environ.pop(runs.SHARED, None)
        os._exit(fit.main([*WORDS, f"runs={folder}", f"run={run}", *more]))


def finished(child: int) -> int:
    """Wait for a run; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def step_of(path: Path | None) -> int:
    if path is None:
        return 0
    return (folders.rest(path) if path.is_dir() else torch.load(path, map_location="cpu", mmap=True, weights_only=True))["global_step"]


def kills(folder: Path, count: int, form: str = "whole") -> tuple[str, str]:
    """One run, killed again and again, each time resumed from what it left; its checkpoints are files, or folders where ``sharded``."""
    run = f"killed_{form}"
    place = folder / "digits/edm" / run / "checkpoints"
    generator, lost, during, steps = random.Random(0), [], 0, 0
    for _ in range(count):
        out, into = os.pipe()
        begun = step_of(files.latest(place))
        child = start(folder, run, *([SHARDED] if form == "sharded" else []), "trainer.max_steps=1000000", "trainer.val_check_interval=7",
                      f"callbacks.checkpoints.every_n_steps={EVERY}",
                      f"+callbacks.tell={{_target_: benchmarks.faults.Tell, descriptor: {into}}}")  # fmt: skip
        os.close(into)
        told = os.read(out, 100)
        assert int(told.split()[0]) == begun + 1, f"resumed at {told!r} after {begun}"
        while int(told.split()[-1]) < begun + generator.randrange(2, 9):
            told += os.read(out, 100)
        time.sleep(generator.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        finished(child)
        while more := os.read(out, 10_000):
            told += more
        os.close(out)
        last = int(told.split()[-1])
        during += any(place.glob(".*.tmp"))
        lost.append(last - step_of(files.latest(place)))
        steps = last
    assert max(lost) <= EVERY, lost
    what = "" if form == "whole" else ", checkpoints being folders of parts"
    return (f"SIGKILL at {count} random moments of training, validating and saving ({during} of them while one was being written){what}",
            f"{count} of {count} resumed at their newest checkpoint, {steps} steps in all; steps repeated: at most {max(lost)}, "
            f"{sum(lost) / count:.1f} on average, with a checkpoint every {EVERY}")  # fmt: skip


def damaged(folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """Copies of a good checkpoint, cut short or with one bit turned, beside an older good one."""
    good = files.latest(folder / "digits/edm/killed_whole/checkpoints")
    assert good is not None
    place, whole = folder / "damaged", good.read_bytes()
    place.mkdir()
    shutil.copy(good, place / "step_00000001.ckpt")
    reference = torch.load(good, weights_only=True)
    generator = random.Random(1)
    for what in ("cut short at a random length", "with one random bit turned"):
        found = harmless = 0
        for _ in range(count):
            at = generator.randrange(len(whole))
            broken = (
                whole[:at] if what.startswith("cut") else whole[:at] + bytes([whole[at] ^ 1 << generator.randrange(8)]) + whole[at + 1 :]
            )
            (place / "last.ckpt").write_bytes(broken)
            if files.latest(place) == place / "step_00000001.ckpt":
                found += 1
            else:
                read = torch.load(place / "last.ckpt", weights_only=True)
                harmless += all(torch.equal(read["state_dict"][name], value) for name, value in reference["state_dict"].items())
        assert found + harmless == count
        rest = f"; in the other {harmless} the bit lay between the records, and all weights were right" if harmless else ""
        yield f"{count} checkpoints {what}", f"{found} recognised and passed over for the one before{rest}"


def full_disk(folder: Path) -> tuple[str, str]:
    """A file system of half a megabyte."""
    name, place = "disk full while saving (a tmpfs of 0.5 MB)", folder / "tmpfs"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        return name, f"not tried here: {mounted.stderr.strip()}"
    try:
        files.save_checkpoint({"step": 1}, place / "last.ckpt")
        try:
            files.save_checkpoint({"weights": torch.rand(500_000)}, place / "last.ckpt")
            raise AssertionError("two megabytes were written into half a megabyte")
        except OSError as error:
            told = str(error).replace(str(place), "...")
        assert torch.load(place / "last.ckpt", weights_only=True) == {"step": 1} and len(list(place.iterdir())) == 1
        return name, f'the run stops with "{told}"; the checkpoint before is whole, nothing is left over'
    finally:
        subprocess.run(["umount", str(place)], check=True)


def others(folder: Path) -> Iterator[tuple[str, str]]:
    """Faults that happen once."""
    (folder / "in_the_way").write_text("a file")
    assert finished(start(folder, "x", f"runs={folder}/in_the_way")) == 1
    yield "a run folder that cannot be written", "refused before training, with the advice to choose another place"

    place = folder / "digits/edm/killed_whole/checkpoints"
    last = place / "last.ckpt"
    for path in place.glob("step_*.ckpt"):
        os.utime(path, (time.time() + 3600,) * 2)
    os.utime(last, (time.time() - 3600,) * 2)
    assert files.latest(place) == last
    yield "the clock jumps by two hours between two saves", "the newest checkpoint is still the one resumed from"

    assert finished(start(folder, "nan", "trainer.max_steps=6", "+callbacks.spoil={_target_: benchmarks.faults.Spoil, step: 3}")) == 0
    end = torch.load(folder / "digits/edm/nan/checkpoints/last.ckpt", weights_only=True)
    assert end["callbacks"]["diffx.Guard"]["total"] == 1 and all(v.isfinite().all() for v in end["state_dict"].values())
    yield (
        "a batch with a number that is not finite",
        "that step is left out and its samples and noise levels written down; all weights finite",
    )

    code = finished(start(folder, "term", "trainer.max_steps=6", "+callbacks.term={_target_: benchmarks.faults.Terminate}"))
    end = torch.load(folder / "digits/edm/term/checkpoints/last.ckpt", weights_only=True)
    averages = end["callbacks"]["diffx.EMA"]["profiles"]["ema"]["weights"]
    assert (
        code == 143 and end["global_step"] == 2 and any(not torch.equal(end["state_dict"][name], value) for name, value in averages.items())
    )
    yield "SIGTERM during a validation", "saved at the step before it, exit code 143; raw and averaged weights in their places"

    out, into = os.pipe()
    first = start(folder, "both", "trainer.max_steps=1000000", f"+callbacks.tell={{_target_: benchmarks.faults.Tell, descriptor: {into}}}")
    os.read(out, 100)
    second = finished(start(folder, "both"))
    os.kill(first, signal.SIGKILL)
    finished(first)
    assert second == 2 and finished(start(folder, "both", "trainer.max_steps=1")) == 0
    yield "a second run in the folder of a living one", "refused with the first one's process and host; free again when that was killed"


def main(argv: Sequence[str] | None = None) -> None:
    """Try all, print the table, write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--damaged", type=int, default=50, help="checkpoints cut short, and as many with a bit turned")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("diffx.files").setLevel(logging.ERROR)  # it tells of every damaged file
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        fit.main(["experiment=digits/edm", "small=true", "--check"])  # loads what every run needs
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="faults-"))
    rows = []
    for made in (
        lambda: [kills(folder, given.kills), kills(folder, given.kills // 2, "sharded")],
        lambda: damaged(folder, given.damaged),
        lambda: [full_disk(folder)],
        lambda: others(folder),
    ):
        for row in made():
            print(": ".join(row), flush=True)
            rows.append(row)
    shutil.rmtree(folder)
    fill("reliability.md", "faults", table(["fault", "outcome"], rows) + f"\n\n{time.monotonic() - began:.0f} s in all.")


if __name__ == "__main__":
    main()
