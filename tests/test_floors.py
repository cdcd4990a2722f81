"""The house rules, read from the source: who may import whom, how long things may grow, and that public names are explained.

Imports below ``if TYPE_CHECKING`` are exempt; imports inside functions count like all others.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "diffx").rglob("*.py"))

FLOORS = {
    1: "version tensors dtensors resizing batch rng files folders precomputed codecs codebook tokenizers media audio metrics recipes "
    "data cluster",
    2: "schedules weightings distances conditions masking renoising degradations text annotators augment averages lr_schedules",
    3: "denoiser experts residency samplers networks",
    4: "guidance sharding parts module asked editing cascade continuation interop",
    5: "techniques callbacks",
    6: "cli fit sample evaluate encode edit edits export merge submit tree doctor studio",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
MATHEMATICS = {
    "schedules",
    "weightings",
    "distances",
    "conditions",
    "masking",
    "renoising",
    "averages",
    "lr_schedules",
    "denoiser",
    "samplers",
    "guidance",
    "editing",
}
MAX_FILE, MAX_FUNCTION = 320, 60


def module_name(path: Path) -> str:
    """``diffx/samplers/heun.py`` -> ``diffx.samplers.heun``; a package's ``__init__.py`` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room(module: str) -> str:
    """``diffx.samplers.heun`` -> ``samplers``; the package itself and foreign modules have none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "diffx" and len(parts) > 1 else ""


@functools.cache
def tree(path: Path) -> ast.Module:
    """Parse a file once."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over everything that runs, that is, not into ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for otherwise in child.orelse:
                yield from running_code(otherwise)
        else:
            yield from running_code(child)


def imports_of(module: str, path: Path) -> set[str]:
    """Full names of the modules that ``module`` imports, at its top or in a function."""
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in running_code(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names)
    return found - {module}


IMPORTS = {module: imports_of(module, path) for module, path in MODULES.items()}
NESTED = [(module, imported) for module, names in IMPORTS.items() for imported in sorted(names)]


def breaches(forbidden) -> list[str]:
    """The imports for which ``forbidden(importer, imported)`` holds, as readable lines."""
    return [f"{importer} imports {imported}" for importer, imported in NESTED if forbidden(importer, imported)]


def package_of(module: str) -> str:
    """The distribution's top name: ``torch`` of ``torch.nn``."""
    return module.partition(".")[0]


def test_every_room_stands_on_a_floor():
    unplaced = sorted({room(module) for module in MODULES} - set(FLOOR) - {""})
    assert not unplaced, f"no floor for {unplaced}: add them to FLOORS here and to docs/architecture.md"


def test_imports_go_down():
    assert not breaches(lambda a, b: room(a) and room(b) and FLOOR.get(room(b), 0) > FLOOR.get(room(a), 0))


def test_only_verbs_use_the_front_door():
    """``from diffx import X`` inside the package would tie every file to every other one."""
    assert not breaches(lambda a, b: b == "diffx" and FLOOR.get(room(a)) != 6)


def test_no_circles():
    open_, done = [], set()

    def visit(module: str) -> None:
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module not in done:
            open_.append(module)
            for imported in sorted(IMPORTS[module] & set(MODULES) - {"diffx"}):
                visit(imported)
            done.add(open_.pop())

    for module in MODULES:
        visit(module)


def test_networks_know_no_trainer_and_no_noise_schedule():
    banned = {"schedules", "weightings", "samplers", "denoiser"}
    assert not breaches(lambda a, b: room(a) == "networks" and (package_of(b) in {"lightning", "pytorch_lightning"} or room(b) in banned))


def test_mathematics_knows_no_trainer_no_configuration_no_data():
    foreign = {"lightning", "pytorch_lightning", "omegaconf"}
    assert not breaches(lambda a, b: room(a) in MATHEMATICS and (package_of(b) in foreign or room(b) == "data"))


def test_techniques_take_networks_as_arguments_and_share_only_their_bases():
    bases = {f"diffx.techniques.{name}" for name in ("gaussian", "edm", "sequence", "distillation", "first_stage")} | {"diffx.techniques"}

    def forbidden(importer: str, imported: str) -> bool:
        sibling = room(imported) == "techniques" and imported not in bases
        return room(importer) == "techniques" and (room(imported) == "networks" or (sibling and importer != "diffx.techniques"))

    assert not breaches(forbidden)


def test_callbacks_see_only_the_public_face():
    """Of a run they know the module; the rest is their tools. No networks, samplers or techniques."""
    allowed = {"module", "media", "rng", "recipes", "callbacks", "averages", "files", "folders", "dtensors", "cluster", "version"}
    assert not breaches(lambda a, b: room(a) == "callbacks" and room(b) and room(b) not in allowed)


def test_data_rests_on_the_ground_floor():
    assert not breaches(lambda a, b: room(a) == "data" and FLOOR.get(room(b), 1) != 1)


def test_only_recipes_read_configuration():
    assert not breaches(lambda a, b: package_of(b) == "omegaconf" and room(a) != "recipes")


def test_recorded_is_cheap():
    """Every room imports `diffx.recipes` for its decorator, so its front file must not pull in the configuration reader."""
    script = "import sys, diffx.recipes; print(sorted({'omegaconf', 'torch', 'lightning'} & set(sys.modules)))"
    assert fresh_python(script) == "[]"


def fresh_python(script: str) -> str:
    """Run a script in a new interpreter at the repository's top; give back what it printed."""
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("diffx", "torch lightning diffusers timm torchvision"),
        (
            "diffx.denoiser, diffx.guidance, diffx.networks, diffx.samplers, diffx.schedules",
            "lightning diffusers timm torchvision omegaconf",
        ),
    ],
)
def test_imports_stay_light(modules, absent):
    assert fresh_python(f"import sys, {modules}; print(sorted(set({absent.split()}) & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE, f"{lines} lines: is there a wall missing?"
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    sizes = [(node.name, node.end_lineno - node.lineno + 1) for node in functions]
    assert not [(name, size) for name, size in sizes if size > MAX_FUNCTION]


def public_definitions(path: Path) -> set[str]:
    """Names of the classes and functions at the top of a file that do not start with an underscore."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree(path).body if isinstance(node, kinds) and not node.name.startswith("_")}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if FLOOR.get(room(module), 6) < 6))
def test_public_names_are_listed_and_explained(module):
    """Classes and functions of ``__all__`` have a docstring; so has each public method, unless the base that it overrides explains it."""
    loaded = importlib.import_module(module)
    defined = public_definitions(MODULES[module])
    if not defined:
        return
    assert hasattr(loaded, "__all__"), "no __all__"
    assert not [name for name in loaded.__all__ if not hasattr(loaded, name)], "__all__ names what does not exist"
    silent = []
    for name in sorted(defined & set(loaded.__all__)):
        thing = getattr(loaded, name)
        silent += [] if (thing.__doc__ or "").strip() else [name]
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and isinstance(value, (property, staticmethod, classmethod, type(fresh_python))):
                silent += [] if inspect.getdoc(getattr(thing, member)) else [f"{name}.{member}"]
    assert not silent, f"no docstring: {silent}"


def test_no_machine_leaks():
    """No path of somebody's machine and no package index may stand in a file of the project."""
    pieces = [r"(?<![\w~.{])/(?:root|home|work)/", r"\.\./" + "shared", "index" + "-url", "py" + r"pi\.org", "python" + "hosted"]
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\n") if listed.returncode == 0 else [str(path.relative_to(ROOT)) for path in FILES]
    leaks = []
    for name in filter(None, names):
        path = ROOT / name
        if (
            path.is_file()
            and path != Path(__file__).resolve()
            and path.suffix in {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".sh", ""}
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            leaks += [f"{name}: {match.group()}" for match in re.finditer("|".join(pieces), text)]
    assert not leaks
