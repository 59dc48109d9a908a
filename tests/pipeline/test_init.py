"""`init`: a folder in, a folder out that `train` begins with, and a manifest that says whose blocks these are."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny as models
import yaml
from experiment import ONE_STEP as TRAINING

from tokensieve.data.bos import expected
from tokensieve.modeling.folder import model_hash
from tokensieve.modeling.load import load_causal_lm
from tokensieve.pipeline import init, train
from tokensieve.pipeline.configs.init import InitConfig
from tokensieve.pipeline.configs.run import RecipeConfig
from tokensieve.pipeline.lineage import training_flops
from tokensieve.pipeline.recipe.cost import Known
from tokensieve.pipeline.recipe.load import load
from tokensieve.runs.errors import StaleFolder, UserError
from tokensieve.runs.manifest import check_files, read_manifest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_smaller_reference_is_made_trained_and_charged(tiny: Any, tmp_path: Path) -> None:
    config = InitConfig(str(tmp_path / "small"), str(tiny.base), 1)
    out = init.run(config)
    manifest = read_manifest(out, "start")
    check_files(out, manifest)
    assert manifest["source_hash"] == manifest["inputs"]["model"] == model_hash(tiny.base)
    assert (manifest["source_blocks"], manifest["kept_blocks"]) == (2, [0])
    assert manifest["num_parameters"] == sum(p.numel() for p in load_causal_lm(out).parameters())
    tokenizer = "model/tokenizer.json"
    assert (out / tokenizer).read_bytes() == (tiny.base / tokenizer).read_bytes()
    assert expected(out) == expected(tiny.base)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert init.run(config) == out
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(StaleFolder, match=r"is done, but from other inputs \(layers 1 -> 2\)"):
        init.run(InitConfig(str(out), str(tiny.base), 2))

    base = read_manifest(tiny.base)["summary"]["flops_student"]
    assert training_flops(str(out)) == training_flops(str(out / "model")) == base
    run = train.run(train.TrainConfig(str(tmp_path / "reference"), str(tiny.corpus), str(out), training=TRAINING))
    assert read_manifest(run)["inputs"]["model"] == model_hash(out)
    assert 0 < training_flops(str(run)) < base  # type: ignore[operator]


def test_all_blocks_are_the_same_model(tiny: Any, tmp_path: Path) -> None:
    """So a recipe may have the number as a setting: at the student's own, nothing after it is other work."""
    out = init.run(InitConfig(str(tmp_path / "same"), str(tiny.base), 2))
    assert model_hash(out) == model_hash(tiny.base)


def test_what_is_refused_leaves_no_mark(tmp_path: Path) -> None:
    models.llama().save_pretrained(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="layers must be at least 1, not 0"):
        init.run(InitConfig(str(out), str(tmp_path / "whole"), 0))
    with pytest.raises(UserError, match="layers: the model has 2 blocks, so 3 cannot be kept"):
        init.run(InitConfig(str(out), str(tmp_path / "whole"), 3))
    assert list(out.iterdir()) == []
    assert init.run(InitConfig(str(out), str(tmp_path / "whole"), 1)) == out
    assert {p.name for p in out.iterdir()} == {"manifest.json", "model"}
    assert "bos_id" not in read_manifest(out)


def test_on_the_command_line(tiny: Any, tmp_path: Path, tokensieve: Any) -> None:
    done = tokensieve("init", "--out", tmp_path / "small", "--model", tiny.base, "--layers", 1)
    assert (done.code, done.out) == (0, f"{tmp_path / 'small'}\n"), done.err
    assert f"{tmp_path / 'small'}: start, whole" in tokensieve("check", tmp_path / "small").out
    done = tokensieve("init", "--out", tmp_path / "none", "--model", tiny.corpus, "--layers", 1)
    assert done.code == 2
    assert "corpus is not a model folder: it has no config.json" in done.error
    assert "layers" in tokensieve("init", "--out", tmp_path / "none", "--model", tiny.base).error


def test_references_of_every_size_are_a_recipe(tmp_path: Path) -> None:
    """The benchmark's, made out of math-tiny: it must not fall behind the recipe's stages or the verbs' fields."""
    spec = importlib.util.spec_from_file_location("references", BENCHMARKS / "references.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec.loader.exec_module(references := importlib.util.module_from_spec(spec))
    (tmp_path / "references.yaml").write_text(
        yaml.safe_dump(references.shortened(10, 0), sort_keys=False), encoding="utf-8"
    )
    recipe = load(RecipeConfig(str(tmp_path / "references.yaml"), set={"data": str(tmp_path)}))
    begun = {s.name: Path(s.fields["model"]).name for s in recipe.stages if s.name.startswith("reference_")}
    assert begun == {f"reference_{n}": f"start_{n}" for n in (4, 2, 1)} | {"reference_again": "start_4"}


def test_a_plan_knows_the_shapes_that_will_be_left(tiny: Any, tmp_path: Path) -> None:
    """What stands for the folder before it is there: a stage that trains it is estimated as what it will be."""
    known, config = Known(), InitConfig(str(tmp_path / "small"), str(tiny.base), 1)
    known.add(tmp_path / "small", config, False)
    known.costs[tmp_path / "small"] = init.estimate(config, known)
    begun = train.TrainConfig(str(tmp_path / "reference"), str(tiny.corpus), str(tmp_path / "small"), training=TRAINING)
    before = train.estimate(begun, known)
    init.run(config)
    after = train.estimate(begun, Known())
    assert (
        before.flops
        == after.flops
        < train.estimate(
            train.TrainConfig(str(tmp_path / "r"), str(tiny.corpus), str(tiny.base), training=TRAINING), Known()
        ).flops
    )  # type: ignore[operator]
    assert math.isnan(init.estimate(InitConfig("a", "nowhere", 1), Known()).disk)  # type: ignore[arg-type]
    assert json.dumps(read_manifest(tmp_path / "small")["kept_blocks"]) == "[0]"
