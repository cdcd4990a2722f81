"""Sound: ``python -m benchmarks.audio`` trains where nothing is trained and fills docs/techniques/audio.md.

- ``strings``: three roads to plucked strings, 128 samples each;
- ``codec``: what the autoencoder of the latents keeps of held-out strings;
- ``known``: the second half of held-out strings, and a gap in them, drawn from the rest without a word about the note;
- ``less``: held-out strings from their lower frequencies, and from their mel spectrogram;
- ``notes``: real notes, with ``--notes FILE.npz`` (arrays audio, sample_rate, labels, pitch, categories); without it, nothing of them.

The sounds themselves are written to docs/sounds. ``--only known less`` fills these tables alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffx
from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser, train
from diffx import Cond, media
from diffx.audio import Spectrogram, write_wav
from diffx.data import SoundArrays, Strings
from diffx.metrics import ClassJudge, LogMel, PitchJudge, evaluate, log_spectral_distance, si_sdr
from diffx.metrics.evaluation import requests
from diffx.metrics.real import asked_rows, real_items, take
from diffx.resizing import enlarge

PAGE, IMAGES, SOUNDS = "techniques/audio.md", DOCS / "images", DOCS / "sounds"
WAVE, SPECTROGRAM, CODEC, LATENT, UPSAMPLER, VOCODER = (
    Run(f"audio/strings_{name}") for name in ("wave", "spectrogram", "codec", "latent", "upsampler", "vocoder")
)
ROADS = {"waveform": WAVE, "spectrogram": SPECTROGRAM, "latents": LATENT}
FIGURES = ("pitch_accuracy", "pitch_folded", "pitch_cents", "level", "frechet_mel", "precision_mel", "recall_mel")
HEADS = {
    "strings": ("", *FIGURES),
    "codec": ("SI-SDR, dB", "log spectral distance", "within 50 cents"),
    "known": ("Drawn", "", "within 50 cents", "octaves equal", "log spectral distance"),
    "less": ("From", "within 50 cents", "log spectral distance above -40 dB", "above -60 dB"),
    "notes": ("", "within 50 cents", "octaves equal", "median error, cents", "instrument as a judge hears it"),
}
N, RATE, LENGTH = 128, 8000, 2048
SHOWN = 8  # one sound of each note


def load(run: Run, runs: Path) -> Any:
    """The averaged weights of a run."""
    return diffx.load(str(run.folder(runs)))


def shown(x: Tensor, name: str, rate: int = RATE) -> None:
    """Keep sounds (B, 1, L) as a picture of their spectra and as one track."""
    media.save(media.grid(x, columns=len(x)), IMAGES / f"audio-{name}.png")
    write_wav(media.track(x, rate), SOUNDS / f"{name}.wav", rate)


def evaluated(module: Any, data: Any, n: int, folder: Path, name: str) -> tuple[list[str], list[str]]:
    """(figures of the samples, of real held-out sound), as cells of the table."""
    found = evaluate(module, data, n=n, folder=folder, name=name)["figures"]
    return [cell(found[key]["value"]) for key in FIGURES], [cell(found[key].get("held_out", 0.0)) for key in FIGURES]


def cell(value: float) -> str:
    """A figure as the tables show it."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def roads(runs: Path, data: Strings) -> list[list[str]]:
    """Rows of ``strings``; the last is real sound."""
    rows, real = [], []
    for name, run in ROADS.items():
        module = load(run, runs)
        line, real = evaluated(module, data, N, runs / "audio" / "evaluated", name)
        rows.append([name, *line])
        shown(module.sample(SHOWN, Cond(label=torch.arange(SHOWN)), seed=0), run.experiment.rpartition("/")[2].replace("_", "-"))
    return [*rows, ["real, held out", *real]]


def kept(module: Any, held: Mapping[str, Any], judge: PitchJudge) -> list[str]:
    """The row of ``codec``."""
    back = module.reconstruct(held["x"][:N]).cpu()
    x = held["x"][:N]
    return [cell(value) for value in (
        si_sdr(back, x).median().item(), log_spectral_distance(back, x, floor=1e-2).mean().item(),
        judge(back, held["note"][:N])["pitch_accuracy"],
    )]  # fmt: skip


def completed(module: Any, held: Mapping[str, Any], judge: PitchJudge) -> list[list[str]]:
    """Rows of ``known``; nothing is told but the known part."""
    x, note, time = held["x"][:N], held["note"][:N], torch.arange(LENGTH)
    rows = []
    for name, known, drawn in (
        ("the second half", time < LENGTH // 2, slice(LENGTH // 2, None)),
        ("the middle half", (time < LENGTH // 4) | (time >= LENGTH * 3 // 4), slice(LENGTH // 4, LENGTH * 3 // 4)),
    ):
        made = module.complete(x, known, weight=0.0, seed=0).cpu()
        if name == "the second half":
            shown(made[:SHOWN], "strings-completed")
        for who, sound in (("drawn", made), ("of another sound", x.roll(1, 0)), ("real", x)):
            found = judge(sound[..., drawn].contiguous(), note)
            far = log_spectral_distance(sound[..., drawn], x[..., drawn], floor=1e-2).mean().item()
            rows.append([name, who, cell(found["pitch_accuracy"]), cell(found["pitch_folded"]), cell(far)])
    longer = module.extend(x[:, :, :LENGTH], 4, weight=0.0, seed=0).cpu()
    shown(longer[:SHOWN], "strings-extended")
    for block in (1, 2, 3):
        begin = LENGTH + (block - 1) * LENGTH // 2
        found = judge(longer[..., begin : begin + LENGTH // 2].contiguous(), note)
        rows.append([f"half a length, the {block}. further", "drawn", cell(found["pitch_accuracy"]), cell(found["pitch_folded"]), "–"])
    return rows


def from_less(runs: Path, held: Mapping[str, Any], judge: PitchJudge) -> list[list[str]]:
    """Rows of ``less``: sounds made from the lower frequencies and from mel spectrograms, each beside the way without a network."""
    some = take(held, torch.arange(N))
    x, note = some["x"], some["note"]
    upsampler, vocoder = load(UPSAMPLER, runs), load(VOCODER, runs)
    told = upsampler.condition(some)
    low = enlarge(told.maps["low_res"], (LENGTH,))
    raised = upsampler.sample(N, Cond(maps=told.maps), seed=0).cpu()
    spoken = vocoder.sample(N, vocoder.condition(some), seed=0).cpu()
    codec = Spectrogram(RATE, n_fft=512, hop=64, mels=40, reference=1.0)
    phases = codec.sound(codec.picture(codec.magnitude(x)))
    shown(low[:SHOWN], "strings-low")
    shown(raised[:SHOWN], "strings-raised")
    shown(spoken[:SHOWN], "strings-vocoder")
    rows = []
    for name, sound in (("2 kHz: what is shown", low), ("2 kHz: drawn", raised), ("mel: Griffin and Lim", phases), ("mel: drawn", spoken),
                        ("another sound of the note", x.roll(SHOWN, 0)), ("real", x)):  # fmt: skip
        found = judge(sound, note)
        far = [log_spectral_distance(sound, x, floor=floor).mean().item() for floor in (1e-2, 1e-3)]
        rows.append([name, cell(found["pitch_accuracy"]), *map(cell, far)])
    return rows


def instruments(runs: Path, path: str) -> list[list[str]]:
    """Rows of ``notes``: pitch by its frequency, instrument by a judge of spectra."""
    run = Run("audio/notes", overrides=(f"data.arrays={path}",))
    train(runs, [run])
    module, data = load(run, runs), notes_data(path)
    real, held = real_items(data)
    assert held is not None
    features, judge = LogMel(data.sample_rate), PitchJudge(data.sample_rate, **data.pitch_range)
    teller = ClassJudge().fit(features(real["x"]), real["label"])
    n = 280
    cond, label = requests(module, held, n)
    assert label is not None
    note = held["note"][asked_rows(held, n)]
    made = {guidance: module.sample(n, cond, guidance=guidance, seed=0, chunk=70).cpu() for guidance in (1.0, 2.0)}
    shown(made[2.0][:14], "notes", data.sample_rate)
    shown(take(held, asked_rows(held, 14))["x"], "notes-real", data.sample_rate)
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, x, asked, pitch in (("drawn", made[1.0], label, note), ("drawn, guidance 2", made[2.0], label, note),
                                  ("the same, requests dealt out anew", made[2.0], label[mixed], note[mixed]),
                                  ("real, held out", held["x"], held["label"], held["note"])):  # fmt: skip
        found = judge(x, pitch)
        told = teller.accuracy(features(x), asked)
        rows.append([name, *(cell(found[key]) for key in ("pitch_accuracy", "pitch_folded", "pitch_cents")), cell(told)])
    return rows


def notes_data(path: str) -> SoundArrays:
    """The notes as the experiment reads them."""
    return SoundArrays(path, 32, sample_rate=16000, length=4096, crop="start", labels="labels", notes="pitch", class_names="categories",
                       val=0.1, pitch_range={"low": 60.0, "high": 1100.0})  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    line = parser("python -m benchmarks.audio", __doc__)
    line.add_argument("--notes", help="an .npz file of real notes; without it they are left out")
    line.add_argument("--only", nargs="+", choices=HEADS, default=list(HEADS), help="tables to fill")
    given = line.parse_args(argv)
    runs: Path = given.runs
    data = Strings()
    held = real_items(data)[1]
    assert held is not None
    judge = PitchJudge(RATE, **data.pitch_range)
    shown(held["x"][:SHOWN], "strings-real")
    makers: dict[str, tuple[list[Run], Callable[[], list[list[str]]]]] = {
        "strings": ([CODEC, *ROADS.values()], lambda: roads(runs, data)),
        "codec": ([CODEC], lambda: [kept(load(CODEC, runs), held, judge)]),
        "known": ([CODEC, LATENT], lambda: completed(load(LATENT, runs), held, judge)),
        "less": ([UPSAMPLER, VOCODER], lambda: from_less(runs, held, judge)),
        "notes": ([], lambda: instruments(runs, given.notes)),
    }
    for place, (needed, maker) in makers.items():
        if place in given.only and (place != "notes" or given.notes):
            train(runs, needed)
            rows = maker()
            fill(PAGE, place, table(HEADS[place], rows))
            print(place, *rows, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
