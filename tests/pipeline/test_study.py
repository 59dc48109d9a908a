"""Studies: which cells a recipe with arms and seeds becomes, what is refused beforehand, and what is written down first."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokensieve.analysis.folders import read_seeds
from tokensieve.pipeline.configs.run import RecipeConfig
from tokensieve.pipeline.recipe.arms import WORDS
from tokensieve.pipeline.recipe.beforehand import beforehand
from tokensieve.pipeline.recipe.estimate import check_filled
from tokensieve.pipeline.recipe.load import load
from tokensieve.pipeline.recipe.registration import changes, content, register, registered
from tokensieve.report.verdict import arms_table, verdict
from tokensieve.runs.errors import UserError
from tokensieve.runs.files import read_json

TRAINING = {"per_device_train_batch_size": 1, "max_steps": 8, "save_strategy": "no"}
STUDY = {"student": {"training": TRAINING}, "sets": {"target": "@target", "web": "@web"}, "target": "target"}


@pytest.fixture(autouse=True)
def short_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many steps a second are counted for half a second of processor time, in each run that says something beforehand."""
    monkeypatch.setattr("tokensieve.pipeline.recipe.beforehand._TRY_SECONDS", 0.02)


def recipe(tmp_path: Path, **changes: Any) -> Path:
    (tmp_path / "t.jsonl").write_text('{"text": "a b c"}\n')
    prepare = {"verb": "prepare", "sources": [{"path": str(tmp_path / "t.jsonl")}], "vocab_size": 257, "length": 16}
    model = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 16}  # fmt: skip
    train = {"verb": "train", "corpus": "@corpus", "seed": "${seed}", "training": TRAINING}
    stages = {
        **{name: dict(prepare) for name in ("corpus", "curated", "mixed", "wrong", "target", "web")},
        "base": {**train, "model": model},
        "reference": {**train, "corpus": "@curated", "model": "@base"},
        "scores": {"verb": "score", "model": "@reference", "corpus": "@corpus"},
    }
    given = {"name": "s", "out": str(tmp_path / "run"), "seeds": [0, 1], "stages": stages, "study": STUDY,
             "arms": {"clm": None, "rho1": {"ratio": 0.5}}, **changes}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    return tmp_path / "recipe.yaml"


def loaded(path: Path, **fields: Any) -> Any:
    return load(RecipeConfig(str(path), **fields))


def stage(made: Any, name: str) -> Any:
    return next(s for s in made.stages if s.name == name)


def test_cells_are_what_differs_by_seed(tmp_path: Path) -> None:
    made = loaded(recipe(tmp_path))
    names = [s.name for s in made.stages]
    assert names[:6] == ["corpus", "curated", "mixed", "wrong", "target", "web"]
    each = [
        f"{name}-seed{seed}" for name in ("base", "reference", "scores", "clm", "rho1", "evaluation") for seed in (0, 1)
    ]
    assert names[6:] == [*each, "table"]
    rho1 = stage(made, "rho1-seed1")
    assert rho1.fields["seed"] == 1
    assert rho1.fields["model"] == str(tmp_path / "run" / "base-seed1")
    assert rho1.fields["scores"] == [str(tmp_path / "run" / "scores-seed1")]
    assert rho1.fields["objective"] == {"name": "rho1", "ratio": 0.5}
    assert rho1.fields["max_epochs"] == 1
    table = stage(made, "table")
    assert table.fields["runs"]["rho1"] == [str(tmp_path / "run" / f"rho1-seed{s}") for s in (0, 1)]
    assert table.fields["others"] == ["web"]
    assert [Path(f).name for f in table.fields["evaluation"]] == ["evaluation-seed0", "evaluation-seed1"]
    assert made.cells.named("rho1") == ["rho1-seed0", "rho1-seed1"]


def test_seeds_of_the_command_line_and_of_a_recipe_without_arms(tmp_path: Path) -> None:
    made = loaded(recipe(tmp_path), seeds=[3])
    assert stage(made, "clm-seed3").fields["seed"] == 3
    path = recipe(tmp_path)
    source = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({k: v for k, v in source.items() if k not in ("arms", "study")}, sort_keys=False))
    names = [s.name for s in loaded(path).stages]
    assert "scores-seed1" in names
    assert "corpus" in names


def test_equal_compute_comes_after_what_it_is_equal_to(tmp_path: Path) -> None:
    arms = {"clm_equal": {"is": "clm", "compute_of": "rho1"}, "clm": {}, "rho1": {}}
    made = loaded(recipe(tmp_path, arms=arms, study={**STUDY, "longer": "@web"}))
    equal = stage(made, "clm_equal-seed0")
    assert equal.fields["compute_of"] == str(tmp_path / "run" / "rho1-seed0")
    assert "max_steps" not in equal.fields["training"]
    assert equal.fields["corpus"] == str(tmp_path / "run" / "web")
    assert stage(made, "table").fields["rivals"] == {"rho1": "clm_equal"}


def test_a_rule_at_another_arms_compute_has_scores_of_what_it_reads(tmp_path: Path) -> None:
    arms = {
        "clm": {},
        "rho1": {"compute_of": "clm"},
        "high_loss": {"compute_of": "clm"},
        "sparse": {"compute_of": "clm"},
    }
    made = loaded(recipe(tmp_path, arms=arms, study={**STUDY, "longer": "@web"}))
    assert [Path(stage(made, f"{n}-seed1").fields["scores"][0]).name for n in ("rho1", "sparse")] == [
        "scores_web-seed1"
    ] * 2
    assert stage(made, "scores_web-seed1").fields["corpus"] == stage(made, "rho1-seed1").fields["corpus"]
    assert "scores" not in stage(made, "high_loss-seed1").fields


def test_an_arm_that_is_the_baseline_but_for_its_length_is_on_its_curve(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"clm": {}, "rho1": {}, "clm_equal": {"is": "clm", "compute_of": "rho1"}}
    arms |= {"mix": {"compute_of": "rho1"}, "slow": {"is": "clm", "train": {"training": {"learning_rate": 1e-5}}}}
    arms |= {"short": {"is": "clm", "train": {"training": {"max_steps": 3}}}}
    for study in (STUDY, {**STUDY, "longer": "@web"}):
        made = loaded(recipe(tmp_path, arms=arms, study=study))
        assert stage(made, "table").fields["on_curve"] == ["clm_equal", "short"]


def test_lengths_are_runs_whose_schedules_end_there(tmp_path: Path) -> None:
    made = loaded(recipe(tmp_path, study={**STUDY, "lengths": [0.25, 0.5, 2]}))
    steps = {s: stage(made, f"clm_x{s}-seed0").fields["training"]["max_steps"] for s in ("0.25", "0.5", "2")}
    assert steps == {"0.25": 2, "0.5": 4, "2": 16}
    assert list(stage(made, "table").fields["curve"]) == ["clm_x0.25", "clm_x0.5", "clm_x2"]


@pytest.mark.parametrize(
    ("arm", "fields"),
    [
        ("mix", {"corpus": "mixed", "objective": {"name": "clm"}}),
        ("curated_only", {"corpus": "curated", "objective": {"name": "clm"}}),
        ("from_reference", {"model": "reference-seed0", "objective": {"name": "clm"}}),
        ("wrong_domain", {"objective": {"name": "rho1"}, "scores": ["wrong_domain_scores-seed0"]}),
        ("reversed", {"objective": {"name": "rho1", "reverse": True}, "scores": ["scores-seed0"]}),
        ("high_loss", {"objective": {"name": "high_loss"}, "corpus": "corpus"}),
        ("random", {"objective": {"name": "random", "ratio": 0.6, "seed": 0}}),
        ("anneal", {"corpus": "curated", "model": "anneal_first-seed0"}),
    ],
)
def test_a_word_is_an_arm(arm: str, fields: dict[str, Any], tmp_path: Path) -> None:
    made = loaded(recipe(tmp_path, arms={"clm": {}, arm: {}}))

    def name(value: Any) -> Any:
        return [Path(v).name for v in value] if isinstance(value, list) else Path(value).name

    found = stage(made, f"{arm}-seed0").fields
    assert {k: v if isinstance(v, dict) else name(v) for k, v in found.items() if k in fields} == fields


def test_an_arm_with_stages_of_its_own(tmp_path: Path) -> None:
    small = {"is": "small_reference", "model": {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 1}}
    with pytest.raises(UserError, match="model"):  # what a model's config says is checked as anywhere
        loaded(recipe(tmp_path, arms={"clm": {}, "small": {**small, "model": {"model_type": "lama"}}}))
    made = loaded(recipe(tmp_path, arms={"clm": {}, "small": small, "rho1_mix": {"is": "mix", "rule": "rho1"}}))
    assert Path(stage(made, "small_reference-seed1").fields["model"]).name == "small_base-seed1"
    assert Path(stage(made, "small-seed1").fields["scores"][0]).name == "small_scores-seed1"
    assert Path(stage(made, "rho1_mix-seed1").fields["scores"][0]).name == "scores_mixed-seed1"
    anneal = loaded(recipe(tmp_path, arms={"clm": {}, "anneal": {"share": 0.25}}))
    steps = [stage(anneal, f"{n}-seed0").fields["training"]["max_steps"] for n in ("anneal_first", "anneal")]
    assert steps == [6, 2]


def test_a_reference_trained_otherwise(tmp_path: Path) -> None:
    arms = {
        "clm": {},
        "less": {"is": "other_reference", "trained": {"training": {"max_steps": 2}}, "corpus": "mixed", "ratio": 0.3},
        "wrong_domain": {"corpus": "mixed"},
        "mixture": {"is": "by_source", "of": {"name": "rho1"}},
    }
    made = loaded(recipe(tmp_path, arms=arms))
    plain, less = (stage(made, f"{name}-seed0").fields for name in ("reference", "less_reference"))
    assert {k for k in plain if plain[k] != less[k]} == {"out", "training"}
    assert less["training"] == {**plain["training"], "max_steps": 2}
    for arm in ("less", "wrong_domain"):
        scores, student = (stage(made, f"{name}-seed0").fields for name in (f"{arm}_scores", arm))
        assert Path(scores["corpus"]).name == Path(student["corpus"]).name == "mixed", (
            "scores of what the student reads"
        )
        assert [Path(s).name for s in student["scores"]] == [f"{arm}_scores-seed0"]
    assert stage(made, "less-seed0").fields["objective"] == {"name": "rho1", "ratio": 0.3}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"rho1": {"rival": ["clm"]}}, "arm rho1: rival: a name is needed"),
        ({"rho1": {"compute_of": ["clm"]}}, "arm rho1: compute_of: a name is needed"),
        ({"rho1": {"corpus": ["corpus"]}}, "arm rho1: corpus: a name is needed"),
        ({"rho1": {"train": 3}}, "arm rho1: train: a mapping is needed"),
        ({"rho1": {"train": {"training": [1]}}}, "arm rho1: train: a mapping is needed"),
        ({"anneal": {"share": "x"}}, "arm anneal: share: a number is needed"),
    ],
)
def test_a_value_of_another_kind_is_refused(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    """A list where a name belongs ended in Python's "unhashable type", a number in place of a mapping in its AttributeError."""
    with pytest.raises(UserError, match=why):
        loaded(recipe(tmp_path, arms={"clm": {}, **said}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"arms": {"clm": {}, "rho2": {}}}, "arm rho2: unknown arm 'rho2', did you mean 'rho1'?"),
        ({"arms": {"clm": {}, "rho1": {"ratoi": 0.5}}}, "arm rho1: objective: unknown field 'ratoi'"),
        ({"arms": {"clm": {"ratio": 0.5}}}, "arm clm: unknown field 'ratio'"),
        ({"arms": {"clm": {}, "a": {"is": "mix", "corpus": "no"}}}, "arm a: mix needs a stage 'no' in the recipe"),
        ({"arms": {"rho1": {}}}, "study: baseline: unknown arm 'clm'"),
        (
            {"arms": {"clm": {"compute_of": "rho"}, "rho1": {}}},
            "arm clm: compute_of: unknown arm 'rho', did you mean 'rho1'",
        ),
        (
            {"arms": {"clm": {"compute_of": "rho1"}, "rho1": {"compute_of": "clm"}}},
            "arm clm: compute_of goes round in a circle",
        ),
        ({"arms": {"clm": {}, "x": {"is": "no.mod:f"}}}, "is code to be imported and called"),
        ({"arms": {"clm": {}, "corpus": {"is": "clm"}}}, "arm corpus: there is another stage 'corpus' already"),
        ({"arms": {"clm": {}, "small_reference": {}}}, "small_reference needs either layers or model"),
        ({"arms": {"clm": {}, "other_reference": {"trained": 3}}}, "other_reference needs trained, the fields"),
        ({"arms": []}, "arms: a mapping of arm to what it says"),
        ({"seeds": []}, "seeds: a study needs at least one"),
        ({"seeds": [0, 0]}, "seeds: 0 is named twice"),
        ({"seeds": ["a"]}, "seeds: a list of whole numbers of at least 0 is needed"),
        ({"study": {**STUDY, "target": "taget"}}, "study: target: unknown set 'taget', did you mean 'target'?"),
        ({"study": {**STUDY, "sets": {"target": "@tagret"}}}, "sets: target: unknown stage '@tagret', did you mean"),
        ({"study": {**STUDY, "forgetting": ["wbe"]}}, "study: forgetting: unknown set 'wbe', did you mean 'web'?"),
        ({"study": {**STUDY, "lengths": [1]}}, "study: lengths: 1 is no other length"),
        ({"study": {**STUDY, "lenghts": [2]}}, "unknown field 'lenghts', did you mean 'lengths'?"),
        ({"study": {**STUDY, "student": {}, "lengths": [2]}}, "lengths needs student.training.max_steps"),
        ({"arms": {"clm": {"epochs": "x"}}}, "arm clm: epochs: a number above 0 is needed, not x"),
        (
            {"arms": {"clm": {}, "small_reference": {"layers": 0}}},
            "arm small_reference: layers: a whole number of at least 1 is needed, not 0",
        ),
        ({"study": {**STUDY, "epochs": 0}}, "study: epochs: a number above 0 is needed, not 0"),
        ({"study": {**STUDY, "effect": -0.1}}, "study: effect: a number above 0 is needed, not -0.1"),
        ({"study": {**STUDY, "students": 0}}, "study: students must be at least 1, not 0"),
        (
            {"study": {**STUDY, "average": 2}},
            "study: average: 2 checkpoints of each student, and save_strategy: no keeps",
        ),
        (
            {"study": {**STUDY, "baseline": "rho1", "longer": "@web", "lengths": [2]}},
            "study: lengths: rho1 needs scores, and there are none of @web",
        ),
    ],
)
def test_refused_beforehand(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as e:
        loaded(recipe(tmp_path, **changed))
    assert said in str(e.value)


def test_an_arm_that_its_text_cannot_fill(tmp_path: Path, tokensieve: Any) -> None:
    """It would go through the same rows again and again, and a table would show tokens seen as if they were fresh."""
    done = tokensieve("run", recipe(tmp_path), "--seeds", "[0]")
    assert done.code == 2
    assert "stage clm-seed0: corpus has about" in done.error
    assert "at most 1 passes are allowed" in done.error
    assert not (tmp_path / "run").exists()


def test_a_last_row_that_is_not_full_is_a_row(tmp_path: Path, tiny: Any) -> None:
    """Padding was taken for missing text: steps that go through every row once were refused for a few tokens."""
    stats = json.loads((tiny.corpus / "manifest.json").read_text())["stats"]
    assert stats["padding"] > 0
    for more, refused in ((0, False), (1, True)):
        training = {"per_device_train_batch_size": 1, "max_steps": stats["rows"] + more}
        stage = {
            "verb": "train",
            "corpus": str(tiny.corpus),
            "model": str(tiny.base),
            "max_epochs": 1,
            "training": training,
        }
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({"out": str(tmp_path / "run"), "stages": {"clm": stage}}))
        made = load(RecipeConfig(str(tmp_path / "one.yaml")))
        with pytest.raises(UserError, match="at most 1 passes are allowed") if refused else nullcontext():
            check_filled(made, made.stages)


def test_every_word_has_a_line(tmp_path: Path) -> None:
    assert all(function.__doc__ for function in WORDS.values())


# --- what is said beforehand ------------------------------------------------------------------------------------------------


def test_what_is_said_beforehand(tmp_path: Path, tokensieve: Any) -> None:
    path = recipe(tmp_path, study={**STUDY, "sd": 0.03, "effect": 0.05}, seeds=[0, 1, 2])
    done = tokensieve("run", path, "--dry-run", "--jobs", 2)
    said = done.out.strip().split("\n")[-3:]
    assert said[0].startswith("Beforehand: 3 seeds tell a difference of 0.0979 nats or more, four times in five")
    assert said[0].endswith("0.03 nats (assumed).")
    assert said[1].endswith("with --jobs 2 (at the pace of a step of the student, tried now).")
    assert said[2].startswith("To tell 0.05 nats it would take 6 seeds: ")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_reckoned_with_is_refused_before_anything_is_written(tmp_path: Path, tokensieve: Any) -> None:
    nothing = str(tmp_path / "nothing")
    for study in ({"sd": nothing}, {"large": nothing}):
        with pytest.raises(UserError, match="nothing does not exist"):
            beforehand(loaded(recipe(tmp_path, study={**STUDY, **study})), 1)
    done = tokensieve("run", recipe(tmp_path, study={**STUDY, "large": {"model_type": "lama"}, "epochs": 100}))
    assert (done.code, "did you mean 'llama'" in done.error) == (2, True)
    assert not (tmp_path / "run").exists()


def pilot_text(folder: Path) -> dict[str, str]:
    """A folder of .txt, a file of JSON lines and one that is packed: as users have them."""
    (folder / "data").mkdir(parents=True)
    for i in range(40):
        (folder / "data" / f"{i}.txt").write_text(f"page {i} of {i * i} words and {i % 7} more. " * 8)
    rows = [json.dumps({"text": f"the sum of {i} and {i} is {2 * i}. " * 8}) for i in range(40)]
    (folder / "curated.jsonl").write_text("\n".join(rows[:30]))
    (folder / "target.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[30:]).encode()))
    return {name: str(next(folder.glob(f"{name}*"))) for name in ("data", "curated", "target")}


def test_the_pilot_is_a_study_of_ones_own_text(
    tmp_path: Path, tokensieve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tokensieve("run", "pilot")
    assert (done.code, "pilot.yaml: data is not here: the noisy text, as --set" in done.error) == (2, True)
    given = {**pilot_text(tmp_path), "model": {"model_type": "qwen3"}}
    made = loaded(Path("pilot"), set=given)
    rival = stage(made, "table").fields["rivals"]
    assert rival == {"rho1": "clm_equal", "random": "clm_equal", "mix": "clm_equal"}
    assert stage(made, "table").fields["on_curve"] == ["clm_equal"]
    for arm in ("clm_equal", "random", "mix"):
        assert Path(stage(made, f"{arm}-seed3").fields["compute_of"]).name == "rho1-seed3"
    assert stage(made, "rho1-seed0").fields["backward"] == "sparse"


# --- what is written down before the first run ---------------------------------------------------------------------------


def test_registration_says_what_was_changed(tmp_path: Path) -> None:
    plan = {"seeds": [0, 1], "target": "a", "arms": {"clm": {}, "rho1": {"ratio": 0.6}}}
    register(tmp_path, plan, [])
    first = read_json(tmp_path / "registration.json")
    assert registered(first).endswith("before the first run, and not changed since.")
    register(tmp_path, plan, ["clm-seed0"])
    assert read_json(tmp_path / "registration.json") == first
    register(tmp_path, {**plan, "target": "b", "arms": {"clm": {}, "rho1": {"ratio": 0.5}}}, ["clm-seed0"])
    found = read_json(tmp_path / "registration.json")
    assert found["plan"] == plan
    assert 'CHANGED since: arms.rho1.ratio 0.6 -> 0.5; target "a" -> "b".' in registered(found)
    assert content(found) != content(first)


def test_registered_late_says_so(tmp_path: Path) -> None:
    register(tmp_path, {"seeds": [0]}, ["clm-seed0", "rho1-seed0"])
    assert "when 2 cells were there already" in registered(read_json(tmp_path / "registration.json"))
    assert changes({"a": 1}, {"b": 2}) == ["a 1 -> nothing", "b nothing -> 2"]


# --- from its registration to its page -------------------------------------------------------------------------------------


def words(tmp_path: Path, name: str, documents: int) -> dict[str, Any]:
    lines = [
        json.dumps({"id": f"{name}{i}", "text": f"{name} has {i} and {i * i} of {i % 7}"}) for i in range(documents)
    ]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {"verb": "prepare", "sources": [{"path": str(tmp_path / f"{name}.jsonl")}], "length": 16}


def test_a_study_runs_to_its_verdict(tmp_path: Path, tokensieve: Any) -> None:
    """And says so when its plan was changed after it had begun; the cells that are there stay."""
    path = recipe(tmp_path)
    source = yaml.safe_load(path.read_text())
    corpus = {**words(tmp_path, "corpus", 60), "vocab_size": 270}
    others = {n: {**words(tmp_path, n, 12), "tokenizer": "@corpus"} for n in ("curated", "target", "web")}
    kept = {n: source["stages"][n] for n in ("base", "reference", "scores")}
    training = {**TRAINING, "max_steps": 1}
    for name in ("base", "reference"):  # the same for all seeds, as a model from elsewhere would be
        kept[name] = {**kept[name], "training": training, "seed": 0}
    study = {**STUDY, "student": {"training": training}, "forgetting": ["web"], "lengths": [3], "effect": 0.05}
    study |= {"large": {"model_type": "llama", "vocab_size": 1000, "hidden_size": 1 << 15, "num_hidden_layers": 2}}
    arms = {"clm": {}, "rho1": {}, "clm_equal": {"is": "clm", "compute_of": "rho1", "epochs": 9}}
    source |= {"stages": {"corpus": corpus, **others, **kept}, "study": study, "arms": arms}
    path.write_text(yaml.safe_dump(source, sort_keys=False))
    done = tokensieve("run", path)
    assert done.code == 0, done.err
    run = tmp_path / "run"
    table = (run / "table" / "table.txt").read_text()
    assert "before the first run, and not changed since." in table
    assert "rho1 - clm_equal" in table
    assert "Beforehand: 2 seeds tell a difference of 0.2" in done.out
    said = read_json(run / "registration.json")["beforehand"][0]
    assert [line in done.out for line in said["said"]] == [True] * 4
    assert said["large_parameters"] > 6e9
    assert said["parameters"] == 2 * 270 * 16 + 4 * 16 * 16 + 3 * 16 * 16 + 3 * 16
    found = read_json(run / "table" / "verdict.json")
    assert len(found["sentences"]) == 1
    assert list(found["speedups"]["flops_total"]) == ["rho1"]
    assert "through the ends of clm_x3, clm_equal, clm, whose schedules end there" in table
    assert "Fresh rows: no arm read a row of its corpus twice." in table
    [power] = found["power"]
    assert (power["arm"], power["rival"], power["seeds"], power["effect"]) == ("rho1", "clm_equal", 2, 0.05)
    [gap] = [r for r in found["differences"] if (r["rival"], r["set"]) == ("clm_equal", "target")]
    assert power["sd"] == gap["sd"]
    assert "seeds for 0.05" in table
    assert "times as many" in found["scope"][0]
    later = beforehand(loaded(path), 1)  # its cells are done: minutes are theirs
    assert "at the pace of the cells that are done" in later["said"][1]
    rows = {(r["run"], r["arm"]): r for r in read_json(run / "table" / "comparison.json")}
    for seed in (0, 1):
        assert 1 <= rows[seed, "clm_equal"]["flops_total"] / rows[seed, "rho1"]["flops_total"] < 1.5
        assert (
            rows[seed, "rho1"]["forgetting"]["web"]
            == rows[seed, "rho1"]["others"]["web"] - rows[seed, "base"]["others"]["web"]
        )
    runs = read_seeds(run)
    assert [r.seed for r in runs] == [0, 1]
    assert verdict(runs) == "\n".join([*found["sentences"], found["registration"], *found["scope"]])
    heads, cells = arms_table(runs)
    assert [c[0] for c in cells] == ["base", "reference", "clm", "rho1", "clm_equal", "clm_x3"]
    assert [bool(c[heads.index("total TFLOP")]) for c in cells] == [False, False, True, True, True, True]
    assert [a.corpus for a in runs[1].arms] == [run / "corpus"] * 3
    before = {p: p.stat().st_mtime_ns for p in run.glob("*-seed*/manifest.json")}
    measured = {**study, "students": 3, "sd": str(run / "table")}
    path.write_text(yaml.safe_dump({**source, "study": measured}, sort_keys=False))
    done = tokensieve("run", path)
    assert done.code == 0, done.err
    largest = max(r["sd"] for r in found["differences"] if r["set"] == "target")
    assert f"{largest:.3g} nats (measured over 2 seeds in {run}/table, the largest of its arms)" in done.out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "students 1 -> 3." in (run / "table" / "table.txt").read_text()
