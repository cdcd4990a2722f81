"""The pages tell the truth: their Python runs, the commands they name exist, the tables list what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What the pages leave to the reader's own project, and the sizes that would take minutes here.
SHRINK = {"max_steps=10_000": "max_steps=2", "width=64": "width=8", "width=32": "width=8", "(3, 64, 64)": "(3, 16, 16)"}


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class TheirData(torch.utils.data.Dataset):
    """A foreign data set: pictures with the name of a stain, not of a label."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {"x": torch.rand(3, 16, 16) * 2 - 1, "stain": index % 4}


def python_of(path: Path) -> list[str]:
    blocks = FENCE.findall(path.read_text(encoding="utf-8"))
    for long, short in SHRINK.items():
        blocks = [block.replace(long, short) for block in blocks]
    return blocks


@pytest.mark.parametrize("path", [path for path in PAGES if python_of(path)], ids=page_id)
@pytest.mark.filterwarnings("ignore")
def test_python_of_the_page_runs(path, tmp_path, monkeypatch):
    """Blocks fenced as ``python`` run in order, in one namespace per page; what is no program is fenced otherwise."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", "their_datamodule": DataLoader(TheirData(), batch_size=4)}
    for number, block in enumerate(python_of(path)):
        exec(compile(block, f"{page_id(path)}, block {number}", "exec"), names)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", [*PAGES, ROOT / ".ci" / "run"], ids=page_id)
def test_commands_exist(path):
    """``make`` targets, verbs and files that a page names."""
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= make_targets()
    verbs = re.findall(r"python -m diffx\.([a-z_]+)", text)
    assert not [v for v in verbs if not any((ROOT / "diffx" / file).exists() for file in (f"{v}.py", f"{v}/__main__.py"))]
    files = re.findall(r"`((?:diffx|experiments|tests|benchmarks|docs)/[\w./-]*)`", text)
    assert not [file for file in files if not (ROOT / file).exists()]


def test_readme_lists_every_technique():
    from diffx import techniques

    table = re.findall(r"^\| \[`(\w+)`\]\(docs/techniques/", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(techniques.__all__)


def test_every_technique_has_a_page():
    from diffx import techniques

    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "techniques").glob("*.md"))
    assert not [name for name in techniques.__all__ if f"autoclass:: diffx.techniques.{name}\n" not in pages]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for pair in links for link in pair if link and not (ROOT / link).exists()]
