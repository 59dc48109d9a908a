"""plan on tables and on folders that the verbs themselves wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokensieve.modeling.flops import token_flops
from tokensieve.modeling.load import load_causal_lm
from tokensieve.pipeline.configs.plan import PlanConfig
from tokensieve.pipeline.plan import plan, validate
from tokensieve.pipeline.plan_answers import reference_costs
from tokensieve.pipeline.plan_runs import read_runs
from tokensieve.runs.errors import UserError
from tokensieve.runs.files import read_json
from tokensieve.runs.manifest import read_manifest, write_manifest

C = {"E": 1.7, "A": 40.0, "alpha": 0.28, "B": 60.0, "beta": 0.3, "R_D": 12.0}


def nll(n: float, d: float, u: float) -> float:
    worth = u + u * C["R_D"] * (1 - math.exp(-(d / u - 1) / C["R_D"]))
    return C["E"] + C["A"] * n ** -C["alpha"] + C["B"] * worth ** -C["beta"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a planted law, some of them over repeated text; `large` is larger than all."""
    rng = np.random.default_rng(0)
    runs = [(n, d, d) for n in (1e3, 1e4, 1e5, 1e6) for d in (1e4, 1e5, 1e6, 1e7)]
    runs += [(n, u * p, u) for n in (1e4, 1e6) for u in (1e4, 1e5) for p in (8, 64)]
    lines = ["name,params,tokens,unique,nll,note"]
    lines += [
        f"r{i},{n},{d},{u},{nll(n, d, u) * math.exp(0.005 * rng.standard_normal())},x"
        for i, (n, d, u) in enumerate(runs)
    ]
    lines.append(f"large,1e7,1e8,1e8,{nll(1e7, 1e8, 1e8)},y")
    path = tmp_path_factory.mktemp("sweep") / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def planned(sweep: Path, tokensieve: Any) -> Any:
    out = sweep.parent / "plan"
    budget = ("--flops", "1e16", "--unique", "1e6", "--domain-tokens", "1e6", "--ratio", "0.5", "--hold-out", "large")
    done = tokensieve("plan", sweep, "--out", out, *budget)
    assert done.code == 0, done.err
    assert done.out.startswith((out / "table.txt").read_text())
    return done, read_json(out / "plan.json")


def test_every_number_has_its_law(planned: Any) -> None:
    """What a reader acts on: the answers, each with an interval or by counting alone."""
    _, made = planned
    assert made["chosen"] == "repetition"
    found = {a["what"]: a for a in made["answers"]}
    for answer in found.values():
        assert answer["law"]
        assert answer["low"] is None or answer["low"] <= answer["value"] <= answer["high"]
    assert found["parameters N*"]["value"] * found["tokens D*"]["value"] == pytest.approx(1e16 / 6, rel=1e-6)
    assert found["tokens with U unique tokens"]["value"] / 1e6 == pytest.approx(found["passes advised"]["value"])
    assert found["passes until a token is worth half"]["value"] == pytest.approx(1 + C["R_D"] * math.log(2), rel=0.15)
    held = made["held_out"][0]["predicted"]["repetition"]
    assert held["low"] < made["held_out"][0]["nll"] < held["high"]


def test_selection_is_charged(planned: Any) -> None:
    """Reference, scores and the student that pays for both come to the budget; of half the tokens each is worth twice."""
    _, made = planned
    found = {a["what"]: a["value"] for a in made["answers"]}
    n = found["parameters with U unique tokens"]
    assert found["price of a reference"] == pytest.approx(6 * n * 1e6)
    assert found["price of scoring"] == pytest.approx(2 * n * found["tokens left to a student that pays for both"])
    spent = 6 * n * found["tokens left to a student that pays for both"]
    assert spent + found["price of a reference"] + found["price of scoring"] == pytest.approx(1e16, rel=1e-6)
    assert found["a token trained must be worth"] == pytest.approx(2 * found["a token seen must be worth"])
    assert found["selection must gain at equal tokens"] > 0


def test_the_table(planned: Any, sweep: Path, tokensieve: Any) -> None:
    """The same again is done already; another budget into the same folder is refused."""
    done, _ = planned
    for said in (
        "24 runs, 6 FLOPs a parameter and token (assumed",
        "repetition *",
        "passes advised",
        "held out",
        "90 % interval",
    ):
        assert said in done.out
    out = sweep.parent / "plan"
    before = (out / "plan.json").stat().st_mtime_ns
    again = (
        "plan",
        sweep,
        "--out",
        out,
        "--unique",
        "1e6",
        "--domain-tokens",
        "1e6",
        "--ratio",
        "0.5",
        "--hold-out",
        "large",
    )
    assert tokensieve(*again, "--flops", "1e16").code == 0
    assert (out / "plan.json").stat().st_mtime_ns == before
    other = tokensieve(*again, "--flops", "2e16")
    assert other.code == 2
    assert "flops 1e+16 -> 2e+16" in other.error


def test_its_figure_in_a_report(planned: Any, sweep: Path, tokensieve: Any) -> None:
    """A run whose recipe ends with a plan shows the runs, the law and the run that was held out."""
    run = sweep.parent
    stage = {"verb": "plan", "folder": "plan", "fingerprint": read_manifest(run / "plan")["fingerprint"]}
    write_manifest(run, "run", config={"name": "sweep"}, inputs={}, files=[], stages={"plan": stage})
    done = tokensieve("report", run)
    assert done.code == 0, done.err
    assert 'id="figure-plan-curve"' in (run / "report.html").read_text("utf-8")
    drawn = (run / "figures" / "plan-curve.svg").read_text("utf-8")
    assert "FLOPs" in drawn
    assert drawn.count("<use") >= 25  # a mark for each run


def test_runs_of_our_folders(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Parameters, tokens, passes, FLOPs and nll are those of the run's own files, and of what it was begun from."""
    done = tokensieve("evaluate", "--out", tmp_path / "e", "--models.base", tiny.base, "--models.clm", tiny.clm,
                      "--sets.target", tiny.target)  # fmt: skip
    assert done.code == 0, done.err
    table = read_runs([str(tiny.base), str(tiny.clm), str(tmp_path / "e")], None)
    records = {r["model"]: r["nll"] for r in read_json(tmp_path / "e" / "evaluation.json")}
    base, clm = (read_manifest(f)["summary"] for f in (tiny.base, tiny.clm))
    assert table.rows["base"]["params"] == sum(p.numel() for p in load_causal_lm(tiny.base).parameters())
    assert table.rows["base"]["tokens"] == base["tokens_seen"]
    assert table.rows["clm"]["tokens"] == base["tokens_seen"] + clm["tokens_seen"]
    assert table.rows["clm"]["flops"] == base["flops_student"] + clm["flops_student"]
    assert {name: row["nll"] for name, row in table.rows.items()} == records
    assert table.rows["base"]["unique"] == base["tokens_seen"] / max(1, base["passes"])
    few = tokensieve("plan", tiny.base, tmp_path / "e", "--out", tmp_path / "p")
    assert few.code == 2
    assert "no law can be fitted" in few.error
    assert "1 runs for 5 constants" in few.error


def test_a_reference_by_its_own_modules(tiny: Any) -> None:
    """A folder's forward is counted, and its training is what its run says; a reference that is only planned costs a third."""
    config = PlanConfig(["x"], "x", domain_tokens=1e6, reference=str(tiny.base), length=32)
    forward, training, _ = reference_costs(config, 1e6, 6.0)
    assert forward == token_flops(load_causal_lm(tiny.base), 32).forward(1)
    assert training == read_manifest(tiny.base)["summary"]["flops_student"]
    sized = PlanConfig(["x"], "x", domain_tokens=1e6, reference_passes=3)
    assert reference_costs(sized, 1e6, 6.0)[:2] == pytest.approx((2e6, 6e6 * 3e6))


def test_a_mixture_within_the_tolerance(tmp_path: Path, tokensieve: Any) -> None:
    """General nll 2.9 + .4 R^1.2 over 3.0: .1 more is at R = .5^(1/1.2); passes follow from the domain's tokens."""
    rng = np.random.default_rng(1)
    lines = ["tokens,share,general_nll,general_before"]
    for share in np.linspace(0.05, 1, 12):
        lines.append(f"1e9,{share},{(2.9 + 0.4 * share**1.2) * math.exp(0.001 * rng.standard_normal())},3.0")
    (tmp_path / "mix.csv").write_text("\n".join(lines) + "\n")
    words = ("--flops", "1e18", "--domain-tokens", "1e8", "--tolerance", "0.1", "--forms", "mixture")
    done = tokensieve("plan", tmp_path / "mix.csv", "--out", tmp_path / "plan", *words)
    assert done.code == 0, done.err
    found = {a["what"]: a for a in read_json(tmp_path / "plan" / "plan.json")["answers"]}
    share, true = found["largest share of domain text"], 0.5 ** (1 / 1.2)
    assert share["low"] < true < share["high"]
    assert share["value"] == pytest.approx(true, rel=0.03)
    assert found["passes over the domain's text"]["value"] == pytest.approx(share["value"] * 10)
    assert found["parameters and tokens"]["value"] is None


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("params,tokens,nll\n1,2,x\n", (), "runs.csv line 2: nll: a number above 0 is needed, not 'x'"),
        ("params,tokens,nll\n1,2,3\n1,-2,3\n", (), "runs.csv line 3: tokens: a number above 0 is needed, not '-2'"),
        ("params,tokens,nll\n1,2\n", (), "runs.csv line 2: nll: a number above 0 is needed, not None"),
        ("a,b\n1,2\n", (), "runs.csv line 1: none of its columns is known"),
        ("name,params\nx,1\nx,2\n", (), "runs.csv line 3: a run is called x for the second time"),
        ("params\n", (), "runs: nothing in them is a run"),
        ("params,tokens,nll\n1,2,3\n", ("--forms", "nope"), "forms: there is no form 'nope'"),
        ("params,tokens,nll\n1,2,3\n", ("--hold_out", "z"), "hold_out: no run is called 'z', but runs:2"),
        ("params,tokens,nll\n1,2,3\n", ("--flops", "0"), "flops must be above 0, not 0"),
        ("params,tokens,nll\n1,2,3\n", ("--ratio", "2"), "ratio must be above 0 and at most 1, not 2"),
    ],
)
def test_what_is_wrong(text: str, words: tuple[str, ...], said: str, tmp_path: Path, tokensieve: Any) -> None:
    (tmp_path / "runs.csv").write_text(text)
    done = tokensieve("plan", tmp_path / "runs.csv", "--out", tmp_path / "plan", *words)
    assert done.code == 2
    assert said in done.error
    assert not (tmp_path / "plan" / "plan.json").exists()


def test_what_is_not_there(tiny: Any, tmp_path: Path, tokensieve: Any) -> None:
    for words, said in (
        ((tmp_path / "no.csv",), "no.csv does not exist"),
        ((tiny.base,), "no finished evaluate stage"),
    ):
        done = tokensieve("plan", *words, "--out", tmp_path / "plan")
        assert done.code == 2
        assert said in done.error


def test_plan_json_is_json(planned: Any, sweep: Path) -> None:
    """NaN is no JSON: what is not known is null."""
    json.loads((sweep.parent / "plan" / "plan.json").read_text(), parse_constant=lambda c: pytest.fail(c))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"flops": 1e308}, "flops must be above 0 and below 1e\\+60, not 1e\\+308"),
        ({"domain_tokens": 1e300}, "domain_tokens must be above 0 and below"),
    ],
)
def test_numbers_that_no_plan_can_hold_are_refused(given: dict[str, Any], said: str) -> None:
    """A negative seed, and numbers whose products are infinite, ended in a traceback of numpy or of the JSON writer."""
    with pytest.raises(UserError, match=said):
        validate(PlanConfig(["runs.csv"], "plan", **given))


def test_columns_are_known_with_spaces_about_their_names(tmp_path: Path) -> None:
    """`params, tokens, nll` was refused as a table without nll; of a column that was there twice the last was read, unsaid."""
    path = tmp_path / "runs.csv"
    path.write_text("params, tokens, nll\n10, 20, 3\n")
    assert read_runs([str(path)], None).rows == {"runs:2": {"params": 10, "tokens": 20, "nll": 3, "flops": 1200}}
    path.write_text("params,tokens,nll,nll\n10,20,3,9\n")
    with pytest.raises(UserError, match="line 1: the column nll is there twice"):
        read_runs([str(path)], None)


def test_runs_that_are_flat_in_size_have_no_optimum(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = [
        (n, d, (2 + 300 * d**-0.4) * math.exp(0.01 * rng.standard_normal()))
        for n in (1e4, 1e5, 1e6)
        for d in (1e4, 1e5, 1e6, 1e7)
    ]
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,nll\n" + "".join(f"{n},{d},{y}\n" for n, d, y in rows))
    made = plan(
        PlanConfig([str(path)], str(tmp_path / "out"), flops=1e15, domain_tokens=1e5), read_runs([str(path)], None)
    )
    assert made["chosen"] is None
    assert {a["what"] for a in made["answers"]} == {"parameters and tokens", "nll at C, shared out as the runs were"}
    assert "change no more with params than they scatter" in made["answers"][0]["note"]


def test_a_run_that_is_there_twice_is_told(tmp_path: Path) -> None:
    """Counted as two, it halved the noise that the intervals see. Two runs that ended alike have names."""
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,nll\n1e3,1e4,5\n1e4,1e4,4\n1e3,1e4,5\n")
    with pytest.raises(UserError, match=r"line 4: the run of line 2 again, number for number"):
        read_runs([str(path)], None)
    path.write_text("name,params,tokens,nll\na,1e3,1e4,5\nb,1e3,1e4,5\n")
    assert len(read_runs([str(path)], None).rows) == 2
