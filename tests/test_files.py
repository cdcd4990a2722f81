"""Files are whole or not there: kills, full disks, truncation and flipped bits."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import resource
import signal
import time

import pytest
import torch

from diffx import files


def checkpoint(value: int, size: int = 40) -> dict:
    return {"state_dict": {"w": torch.full((size,), float(value)), "b": torch.full((3,), -float(value))}, "step": value, "name": "run"}


def damage(path, position: int) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.unlink()  # a hard link's other name keeps the good file
    path.write_bytes(data)


def test_what_is_written_is_read_back(tmp_path):
    files.save_checkpoint(checkpoint(1), tmp_path / "new" / "a.ckpt")
    loaded = torch.load(tmp_path / "new" / "a.ckpt", weights_only=True)
    assert torch.equal(loaded["state_dict"]["w"], torch.full((40,), 1.0)) and loaded["step"] == 1
    files.verify(tmp_path / "new" / "a.ckpt")
    assert os.listdir(tmp_path / "new") == ["a.ckpt"]


def test_the_file_takes_its_name_by_renaming(tmp_path):
    """Until the check has passed the old file stands; then the very file that was checked takes the name, in one step."""
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def check(temporary):
        assert temporary.parent == tmp_path and temporary.read_bytes() == b"new" and path.read_bytes() == b"old"
        checked.append(temporary.stat().st_ino)

    checked = []
    files.write(path, lambda file: file.write(b"new"), check)
    assert path.read_bytes() == b"new" and path.stat().st_ino == checked[0]


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    files.save_checkpoint(checkpoint(1), path)
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="damaged"):
            files.verify(path)


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    """Bits in padding and time stamps carry nothing; any other must be noticed."""
    path, reference = tmp_path / "a.ckpt", checkpoint(3)
    files.save_checkpoint(reference, path)
    data, noticed = path.read_bytes(), 0
    positions = range(0, len(data), 4)
    for position in positions:
        path.write_bytes(data)
        damage(path, position)
        try:
            files.verify(path)
        except ValueError:
            noticed += 1
            continue
        loaded = torch.load(path, weights_only=True)
        assert all(torch.equal(loaded["state_dict"][k], v) for k, v in reference["state_dict"].items()), position
        assert loaded["step"] == 3 and loaded["name"] == "run"
    assert noticed > len(positions) / 4


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    files.save_checkpoint(checkpoint(3, size=1000), path)
    damage(path, path.read_bytes().index(torch.full((8,), 3.0).numpy().tobytes()) + 2001)
    with pytest.raises(ValueError, match="damaged"):
        files.verify(path)


def test_other_files_are_no_checkpoints(tmp_path):
    (tmp_path / "notes.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        files.verify(tmp_path / "notes.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        files.verify(tmp_path / "absent.ckpt")


def test_more_than_plain_types_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.ckpt"
    files.save_checkpoint(checkpoint(1), path)
    with pytest.raises(TypeError, match=r"plain types only.*socket"):
        files.save_checkpoint({"bad": __import__("socket").AF_INET}, path)
    assert torch.load(path, weights_only=True)["step"] == 1 and os.listdir(tmp_path) == ["a.ckpt"]


def write_run(folder, steps=(1, 2, 3)) -> None:
    for step in steps:
        path = folder / f"step_{step:08d}.ckpt"
        files.save_checkpoint(checkpoint(step), path)
        os.utime(path, ns=(step * 10**9, step * 10**9))
        files.link(path, folder / "last.ckpt")


def test_latest_is_last(tmp_path, caplog):
    assert files.latest(tmp_path) is None and files.latest(tmp_path / "absent") is None
    write_run(tmp_path)
    assert files.latest(tmp_path) == tmp_path / "last.ckpt"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 3
    assert not caplog.records


def test_latest_falls_back_to_the_previous_good_one_and_says_so(tmp_path, caplog):
    write_run(tmp_path)
    for name in ("last.ckpt", "step_00000003.ckpt"):
        with open(tmp_path / name, "r+b") as file:
            file.truncate(300)
    with caplog.at_level(logging.WARNING):
        assert files.latest(tmp_path) == tmp_path / "step_00000002.ckpt"
    (record,) = caplog.records
    assert "last.ckpt is damaged" in record.getMessage() and "falling back to" in record.getMessage() and "\n" not in record.getMessage()


def test_fallback_follows_the_order_of_writing(tmp_path):
    """A run resumed from step 2 has written step 3 anew; the step 9 of before is another history."""
    write_run(tmp_path, (2, 3))
    files.save_checkpoint(checkpoint(9), tmp_path / "step_00000009.ckpt")
    os.utime(tmp_path / "step_00000009.ckpt", ns=(0, 0))
    (tmp_path / "last.ckpt").unlink()
    assert files.latest(tmp_path) == tmp_path / "step_00000003.ckpt"


def test_nothing_good_left(tmp_path, caplog):
    (tmp_path / "last.ckpt").write_bytes(b"")
    assert files.latest(tmp_path) is None
    assert "no good checkpoint is left" in caplog.text


def test_link_replaces_and_survives_where_links_are_impossible(tmp_path, monkeypatch):
    write_run(tmp_path, (1, 2))
    files.link(tmp_path / "step_00000002.ckpt", tmp_path / "last.ckpt")  # again, onto itself
    assert os.path.samefile(tmp_path / "step_00000002.ckpt", tmp_path / "last.ckpt")

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    files.link(tmp_path / "step_00000001.ckpt", tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 1
    assert not list(tmp_path.glob(".*"))


def test_prune_keeps_the_newest_and_last(tmp_path):
    write_run(tmp_path, (1, 2, 3, 4, 5))
    (tmp_path / ".last.ckpt.123.tmp").write_bytes(b"half")
    files.prune(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    files.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step_00000004.ckpt", "step_00000005.ckpt"]


def test_a_full_disk_names_path_and_reason(tmp_path, monkeypatch):
    files.save_checkpoint(checkpoint(1), tmp_path / "a.ckpt")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.ckpt: No space left on device") as caught:
        files.save_checkpoint(checkpoint(2), tmp_path / "a.ckpt")
    assert caught.value.errno == errno.ENOSPC
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["step"] == 1 and os.listdir(tmp_path) == ["a.ckpt"]


def test_a_real_limit_of_the_system_is_reported_too(tmp_path):
    """The archive writer of torch hides the error of the disk behind its own; both sides of that are real here."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a\.ckpt: File too large"):
            files.save_checkpoint(checkpoint(1, size=100_000), tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*a\.ckpt: (Not a directory|File exists)"):
        files.save_checkpoint(checkpoint(1), tmp_path / "file" / "a.ckpt")


def save_for_ever(folder) -> None:
    step = 0
    while True:
        step += 1
        path = folder / f"step_{step:08d}.ckpt"
        files.save_checkpoint(checkpoint(step, size=200_000), path)
        files.link(path, folder / "last.ckpt")
        files.prune(folder, keep=2)


def test_a_killed_save_never_leaves_a_bad_last(tmp_path, caplog):
    fork, interrupted = multiprocessing.get_context("fork"), 0
    for round_ in range(12):
        process = fork.Process(target=save_for_ever, args=(tmp_path,))
        process.start()
        while not (tmp_path / "last.ckpt").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(0.02 + 0.013 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        interrupted += bool(list(tmp_path.glob(".*.tmp")))
        assert files.latest(tmp_path) == tmp_path / "last.ckpt"
        for path in tmp_path.glob("*.ckpt"):
            files.verify(path)
        files.prune(tmp_path)
    assert interrupted, "no kill met a save in the middle: the test has shown nothing"
    assert not caplog.records
