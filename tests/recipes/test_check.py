"""Mistakes in experiments: all of them at once, each with key path, target, file and nearest name."""

from __future__ import annotations

import re

import pytest

from diffx.recipes.check import check, fits, takes
from diffx.recipes.compose import Config, compose
from diffx.recipes.errors import RecipeError


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """Compose ``mine.yaml`` and give back what is wrong with it."""
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    monkeypatch.chdir(tmp_path)

    def problems(text: str, *overrides: str, imported: bool = False) -> list[str]:
        (tmp_path / "experiments").mkdir(exist_ok=True)
        (tmp_path / "experiments/mine.yaml").write_text(text)
        try:
            check(compose("mine", overrides), imported=imported)
        except RecipeError as error:
            return list(error.problems)
        return []

    return problems


GOOD = """
module: {_target_: parts_for_recipes.Leaf, size: 1}
data: {_target_: parts_for_recipes.Frozen}
"""


def test_the_packaged_experiments_are_right():
    from diffx.recipes.lookup import names, packaged

    for name in names([packaged()]):
        for shrunk in ("small=true", "small=false"):
            try:
                check(compose(name, [shrunk]))
            except RecipeError as error:  # what only the user has (data, published weights) is asked for, and nothing else is wrong
                if shrunk == "small=true" or not all("must be given" in problem for problem in error.problems):
                    raise


def test_everything_wrong_is_said_at_once_and_where(problems):
    found = problems(
        """
        module: {_target_: parts_for_recipes.Tree, left: {_target_: parts_for_recipes.Leaf, siz: 1, kind: c}}
        data: {_target_: parts_for_recipes.Frozn}
        trainer: {max_step: 3, precision: 32, devices: auto}
        modul: 3
        """,
        "trainer.max_epochs=many",
        "module.left.rate=on",
    )
    where = "in experiments/mine.yaml"
    leaf = "module.left (parts_for_recipes.Leaf)"
    assert set(found) == {
        f"unknown section 'modul' {where}; did you mean 'module'?",
        f"{leaf}: unknown argument 'siz' {where}; did you mean 'size'?",
        f"{leaf}: argument 'size' is missing {where}",
        f"{leaf}: kind must be Literal['a', 'b'], got 'c' {where}",
        f"{leaf}: rate must be float, got True on the command line",
        f"data (parts_for_recipes.Frozn): there is no 'Frozn' in parts_for_recipes, asked for {where}; did you mean 'Frozen'?",
        f"trainer (lightning.Trainer): unknown argument 'max_step' {where}; did you mean 'max_steps'?",
        "trainer (lightning.Trainer): max_epochs must be Optional[int], got 'many' on the command line",
    }


def test_overrides_and_signatures_are_answered_together(problems):
    found = problems(GOOD, "modul.size=3", "module.sise=3")
    assert len(found) == 2
    assert "did you mean 'module.size'?" in found[0]
    assert "did you mean 'size'?" in found[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("callbacks: {emma: {}}", "callbacks.emma: needs a _target_.*did you mean 'ema'"),
        ("callbacks: {ema: {halflive: 3}}", "callbacks.ema .*unknown argument 'halflive'.*'halflife'"),
        ("callbacks: {ema: 3}", "callbacks.ema must be a mapping"),
        ("callbacks: [ema]", "callbacks: must be a mapping"),
        ("logger: {csv: {flush_logs: 1}}", "logger.csv .*unknown argument 'flush_logs'"),
        ("logger: {tensorbord: {}}", "did you mean 'tensorboard'"),
        ("trainer: {logger: false}", "trainer.logger cannot be set.*section 'logger'"),
        ("trainer: {max_steps: 2.0e4}", "max_steps must be int, got 20000.0.*write 20000"),
        ("trainer: {strategy: {_target_: lightning.pytorch.strategies.DDPStrategyy}}", "trainer.strategy .*DDPStrategy"),
        ("seed: abc", "seed must be int"),
        ("compile: maybe", "compile must be"),
    ],
)
def test_sections(problems, line, message):
    (found,) = problems(GOOD + line)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    "line",
    [
        "callbacks: {ema: null, samples: {}}",
        "logger: {csv: {}, wandb: null}",
        "logger: null",
        "callbacks: {own: {_target_: parts_for_recipes.Leaf, size: 1}}",
        "compile: {mode: default}",
        "claim: {anything: 3}",
        "trainer: {devices: [0, 1], precision: bf16-mixed, max_time: {hours: 1}}",
    ],
)
def test_right_sections(problems, line):
    assert problems(GOOD + line) == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("{_target_: 3}", "_target_ must be a dotted name"),
        ("{_target_: parts_for_recipes.Leaf, size: 1, _partal_: true}", "unknown mark '_partal_'.*'_partial_'"),
        ("{_target_: parts_for_recipes.Leaf, size: 1, _partial_: 3}", "_partial_ must be true or false"),
        ("{_target_: nopackage.Leaf}", "there is no package 'nopackage'"),
        ("{size: 1}", "with _target_"),
        ("{_target_: parts_for_recipes.Tree, left: [{_target_: parts_for_recipes.Leaf}]}", r"left.0 .*'size' is missing"),
        ("{_target_: parts_for_recipes.Tree, left: {deep: {_target_: parts_for_recipes.Leaf, size: a}}}", "left.deep .*size must be int"),
        ("{_target_: parts_for_recipes.Passing, size: 3}", "unknown argument 'size'"),
    ],
)
def test_targets(problems, module, message):
    (found,) = problems(f"module: {module}\ndata: {{_target_: parts_for_recipes.Frozen}}")
    assert re.search(message, found), found


@pytest.mark.parametrize(
    "module",
    [
        "{_target_: parts_for_recipes.Leaf, _partial_: true}",
        "{_target_: parts_for_recipes.Many, _args_: [1, 2]}",
        "{_target_: parts_for_recipes.Tree, left: 1, anything: goes}",
        "{_target_: parts_for_recipes.Leaf, size: {_target_: math.floor, _args_: [2.5]}}",
        "{_target_: parts_for_recipes.Frozen, sizes: [1], table: {a: 1}}",
    ],
)
def test_right_targets(problems, module):
    assert problems(f"module: {module}\ndata: {{_target_: parts_for_recipes.Frozen}}") == []


def test_the_second_stage_looks_at_what_source_cannot_tell(problems):
    text = f"{GOOD}callbacks: {{a: {{_target_: fractions.Fraction.from_float, g: 1}}, b: {{_target_: math.nix}}}}"
    assert problems(text) == []
    found = problems(text, imported=True)
    assert len(found) == 3
    assert "unknown argument 'g'" in found[0] and "'f' is missing" in found[1] and "there is no 'nix' in math" in found[2]


@pytest.mark.parametrize(
    ("value", "annotation", "verdict"),
    [
        (3, "int", True),
        (3.0, "int", False),
        (True, "int", False),
        ("3", "int", False),
        (None, "int", False),
        (3, "float", True),
        (3.5, "float", True),
        (False, "float", False),
        ("1", "float", False),
        ("x", "str", True),
        (1, "str", False),
        (None, "str | None", True),
        (None, "Optional[str]", True),
        (1, "Optional[str]", False),
        (1, "Union[str, int]", True),
        ([1], "Union[str, int]", False),
        ([1], "Sequence[int]", True),
        (["a"], "Sequence[int]", False),
        ([1, 2], "tuple[int, ...]", True),
        ([1], "tuple[int, int]", False),
        ([1, "a"], "tuple[int, str]", True),
        (1, "list", False),
        ({"a": 1}, "dict[str, int]", True),
        ([], "Mapping[str, int]", False),
        ("a", "Literal['a', 'b']", True),
        ("c", "Literal['a']", False),
        ("x", "Path", True),
        ("x", "str | os.PathLike[str]", True),
        (3, "Schedule", None),
        ("x", "Callable[..., int]", None),
        (3, "Schedule | None", None),
        ({"_target_": "a.B"}, "int", None),
        (1, "float | Mapping[str, float]", True),
        (3, "'int'", True),
        (True, "Literal[1]", False),
        (3, "not python(", None),
    ],
)
def test_types(value, annotation, verdict):
    assert fits(value, annotation) is verdict


def test_takes(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    assert takes("parts_for_recipes.Leaf", "size") and not takes("parts_for_recipes.Leaf", "seed")
    assert takes("fractions.Fraction.from_float", "f")


def test_a_plain_config_can_be_checked_without_files(tmp_path):
    config = Config("x", tmp_path / "x.yaml", {"module": {"_target_": "torch.nn.Linear", "in_features": 1}, "data": {}}, {}, {})
    with pytest.raises(RecipeError, match="out_features"):
        check(config)
