"""compare: the arms' end values, and with how many tokens each came to the baseline's end, by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tokensieve.data.corpus import open_corpus
from tokensieve.modeling.folder import read_config
from tokensieve.modeling.load import model_shapes
from tokensieve.pipeline import lineage, run_record, train
from tokensieve.pipeline.compare import CompareConfig, compare, render
from tokensieve.pipeline.compare_scope import passes
from tokensieve.pipeline.configs.score import ScoreConfig
from tokensieve.pipeline.configs.train import TrainConfig
from tokensieve.pipeline.objectives import objective_of
from tokensieve.pipeline.recipe.cost import Cost, Known
from tokensieve.pipeline.recipe.demo import recipe_verdict
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest
from tokensieve.training.price import step_flops


@pytest.fixture(scope="module")
def evaluation(tiny: Any, tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("compare") / "evaluation"
    models = ("--models.base", tiny.base, "--models.clm", tiny.clm, "--models.rho1", tiny.rho1)
    sets = ("--sets.target", tiny.target, "--sets.maths", tiny.maths)
    assert tokensieve("evaluate", "--out", out, *models, *sets, "--checkpoints").code == 0
    return out


def config(tiny: Any, **fields: Any) -> CompareConfig:
    given = CompareConfig("o", "e", {"clm": str(tiny.clm), "rho1": str(tiny.rho1)}, "target")
    return dataclasses.replace(given, **fields)


def record(model: str, step: int | None, tokens: int | None, nll: float | None, **fields: Any) -> dict[str, Any]:
    return {"model": model, "step": step, "tokens_seen": tokens, "set": "target", "on": "all", "nll": nll,
            "bits_per_byte": None if nll is None else nll / 3, **fields}  # fmt: skip


RESULTS = [
    record("unigram", None, None, 7.0),
    *(record("clm", s, 100 * s, nll) for s, nll in ((1, 6.0), (2, 5.0), (4, 4.0))),
    *(record("rho1", s, 100 * s, nll) for s, nll in ((1, 5.5), (2, 4.5), (4, 3.5))),
]


def test_speedup_is_read_off_a_straight_line(tiny: Any) -> None:
    """rho1 is at 4.5 after 200 tokens and at 3.5 after 400: at clm's end, 4.0, after 300, where clm took 400."""
    rows = {row["arm"]: row for row in compare(config(tiny), RESULTS)}
    assert rows["rho1"]["speedup"] == pytest.approx(400 / 300)
    assert rows["clm"]["speedup"] is None
    assert (rows["clm"]["nll"], rows["rho1"]["nll"]) == (4.0, 3.5)
    assert list(rows) == ["unigram", "clm", "rho1"]


def test_an_arm_that_never_gets_there(tiny: Any) -> None:
    rows = compare(config(tiny, baseline="rho1"), RESULTS)
    assert [row.get("speedup") for row in rows] == [None, None, None]
    text = render(config(tiny, baseline="rho1"), rows)
    assert text.splitlines()[0].endswith("tokens to rho1's end")
    assert [line.split()[-1] for line in text.splitlines()[2:5]] == ["-", "never", "-"]


def test_a_baseline_that_rises_is_said_to(tiny: Any) -> None:
    """clm at 5.0 after its first checkpoint and 5.6 at its end made any arm below 5.6 faster by all that clm wasted."""
    results = [record("clm", s, 100 * s, nll) for s, nll in ((1, 5.0), (2, 5.2), (3, 5.4), (4, 5.6))]
    results += [record("rho1", s, 100 * s, nll) for s, nll in ((1, 5.3), (2, 5.4), (3, 5.5), (4, 5.58))]
    rows = compare(config(tiny), results)
    assert (rows[1]["speedup"], rows[1]["speedup_is_bound"]) == (1.0, False)
    assert rows[0]["lowest"] == {"tokens_seen": 100, "nll": 5.0}
    text = render(config(tiny), rows)
    assert text.splitlines()[3].endswith("no advantage")
    assert "clm's curve rises: its lowest nll is 5.0000 after" in text
    assert "lowest" not in compare(config(tiny), RESULTS)[1]  # one that falls has no such key


@pytest.mark.parametrize("key", ["flops_student", "flops_scoring", "flops_reference"])
def test_unknown_flops_are_a_question_mark(key: str, tiny: Any) -> None:
    """A family that nobody can count ended compare with a TypeError; it is never said to pay."""
    rows = compare(config(tiny), RESULTS)
    rows[2][key] = None
    lines = render(config(tiny), rows).splitlines()
    assert lines[4].split().count("?") == 1
    assert "a total compute that is not known" in lines[-1]


def test_figures_of_the_runs_stand_beside(tiny: Any) -> None:
    rows = {row["arm"]: row for row in compare(config(tiny), RESULTS)}
    summary = json.loads((tiny.rho1 / "summary.json").read_text())
    for key in (
        "tokens_seen",
        "tokens_trained",
        "flops_student",
        "flops_scoring",
        "flops_reference",
        "kept_share_by_source",
    ):
        assert rows["rho1"][key] == summary[key]
    assert rows["rho1"]["flops_scoring"] > 0 == rows["clm"]["flops_scoring"]
    assert "tokens_seen" not in rows["unigram"]


def test_other_sets_and_solutions(tiny: Any) -> None:
    results = [
        *RESULTS,
        *(record(m, 4, 400, 9.0 + i, set="web") for i, m in enumerate(("unigram", "clm", "rho1"))),
        *(record(m, 4, 400, 1.0 + i, on="solution") for i, m in enumerate(("unigram", "clm", "rho1"))),
    ]
    rows = compare(config(tiny, others=["web"], solution=True), results)
    assert [row["nll"] for row in rows] == [1.0, 2.0, 3.0]
    assert [row["others"] for row in rows] == [{"web": 9.0}, {"web": 10.0}, {"web": 11.0}]


def test_a_set_without_targets(tiny: Any) -> None:
    rows = compare(config(tiny), [record("clm", 4, 400, None), record("rho1", 4, 400, None)])
    assert [row["speedup"] for row in rows] == [None, None]
    assert "-" in render(config(tiny), rows).splitlines()[2].split()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target": "tagret"}, "no result of 'clm' on 'tagret' (all)"),
        ({"others": ["web"]}, "no result of 'unigram' on 'web' (all)"),
        ({"solution": True}, "no result of 'clm' on 'target' (solution)"),
    ],
)
def test_what_was_not_evaluated(fields: dict[str, Any], said: str, tiny: Any) -> None:
    with pytest.raises(UserError, match=r"^e: ") as e:
        compare(config(tiny, **fields), RESULTS)
    assert said in str(e.value)


def test_text_table_is_aligned(tiny: Any) -> None:
    """Numbers written as text stood left-aligned, so that 10.0000 and 9.0000 could not be compared at a glance."""
    results = [*RESULTS, record("base", None, None, 12.5)]
    lines = render(config(tiny), compare(config(tiny), results)).split("\n\n")[0].splitlines()
    assert len(lines) == 2 + 4
    ends = [i for i, c in enumerate(lines[1] + " ") if c == " " and lines[1][i - 1] == "-"]
    for line in lines[2:]:
        for end in ends[1:-1]:  # the arm's name is text, and so is "never"
            assert line[end - 1] != " "
            assert line[end : end + 2] == "  "
    assert [line.split()[1] for line in lines[2:]] == ["7.0000", "12.5000", "4.0000", "3.5000"]
    assert lines[-1].split()[-1] == "1/1.33"
    assert all(len(line) <= len(lines[0]) for line in lines)


def test_markdown_table(tiny: Any) -> None:
    table, fresh, said = render(config(tiny), compare(config(tiny), RESULTS), markdown=True).split("\n\n")
    assert fresh == "Fresh rows: no arm read a row of its corpus twice."
    assert said.startswith("One seed decides nothing: rho1 ends 0.500 nats below clm on target, ")
    lines = table.splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert cells[0][:3] == ["arm", "target nll", "bits/byte"]
    assert set(cells[1][1]) == {"-", ":"}
    assert cells[1][1].endswith(":")
    assert cells[2][:2] == ["unigram", "7.0000"]


def test_rows_that_were_read_again_are_said_to_be() -> None:
    """The column of passes is left out where it says nothing, and then nothing said that rows were fresh."""
    each = [[{"arm": "clm", "passes": 1.0}, {"arm": "equal", "passes": p}, {"arm": "base"}] for p in (1.8, 2.0)]
    assert passes(each) == ["Not fresh rows only: equal 1.90 times through its corpus, all others once at most."]
    assert passes([[{"arm": "base"}]]) == []


def test_folder(tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path) -> None:
    command = (
        "compare",
        "--out",
        tmp_path / "out",
        "--evaluation",
        evaluation,
        "--target",
        "target",
        "--others",
        "maths",
    )
    done = tokensieve(*command, "--runs.clm", tiny.clm, "--runs.rho1", tiny.rho1)
    assert done.code == 0, done.err
    manifest = read_manifest(tmp_path / "out", "comparison")
    assert [f["file"] for f in manifest["files"]] == ["comparison.json", "verdict.json", "table.txt", "table.md"]
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["arm"] for row in rows] == ["base", "clm", "rho1"]
    text = (tmp_path / "out" / "table.txt").read_text()
    assert done.out == f"{tmp_path}/out\n\n{text}"
    said = text.splitlines()[-1]
    assert re.fullmatch(
        r"One seed decides nothing: rho1 ends \d\.\d{3} nats (below|above) clm on target, at equal tokens seen and \d\.\d\d "
        r"times clm's total compute, scoring and reference included\.",
        said,
    )
    assert (tmp_path / "out" / "table.md").read_text().endswith(f"\n\n{said}\n")
    results = json.loads((evaluation / "evaluation.json").read_text())
    for row in rows:
        found = [r for r in results if (r["model"], r["step"], r["set"], r["on"]) == (row["arm"], 4, "target", "all")]
        assert row["nll"] == found[0]["nll"]


def test_the_demo_says_what_its_table_says(tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path) -> None:
    """The demo had a sentence of its own: "below clm, at equal tokens seen", at 1.9 times clm's compute."""
    command = ("compare", "--out", tmp_path / "table", "--evaluation", evaluation, "--target", "target")
    assert tokensieve(*command, "--runs.clm", tiny.clm, "--runs.rho1", tiny.rho1).code == 0
    said = recipe_verdict(tmp_path)
    assert said == (tmp_path / "table" / "table.txt").read_text().splitlines()[-1]
    assert "total compute" in said


def test_a_run_that_was_done_again_since_is_refused(
    tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path
) -> None:
    """The table would show one run's nll beside another's tokens and FLOPs."""
    command = ("compare", "--out", tmp_path / "out", "--evaluation", evaluation, "--target", "target")
    done = tokensieve(*command, "--runs.clm", tiny.clm, "--runs.rho1", tiny.base)
    assert done.code == 2
    assert f"{evaluation} evaluated other weights under the name 'rho1' than {tiny.base} holds" in done.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runs.rho1", "{rho1}"], "baseline: 'clm' is none of the arms rho1"),
        (["--runs", "{}"], "runs: name at least one arm"),
        (["--runs.clm", "{clm}", "--runs.other", "{rho1}"], "no result of 'other' on 'target' (all)"),
        (["--runs.clm", "{target}"], "holds 'corpus', 'model' is needed here"),
        (["--runs.clm", "{clm}", "--evaluation", "{rho1}"], "holds 'model', 'evaluation' is needed here"),
    ],
)
def test_what_is_wrong(
    arguments: list[str], said: str, tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path
) -> None:
    places = {name: str(getattr(tiny, name)) for name in ("clm", "rho1", "target")}
    words = [a if a == "{}" else a.format(**places) for a in arguments]
    done = tokensieve("compare", "--out", tmp_path / "out", "--evaluation", evaluation, "--target", "target", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.error


def test_a_changed_evaluation_is_noticed(tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(evaluation, tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "evaluation.json"
    path.write_text(path.read_text().replace('"nll": 6', '"nll": 5', 1))
    command = ("compare", "--out", tmp_path / "out", "--evaluation", tmp_path / "evaluation", "--target", "target")
    done = tokensieve(*command, "--runs.clm", tiny.clm)
    assert done.code == 2
    assert "evaluation.json has other bytes than were written" in done.error


# --- several seeds, total compute ------------------------------------------------------------------------------------------


def test_a_mean_over_sets_counts_each_once(tiny: Any) -> None:
    results = [*RESULTS, *({**r, "set": "web", "nll": r["nll"] + 2, "bits_per_byte": 1.0} for r in RESULTS)]
    rows = compare(config(tiny, target="mean", mean=["target", "web"], others=["target", "web"]), results)
    assert [row["nll"] for row in rows] == [8.0, 5.0, 4.5]
    assert rows[1]["others"] == {"target": 4.0, "web": 6.0}


def test_total_flops_and_forgetting(tiny: Any) -> None:
    results = [*RESULTS, record("base", None, None, 4.25)]
    rows = {r["arm"]: r for r in compare(config(tiny, students=4, forgetting=["target"]), results)}
    summary = json.loads((tiny.rho1 / "summary.json").read_text())
    beside = summary["flops_scoring"] + summary["flops_reference"]
    assert rows["rho1"]["flops_total"] == summary["flops_student"] + beside
    assert rows["rho1"]["flops_amortised"] == pytest.approx(summary["flops_student"] + beside / 4)
    assert rows["clm"]["flops_total"] == rows["clm"]["flops_amortised"] == rows["clm"]["flops_student"]
    assert rows["rho1"]["forgetting"] == {"target": 3.5 - 4.25}
    assert "rho1_x" not in rows


def test_what_only_one_arm_was_begun_from_is_charged_to_it(tiny: Any) -> None:
    """A student that goes on from another student's end would show half of the tokens and FLOPs that made it."""
    from tokensieve.pipeline import lineage

    figures = {
        "tokens_seen": 10,
        "tokens_trained": 6,
        "flops_student": 100.0,
        "flops_scoring": 0.0,
        "flops_reference": 0.0,
    }
    base, first, reference = ({"model": m, **figures} for m in ("base", "first", "reference"))
    plain = {"inputs": {}, "begun_from": [base], "summary": figures}
    two_parts = {**plain, "begun_from": [first, base]}
    scored = {**plain, "references": [{"model": "reference", "flops": 40.0, "begun_from": [base]}]}
    small = {**plain, "references": [{"model": "small", "flops": 40.0, "begun_from": [{"model": "s", **figures}]}]}
    unknown = {"inputs": {"model": "elsewhere"}, "summary": figures}
    free = lineage.shared([plain, two_parts, scored, small])
    assert free == {"base"}
    assert lineage.charged(plain, free) == figures
    assert lineage.charged(two_parts, free)["flops_student"] == 200.0
    assert lineage.charged(two_parts, free)["tokens_seen"] == 20
    assert lineage.charged(scored, free)["flops_reference"] == 0.0
    assert lineage.charged(small, free)["flops_reference"] == 100.0
    assert lineage.total(lineage.charged(unknown, lineage.shared([plain, unknown]))) is None
    own = {**scored, "begun_from": [reference, base], "summary": {**figures, "flops_reference": 40.0}}
    assert lineage.charged(own, free)["flops_reference"] == 0.0  # counted where the student goes on from it


@pytest.fixture(scope="module")
def two_seeds(tiny: Any, tokensieve: Any, evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """clm and rho1 with another seed, their evaluation, and clm at rho1's total compute."""
    root = tmp_path_factory.mktemp("seeds")
    common = ("--corpus", tiny.corpus, "--model", tiny.base, "--seed", 1, "--training.save_strategy", "no")
    steps = ("--training.max_steps", 4)
    assert tokensieve("train", "--out", root / "clm", *common, *steps).code == 0
    rho1 = ("--scores", tiny.scores, "--objective.name", "rho1", "--objective.ratio", 0.6)
    assert tokensieve("train", "--out", root / "rho1", *common, *steps, *rho1).code == 0
    equal = tokensieve("train", "--out", root / "equal", *common, "--compute_of", root / "rho1")
    assert equal.code == 0, equal.err
    models = [w for m in ("clm", "rho1") for w in (f"--models.{m}", root / m)]
    sets = ("--sets.target", tiny.target, "--sets.maths", tiny.maths)
    done = tokensieve("evaluate", "--out", root / "evaluation", "--models.base", tiny.base, *models, *sets)
    assert done.code == 0, done.err
    return root


def test_equal_compute_is_no_less_and_less_than_a_step_more(two_seeds: Path) -> None:
    """A rival that was given less would let an arm pay that does not."""
    rho1, equal = (json.loads((two_seeds / n / "summary.json").read_text()) for n in ("rho1", "equal"))
    wanted = sum(rho1[key] for key in ("flops_student", "flops_scoring", "flops_reference"))
    step = equal["flops_student"] / equal["steps"]
    assert wanted <= equal["flops_student"] < wanted + 1.01 * step
    assert equal["passes"] == pytest.approx(equal["steps"] * rho1["passes"] / rho1["steps"], abs=1e-3)


def test_a_rival_is_given_all_that_its_own_steps_cost(tiny: Any, tmp_path: Path) -> None:
    """Neither a first pass nor a teacher's forwards and training were counted: the rival cost more than the arm."""
    objective = {"name": "distill", "teacher": str(tiny.clm), "ratio": 0.5, "scope": "step", "reference": None}
    training = {"per_device_train_batch_size": 2, "use_cpu": True}
    config = TrainConfig(
        str(tmp_path / "equal"), str(tiny.corpus), str(tiny.base), objective, training=training, backward="sparse",
        compute_of=str(tiny.rho1),
    )  # fmt: skip
    corpus = open_corpus(tiny.corpus)
    shapes = model_shapes(read_config(str(tiny.base)))
    price = step_flops(objective_of(objective, False), shapes, 32, sparse=True, teacher=shapes)
    left = lineage.total(read_manifest(tiny.rho1)["summary"]) - read_manifest(tiny.clm)["summary"]["flops_student"]
    share = 0.5 * corpus.stats["tokens"] / (corpus.num_rows * 32) * 31 / 32
    steps = train._with_steps(config, corpus).training["max_steps"]
    assert (steps - 1) * price.of(64, 64 * share) < left <= steps * price.of(64, 64 * share)
    planned = train.estimate(config, Known())
    assert planned.flops == pytest.approx(left)
    assert planned.tokens == pytest.approx(64 * left / price.of(64, 64 * 0.5))
    (reference,) = run_record.references_used(config)
    assert reference["flops"] == read_manifest(tiny.clm)["summary"]["flops_student"]
    assert [link["model"] for link in reference["begun_from"]] == [lineage.lineage(str(tiny.base))[0]["model"]]


def test_a_rival_that_goes_on_from_its_own_teacher_pays_for_it_once(tiny: Any, tmp_path: Path) -> None:
    """What trained it was taken off twice, as its beginning and as a reference, and the rival was given less than the arm.

    The arm goes on from the base and so did the teacher: the base is nobody's."""
    objective = {"name": "distill", "teacher": str(tiny.clm), "reference": None, "ratio": None}
    config = TrainConfig(
        str(tmp_path / "equal"), str(tiny.corpus), str(tiny.clm), objective,
        training={"per_device_train_batch_size": 2, "use_cpu": True}, compute_of=str(tiny.rho1),
    )  # fmt: skip
    arm, teacher = (read_manifest(folder)["summary"] for folder in (tiny.rho1, tiny.clm))
    corpus, shapes = open_corpus(tiny.corpus), model_shapes(read_config(str(tiny.base)))
    share = corpus.stats["tokens"] / (corpus.num_rows * 32) * 31 / 32
    step = step_flops(objective_of(objective, False), shapes, 32, teacher=shapes).of(64, 64 * share)
    left = lineage.total(arm) - teacher["flops_student"]
    steps = train._with_steps(config, corpus).training["max_steps"]
    assert (steps - 1) * step <= left < steps * step


def test_checkpoints_of_a_run_to_come_are_not_free(tmp_path: Path) -> None:
    """A plan took a reference that is a checkpoint of a stage not done yet for a model that nobody trained: 0 FLOPs."""
    known, run, scores = Known(), tmp_path / "reference", tmp_path / "scores"
    for checkpoint in ("", "model", "checkpoint-20"):
        known.add(run, TrainConfig(str(run), "corpus", "base"), False)
        known.add(scores, ScoreConfig(str(scores), "corpus", str(run / checkpoint)), False)
        known.costs |= {run: Cost(flops=7.0), scores: Cost(flops=2.0)}
        assert known.spent_on([str(scores)]) == 9.0


def test_two_seeds(two_seeds: Path, tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path) -> None:
    command = ["compare", "--out", tmp_path / "out", "--target", "target", "--others", "maths"]
    command += ["--evaluation", f"[{evaluation}, {two_seeds}/evaluation]"]
    command += [w for arm in ("clm", "rho1") for w in (f"--runs.{arm}", f"[{getattr(tiny, arm)}, {two_seeds}/{arm}]")]
    done = tokensieve(*command)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(r["run"], r["arm"]) for r in rows] == [(i, a) for i in (0, 1) for a in ("base", "clm", "rho1")]
    found = json.loads((tmp_path / "out" / "verdict.json").read_text())
    first, other = found["differences"]
    assert (first["arm"], first["rival"], first["set"], other["set"]) == ("rho1", "clm", "target", "maths")
    ends = {(r["run"], r["arm"]): r["nll"] for r in rows}
    assert first["values"] == [ends[i, "rho1"] - ends[i, "clm"] for i in (0, 1)]
    assert first["documents"][0] <= first["mean"] <= first["documents"][1]
    assert first["interval"][0] < first["mean"] < first["interval"][1]
    text = (tmp_path / "out" / "table.txt").read_text()
    assert "Means over 2 seeds" in text
    assert "rho1 - clm" in text
    assert found["sentences"][0] in text


@pytest.mark.parametrize(
    ("clm", "rho1", "said"),
    [
        ("{tiny}/clm", "[{tiny}/rho1, {two}/rho1]", "runs.clm: 1 folders, and evaluation has 2"),
        ("[{tiny}/clm, {tiny}/clm]", "[{tiny}/rho1, {two}/rho1]", "runs.clm: {tiny}/clm is named twice"),
        ("[{two}/clm, {tiny}/clm]", "[{tiny}/rho1, {two}/rho1]", "evaluated other weights under the name 'clm'"),
    ],
)
def test_a_missing_or_mixed_up_seed(
    clm: str, rho1: str, said: str, two_seeds: Path, tiny: Any, evaluation: Path, tokensieve: Any, tmp_path: Path
) -> None:
    """Paired by place, seeds of another order would be subtracted from each other."""
    places = {"tiny": tiny.root, "two": two_seeds}
    evaluations = f"[{evaluation}, {two_seeds}/evaluation]"
    command = ("compare", "--out", tmp_path / "out", "--target", "target", "--evaluation", evaluations)
    done = tokensieve(*command, "--runs.clm", clm.format(**places), "--runs.rho1", rho1.format(**places))
    assert done.code == 2
    assert said.format(**places) in done.error


def test_more_passes_than_allowed(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    common = ("--corpus", tiny.corpus, "--model", tiny.base, "--training.max_steps", 400)
    done = tokensieve("train", "--out", tmp_path / "out", *common, "--max_epochs", 1)
    assert done.code == 2
    assert "times: max_epochs is 1; prepare more text, or train for fewer steps" in done.error
