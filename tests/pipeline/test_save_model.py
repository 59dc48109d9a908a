"""model/ of a finished run is the model that was trained, or the run is not finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizers import byte_level

from tokensieve.data.corpus import open_corpus
from tokensieve.modeling.load import load_causal_lm, model_config, model_shapes, new_causal_lm
from tokensieve.pipeline import save_model, train
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import is_done

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
MIXTURE = {
    **LLAMA,
    "model_type": "mixtral",
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "tie_word_embeddings": False,
}
TRAINING = {"max_steps": 3, "learning_rate": 0.1, "per_device_train_batch_size": 4, "use_cpu": True, "save_strategy": "no",
            "disable_tqdm": True}  # fmt: skip


def config(tiny: Any, out: Path, model: Any, lora: dict[str, Any] | None, **fields: Any) -> train.TrainConfig:
    given = {"training": TRAINING, "lora": lora, **fields}
    return train.TrainConfig(str(out), str(tiny.corpus), model, **given)


def nll(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize(
    ("model", "lora", "untied"),
    [
        (LLAMA, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}, True),
        (LLAMA, {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
        (GPT2, {"r": 4, "target_modules": ["wte", "c_attn"], "bias": "all", "use_rslora": True}, True),
        (MIXTURE, {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}, False),
    ],
)
def test_a_merged_adapter_is_the_model_that_was_trained(
    model: dict[str, Any], lora: dict[str, Any], untied: bool, tiny: Any, tmp_path: Path
) -> None:
    """An adapter of a tied embedding was merged into the head as well: model/ had nll 6.77, what was trained 4.84."""
    peft = pytest.importorskip("peft")
    made = config(tiny, tmp_path / "run", model, lora)
    out = train.run(made)
    ids = torch.tensor(open_corpus(tiny.corpus).rows[:4]["input_ids"])
    base = train._model(config(tiny, out, model, None), open_corpus(tiny.corpus))
    before = nll(base, ids)
    trained, saved = nll(peft.PeftModel.from_pretrained(base, out / "adapter"), ids), load_causal_lm(out)
    assert abs(trained - before) > 0.05
    assert nll(saved, ids) == pytest.approx(trained, rel=1e-4)
    tied = model_config(model, vocab_size=50).tie_word_embeddings
    assert saved.config.tie_word_embeddings == (tied and not untied)
    assert ("merged" in train.work(made).inputs) == untied  # folders of early versions hold another model


@pytest.mark.parametrize(
    ("dtype", "lora"),
    [
        ("bfloat16", {"r": 4, "target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
        ("float32", {"r": 4, "target_modules": ["v_proj"]}),  # under autocast
        ("bfloat16", None),
    ],
)
def test_in_half_precision_too(lora: dict[str, Any] | None, dtype: str, tiny: Any, tmp_path: Path) -> None:
    fields = {"dtype": dtype, "training": {**TRAINING, "bf16": dtype == "float32"}}
    assert is_done(train.run(config(tiny, tmp_path / "run", LLAMA, lora, **fields)))


@pytest.mark.parametrize(
    ("model", "lora", "dtype"),
    [
        (LLAMA, {"r": 4, "target_modules": ["embed_tokens"]}, "float32"),
        (LLAMA, {"r": 4, "target_modules": ["embed_tokens"]}, "bfloat16"),
        (GPT2, {"r": 4, "target_modules": ["wte"]}, "float32"),
    ],
)
def test_a_model_that_is_another_is_set_aside(
    model: dict[str, Any], lora: dict[str, Any], dtype: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left tied, the merged model is another: the comparison sees it, whatever the cause. The adapter stays."""
    monkeypatch.setattr(save_model, "untie", lambda model: False)
    out = tmp_path / "run"
    with pytest.raises(
        UserError, match=r"model is not the model that was trained: its nll is \d.*that of the trained model \d"
    ):
        train.run(config(tiny, out, model, lora, dtype=dtype))
    assert not is_done(out)
    assert not (out / "model").exists()
    assert (out / save_model.ASIDE / "config.json").is_file()
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("lora", "untied"),
    [
        ({"target_modules": ["embed_tokens"]}, True),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, False),  # wraps the head, which is refused
        ({"target_modules": ["q_proj"]}, False),
    ],
)
def test_who_is_untied(lora: dict[str, Any], untied: bool) -> None:
    shapes = save_model.with_lora(model_shapes(model_config(LLAMA, vocab_size=50)), lora)
    base = shapes.get_base_model()
    assert save_model.untie(shapes) == untied
    assert base.config.tie_word_embeddings is not untied


@pytest.mark.parametrize("model", ["folder", LLAMA, GPT2])
def test_one_seed_gives_one_adapter(model: Any, tiny: Any, tmp_path: Path) -> None:
    """Over a model folder the adapter was drawn before anything was seeded: two runs of one config differed."""
    if model == "folder":
        shapes = config(tiny, tmp_path, LLAMA, None)
        model = str(tmp_path / "model")
        train._model(shapes, open_corpus(tiny.corpus)).save_pretrained(model)
    lora = {"r": 4, "target_modules": ["c_attn" if model is GPT2 else "q_proj"]}
    drawn = []
    for seed in (3, 3, 4):
        torch.rand(len(drawn) + 1)
        made = train._model(config(tiny, tmp_path, model, lora, seed=seed), open_corpus(tiny.corpus))
        drawn.append(torch.cat([p.flatten() for n, p in made.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("model", "lora", "told"),
    [
        (LLAMA, {"target_modules": ["q_proj"], "lora_bias": True}, "base layer has no bias"),
        (MIXTURE, {"target_modules": ["v_proj"], "lora_bias": True}, "base layer has no bias"),
        (GPT2, {"target_modules": ["c_attn"], "lora_bias": True}, ""),
        (LLAMA, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}, ""),
        (LLAMA, {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, ""),
        (LLAMA, {"target_modules": ["q_proj"], "init_lora_weights": "olora", "modules_to_save": ["embed_tokens"]}, ""),
        (MIXTURE, {"target_modules": "all-linear", "target_parameters": ["mlp.experts.gate_up_proj"]}, ""),
    ],
)
def test_an_adapter_without_a_merged_form_is_refused_before_training(
    model: dict[str, Any], lora: dict[str, Any], told: str
) -> None:
    """It was trained to its end, which was PEFT's RuntimeError."""
    shapes = model_config(model, vocab_size=50)
    if told:
        with pytest.raises(UserError, match=f"lora: the adapter cannot be merged.*{told}"):
            save_model.check_merges(shapes, lora)
    else:
        save_model.check_merges(shapes, lora)


@pytest.mark.parametrize(("given", "found"), [(True, True), (False, None), ("full_shard", True)])
def test_fsdp_is_turned_on_as_documented(given: Any, found: Any, tmp_path: Path) -> None:
    """``fsdp: true``, as docs/cluster.md has it, was refused: transformers declares the field as text."""
    made = train.training_arguments(
        train.TrainConfig(str(tmp_path), "c", "m", training={"fsdp": given, "use_cpu": True})
    )
    assert bool(made.fsdp) == bool(found)


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        (LLAMA, {"target_modules": ["q_proj", "embed_tokens"]}),
        (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "init_lora_weights": "pissa"}),
        (GPT2, {"target_modules": ["wte", "c_attn"], "use_dora": True}),
        (MIXTURE, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ],
)
def test_a_sharded_adapter_is_put_together_before_it_is_merged(
    model: dict[str, Any], lora: dict[str, Any], tmp_path: Path
) -> None:
    """Under FSDP the first rank merged shards and waited for the others, which had left: a finished run hung."""
    live = save_model.with_lora(new_causal_lm(model, seed=0, vocab_size=50), {"r": 4, **lora})
    torch.manual_seed(1)
    for parameter in live.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    whole = {name: value.clone() for name, value in live.state_dict().items()}
    ids = torch.randint(50, (4, 16))
    wanted = nll(live, ids)
    save_model._save_merged(save_model._rebuilt(live, whole), tmp_path / "model", byte_level())
    assert nll(load_causal_lm(tmp_path / "model"), ids) == pytest.approx(wanted, rel=1e-5)
