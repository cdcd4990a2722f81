"""The harness measures what it says."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import conditioning, distillation, experts, gpu_half_hour, objectives, pages, video
from benchmarks.harness import PLAIN, Subject, compare, paired, peak_memory, report, training_step
from benchmarks.speed import curves
from benchmarks.speed.__main__ import ROWS, at_roof, goals_table, subjects_table
from benchmarks.speed.rows import Goal, Row
from benchmarks.speed.shares import KINDS, kind, shares, shares_table
from benchmarks.training import Run
from diffx.recipes.build import build
from diffx.recipes.check import check
from diffx.recipes.compose import compose


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


def test_the_peak_is_what_is_held_at_once():
    a = torch.ones(1000)
    assert peak_memory(lambda: [a + 1 for _ in range(3)]) >= 12_000  # held together by the list
    assert 4_000 <= peak_memory(lambda: [(a + 1, None)[1] for _ in range(3)]) < 12_000  # one after the other


def test_a_ratio_is_of_the_same_round_and_per_operation_where_asked():
    ours, peer = ({"ms_of_rounds": times, "gflop": work} for times, work in (([1.0, 4.0, 3.0], 2.0), ([2.0, 8.0, 6.0], 4.0)))
    assert paired(ours, peer) == [0.5, 0.5, 0.5] and paired(ours, peer, per_flop=True) == [1.0, 1.0, 1.0]


def test_a_peer_that_is_not_installed_is_named_and_the_rest_is_measured():
    def absent():
        import no_such_package_for_benchmarks  # noqa: F401

    a = torch.randn(64, 64)
    makers = {"there": lambda: Subject("there", lambda: a @ a), "absent": absent, "ours": lambda: Subject("ours", lambda: a @ a)}
    goals = (Goal("ours", "there", 100.0), Goal("ours", "absent", 1.0))
    outcome = Row("row", "A row", lambda setting: makers, goals).run(PLAIN, 3)
    assert outcome["missing"] == {"absent": "no_such_package_for_benchmarks is not installed"}
    assert [result["name"] for result in outcome["results"]] == ["there", "ours"]
    lines = goals_table({"row": {"title": "A row", **outcome}}).splitlines()
    assert " | yes | " in lines[2] and lines[3].split(" | ")[3] == "not installed"
    assert "no_such_package" in subjects_table({"row": {"title": "A row", **outcome}})


def test_at_the_roof_a_peer_of_half_its_speed_takes_twice_as_long():
    results = [{"name": "ours", "gflop": 3.0, "of_roof": 0.9}, {"name": "peer", "gflop": 6.0, "of_roof": 0.5}]
    goal = {"ours": "ours", "peer": "peer", "per_flop": True}
    assert at_roof({"results": results}, goal) == 0.5 and at_roof({"results": results}, {**goal, "per_flop": False}) == 0.25
    assert at_roof({"results": results}, {**goal, "peer": "absent"}) is None


def test_shares_of_a_step_are_those_of_its_operators():
    kinds = ("addmm", "convolution_backward", "native_group_norm", "_fused_adamw_", "_foreach_lerp_", "copy_", "silu_backward")
    assert [kind(f"aten::{name}") for name in kinds] == ["products", "products", "norms", "optimizer", "optimizer", "copies", "rest"]
    a = torch.randn(512, 512)
    found = shares(lambda: [a @ a, torch.nn.functional.layer_norm(a, (512,))])
    assert sum(found[name] for name in KINDS) == pytest.approx(1.0) and found["products"] > found["norms"] > 0 == found["optimizer"]
    assert "products" in shares_table([{"title": "A job", "name": "ours", **found}])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if name != "jpeg"])
def test_goals_name_subjects_of_their_row(name):
    subjects = set(ROWS[name].make(PLAIN))
    assert {side for goal in ROWS[name].goals for side in (goal.ours, goal.peer)} <= subjects


def test_the_exponent_of_a_power_law_is_found():
    assert curves.exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_a_book_does_each_item_once_goes_on_after_errors_and_stops_in_time(tmp_path):
    done = []

    def items(*names):
        for name in names:
            yield name, lambda name=name: done.append(name) or 1 / (name != "wrong")

    book = gpu_half_hour.Book(tmp_path / "new" / "results.json")
    assert book.work(items("a", "wrong", "b"), 60) and done == ["a", "wrong", "b"]
    again = gpu_half_hour.Book(tmp_path / "new" / "results.json")
    assert again.work(items("a", "wrong", "b"), 60) and not again.work(items("a", "c"), -1) and len(done) == 3
    assert again.entries["a"]["result"] == 1.0 and again.entries["wrong"]["error"].startswith("ZeroDivisionError")


def test_a_program_fills_its_places_of_a_page_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n")
    for text in ("first", pages.table(["x", "y"], [["1", "2"]])):
        pages.fill("page.md", "a", text)
        pages.fill("page.md", "b", "other")
        assert page.read_text() == f"before\n<!-- a -->\n{text}\n<!-- /a -->\nbetween\n<!-- b -->\nother\n<!-- /b -->\nafter\n"
    assert text.splitlines() == ["| x | y |", "| --- | --- |", "| 1 | 2 |"]
    with pytest.raises(ValueError, match="no place between <!-- c -->"):
        pages.fill("page.md", "c", "")


def test_the_page_of_distillation_says_which_claims_are_missed():
    """Figures made up so that exactly one claim fails: by 64 % of the undistilled distance at 4 steps."""

    def rows(**changed):
        row = {"accuracy": 1.0, "frechet": 0.1, "nearest": 2.0, "rms": 0.1, "ratio": 0.1}
        return {k: {**row, **changed} for k in (*distillation.STEPS, distillation.REFERENCE)}

    undistilled, progressive = rows(frechet=1.0), rows()
    undistilled[64]["frechet"], progressive[4]["ratio"] = 0.1, 0.64
    first = {scale: {"error": 0.1, "missed": float("nan") if scale == 1 else 0.5, "frechet": 0.1} for scale in distillation.SCALES}
    found = {
        "teacher": {"undistilled": undistilled, "progressive": progressive, "consistency": rows()},
        **{name: {"undistilled": rows()} for name in distillation.TEACHERS},
        "guided": {scale: {"undistilled": rows(), "guided": rows()} for scale in distillation.SCALES},
        "first_stage": {"teacher": first},
        "seeds": {"dmd": {0: rows()[1]}},
    }
    missed = [text for text, value, bound in distillation.claims(found) if value > bound]
    assert missed == ["progressive, 4 steps: rms over undistilled"]
    page = distillation.page(found)
    assert page["claims"].count("**missed**") == 1 and page["first_stage"].count("–") == 1
    assert set(page) == {"claims", "teacher", *distillation.TEACHERS, "guided", "first_stage", "seeds"}


TEN = [objectives.run(experiment, objective) for experiment in objectives.NAMES for objective in objectives.OBJECTIVES]
EXPERTS = experts.planned(Path("runs"))


@pytest.mark.parametrize(
    "run", [*distillation.planned(2), *TEN, *conditioning.planned(), *EXPERTS], ids=lambda run: f"{run.experiment}-{run.name}"
)
def test_every_planned_run_is_an_experiment_that_composes(run):
    config = compose(run.experiment, run.overrides)
    check(config)
    assert config.tree["trainer"]["max_steps"] >= 400


def test_the_short_form_of_clips_fits_what_is_cut_down():
    run = video.clips_run(Path("clips.npz"))
    module = build(compose(run.experiment, run.overrides).tree["module"])
    x = torch.zeros(1, *module.shape)
    assert module.denoiser(x, torch.ones(1)).shape == x.shape


@pytest.mark.parametrize("experiment", objectives.NAMES)
@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_an_objective_changes_what_the_network_predicts_and_not_the_network(experiment, objective):
    before, after = (build(compose(experiment, given).tree["module"]) for given in ([], objectives.run(experiment, objective).overrides))
    assert type(after.denoiser.precond).__name__.lower() == f"{objective}precond"
    assert [p.shape for p in after.denoiser.net.parameters()] == [p.shape for p in before.denoiser.net.parameters()]
    assert after.sampler == before.sampler


def test_the_page_of_objectives_names_who_stays_below_the_bound():
    figures = {name: {"value": 0.9} for name in objectives.COLUMNS}
    poor = {"figures": {**figures, "accuracy": {"value": 0.84}}}
    found = {"digits/edm": {"eps": {"figures": figures}, "v": poor}}
    assert objectives.missed(found) == ["digits/edm v"]
    assert objectives.page(found).splitlines()[-1] == "| U-Net | v | 0.840 | 0.900 | 0.900 | 0.900 | 0.900 |"


def test_trainings_without_knowledge_enhancement_differ_in_nothing_else():
    """Without its four parts the experiment trains on the captions as they are, and on the plain loss."""
    for enhanced in (True, False):
        config = compose("shapes/knowledge", conditioning.knowledge(enhanced, 1).overrides).tree
        parts = (config["module"]["boost"], config["module"]["distance"], config["data"]["append"], config["data"]["replace"])
        assert all(parts) if enhanced else not any(parts)
        assert config["module"]["seed"] == 1 and config["data"]["data"]["drop"] == 0.3


def test_a_model_that_is_not_told_a_column_sees_what_a_hidden_source_shows():
    class Reader:
        sampler = None

        def condition(self, batch):
            return batch

    batch = {"x": torch.zeros(2, 1), "colour_text": ["red", "blue"], "shape_text": ["circle", "square"]}
    told = conditioning.Untold(Reader(), ("shape_text",)).condition(batch)
    assert told["shape_text"] == [None, None] and told["colour_text"] == ["red", "blue"]


def test_pages_of_conditioning_have_a_line_for_each_report_and_a_mean_over_seeds():
    def report(value):
        figures = {name: {"value": value, "shuffled": value / 2} for name in (*conditioning.SCENES, "retrieval", "frechet", "nearest")}
        return {"figures": figures}

    found = {
        "shapes": {"U-Net 1": report(0.5)},
        "pooled": {"0 1": report(0.5)},
        "encoders": {f"0 {told}": report(0.5) for told in conditioning.HIDDEN},
        "emoji": {"seen 1": report(0.25)},
        "knowledge": {run.name: report(int(run.name[-1]) / 4) for run in conditioning.pairs()},
    }
    assert set(found) == set(conditioning.TABLES) == set(conditioning.NAMES)
    lines = {name: conditioning.TABLES[name][2](reports).splitlines() for name, reports in found.items()}
    assert lines["shapes"][-1].split(" | ")[1:3] == ["shuffled", "0.250"]
    assert lines["emoji"][-1] == "| seen | 1 | 0.250 | 0.125 | 0.250 | – | 0.250 |"
    assert len(lines["encoders"]) == 6
    means = lines["knowledge"][-2:]
    assert [line.split(" | ")[1] for line in means] == ["0.250", "0.250"]


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("benchmarks.training.measured", lambda command: asked.append(command) or {"wall_seconds": 1.0})
    run = Run("digits/edm", "mine", ("trainer.max_steps=3",))
    run.folder(tmp_path).mkdir(parents=True)
    tree = compose("digits/edm", [*run.overrides, f"runs={tmp_path}"]).tree
    (run.folder(tmp_path) / "config.yaml").write_text(
        json.dumps({key: value for key, value in tree.items() if key not in ("run", "resume")})
    )
    for _ in range(2):
        run.train(tmp_path)
    assert len(asked) == 1 and asked[0][2:] == ["diffx.fit", "experiment=digits/edm", "run=mine", f"runs={tmp_path}", "trainer.max_steps=3"]
