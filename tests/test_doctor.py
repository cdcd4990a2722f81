"""The doctor finds what would stop a training, says what to do, and its exit code tells scripts."""

from __future__ import annotations

import json

from test_cluster import STEP

from diffx import doctor


def findings(capsys, *words: str, code: int) -> dict[str, dict]:
    assert doctor.main([*words, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    order = {"ok": 0, "warning": 1, "error": 2}
    return {f["name"]: f for f in sorted(told["findings"], key=lambda f: order[f["verdict"]])}


def test_a_healthy_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = findings(capsys, "experiment=digits/edm", code=0)
    assert {"python", "packages", "processor", "ranks", "slurm", "run folder", "temporary", "shared memory", "batch"} <= found.keys()
    assert "(64, 1, 8, 8)" in found["batch"]["text"] and "GiB free" in found["run folder"]["text"]
    assert doctor.main(["seed=3"]) == 2


def test_what_is_wrong_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("in the way")
    for name, value in {**STEP, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    found = findings(capsys, "experiment=digits/edm", "trainer.devices=3", "data.batch_size=5000", code=1)
    assert found["slurm"]["verdict"] == "error" and "submit with devices=3" in found["slurm"]["text"]
    assert found["run folder"]["verdict"] == "error"
    assert found["data"]["verdict"] == "error" and "lower batch_size" in found["data"]["text"]
