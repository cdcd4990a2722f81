"""What a user installs: the wheel is complete, and the experiments are found from any folder after both kinds of installation."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")
SOURCES = ("diffx", "experiments", "setup.cfg", "pyproject.toml", "MANIFEST.in", *PAPERS)
EXPERIMENTS = {path.relative_to(ROOT / "experiments").as_posix() for path in (ROOT / "experiments").rglob("*.yaml")}


def run(*command: object, cwd: Path | str | None = None) -> str:
    """Run a command without this session's Python path and experiment folders; give back what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "DIFFX_EXPERIMENTS"}}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the distribution is made from: building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    """A folder with the source distribution and the wheel that was built from it, not from the sources."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return next(built.glob("*.whl"))


def install(what: list[object], folder: Path) -> Path:
    """Install into an environment that has our dependencies and no diffx; give back its interpreter.

    The dependencies come by a path file, and path files inside the folder it names are not read: an editable diffx there stays unseen.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *what)
    return python


def listed(python: Path) -> set[str]:
    """The names that ``fit --list`` prints, one at the start of each line, asked from the top of the file system."""
    lines = run(python, "-m", "diffx.fit", "--list", cwd="/").splitlines()
    return {line.split()[0] for line in lines if line.strip()}


def expected() -> set[str]:
    """Every experiment file but the shared parts, whose names begin with an underscore."""
    return {name.removesuffix(".yaml") for name in EXPERIMENTS if not any(part.startswith("_") for part in name.split("/"))}


def test_all_packages_are_listed():
    """An explicit list carries the experiments into the wheel; here it is compared with what stands on disk."""
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "diffx").rglob("*.py")}
    assert set(options["options"]["packages"].split()) == on_disk | {"diffx.experiments"}


def test_wheel_holds_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "diffx").rglob("*.py")} | {"diffx/py.typed"}
    assert EXPERIMENTS, "no experiments to compare"
    assert {name for name in names if name.endswith(".yaml")} == {f"diffx/experiments/{name}" for name in EXPERIMENTS}
    assert {name for name in names if name.endswith((".py", "py.typed"))} == code
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_source_distribution_holds_what_a_person_reads(built):
    from diffx.version import __version__

    archive = built / f"diffx-{__version__}.tar.gz"
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    assert {*PAPERS, "setup.cfg", "pyproject.toml"} <= names
    assert {f"experiments/{name}" for name in EXPERIMENTS} <= names


def test_all_papers_name_one_version():
    from diffx.version import __version__

    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", __version__), "semantic"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert __version__ in newest[1]


def test_issue_forms_can_be_read():
    """Every form has a name, a description and fields with an id of their own."""
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert form["description"]
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len({*ids})
        assert all(field["attributes"]["label"] for field in form["body"])


def test_wheel_lists_its_experiments_from_anywhere(wheel, tmp_path):
    python = install([wheel], tmp_path / "env")
    where = Path(run(python, "-c", "import diffx; print(diffx.__file__)", cwd="/").strip())
    assert where.is_relative_to(tmp_path), f"not the installed copy: {where}"
    assert listed(python) == expected()


def test_editable_lists_its_experiments_from_anywhere(source, tmp_path):
    python = install(["--editable", source], tmp_path / "env")
    where = Path(run(python, "-c", "import diffx; print(diffx.__file__)", cwd="/").strip())
    assert where.is_relative_to(source), f"not the editable sources: {where}"
    assert listed(python) == expected()
