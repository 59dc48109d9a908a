"""The matrix of docs/families.md: a family of each kind here, all of them by `make families`, which writes the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES, MAMBA, NOT_CAUSAL, Family, build, class_of
from family_facts import DATA, FACTS, IDS, LABELS, PLAIN, own_loss, refusal, row

from tokensieve.core import objective
from tokensieve.modeling.probe import broken_property
from tokensieve.modeling.seam import HeadSeam
from tokensieve.runs.errors import UserError
from tokensieve.training.engines import refuse_deferred_router_loss

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
# What papers of selection and of the models that they train name, and what stands for the kind of each.
NAMED = {
    "Differential Transformer": "DiffLlamaForCausalLM",
    "RecurrentGemma, Griffin": "RecurrentGemmaForCausalLM",
    "GLM-4.5": "Glm4MoeForCausalLM",
    "MiniMax-01": "MiniMaxForCausalLM",
    "BitNet b1.58": "BitNetForCausalLM",
    "Qwen2.5": "Qwen2ForCausalLM",
    "Apertus": "ApertusForCausalLM",
}


def page_rows() -> dict[str, list[str]]:
    """Family -> the cells of its row on the page: class, kind and the facts."""
    text = PAGE.read_text("utf-8").partition("<!-- families:")[2].partition("<!-- end of families -->")[0]
    lines = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = lines
    assert head == ["family", "class", "kind", *FACTS]
    return {name: cells for name, *cells in rows}


def test_the_page_has_every_family() -> None:
    """By the class that it is made of, and with every fact; those that papers name work."""
    rows = page_rows()
    assert list(rows) == list(FAMILIES)
    assert len({class_of(family) for family in FAMILIES.values()}) >= 40
    for name, family in FAMILIES.items():
        assert rows[name][:2] == [f"`{class_of(family)}`", family.kind]
        assert len(rows[name]) == 2 + len(FACTS)
        assert not any("wrong" in cell for cell in rows[name])
    for name, kind in NAMED.items():
        assert rows[name][0] == f"`{kind}`"
        assert FAMILIES[name].suite


def test_every_kind_is_in_the_suite() -> None:
    kinds = {family.kind for family in FAMILIES.values()}
    assert {family.kind for family in FAMILIES.values() if family.suite} == kinds


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if family.suite else pytest.mark.slow) for n, family in FAMILIES.items()]
)
def test_it_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    """Full keep is the model's own loss, selection trains what it keeps, a resumed run is exact, and what is not served is
    refused: each fact is measured, and what comes out is what the page tells a user."""
    assert list(row(FAMILIES[name], tmp_path).values()) == page_rows()[name][2:]


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_what_is_not_causal_is_refused(name: str) -> None:
    text = PAGE.read_text("utf-8").partition("<!-- refused:")[2]
    assert f"| {name} | {refusal(name)} |" in text


def test_the_best_checkpoint_of_a_mixture_is_read_whole(tmp_path: Path) -> None:
    """Checkpoints hold experts one by one; the Trainer's reading leaves those of the last step where they are."""
    model = build(FAMILIES["Mixtral"])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    args = tiny.arguments(tmp_path, 4, learning_rate=0.05, **best, **every)
    trainer = tiny.train(model, args, DATA, objective("rho1"), eval_dataset=DATA)
    first = tmp_path / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(first)  # the highest loss: the first one's
    wanted = type(model).from_pretrained(first, dtype=torch.float64).state_dict()
    last = type(model).from_pretrained(tmp_path / "checkpoint-2", dtype=torch.float64).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, wanted[name]), name
        assert not torch.equal(weight, last[name]), name


def test_a_router_loss_set_in_a_text_config_is_seen() -> None:
    """Nine classes of transformers with images beside their text read the setting from there. A rule that divides gradients
    after the backward was let through, and divided the router loss by its number of tokens."""
    model = build(FAMILIES["Mixtral"])

    class Outer:
        output_router_logits = False

        def get_text_config(self) -> Any:
            return inner

    inner, model.config = model.config, Outer()
    with pytest.raises(UserError, match="which a router loss does not survive"):
        refuse_deferred_router_loss(objective("dft", denominator="weight"), model)
    refuse_deferred_router_loss(objective("rho1"), model)


@pytest.mark.parametrize("name", ["MiniCPM3", "HyperCLOVA X, scaled logits"])
def test_one_name_of_a_scale_means_three_things(name: str, tmp_path: Path) -> None:
    """Granite divides its logits by the config's ``logits_scaling``. MiniCPM3 divides what it gives its head, which was
    divided once more behind it; HyperCLOVA X multiplies. Both were refused as heads that do more than is known."""
    assert own_loss(FAMILIES[name], tmp_path) == "equal"


def test_a_loss_made_of_logits_is_refused() -> None:
    """Bamba's z-loss is a mean over logits. Of none it is NaN: so was every loss, and the run ended at its first step with a
    word about the data."""
    model = build(Family("bamba", "hybrid", {**MAMBA, "attn_layer_indices": [1]}))
    model.config.z_loss_coefficient = model.z_loss_coefficient = 1e-3
    with torch.no_grad():
        assert model(input_ids=IDS, labels=LABELS, use_cache=False).loss.isfinite()
    told = broken_property(HeadSeam(model), PLAIN, 4, model, torch.device("cpu"))
    assert told is not None
    assert "BambaForCausalLM adds to its loss what it makes of its logits" in told
