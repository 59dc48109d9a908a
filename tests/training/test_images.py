"""Token rules on the text of vision-language models: images reach the model, placeholders are no targets, ablated nll weighs.

Truth is the model's own: its forward over a batch as a processor gives it, logits in float64, weights by loops.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import vision
from datasets import Dataset

import tokensieve as ts
from tokensieve.modeling.load import load_causal_lm
from tokensieve.training.self_test import run_self_test

ROWS = vision.rows(4)
UNUSED = "post_layernorm"  # of CLIP's tower: behind the layer whose features LLaVA takes


def processed(rows: list[dict[str, Any]], *, blank: bool = False) -> dict[str, torch.Tensor]:
    """What a processor gives for these rows together: tokens padded on the right, images one after the other."""
    width = max(len(r["input_ids"]) for r in rows)
    made: dict[str, torch.Tensor] = {}
    for name in {"input_ids", "mm_token_type_ids"} & {*rows[0]}:
        made[name] = torch.tensor([r[name] + [0] * (width - len(r[name])) for r in rows])
    made["attention_mask"] = torch.tensor([[int(t < len(r["input_ids"])) for t in range(width)] for r in rows])
    for name in {"pixel_values", "image_grid_thw"} & {*rows[0]}:
        if there := [torch.tensor(r[name]) for r in rows if r[name]]:
            made[name] = torch.cat(there) * (0 if blank and name == "pixel_values" else 1)
    return made


def own_nll(model: Any, rows: list[dict[str, Any]], **options: Any) -> torch.Tensor:
    """-log p of ``input_ids[t]`` at t by the model's own logits, 0 at the first. [B, T], differentiable."""
    batch = processed(rows, **options)
    logp = model(**batch).logits.double()[:, :-1].log_softmax(-1)
    picked = logp.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(-picked, (1, 0))


def places(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(row, position) of every text token behind the first."""
    return [(b, t) for b, r in enumerate(rows) for t, i in enumerate(r["input_ids"]) if t and i != vision.IMAGE]


def moved(
    folder: Path, model: Any, rows: Dataset, rule: Any, batch: int, accumulate: int = 1
) -> dict[str, torch.Tensor]:
    return tiny.step_gradients(folder, rows, rule, batch, accumulate, model=model)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_full_keep_is_the_models_own_loss(tmp_path: Path, kind: str) -> None:
    """Of four rows in two micro-batches, one of them without an image; and tower and projector have a gradient.

    Qwen's positions follow from its grid and the kinds of its tokens: left out, both losses would move, and only they.
    """
    model = vision.llava(dtype=torch.float64) if kind == "llava" else vision.qwen()
    data = vision.rows(4, kind=kind)
    batch = processed(list(data))
    labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == vision.IMAGE), -100)
    own = model(**batch, labels=labels).loss
    wanted = gradients(model, own)
    found = moved(tmp_path, model, data, ts.objective("clm"), 2, 2)
    exact = kind == "llava"
    assert tiny.gap(found, wanted) < (1e-6 if exact else 2e-4)  # transformers takes logits to its loss as float32
    [line] = tiny.log_lines(tmp_path)
    assert line["nll"] == pytest.approx(own.item(), rel=1e-6 if exact else 1e-5)
    assert line["valid"] == int((labels[:, 1:] != -100).sum()) == len(places(list(data)))
    still = [n for n, g in found.items() if not g.any() and UNUSED not in n]
    assert not still, still


@pytest.mark.parametrize("image", ["blank", "none"])
def test_ablated_nll(image: str) -> None:
    """Row by row: pixels of 0, or the text alone. Not a number where there is no target."""
    model, rows = vision.llava(dtype=torch.float64).eval(), list(ROWS)
    found = ts.ablated_nll(model, ROWS, image)
    for row, values in zip(rows, found, strict=True):
        text = [t for t, i in enumerate(row["input_ids"]) if i != vision.IMAGE]
        if image == "blank":
            nll = own_nll(model, [row], blank=True)[0].detach()
        else:
            alone = {"input_ids": [row["input_ids"][t] for t in text], "pixel_values": None}
            nll = torch.zeros(len(row["input_ids"]), dtype=torch.float64)
            nll[text] = own_nll(model, [alone])[0].detach()
        wanted = [float(nll[t]) if t and t in text else math.nan for t in range(len(row["input_ids"]))]
        assert values.tolist() == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    assert not any(module.training for module in model.modules())
    assert ts.ablated_nll(tiny.llama(), ROWS, "none", image_token_id=vision.IMAGE)[0].shape == (
        18,
    )  # of a model of text


@pytest.mark.parametrize("name", ["cal", "prior"])
def test_a_rule_on_the_ablated_nll(tmp_path: Path, name: str) -> None:
    """A step's gradients by loops in float64: CAL's clamped difference, averaged over neighbours, and PRIOR's 1 - p."""
    model = vision.llava(dtype=torch.float64)
    data = ROWS.add_column("ablated_nll", ts.ablated_nll(model, ROWS))
    rows, rule = list(data), ts.objective(name, **({"reference": "ablated_nll"} if name == "prior" else {}))
    model.train()
    nll, there = own_nll(model, rows), places(rows)
    if name == "cal":
        clamped = {(b, t): min(5.0, max(1.0, rows[b]["ablated_nll"][t] - nll[b, t].item())) for b, t in there}
        near = {p: [clamped[p[0], t] for t in (p[1] - 1, p[1], p[1] + 1) if (p[0], t) in clamped] for p in there}
        weight = {p: sum(values) / len(values) for p, values in near.items()}
        denominator = sum(weight.values())
        assert len(set(clamped.values())) > 3  # the difference says something, between its bounds
    else:
        surprise = {(b, t): 1 - math.exp(-rows[b]["ablated_nll"][t]) for b, t in there}
        mean = sum(surprise.values()) / len(there)
        weight = {p: value / mean for p, value in surprise.items()}
        denominator = len(there)
    wanted = gradients(model, sum(weight[p] * nll[p] for p in there) / denominator)
    found = moved(tmp_path, model, data, rule, 4)
    # The column, the statistics that a rule sees and its weights are float32.
    assert tiny.gap(found, wanted) < 1e-5


def test_images_made_on_the_fly(tmp_path: Path) -> None:
    """A transform that makes the pixels when a row is read is the same training."""
    stored = ROWS.remove_columns("pixel_values").add_column("path", [str(i) for i in range(len(ROWS))])
    pixels = dict(zip(stored["path"], ROWS["pixel_values"], strict=True))
    live = stored.with_transform(lambda rows: {**rows, "pixel_values": [pixels[p] for p in rows["path"]]})
    found = [moved(tmp_path, vision.llava(dtype=torch.float64), data, None, 2, 2) for data in (ROWS, live)]
    assert tiny.gap(*found) == 0


def test_the_self_test_and_evaluation_hold(tmp_path: Path) -> None:
    model = vision.llava(dtype=torch.float64)
    args = tiny.arguments(tmp_path, 2, 2)
    trainer = ts.SelectiveTrainer(
        model, args, train_dataset=ROWS, eval_dataset=ROWS, objective=ts.objective("high_loss")
    )
    assert "two micro-batches are one" in run_self_test(trainer)
    told = trainer.evaluate()["eval_nll"]
    nll = own_nll(model.eval(), list(ROWS)).detach()
    assert told == pytest.approx(sum(float(nll[p]) for p in places(list(ROWS))) / len(places(list(ROWS))), rel=1e-6)


def test_labels_at_placeholders_are_no_targets(tmp_path: Path) -> None:
    """A collator that forgot to mask them would train the head to say placeholders: labels of one's own are cut as well."""
    data = ROWS.add_column("labels", ROWS["input_ids"])
    found = [moved(tmp_path, vision.llava(dtype=torch.float64), rows, None, 4) for rows in (ROWS, data)]
    assert tiny.gap(*found) == 0


def test_images_that_reach_other_rows_are_refused(tmp_path: Path) -> None:
    """The proof sees a tower that mixes the images of a batch, as one with batch statistics would."""
    model = vision.llava()

    def mixed(module: Any, args: Any, output: Any) -> Any:
        return output + 30 * output.mean(0, keepdim=True)

    model.model.multi_modal_projector.register_forward_hook(mixed)
    with pytest.raises(ts.UserError, match="another nll beside others than alone"):
        tiny.train(model, tiny.arguments(tmp_path, 4), ROWS, None)


def changed(index: int = 1, **columns: Any) -> Dataset:
    """ROWS with some values of one row put in."""
    rows = list(ROWS)
    rows[index] = {**rows[index], **columns}
    return Dataset.from_list(rows)


IDS = ROWS["input_ids"]
BAD: dict[str, tuple[str, Any, str]] = {
    "cut": (
        "llava",
        lambda: changed(input_ids=IDS[1][:9]),
        "row 1 has 7 placeholders for 2 image.* cut inside an image",
    ),
    "no pixels": (
        "llava",
        lambda: ROWS.remove_columns("pixel_values"),
        "row 0 has 4 placeholders of images and no pixel_values",
    ),
    "no placeholder": ("llava", lambda: changed(input_ids=[1, 2, 3]), "row 1 has pixel_values and no placeholder"),
    "another model's": (
        "llava",
        lambda: vision.rows(4, kind="qwen"),
        "'image_grid_thw': LlavaForConditionalGeneration does not take it",
    ),
    "no kinds of tokens": (
        "qwen",
        lambda: vision.rows(4, kind="qwen").remove_columns("mm_token_type_ids"),
        "no 'mm_token_type_ids', which Qwen2_5_VLForConditionalGeneration takes",
    ),
    "packed": (
        "llava",
        lambda: ROWS.add_column("seq_lengths", [[9, len(i) - 9] for i in IDS]),
        "rows with images hold one sample each",
    ),
    "not finite": (
        "llava",
        lambda: changed(0, pixel_values=[[[[math.nan] * 8] * 8] * 3]),
        "row 0: column 'pixel_values' has values that are not finite",
    ),
    "of other sizes": (
        "llava",
        lambda: changed(0, pixel_values=[[[[0.0] * 4] * 8] * 3]),
        r"pixel_values: images of \[3, 8, 4\] and \[3, 8, 8\] do not fit into one batch",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_sentence(tmp_path: Path, case: str) -> None:
    kind, rows, sentence = BAD[case]
    with pytest.raises(ts.UserError, match=sentence):
        tiny.train(getattr(vision, kind)(), tiny.arguments(tmp_path, 2), rows(), None)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_what_is_not_served(tmp_path: Path) -> None:
    args, model = tiny.arguments(tmp_path, 2), vision.llava()
    given = {"train_dataset": ROWS, "objective": None}
    with pytest.raises(ts.UserError, match="backward: sparse is not supported with images"):
        ts.SelectiveTrainer(model, args, **given, backward="sparse")
    distil = {"train_dataset": ROWS, "objective": ts.objective("distill", teacher=True)}
    with pytest.raises(ts.UserError, match="the teacher, LlamaForCausalLM, takes no images"):
        ts.SelectiveTrainer(model, args, **distil, teacher=tiny.llama())
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ts.UserError, match=r"is a vision-language model \(llava\): corpora and verbs are of text alone"
    ):
        load_causal_lm(tmp_path / "model")
    with pytest.raises(ts.UserError, match="LlamaForCausalLM takes no images"):
        ts.ablated_nll(tiny.llama(), ROWS)
    with pytest.raises(ts.UserError, match="no column 'pixel_values': there is no image to leave out"):
        ts.ablated_nll(model, Dataset.from_dict({"input_ids": [[1, 2, 3]]}))
    with pytest.raises(ts.UserError, match="'grey' is none of blank, none"):
        ts.ablated_nll(model, ROWS, "grey")  # type: ignore[arg-type]
    first = Dataset.from_dict({"input_ids": [[*[vision.IMAGE] * 4, 5, 6]], "pixel_values": [ROWS[0]["pixel_values"]]})
    with pytest.raises(ts.UserError, match=r"row 0 begins with an image: .* before the token at position 4"):
        ts.ablated_nll(model, first, "none")
