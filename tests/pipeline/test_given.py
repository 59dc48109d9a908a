"""Every form in which the fields of a verb can be given on a command line and in its files, and what wins over what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokensieve import cli
from tokensieve.pipeline.config.fields import WrongFields
from tokensieve.pipeline.config.yaml_text import read_yaml, written

TRAIN = ("train", "--out", "x", "--corpus", "c", "--model", "m")
PREPARE = ("prepare", "--out", "x")


def config(verb: str, *words: str) -> Any:
    return cli.given(verb, words).config()


def error(verb: str, *words: str) -> str:
    with pytest.raises(WrongFields) as caught:
        config(verb, *words)
    return str(caught.value)


# words -> (field of train, its value)
FORMS: dict[tuple[str, ...], tuple[str, Any]] = {
    ("--seed", "3"): ("seed", 3),
    ("--seed=3"): ("seed", 3),
    ("--seed", "-1"): ("seed", -1),
    ("--seed", "0x10"): ("seed", 16),
    ("--seed", "1_000"): ("seed", 1000),
    ("--out", "3"): ("out", "3"),
    ("--out", "-x"): ("out", "-x"),
    ("--out", "[1]"): ("out", "[1]"),
    ("--out=a=b"): ("out", "a=b"),
    ("--model", "null"): ("model", "null"),
    ("--model", "3"): ("model", "3"),
    ("--model", "{model_type: llama, hidden_size: 8}"): ("model", {"model_type": "llama", "hidden_size": 8}),
    ("--model.model_type", "llama", "--model.hidden_size=8"): ("model", {"model_type": "llama", "hidden_size": 8}),
    ("--model.rope.theta", "1e4", "--model.rope.kind", "x"): ("model", {"rope": {"theta": 1e4, "kind": "x"}}),
    ("--model.ids", "[1, 2]"): ("model", {"ids": [1, 2]}),
    ("--scores", "a"): ("scores", ["a"]),
    ("--scores", "a", "3"): ("scores", ["a", "3"]),
    ("--scores", "[a, b]"): ("scores", ["a", "b"]),
    ("--scores", "a", "--scores", "b"): ("scores", ["b"]),
    ("--scores", "a", "--scores+", "b", "--scores+", "[c, d]"): ("scores", ["a", "b", "c", "d"]),
    ("--scores", "a", "b", "--scores.1", "c"): ("scores", ["a", "c"]),
    ("--eval_sets.v1.5", "3"): ("eval_sets", {"v1.5": "3"}),
    ("--eval_sets", "{a: b}", "--eval_sets.c", "d"): ("eval_sets", {"a": "b", "c": "d"}),
    ("--objective.ratio", ".5"): ("objective", {"name": "clm", "ratio": 0.5}),
    ("--objective", "{name: rho1}"): ("objective", {"name": "rho1"}),
    ("--training.learning_rate", "3e-4"): ("training", {"learning_rate": 3e-4}),
    ("--training.learning_rate", "-1e-3"): ("training", {"learning_rate": -1e-3}),
    ("--training.x", '"3"'): ("training", {"x": "3"}),
    ("--training.x", "[not closed"): ("training", {"x": "[not closed"}),
    ("--training", "{a: 1}", "--training.b", "2"): ("training", {"a": 1, "b": 2}),
    ("--training.b", "2", "--training", "{a: 1}"): ("training", {"a": 1}),
    ("--training.x", "!!python/name:os.system"): ("training", {"x": "!!python/name:os.system"}),
    ("--lora", "null"): ("lora", None),
    ("--lora.r", "2", "--lora.bias", "all"): ("lora", {"r": 2, "bias": "all"}),
    ("--resume", "never"): ("resume", "never"),
    ("--dry-step", "never"): ("dry_step", "never"),
    ("--allow-code"): ("allow_code", True),
    ("--allow_code", "yes"): ("allow_code", True),
    ("--no-allow-code"): ("allow_code", False),
}  # fmt: skip


@pytest.mark.parametrize("words", FORMS)
def test_forms(words: tuple[str, ...] | str) -> None:
    name, value = FORMS[words]  # type: ignore[index]
    found = getattr(config(*TRAIN, *([words] if isinstance(words, str) else words)), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("words", "paths", "names"),
    [
        (["--sources", "[{path: a}, {path: b, name: n}]"], ["a", "b"], [None, "n"]),
        (["--sources.path", "a", "--sources.name", "n"], ["a"], ["n"]),
        (["--sources", "[{path: a}, {path: b}]", "--sources.name", "n"], ["a", "b"], [None, "n"]),
        (["--sources", "[{path: a}, {path: b}]", "--sources.0.name", "n"], ["a", "b"], ["n", None]),
        (["--sources.0.path", "a", "--sources.1.path", "3"], ["a", "3"], [None, None]),
        (["--sources+", "{path: a}", "--sources+", "[{path: b}, {path: c}]"], ["a", "b", "c"], [None] * 3),
    ],
)
def test_forms_for_a_list_of_configs(words: list[str], paths: list[str], names: list[str | None]) -> None:
    sources = config(*PREPARE, *words).sources
    assert ([s.path for s in sources], [s.name for s in sources]) == (paths, names)


def test_a_list_stays_what_the_default_was() -> None:
    """``--columns+ x`` appended to the default itself would give the next config of this process two."""
    words = ("--out", "x", "--model", "m", "--corpus", "c")
    assert config("score", *words, "--columns+", "ref_entropy").columns == ["ref_nll", "ref_entropy"]
    assert config("score", *words).columns == ["ref_nll"]


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(
        "out: a\ncorpus: c\nmodel: m\nseed: 1\ntraining: {max_steps: 4, learning_rate: 3e-4}\n"
    )
    (tmp_path / "b.yaml").write_text("out: b\ntraining: {warmup_steps: 2}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "out", "seed", "training"),
    [
        ("--config a", "a", 1, {"max_steps": 4, "learning_rate": 3e-4}),
        ("--config=a --seed 2 --training.max_steps 5", "a", 2, {"max_steps": 5, "learning_rate": 3e-4}),
        (
            "--seed 2 --token_log_rows 3 --training.max_steps 5 --config a",
            "a",
            1,
            {"max_steps": 4, "learning_rate": 3e-4},
        ),
        ("--config a --config b", "b", 1, {"warmup_steps": 2}),
        ("--config b --config a", "a", 1, {"max_steps": 4, "learning_rate": 3e-4}),
        ("--config a --out x --config b --training {}", "b", 1, {}),
    ],
)
def test_later_wins_field_by_field(words: str, out: str, seed: int, training: Any, files: Path) -> None:
    at = {"a": str(files / "a.yaml"), "b": str(files / "b.yaml"), "--config=a": f"--config={files}/a.yaml"}
    found = config("train", *(at.get(w, w) for w in words.split()))
    assert (found.out, found.seed, found.training) == (out, seed, training)
    assert found.token_log_rows == (3 if "token_log_rows" in words else 8)


@pytest.mark.parametrize("value", ["true", "yes", "null", "0", "[false]"])
def test_a_file_allows_no_code(value: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"seed: 1\nallow_code: {value}\n")
    says = error(*TRAIN, "--config", str(tmp_path / "x.yaml"), "--seed", "y")
    assert f"{tmp_path}/x.yaml line 2: allow_code: a file cannot allow this to itself" in says
    assert "; seed: a whole number is needed, not y" in says


def test_a_file_may_forbid_code(tmp_path: Path) -> None:
    """Its false, given later, was passed over: the command line's true before it stayed."""
    (tmp_path / "x.yaml").write_text("allow_code: false")
    assert config(*TRAIN, "--allow-code", "--config", str(tmp_path / "x.yaml")).allow_code is False


def test_print_config_can_be_fed_back(tokensieve: Any, tmp_path: Path) -> None:
    """Its ``allow_code: false`` was refused, as if a file had allowed itself something; names like 1e5 came back as numbers."""
    words = ["--out", "1e5", "--sources", "[{path: x, name: '0123', split: [0, 0.5], weight: 3e-4}]", "--max_rows", "3"]
    for verb, given in (("prepare", words), ("train", [*TRAIN[1:], "--lora.r", "2", "--out", "1e5"])):
        printed = tokensieve(verb, *given, "--print_config")
        assert printed.code == 0
        (tmp_path / "again.yaml").write_text(printed.out)
        again = cli.given(verb, ["--config", str(tmp_path / "again.yaml")])
        assert again.config() == config(verb, *given)
        assert again.printed() + "\n" == printed.out


def test_print_config_says_what_is_wrong_but_not_what_is_missing(tokensieve: Any) -> None:
    done = tokensieve("train", "--print_config")
    assert (done.code, yaml.safe_load(done.out)["corpus"], yaml.safe_load(done.out)["objective"]) == (
        0,
        None,
        {"name": "clm"},
    )
    done = tokensieve("train", "--print_config", "--seed", "x")
    assert (done.code, done.out, done.error) == (
        *(2, ""),
        "tokensieve train: error: seed: a whole number is needed, not x",
    )


@pytest.mark.parametrize(
    "value", ["1e5", "0123", "12:30", "2024-01-01", "null", "", "é", 3e-4, 1e-8, float("inf"), [None, True]]
)
def test_what_is_written_is_read_back(value: Any, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(written({"x": value}))
    assert read_yaml(tmp_path / "x.yaml") == {"x": value}


def test_no_number_is_read_as_another(tmp_path: Path) -> None:
    """YAML 1.1 reads 0123 as 83 and 12:30 as 750."""
    (tmp_path / "x.yaml").write_text("[a, 0123, 12:30, -0, +5, 0b11]".join(("x: ", "")))
    assert read_yaml(tmp_path / "x.yaml")["x"] == ["a", "0123", "12:30", 0, 5, 3]
    assert error(*TRAIN, "--seed", "010") == "seed: a whole number is needed, not 010"


# --- what is wrong -------------------------------------------------------------------------------------------------------


def test_all_at_once_each_with_its_place() -> None:
    """The first error only, one at a time, and without the item of the list that it stood in."""
    typed = "stray --seed y --sed 1 --workers -z --unit_bites"
    words = ("--sources", "[{path: x, split: [0, x]}, {pth: y}]", *typed.split())
    assert error("prepare", *words) == (
        "'stray' stands behind no --field; unknown field 'unit_bites', did you mean 'unit_bytes'?; "
        "sources.0.split.1: a number is needed, not x; "
        "sources.1: unknown field 'pth', did you mean 'path'?; sources.1: missing: path; "
        "seed: a whole number is needed, not y; unknown field 'sed', did you mean 'seed'?; "
        "workers: a whole number is needed, not -z; missing: out"
    )


def test_a_file_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("out: x\nlenght: 3\nsources:\n  - path: a\n  - path: b\n    split: [0, x]\nseed: y\nlength: z\n")
    assert error("prepare", "--config", str(path), "--length", "w") == (
        f"{path} line 2: unknown field 'lenght', did you mean 'length'?; {path} line 6: sources.1.split.1: a number is needed, "
        f"not x; {path} line 7: seed: a whole number is needed, not y; length: a whole number is needed, not w"
    )


def test_what_a_verb_finds_later_is_named_with_the_line_too(tokensieve: Any, tmp_path: Path) -> None:
    """training, objective, head and lora are checked by the verb: each told its first error, and none the file."""
    path = tmp_path / "t.yaml"
    path.write_text(
        "out: x\ncorpus: c\nmodel: m\nobjective: {name: random, ratoi: 1}\n"
        "training:\n  learning_rate: fast\n  max_step: 3\nhead: {keep_logits: 3}\n"
    )
    done = tokensieve("train", "--config", path, "--training.weight_decay", "x", "--lora.r", "y")
    assert done.code == 2
    assert done.error == (
        f"tokensieve train: error: {path} line 4: objective: unknown field 'ratoi', did you mean 'ratio'?; "
        f"{path} line 6: training.learning_rate: a number is needed, not fast; "
        f"{path} line 7: training: unknown field 'max_step', did you mean 'max_steps'?; "
        "training.weight_decay: a number is needed, not x; "
        f"{path} line 8: head.keep_logits: auto or true or false is needed, not 3; lora.r: a whole number is needed, not y"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--objective", "{ratio: 1, ratio: 2}"], "{ratio: 1, ratio: 2} line 1: 'ratio' is given twice"),
        (["--model", "[" * 3000], "is nested too deep"),
        (["--mod", "x"], "unknown field 'mod', did you mean 'model'?"),
        (["-s", "3"], "unknown field 's'"),
        (["--seed"], "seed: a value is missing"),
        (["--seed", "--out", "y"], "seed: a value is missing"),
        (["--out", ""], "out: a value is missing"),
        (["--scores", "a", ""], "scores.1: a value is missing"),
        (["--eval_sets.a="], "eval_sets.a: a value is missing"),
        (["--seed", "1", "2"], "'2' stands behind no --field"),
        (["--seed.x", "1"], "seed: a whole number is needed, not {'x': 1}"),
        (["--config"], "config: a value is missing"),
    ],
)
def test_bad_words(words: list[str], says: str, tokensieve: Any) -> None:
    done = tokensieve(*TRAIN, *words)
    assert (done.code, done.out) == (2, "")
    assert says in done.error
