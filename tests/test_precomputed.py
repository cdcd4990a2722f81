"""Precomputed sets: what is written is read back, an interrupted set equals a whole one, and nothing wrong is read in silence."""

import json
import pickle

import numpy as np
import pytest
import torch

from diffx.precomputed import Precomputed, PrecomputedWriter

ABOUT = {"codec": {"name": "x", "sha256": "a"}, "flip": False}
TEXTS = ["", "eins", "zwei ä", "три", "四" * 300]


def rows(indices):
    """Every column is a function of the row's number."""
    number = torch.as_tensor(list(indices))
    return {
        "code": (number[:, None] * torch.tensor([1.0, 0.5])).half(),
        "brain": number[:, None].bfloat16(),
        "label": number % 3,
        "text": [TEXTS[i % 5] + str(i) for i in number.tolist()],
    }


def write(folder, count=23, per_file=5, size=2, stop=None):
    writer = PrecomputedWriter(folder, ABOUT, count, per_file)
    for number, piece in enumerate(writer.pieces(size)):
        if number == stop:
            return writer
        writer.add(rows(piece))
    return writer


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_come_back_as_they_were(tmp_path):
    assert write(tmp_path).done == 23
    stored = Precomputed(tmp_path, verify=True)
    assert len(stored) == 23 and stored.about == ABOUT
    for indices in ([0], [22, 0, 7, 7, 4, 5, 19], [*range(23)], [*range(22, -1, -1)]):
        read, expected = stored.rows(np.array(indices)), rows(indices)
        assert read.keys() == expected.keys() and read["text"] == expected["text"]
        for name in ("code", "brain", "label"):
            assert read[name].dtype == expected[name].dtype and torch.equal(read[name], expected[name])
    again = pickle.loads(pickle.dumps(stored))
    assert again._open == {} and torch.equal(again.rows(np.array([3]))["code"], rows([3])["code"])


def test_pieces_cover_the_rows_and_never_cross_files(tmp_path):
    pieces = PrecomputedWriter(tmp_path, ABOUT, 23, 5).pieces(2)
    assert [i for piece in pieces for i in piece] == [*range(23)]
    assert max(map(len, pieces)) == 2 and all(piece[0] // 5 == piece[-1] // 5 for piece in pieces)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 8, 12])
def test_an_interrupted_set_equals_a_whole_one_byte_for_byte(tmp_path, stop):
    write(tmp_path / "whole")
    write(tmp_path / "cut", stop=stop)
    with pytest.raises(ValueError, match=r"holds \d+ of 23 rows; finish it"):
        Precomputed(tmp_path / "cut")
    (tmp_path / "cut" / ".00002.safetensors.77.tmp").write_bytes(b"half")  # what a killed process leaves
    write(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    write(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole"), "a finished set stays as it is"


def test_another_set_is_refused_with_both_sides(tmp_path):
    write(tmp_path, stop=4)
    before = contents(tmp_path)
    other = {"codec": {"name": "x", "sha256": "b"}, "flip": True, "more": 1}
    words = (
        r"holds another set: about.codec.sha256 is 'a' there and 'b' here; about.flip is False there and True here; "
        r"about.more is None there and 1 here; count is 23 there and 24 here; rows_per_file is 5 there and 6 here"
    )
    with pytest.raises(ValueError, match=words):
        PrecomputedWriter(tmp_path, other, 24, 6)
    assert contents(tmp_path) == before


def test_rows_that_do_not_belong_are_refused(tmp_path):
    writer = PrecomputedWriter(tmp_path, ABOUT, 7, 5)
    with pytest.raises(ValueError, match=r"as many rows, got .*'a': 1.*'b': 2"):
        writer.add({"a": torch.zeros(1), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="6 rows for a file of 5"):
        writer.add({"a": torch.zeros(6)})
    with pytest.raises(ValueError, match="count=0"):
        PrecomputedWriter(tmp_path, ABOUT, 0)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_damage_is_found(tmp_path):
    write(tmp_path)
    file = tmp_path / "00001.safetensors"
    whole = file.read_bytes()
    damage(file)
    Precomputed(tmp_path)  # the size is right, and checksums were not asked for
    with pytest.raises(ValueError, match=r"00001.safetensors is damaged: its checksum does not match"):
        Precomputed(tmp_path, verify=True)
    with pytest.raises(ValueError, match="its checksum does not match"):
        PrecomputedWriter(tmp_path, ABOUT, 23, 5)
    file.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=f"damaged: {len(whole) - 3} bytes instead of {len(whole)}"):
        Precomputed(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001.safetensors is missing"):
        Precomputed(tmp_path)


def test_what_is_no_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest.json in"):
        Precomputed(tmp_path)
    for text, words in (("{", "is no manifest"), ("[]", "is no manifest"), (json.dumps({"schema": 9}), "has schema 9, this diffx reads 1")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            Precomputed(tmp_path)
