"""The tree of experts on the command line: what is run, in which order, and what waits for what."""

from __future__ import annotations

import shlex

import pytest
from test_cluster import fake

import diffx
from diffx import fit, merge, tree

WORDS = ("root=digits/edm", "experiment=digits/expert", "steps=40", "high=2", "low=1", "name=t")
SMALL = ("trainer.accelerator=cpu", "trainer.limit_val_batches=0", "callbacks.samples=null", "data.batch_size=8")


def test_the_printed_commands_make_an_ensemble(tmp_path, monkeypatch, capsys):
    """Run one after the other, as they stand, they end in a checkpoint whose experts share out all noise."""
    monkeypatch.chdir(tmp_path)
    net = "module.denoiser.net={_target_: diffx.networks.UNet, channels: 1, classes: 10, width: 8, mults: [1, 2], blocks: 1}"
    assert tree.main([*WORDS, "steps=3", "low=0", *SMALL]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[:3] for command in commands] == 4 * [["python", "-m", "diffx.fit"]] + [["python", "-m", "diffx.merge"]]
    for command in commands[:-1]:
        small = [net] if "experiment=digits/edm" in command else []
        assert fit.main([*command[3:], *small]) == 0
    assert merge.main(commands[-1][3:]) == 0
    module = diffx.load("runs/t.ckpt")
    assert module.denoiser.bands.edges == (0.0, 0.75, 1.0)


def test_jobs_wait_for_their_parents(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    count = 'n=$(($(cat n 2>/dev/null || echo 100) + 1)); echo $n > n; echo "$n $*" >> log; echo $n'
    fake(tmp_path, monkeypatch, "sbatch", count)
    assert tree.main([*WORDS, "nodes=2", "--submit"]) == 0
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    waits = [[word.rpartition(":")[2] for word in line if word.startswith("--dependency")] for line in log]
    assert waits == [[], ["101"], ["102"], ["101"], ["101"]]  # root, high1, high2, low1, rest
    files = [(tmp_path / line[-1]).read_text() for line in log]
    assert len(set(files)) == 5 and all("--nodes=2" in text for text in files)
    assert "module.denoiser.path=runs/digits/expert/t-high1" in files[2] and "diffx.merge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("root=digits/edm", "experiment=digits/expert"), "steps=... must be given"),
        ((*WORDS, "steps=0"), "steps must be at least 1"),
        ((*WORDS, "high=0", "low=0"), "depths"),
        ((*WORDS, "trainer.max_epoch=3"), "max_epoch"),
        (("root=digits/edm", "experiment=digits/edm", "steps=4"), "unknown argument 'path'"),
    ],
)
@pytest.mark.parametrize("flag", [(), ("--submit",)])
def test_mistakes_are_found_before_anything_is_printed_or_sent(tmp_path, monkeypatch, capsys, words, message, flag):
    monkeypatch.chdir(tmp_path)
    fake(tmp_path, monkeypatch, "sbatch", "touch sent; echo 1")
    assert tree.main([*words, *flag]) != 0
    said = capsys.readouterr()
    assert message in said.err and not said.out and not (tmp_path / "sent").exists()
