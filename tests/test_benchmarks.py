"""The harness measures what it says."""

import json

import torch

from benchmarks.harness import Subject, compare, report, training_step


def test_twice_the_work_is_twice_the_operations_and_more_time(tmp_path, capsys):
    a = torch.randn(256, 256)
    outcome = compare([Subject("one", lambda: a @ a), Subject("eight", lambda: [a @ a for _ in range(8)], 5)], rounds=7)
    one, eight = outcome["results"]
    assert one["gflop"] == 2 * 256**3 / 1e9 and eight["gflop"] == 8 * one["gflop"]
    assert one["ratio"] == [1.0, 1.0, 1.0] and 4 < eight["ratio"][0] < 16
    report("matrices", outcome, tmp_path / "new" / "figures.json")
    assert json.loads((tmp_path / "new" / "figures.json").read_text())["results"][1]["parameters"] == 5
    assert "eight" in capsys.readouterr().out


def test_a_training_step_trains():
    net = torch.nn.Linear(3, 1)
    before = net.weight.clone()
    subject = training_step("linear", net, lambda m: m(torch.ones(2, 3)).square().mean())
    subject.call()
    assert subject.parameters == 4 and not torch.equal(net.weight, before) and net.weight.grad is None
