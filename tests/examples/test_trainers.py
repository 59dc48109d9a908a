"""The examples for other people's trainers: each runs as it stands, and its numbers are those of SelectiveTrainer.

The Accelerate loop on two ranks with FSDP2, and TRL on two, are in tests/equivalence/test_splits.py. Lightning and torchtitan
are in no extra: their tests are skipped where they are not installed.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import corpora
import datasets
import pytest
import tiny
import torch
import words

import tokensieve as ts
from tokensieve.data.rows import Rows, collate, next_token
from tokensieve.pipeline import score

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = {
    "rho1": ts.objective("rho1", ratio=0.4, scope="sequence"),
    "eaft": ts.objective("eaft"),
}


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    example(name)["main"]()


def test_trl_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.llama().save_pretrained(tmp_path / "model")
    words.tokenizer().save_pretrained(tmp_path / "model")
    texts = words.sentences(16, 4, 12)
    rows = [{"prompt": f"{t} ", "completion": t, "weight": 1 / (i + 1)} for i, t in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "out", "--use_cpu")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run_main("trl_sft", monkeypatch, *given, "--max_steps", 2, "--max_length", 32)
    assert (tmp_path / "out" / "model.safetensors").exists()
    lines = tiny.log_lines(tmp_path / "out")
    assert len(lines) == 2
    assert sum(line["valid"] for line in lines) == sum(
        len(t.split()) + 1 for t in texts
    )  # the answers, and their <eos>


def test_vlm_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From pictures and text, through a real processor, to a saved model whose every part has moved."""
    import numpy as np
    import transformers
    import vision
    from PIL import Image

    model, tokenizer = vision.llava(), words.tokenizer()
    model.save_pretrained(tmp_path / "model")
    image_token = tokenizer.convert_ids_to_tokens(vision.IMAGE)
    tokenizer.add_special_tokens({"additional_special_tokens": [image_token]})  # found wherever it stands
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(**sizes),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=image_token,
    ).save_pretrained(tmp_path / "model")
    texts, rng = words.sentences(8, 4, 9), np.random.default_rng(0)
    rows = []
    for i, text in enumerate(texts):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": f"user {image_token} w1 assistant ", "answer": text})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "out", "--use_cpu")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run_main("vlm_sft", monkeypatch, *given, "--rule", "cal", "--max_steps", 2, "--batch", 4)
    lines = tiny.log_lines(tmp_path / "out")
    assert sum(line["valid"] for line in lines) == sum(
        len(t.split()) + 1 for t in texts
    )  # the answers, and their <eos>
    before, after = (tiny.weights(type(model).from_pretrained(f)) for f in (tmp_path / "model", tmp_path / "out"))
    assert [n for n in before if torch.equal(before[n], after[n]) and "post_layernorm" not in n] == []


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A GRPO run of the example, and the masks that its steps trained on: (trainer, [(entropy, active, mask)])."""
    import trl

    seen = []
    made = example("grpo_entropy")["SelectiveGRPOTrainer"]

    class Watched(made):  # type: ignore[misc, valid-type]
        def get_high_entropy_mask(self, entropies: Any, mask: Any, threshold: float) -> Any:
            found = super().get_high_entropy_mask(entropies, mask, threshold)
            seen.append((entropies.detach().clone(), mask.clone(), found))
            return found

    args = trl.GRPOConfig(
        str(tmp_path_factory.mktemp("grpo")),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = datasets.Dataset.from_dict({"prompt": words.sentences(8, 3, 6)})
    trainer = Watched(
        tiny.llama(),
        reward_funcs=lambda completions, **_: [float(len(c) % 7) for c in completions],
        args=args,
        train_dataset=prompts,
        processing_class=words.tokenizer(),
        rule=ts.objective("entropy_top", ratio=0.2),
    )
    trainer.train()
    return trainer, seen


def test_grpo_trains_on_the_rules_tokens(grpo: Any) -> None:
    _, seen = grpo
    assert len(seen) == 2
    for _, active, mask in seen:
        assert int(mask.sum()) == ts.kept_count(int(active.sum()), 0.2)
        assert not bool((mask & (active == 0)).any())


def test_grpo_mask_is_trls(grpo: Any) -> None:
    """TRL's own mask by its quantile: the same tokens, but for one where the two counts differ."""
    import trl

    trainer, _ = grpo
    g = torch.Generator().manual_seed(0)
    same = 0
    for length in range(2, 30):
        entropy = torch.rand(3, length, generator=g)
        active = (torch.arange(length) < torch.tensor([[length], [length // 2], [1]])).long()
        theirs = trl.GRPOTrainer.get_high_entropy_mask(trainer, entropy, active, 0.8)
        ours = trainer.rule.weigh(ts.TokenStats(active.bool(), entropy=entropy)) != 0
        count = int(active.sum())
        assert abs(int(theirs.sum()) - (1 + int(0.2 * (count - 1) + 1e-6))) <= 0
        assert int((ours ^ theirs).sum()) == abs(int(theirs.sum()) - int(ours.sum())) <= 1
        same += bool((ours == theirs).all())
    assert same > 10


def test_grpo_refuses_what_it_does_not_know(grpo: Any) -> None:
    trainer, _ = grpo
    given = {
        "reward_funcs": lambda completions, **_: [0.0],
        "args": trainer.args,
        "train_dataset": trainer.train_dataset,
    }
    with pytest.raises(ts.UserError, match="'rho1' needs 'nll'"):
        type(trainer)(tiny.llama(), **given, processing_class=words.tokenizer(), rule=ts.objective("rho1"))


def test_accelerate_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a corpus and its scores to a saved model, by its command line."""
    corpus = corpora.corpus(tmp_path / "corpus", corpora.write_text(tmp_path / "text", 3))
    model = corpora.model_folder(tmp_path / "model")
    score.run(score.ScoreConfig(str(tmp_path / "scores"), str(corpus), str(model), device="cpu"))
    given = ("--model", model, "--corpus", corpus, "--scores", tmp_path / "scores", "--out", tmp_path / "out")
    run_main("accelerate_loop", monkeypatch, *given, "--batch", 2, "--accumulate", 2)
    before, after = (tiny.weights(type(tiny.llama()).from_pretrained(f)) for f in (model, tmp_path / "out"))
    assert any(not torch.equal(before[n], after[n]) for n in before)


needs_lightning = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs lightning")


@needs_lightning
@pytest.mark.parametrize("name", RULES)
def test_lightning(tmp_path: Path, name: str) -> None:
    """Two steps of two micro-batches, clipped: a mean of means, or clipping before the division, comes out otherwise."""
    import lightning
    from torch.utils.data import DataLoader

    class WithSGD(example("lightning_module")["SelectiveModule"]):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    model, rule = tiny.llama(dtype=torch.float64), RULES[name]
    loader = DataLoader(Rows(tiny.rows(8), scores=["ref_nll"]), batch_size=2, collate_fn=collate)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = WithSGD(model, rule, lr=0.1)
    trainer.fit(module, loader)
    module.seam.close()
    wanted = tiny.llama(dtype=torch.float64)
    start = tiny.weights(wanted)
    args = tiny.arguments(tmp_path, 2, 2, max_steps=2, learning_rate=0.1, max_grad_norm=0.5)
    tiny.train(wanted, args, tiny.rows(8), rule)
    moved = [{n: start[n] - w for n, w in tiny.weights(m).items()} for m in (model, wanted)]
    assert tiny.gap(*moved) < 1e-6  # clipping divides by a norm that is float32 or not


# --- axolotl ----------------------------------------------------------------------------------------------------------------


def test_axolotl_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called as axolotl's builder calls it: its step is SelectiveTrainer's, its collators are not asked, and settings that
    its own trainer serves are refused. Not with axolotl itself, whose builder imports triton."""
    base = types.ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]  no method is inherited
    for name, module in (("axolotl", base), ("axolotl.integrations", base), ("axolotl.integrations.base", base)):
        monkeypatch.setitem(sys.modules, name, module)
    plugin = example("axolotl_plugin")["TokensievePlugin"]()
    cfg = types.SimpleNamespace(tokensieve={"name": "rho1", "ratio": 0.4})
    kind, model = plugin.get_trainer_cls(cfg), tiny.llama(dtype=torch.float64)
    of_builder = {"data_collator": len, "eval_data_collator": len, "bench_data_collator": len, "dataset_tags": []}
    start, args = tiny.weights(model), tiny.arguments(tmp_path / "ours", 4, 2)
    kind(model=model, args=args, train_dataset=tiny.rows(8), eval_dataset=None, callbacks=[], **of_builder).train()
    wanted = tiny.step_gradients(tmp_path, tiny.rows(8), ts.objective("rho1", ratio=0.4), 4, 2)
    assert tiny.gap({n: start[n] - w for n, w in tiny.weights(model).items()}, wanted) < 1e-9
    assert plugin.get_training_args(cfg) == {"average_tokens_across_devices": True}

    with pytest.raises(ts.UserError, match=r"^sample_packing: not served beside tokensieve's trainer"):
        plugin.get_trainer_cls(types.SimpleNamespace(**vars(cfg), sample_packing=True))
    assert plugin.get_trainer_cls(types.SimpleNamespace(tokensieve=None)) is None


# --- torchtitan -------------------------------------------------------------------------------------------------------------

THERE = all(importlib.util.find_spec(name) for name in ("torchtitan", "triton"))  # it imports the other, on a CPU too
needs_torchtitan = pytest.mark.skipif(not THERE, reason="needs torchtitan")


@pytest.mark.parametrize("name", ["rho1", "entropy_top"])
def test_torchtitan_loss(tmp_path: Path, name: str) -> None:
    """Two micro-batches of one step, divided by the step's valid tokens."""
    rule = ts.objective(name, ratio=0.4, scope="sequence", denominator="valid")
    loss_of, model = example("torchtitan_loss")["selective_loss"], tiny.llama(dtype=torch.float64)
    rows = Rows(tiny.rows(8), scores=["ref_nll"])
    batches = [collate(rows.__getitems__(range(i, i + 4))) for i in (0, 4)]
    valid = sum(int((b["targets"] != ts.IGNORE_INDEX).sum()) for b in batches)
    for batch in batches:
        columns = {"ref_nll": next_token(batch["ref_nll"])}
        (loss_of(rule, model(input_ids=batch["input_ids"]).logits, batch["targets"], columns) / valid).backward()
    wanted = tiny.step_gradients(tmp_path, tiny.rows(8), rule, 4, 2)
    assert tiny.gap({n: p.grad for n, p in model.named_parameters()}, wanted) < 1e-9
    with pytest.raises(ts.UserError, match="rule 'token_cleaning' needs 'base_nll', which is not in the batch"):
        loss_of(ts.objective("token_cleaning"), torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), {})


@needs_torchtitan
def test_torchtitan_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from their configs: two ranks read each row once, a loader goes on where it was, and the loss is the function's."""
    monkeypatch.syspath_prepend(EXAMPLES)
    made = example("torchtitan_component")
    corpus = corpora.corpus(tmp_path / "corpus", corpora.write_text(tmp_path / "text", 4))
    config = made["CorpusDataLoader"].Config(corpus=str(corpus))

    def loader(rank: int) -> Any:
        given = {
            "tokenizer": None,
            "seq_len": corpora.LENGTH,
            "local_batch_size": 2,
            "dp_world_size": 2,
            "dp_rank": rank,
        }
        return config.build(**given)

    count = len(loader(0).order) // 4
    first, second = ([next(it) for _ in range(count)] for it in (iter(loader(0)), iter(loader(1))))
    read = [pair for inputs, labels in first + second for pair in zip(inputs["input"], labels, strict=True)]
    seen = [tuple(ids.tolist()) for ids, labels in read if bool((labels != ts.IGNORE_INDEX).any())]
    assert sorted(seen) == sorted(tuple(r.tolist()) for r in ts.load_scored(corpus).with_format("numpy")["input_ids"])
    again = loader(0)
    again.load_state_dict({"done": 1})
    assert torch.equal(next(iter(again))[0]["input"], first[1][0]["input"])

    loss = made["SelectiveLoss"].Config(rule="high_loss", options={"ratio": 0.5}).build(compile_config=None)
    logits, labels = torch.randn(2, 8, 11, generator=torch.Generator().manual_seed(0)), torch.randint(0, 11, (2, 8))
    found, metrics = loss(logits, labels, torch.tensor(16), positions=None)
    rule = ts.objective("high_loss", ratio=0.5, denominator="valid")
    assert float(found) == pytest.approx(float(made["selective_loss"](rule, logits, labels, {})) / 16)
    assert metrics == {}
    assert made["SelectiveTrainer"].Config._owner is made["SelectiveTrainer"]
    with pytest.raises(ts.UserError, match="divides by valid tokens"):
        made["SelectiveLoss"].Config(rule="rho1", options={"denominator": "weight"}).build(compile_config=None)
