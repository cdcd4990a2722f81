"""Sharded training: two ranks under FSDP train what one process trains, and their checkpoints are everybody's."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from network_list import NETWORKS
from sharded_parts import GLOBAL, furthest, network, technique, trained, two_micro_batches
from technique_list import TECHNIQUES
from test_resume import differences
from toys import Toy
from two_ranks import on_ranks

import diffx
from diffx import FSDP, files, folders
from diffx.callbacks import EMA, Checkpoints, PowerSnapshots
from diffx.dtensors import is_sharded
from diffx.networks import DiT, UNet, units
from diffx.sharding import shard

pytestmark = pytest.mark.timeout(900)  # all that two ranks do is one fixture
FAMILIES = ("unet", "dit_all", "rin", "video_unet", "prior")
ADAMW = partial(torch.optim.AdamW, lr=1e-2, fused=True)
ADAPTED = 5e-5  # AdamW divides by gradients as small as rounding: steps of 1e-2 differ by that much
FORMS = ("whole", "sharded")


def dit() -> Any:
    return technique("dit", optimizer=ADAMW)


def callbacks() -> list[L.Callback]:
    return [EMA(halflife=20, rampup=None), Checkpoints(every_n_steps=2)]


def careful(folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    """Training with averages, checkpoints and clipping."""
    return trained(dit(), folder, steps, callbacks=callbacks(), gradient_clip_val=0.5, **options)


def resumed(folder: Path, form: str) -> dict[str, Any]:
    """What is left of four steps, of two, of two more after those, and of two more without sharding."""
    strategy, last = FSDP(form), folder / form / "half" / "checkpoints" / "last.ckpt"
    return {
        "whole": careful(folder / form / "whole", 4, world=2, strategy=FSDP(form)),
        "half": careful(folder / form / "half", 2, world=2, strategy=strategy),
        "again": careful(folder / form / "again", 4, world=2, strategy=FSDP(form), resume=last),
        "ddp": careful(folder / form / "ddp", 4, world=2, strategy="ddp", resume=last),
    }


class Look(L.Callback):
    """What a run shows while it is sharded."""

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        ema = next(c for c in trainer.callbacks if isinstance(c, EMA))
        net = pl_module.denoiser.net
        self.sharded = all(is_sharded(p) for p in net.parameters())
        self.held = sum(p.to_local().numel() for p in net.parameters()) / sum(p.numel() for p in net.parameters())
        self.shadows_held = sum(w.to_local().numel() for w in ema.shadows.weights["ema"].values())
        cond = TECHNIQUES["dit"].cond(3)
        with ema.applied(pl_module):
            self.averaged = pl_module.sample(3, cond, guidance=2.0, seed=4)
            trainer.save_checkpoint(Path(trainer.default_root_dir, "inside.ckpt"))
        self.raw = pl_module.sample(3, cond, guidance=2.0, seed=4)
        trainer.save_checkpoint(Path(trainer.default_root_dir, "outside.ckpt"))


def looked_at(folder: Path) -> dict[str, Any]:
    look = Look()
    trained(dit(), folder, 2, world=2, strategy=FSDP(), callbacks=[*callbacks(), look, PowerSnapshots(every_images=4)])
    return {name: getattr(look, name) for name in ("sharded", "held", "shadows_held", "averaged", "raw")}


def work(folder: Path, names: tuple[str, ...], start: Path | None) -> dict[str, Any]:
    """All that two ranks do for this file."""
    made: dict[str, Any] = {name: trained(network(name), folder, 1, world=2, strategy=FSDP())["weights"] for name in names}
    if start is not None:
        made |= {form: resumed(folder, form) for form in FORMS}
        made["look"] = looked_at(folder / "look")
        made["from one"] = careful(folder / "from_one", 4, world=2, strategy=FSDP(), resume=start)
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    one = {
        "half": two_micro_batches(dit, folder, steps=2, callbacks=callbacks(), gradient_clip_val=0.5),
        "whole": two_micro_batches(dit, folder / "more", steps=4, callbacks=callbacks(), gradient_clip_val=0.5),
    }
    return folder, one, on_ranks(work, folder, folder, FAMILIES, folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_train_what_one_process_trains(runs, tmp_path, name):
    _, _, (first, second) = runs
    assert not differences(first[name], second[name])
    one = two_micro_batches(lambda: network(name), tmp_path, steps=1)["weights"]
    assert furthest(one, first[name]) < 2e-6 and furthest(network(name)[0].state_dict(), first[name]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NETWORKS} - {*FAMILIES}))
def test_every_network(tmp_path, name):
    (first, _) = on_ranks(work, tmp_path, tmp_path, (name,), None)
    assert furthest(two_micro_batches(lambda: network(name), tmp_path, steps=1)["weights"], first[name]) < 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_resume_is_exact(runs, form):
    _, one, (made, other) = runs
    assert not differences(made[form], other[form])
    assert not differences(made[form]["whole"], made[form]["again"])
    assert differences(made[form]["whole"], made[form]["half"])
    assert furthest(made[form]["whole"]["weights"], one["whole"]["weights"]) < ADAPTED


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_are_read_without_sharding(runs, tmp_path, form):
    folder, one, (made, _) = runs
    last = folder / form / "half" / "checkpoints" / "last.ckpt"
    assert last.is_dir() == (form == "sharded")
    assert furthest(made[form]["ddp"]["weights"], made[form]["whole"]["weights"]) < ADAPTED
    alone = careful(tmp_path, 4, accumulate=2, resume=last)
    assert furthest(alone["weights"], one["whole"]["weights"]) < ADAPTED
    for weights, wanted in (("ema", made[form]["half"]["ema"]["profiles"]["ema"]["weights"]), ("raw", made[form]["half"]["weights"])):
        loaded = diffx.load(folder / form / "half", weights).state_dict()
        assert not differences({name: loaded[name] for name in wanted}, wanted)


def test_checkpoints_without_sharding_are_read(runs):
    _, one, (made, _) = runs
    assert furthest(made["from one"]["weights"], one["whole"]["weights"]) < ADAPTED
    assert made["from one"]["optimizer"]["param_groups"] == one["whole"]["optimizer"]["param_groups"]


def test_a_rank_holds_its_part_and_samples_with_the_others(runs):
    folder, _, (first, second) = runs
    look = first["look"]
    assert look["sharded"] and 0.4 < look["held"] < 0.7 and look["shadows_held"] > 0
    assert torch.equal(look["averaged"], second["look"]["averaged"]) and not torch.equal(look["averaged"], look["raw"])
    inside, outside = (torch.load(folder / "look" / f"{name}.ckpt", weights_only=True) for name in ("inside", "outside"))
    assert not differences(inside["state_dict"], outside["state_dict"])
    assert not differences(inside["callbacks"]["diffx.EMA"], outside["callbacks"]["diffx.EMA"])
    for weights, wanted in (("ema", look["averaged"]), ("raw", look["raw"])):
        module = diffx.load(folder / "look" / "inside.ckpt", weights)
        torch.testing.assert_close(module.sample(3, TECHNIQUES["dit"].cond(3), guidance=2.0, seed=4), wanted, atol=1e-5, rtol=0)
    assert len(list((folder / "look" / "snapshots").iterdir())) == 4


# Folders that are checkpoints -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(runs, tmp_path):
    folder, _, _ = runs
    files.link(folder / "sharded" / "half" / "checkpoints" / "last.ckpt", tmp_path / "step_00000002.ckpt")
    for path in (tmp_path / "step_00000002.ckpt").iterdir():  # its own, to be damaged
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    return tmp_path


def test_each_rank_wrote_its_part(saved):
    names = {path.name for path in (saved / "step_00000002.ckpt").iterdir()}
    assert names == {".metadata", "__0_0.distcp", "__1_0.distcp", "files.json", "rest.pt"}


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp", "files.json", "rest.pt"])
def test_damage_is_recognised_and_passed_over(saved, name):
    folder = saved / "step_00000002.ckpt"
    files.link(folder, saved / "step_00000001.ckpt")
    os.utime(saved / "step_00000001.ckpt", (1, 1))
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        diffx.load(folder)
    assert files.latest(saved) == saved / "step_00000001.ckpt"
    path.unlink()
    with pytest.raises(ValueError, match="damaged"):
        files.verify(folder)


def test_a_list_of_tensors_runs_no_code(saved):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    (saved / "step_00000002.ckpt" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="may not ask for"):
        folders.read(saved / "step_00000002.ckpt")


def test_links_and_pruning(saved):
    step, last = saved / "step_00000002.ckpt", saved / "last.ckpt"
    last.write_bytes(b"a file of that name")
    files.link(step, last)
    files.link(step, last)
    files.verify(last)
    assert os.path.samefile(last / "rest.pt", step / "rest.pt")
    (saved / ".step_00000003.ckpt.tmp").mkdir()
    files.prune(saved, keep=1)
    assert sorted(path.name for path in saved.iterdir()) == ["last.ckpt", "step_00000002.ckpt"]


# The border -------------------------------------------------------------------------------------------------------------------------------


def refusals(folder: Path) -> dict[str, str]:
    """Messages of what cannot be sharded, before anything was trained."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    toy = Toy(), {"x": torch.zeros(GLOBAL, 1, 4, 4), "label": torch.zeros(GLOBAL, dtype=torch.long)}
    cases = {"parameter": (toy, FSDP()), "shared": (technique("experts_sharing"), FSDP()),
             "lightning": (dit(), ModelParallelStrategy(1, 2)), "fsdp": (dit(), ModelParallelStrategy(2, 1))}  # fmt: skip
    said = {}
    for name, (made, strategy) in cases.items():
        try:
            trained(made, folder, strategy=strategy, world=2)
            said[name] = "no error"
        except (ValueError, TypeError) as error:
            said[name] = str(error)
    return said


def full_disk(folder: Path) -> str:
    """Rank 1 cannot write the second checkpoint of a name."""
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    weights = torch.distributed.tensor.distribute_tensor(torch.arange(5.0), mesh, [torch.distributed.tensor.Shard(0)])
    folders.save({"diffx": {}, "state_dict": {"weights": weights, "step": 3}}, folder / "a.ckpt")
    if torch.distributed.get_rank() == 1:
        files.checksums = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    try:
        folders.save({"diffx": {}, "state_dict": {"weights": weights + 1}}, folder / "a.ckpt")
    except OSError as error:
        return str(error)
    return "no error"


def asked_apart() -> bool:
    """Each rank asks experts that the other one does not ask: what the sharded ones say is what they said whole."""
    module, batch = technique("experts")
    sigma = torch.full((GLOBAL,), 0.05 if torch.distributed.get_rank() else 50.0)
    with torch.no_grad():
        wanted = module.denoiser(batch["x"], sigma)
        shard(module, torch.distributed.init_device_mesh("cpu", (2,)), "cpu")
        return torch.equal(module.denoiser(batch["x"], sigma), wanted)


def at_the_border(folder: Path) -> dict[str, Any]:
    return {"refused": refusals(folder), "apart": asked_apart(), "full": full_disk(folder)}


@pytest.fixture(scope="module")
def border(tmp_path_factory):
    folder = tmp_path_factory.mktemp("border")
    return folder, on_ranks(at_the_border, folder, folder)


def test_a_rank_that_cannot_write_stops_all_and_leaves_what_was_there(border):
    folder, ranks = border
    assert all("cannot write" in made["full"] and "rank 1: " in made["full"] and "No space left" in made["full"] for made in ranks)
    files.verify(folder / "a.ckpt")
    state = folders.read(folder / "a.ckpt")["state_dict"]
    assert torch.equal(state["weights"], torch.arange(5.0)) and state["step"] == 3
    files.prune(folder)
    assert not list(folder.glob(".*.tmp"))


def test_experts_are_entered_by_all_ranks(border):
    assert [made["apart"] for made in border[1]] == [True, True]


def test_what_cannot_be_sharded_is_refused_before_training(border):
    said = border[1][0]["refused"]
    assert "side is trained but lies in no network" in said["parameter"]
    assert "experts share" in said["shared"]
    assert "use diffx.FSDP()" in said["lightning"] and "use diffx.FSDP()" in said["fsdp"]
    with pytest.raises(ValueError, match="'whole' or 'sharded'"):
        FSDP("folder")


def test_blocks_are_most_of_a_network():
    for name, case in NETWORKS.items():
        net = case.make()
        inside = sum(p.numel() for unit in units(net) for p in unit.parameters())
        assert inside > 0, name
    for net, share in ((UNet(3, width=64), 0.9), (DiT(3, size=32, width=256, depth=8, heads=4), 0.9)):
        assert sum(p.numel() for unit in units(net) for p in unit.parameters()) / sum(p.numel() for p in net.parameters()) > share
