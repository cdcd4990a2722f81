from __future__ import annotations

import json
import subprocess
import sys

import lightning as L
import pytest
import torch
from metrics.yardsticks import Split, class_gaussian, class_means
from PIL import Image
from torch.utils.data import DataLoader

from diffx import EDM, Cond, Denoiser, Heun, rng
from diffx.data import Digits
from diffx.evaluate import main
from diffx.metrics.drawn import Unfinished
from diffx.metrics.evaluation import evaluate, requests
from diffx.metrics.real import real_items
from diffx.metrics.report import table
from diffx.networks import UNet
from diffx.recipes import recipe_of

CLAIM = {"samples": 200, "accuracy": ">= 0.95", "frechet": "<= 0.25", "nearest": "<= 2.4"}


class Drawer:
    """No network: a rule from labels and seeds to samples, under the public face of a technique."""

    device = torch.device("cpu")

    def __init__(self, rule):
        self.rule, self.calls = rule, []

    def condition(self, batch):
        return Cond(label=batch.get("label"))

    def sample(self, n, cond=Cond(), *, guidance=1.0, sampler=None, seed=None, shape=None, chunk=None):
        self.calls.append({"n": n, "guidance": guidance, "sampler": sampler, "seed": seed, "chunk": chunk})
        return self.rule(n, cond.label, seed)


def noise(n, label, seed):
    return rng.randn((n, 1, 8, 8), rng.sample_generators(seed, n)).clamp(-1, 1)


@pytest.fixture(scope="module")
def data():
    return Digits(batch_size=64)


@pytest.fixture(scope="module")
def split(data):
    train, val = real_items(data)
    return Split(train["x"], train["label"], val["x"], val["label"])


def test_real_items_are_all_there_once(split):
    assert (len(split.train), len(split.held_out)) == (1500, 297)
    pixels = torch.cat([split.train, split.held_out]).flatten(1)
    assert pixels.aminmax() == (-1, 1)
    both = torch.cdist(split.held_out.flatten(1), split.train.flatten(1)).min()
    assert both > 0  # no digit is on both sides


def test_a_foreign_datamodule_is_read_through_its_loaders(split):
    class Foreign(L.LightningDataModule):
        ready = False

        def setup(self, stage):
            self.ready = True

        def train_dataloader(self):
            assert self.ready
            return DataLoader([{"x": x, "label": y} for x, y in zip(split.train, split.labels, strict=True)], batch_size=64)

    train, held_out = real_items(Foreign())
    assert held_out is None
    assert torch.equal(train["x"], split.train)
    assert torch.equal(train["label"], split.labels)
    assert len(real_items(Foreign(), limit=100)[0]["x"]) == 100
    report = evaluate(Drawer(noise), Foreign(), n=20)
    assert report["data"] == {"name": "Foreign", "train": 1500, "held_out": 0, "shape": [1, 8, 8]}
    assert report["skipped"] == {"nearest_floor": "there are no held-out items"}


def test_batches_must_be_mappings(split):
    class Pairs(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader([(x, 0) for x in split.train[:4]], batch_size=2)

    with pytest.raises(TypeError, match=r'Pairs gives batches of type list; .* mappings with "x"'):
        real_items(Pairs())


def test_thinned_out_always_alike(data):
    one, two = real_items(data, 50)[0], real_items(data, 50)[0]
    assert len(one["x"]) == 50
    assert torch.equal(one["index"], two["index"])


def test_requests_are_balanced_and_match_their_items(split):
    real = {"x": split.held_out, "label": split.held_out_labels, "text": [f"a {c}" for c in split.held_out_labels.tolist()]}
    module = Drawer(noise)
    seen = {}
    module.condition = lambda batch: seen.update(batch) or Cond(label=batch["label"])
    cond, labels = requests(module, real, 405, chunk=405)
    assert labels.bincount().tolist() == [41] * 5 + [40] * 5
    assert torch.equal(cond.label, labels)
    assert seen["text"] == [f"a {c}" for c in labels.tolist()]
    rows = torch.cdist(seen["x"].flatten(1), split.held_out.flatten(1)).argmin(1)
    assert torch.equal(split.held_out_labels[rows], labels)
    cond, again = requests(module, real, 405, chunk=100)
    assert torch.equal(cond.label, labels)
    assert torch.equal(again, labels)


def test_an_unconditional_module_has_no_accuracy(data):
    module = Drawer(noise)
    module.condition = lambda batch: Cond()
    report = evaluate(module, data, n=12, claim={"accuracy": ">= 0.5"})
    assert report["skipped"] == {"accuracy": "there are no labels", "judge": "there are no labels"}
    assert report["verdict"]["accuracy"]["reason"] == "not measured: there are no labels"
    assert report["kept"] is None


def test_noise_misses_its_claim_and_says_everything(data, tmp_path):
    module = Drawer(noise)
    report = evaluate(
        module, data, claim=CLAIM, seed=7, guidance=1.5, chunk=50, folder=tmp_path / "evaluate", about={"weights": "ema:slow"}
    )
    assert module.calls == [{"n": 50, "guidance": 1.5, "sampler": None, "seed": 7 + k, "chunk": None} for k in (0, 50, 100, 150)]
    assert report["kept"] is False
    assert {name for name, entry in report["verdict"].items() if not entry["met"]} == {"accuracy", "frechet", "nearest"}
    path = tmp_path / "evaluate" / "ema_slow-n200-sampler-w1.5-seed7.json"
    assert json.loads(path.read_text()) == report
    assert report["files"] == {"report": str(path), "grid": str(path.with_suffix(".png"))}
    picture = Image.open(path.with_suffix(".png"))
    assert picture.width == picture.height  # 100 digits, a column for each class
    for key in (
        "weights",
        "samples",
        "seed",
        "guidance",
        "sampler",
        "data",
        "features",
        "figures",
        "claim",
        "verdict",
        "cpu_seconds",
        "versions",
    ):
        assert key in report
    assert report["figures"]["judge"]["value"] >= 0.97


@pytest.mark.parametrize(("rule", "missed"), [(class_gaussian, {"frechet"}), (class_means, {"frechet"})])
def test_yardsticks_without_a_picture_miss_the_claim(data, split, rule, missed):
    report = evaluate(Drawer(lambda n, label, seed: rule(split, label).clamp(-1, 1)), data, claim={**CLAIM, "samples": 1000})
    assert {name for name, entry in report["verdict"].items() if not entry["met"]} == missed
    assert report["kept"] is False


def test_copies_are_named(data, split):
    def copies(n, label, seed):
        return torch.stack([split.train[(split.labels == c).nonzero()[i // 10, 0]] for i, c in enumerate(label, seed)])

    report = evaluate(Drawer(copies), data, claim={**CLAIM, "samples": 1000})
    assert {name for name, entry in report["verdict"].items() if not entry["met"]} == {"nearest_floor"}
    text = table(report)
    assert "MISSED" in next(line for line in text.splitlines() if "nearest_floor" in line)
    assert text.splitlines()[-1] == "the claim is MISSED"


def test_further_features_are_added_under_their_name(data):
    class Net:
        name = "fid"

        def __call__(self, x):
            return x.flatten(1)[:, ::4]

    report = evaluate(Drawer(noise), data, n=30, features=Net(), claim={"fid": "<= 1"})
    assert {"frechet", "fid", "kid", "kid_fid"} <= set(report["figures"])
    assert report["features"] == ["pixels", {"name": "fid"}]
    assert report["verdict"]["fid"]["met"] is False
    plain = evaluate(Drawer(noise), data, n=30, claim={"fid": "<= 1"})
    assert "fid" not in plain["figures"]
    assert plain["verdict"]["fid"]["reason"] == "not measured: these features were not asked for"
    assert "fid" in table(plain)


def test_processes_share_the_samples(data, tmp_path):
    """Two ranks draw other samples each, the last one measures all, and the report is that of one process; nothing else is left."""
    whole = evaluate(Drawer(noise), data, n=210, chunk=50, folder=tmp_path / "alone")
    first, second = Drawer(noise), Drawer(noise)
    with pytest.raises(Unfinished, match=r"2 of 5 parts .* ranks \[1\]"):
        evaluate(first, data, n=210, chunk=50, folder=tmp_path / "both", share=(0, 2))
    assert [call["seed"] for call in first.calls] == [0, 100, 200]
    shared = evaluate(second, data, n=210, chunk=50, folder=tmp_path / "both", share=(1, 2))
    assert [call["seed"] for call in second.calls] == [50, 150]
    assert shared["figures"] == whole["figures"]
    assert sorted(path.suffix for path in (tmp_path / "both").rglob("*")) == [".json", ".png"]
    with pytest.raises(ValueError, match="2 processes need a folder"):
        evaluate(Drawer(noise), data, n=210, share=(0, 2))


def test_an_interrupted_evaluation_goes_on(data, tmp_path):
    """What was drawn is not drawn again, but only for the same seed; half a file is none."""

    def tired(n, label, seed):
        if seed >= 100:
            raise KeyboardInterrupt
        return noise(n, label, seed)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(Drawer(tired), data, n=200, chunk=50, folder=tmp_path)
    (next(tmp_path.glob("parts-*")) / ".00000100.pt.1.tmp").write_bytes(b"half")
    other, again = Drawer(noise), Drawer(noise)
    evaluate(other, data, n=200, chunk=50, folder=tmp_path, seed=1)
    evaluate(again, data, n=200, chunk=50, folder=tmp_path)
    assert [call["seed"] for call in other.calls] == [1, 51, 101, 151] and [call["seed"] for call in again.calls] == [100, 150]


def test_other_weights_are_drawn_anew(data, tmp_path):
    module, drawn = EDM(Denoiser(UNet(channels=1, width=8, mults=(1,), blocks=1)), shape=(1, 8, 8), sampler=Heun(2)), []
    for weight in (0.0, 1.0, 0.0):
        with torch.no_grad():
            module.denoiser.net.head.bias.fill_(weight)
        with pytest.raises(Unfinished):
            evaluate(module, data, n=6, chunk=2, folder=tmp_path, share=(0, 2))
        drawn.append(len(list(tmp_path.glob("parts-*"))))
    assert drawn == [1, 2, 2]


def test_another_count_gives_no_verdict(data):
    report = evaluate(Drawer(noise), data, n=20, claim=CLAIM)
    assert report["kept"] is None
    assert "claimed for 200 samples, measured on 20" in table(report)


def test_errors(data):
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        evaluate(Drawer(noise), data, claim={"acuracy": ">= 1"})
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        evaluate(Drawer(noise), data, n=0)
    with pytest.raises(ValueError, match="20 of 20 samples are not finite"):
        evaluate(Drawer(lambda n, label, seed: torch.full((n, 1, 8, 8), float("nan"))), data, n=20)


# The verb ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu=x"], "unknown key 'rnu' on the command line; did you mean 'run'?"),
        (["experiment=x", "n=many"], "n must be int | None, got 'many'"),
        (["experiment=x", "n=0", "steps=0"], "steps must be at least 1, got 0"),
        (["run=a", "checkpoint=b"], "give run=... or checkpoint=..., not both"),
        ([], "nothing to evaluate"),
        (["checkpoint=absent.ckpt"], "checkpoint=absent.ckpt: there is no such file"),
        (["run=absent"], "run=absent: there is no such folder"),
        (["--strikt", "run=a"], "unknown flag '--strikt'; did you mean '--strict'?"),
    ],
)
def test_mistakes_are_answered_with_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["rnu=x"], 2)])
def test_answers_before_torch_is_imported(arguments, code):
    script = f"""
import sys
from diffx.evaluate import main
try:
    code = main({arguments!r})
except SystemExit as stop:
    code = stop.code
print(code, sorted({{"torch", "lightning", "sklearn"}} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == f"{code} []"


def run_folder(tmp_path, **claim):
    """A run as `fit` leaves it, of an untrained network."""
    torch.manual_seed(0)
    module = EDM(Denoiser(UNet(channels=1, classes=10, width=8)), shape=(1, 8, 8), sampler=Heun(steps=2))
    folder = tmp_path / "runs" / "digits" / "tiny" / "one"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    config = {"experiment": "digits/tiny", "module": recipe_of(module), "data": {"_target_": "diffx.data.Digits"}, "claim": claim}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder


def test_the_verb_from_a_run_folder(tmp_path, capsys, monkeypatch):
    folder = run_folder(tmp_path, samples=20, accuracy=">= 0.95", nearest="<= 2.4")
    monkeypatch.chdir(tmp_path)
    assert main(["run=one", "experiment=digits/tiny", "steps=3", "seed=5", "guidance=2"]) == 0
    printed = capsys.readouterr().out
    assert "the claim is MISSED" in printed
    report = json.loads((folder / "evaluate" / "ema-n20-heun3-w2-seed5.json").read_text())
    assert report["experiment"] == "digits/tiny"
    assert report["checkpoint"].endswith("last.ckpt")
    assert report["sampler"]["steps"] == 3
    assert report["command"] == "python -m diffx.evaluate run=one experiment=digits/tiny steps=3 seed=5 guidance=2"
    assert main([f"run={folder}", "--strict"]) == 1
    assert main([f"checkpoint={folder}/checkpoints/last.ckpt", "n=4", "sampler=Euler", "weights=raw", f"out={tmp_path}/elsewhere"]) == 0
    report = json.loads((tmp_path / "elsewhere" / "raw-n4-euler2-w1-seed0.json").read_text())
    assert report["sampler"]["_target_"] == "diffx.samplers.Euler"
    assert main(["experiment=digits/tiny", "n=4"]) == 0  # its newest run


def test_the_verb_started_twice(tmp_path, capsys, monkeypatch):
    """As torchrun or srun start it; the second process finds the first one's samples and measures."""
    run = run_folder(tmp_path)
    for variables in ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert main([f"run={run}", "n=20", "chunk=5"]) == 0
        said = capsys.readouterr().out
        assert ("rank 0 of 2 is done: 2 of 4 parts" in said) == (variables["RANK"] == "0")
    assert "20 samples, seed 0" in said


def test_the_same_seed_gives_the_same_figures(tmp_path, capsys):
    folder = run_folder(tmp_path)
    reports = []
    for seed in (1, 1, 2):
        assert main([f"run={folder}", "n=10", f"seed={seed}"]) == 0
        reports.append(json.loads(next(iter((folder / "evaluate").glob(f"*seed{seed}.json"))).read_text())["figures"])
    assert reports[0] == reports[1]
    assert reports[0]["frechet"]["value"] != reports[2]["frechet"]["value"]
    assert reports[0]["frechet"]["floor"] == reports[2]["frechet"]["floor"]


def test_mistakes_after_the_command_line(tmp_path, capsys):
    folder = run_folder(tmp_path)
    (folder / "config.yaml").rename(folder / "gone.yaml")
    assert main([f"run={folder}"]) == 2
    assert "name the experiment that has data and claim" in capsys.readouterr().err
    (folder / "gone.yaml").rename(folder / "config.yaml")
    assert main([f"run={folder}", "sampler=Heunn"]) == 2
    assert "did you mean 'Heun'" in capsys.readouterr().err
    assert main([f"run={folder}", "n=4", "features={path: absent.pt, nome: fid}"]) == 2
    assert "nome" in capsys.readouterr().err
    assert main([f"run={folder}", "n=4", "features=absent.pt"]) == 1
    assert "no feature network at absent.pt" in capsys.readouterr().err
