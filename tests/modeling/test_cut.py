"""The first blocks of a model are what the whole one computes up to there, and what cannot be cut says so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tokensieve.modeling.cut import check_saved, cut_config, cut_folder, first_blocks, stored_dtype
from tokensieve.modeling.flops import token_flops
from tokensieve.modeling.load import load_causal_lm
from tokensieve.runs.errors import UserError

COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
OF_GPT = {"vocab_size": 97, "initializer_range": 0.2}
GLOBAL_LOCAL = [[["global", "local"], 2]]  # twice the two
IDS = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))


def made(model_type: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    common = OF_GPT if model_type.startswith("gpt") else COMMON
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**common, **fields})).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def below(whole: Any, blocks: str, norm: str, n: int) -> Tensor:
    """The oracle: what goes into block n (0-based) of the whole model, through its last norm and its head."""
    seen: list[Tensor] = []
    block: Any = whole.get_submodule(blocks)[n]
    handle = block.register_forward_pre_hook(
        lambda _, args, given: seen.append((*args, *given.values())[0]), with_kwargs=True
    )
    logits(whole)
    handle.remove()
    with torch.no_grad():
        return whole.get_output_embeddings()(whole.get_submodule(norm)(seen[0]))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model_type", "fields", "paths", "kept"),
    [
        ("llama", {"tie_word_embeddings": True}, ("model.layers", "model.norm"), None),
        (
            "qwen3",
            {"head_dim": 16, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            ("model.layers", "model.norm"),
            ["full_attention", "sliding_attention"],
        ),
        # A mixture of as many experts as there are blocks: two lists of four, one inside the other.
        ("mixtral", {"num_local_experts": 4}, ("model.layers", "model.norm"), None),
        ("gpt2", {"n_embd": 32, "n_layer": 4, "n_head": 2}, ("transformer.h", "transformer.ln_f"), None),
        (
            "gpt_neo",
            {"hidden_size": 32, "num_layers": 4, "num_heads": 2, "attention_types": GLOBAL_LOCAL, "window_size": 4},
            ("transformer.h", "transformer.ln_f"),
            None,
        ),
    ],
)  # fmt: skip
def test_it_computes_what_the_whole_model_does_up_to_there(
    model_type: str, fields: dict[str, Any], paths: tuple[str, str], kept: Any, tmp_path: Path
) -> None:
    """Cut, saved and read again; block 2 of GPT-Neo and of the windowed Qwen looks at other tokens than block 1."""
    whole = made(model_type, **fields)
    whole.save_pretrained(tmp_path / "whole")
    cut = cut_folder(tmp_path / "whole", 2)
    cut.save_pretrained(tmp_path / "cut")
    check_saved(tmp_path / "cut", cut)
    again = load_causal_lm(tmp_path / "cut")
    assert again.config.num_hidden_layers == 2
    assert getattr(again.config, "layer_types", None) == kept
    oracle = below(whole, *paths, 2)
    assert float((logits(again) - oracle).abs().max()) <= 1e-5 * float(oracle.abs().max())
    assert float((logits(whole) - oracle).abs().max()) > 0.1
    names = {n for n, _ in whole.named_parameters() if not n.startswith((f"{paths[0]}.2.", f"{paths[0]}.3."))}
    assert {n for n, _ in again.named_parameters()} == names


def test_all_blocks_are_the_model_itself() -> None:
    model = tiny.llama(num_hidden_layers=3)
    before = {n: w.clone() for n, w in model.state_dict().items()}
    config = model.config.to_dict()
    assert first_blocks(model, 3).config.to_dict() == config
    assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())


def test_flops_are_those_of_a_model_of_so_many_blocks() -> None:
    cut = first_blocks(tiny.llama(num_hidden_layers=4), 2)
    assert token_flops(cut, 16) == token_flops(tiny.llama(num_hidden_layers=2), 16)


def test_weights_keep_the_precision_they_are_stored_in(tmp_path: Path) -> None:
    """Loaded in float32 by default, a bfloat16 model came out at twice its size."""
    model = tiny.llama(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    assert cut_folder(tmp_path / "half", 1).dtype == torch.bfloat16
    model.lm_head.float()
    model.save_pretrained(tmp_path / "mixed")
    assert stored_dtype(tmp_path / "mixed") == "float32"


def shared(model: Any) -> Any:
    model.model.layers[3].mlp = model.model.layers[0].mlp
    return model


def two_lists(model: Any) -> Any:
    model.model.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    return model


def no_list(model: Any) -> Any:
    model.config.num_hidden_layers = 5
    return model


@pytest.mark.parametrize(
    ("change", "layers", "told"),
    [
        (lambda model: model, 5, "layers: the model has 4 blocks, so 5 cannot be kept"),
        (shared, 2, "a llama cannot be cut: its blocks 0 and 3 share weights"),
        (two_lists, 2, r"of 4 blocks it has 2 lists \(model.layers, model.heads\), so which they are is not known"),
        (no_list, 2, "a llama cannot be cut: of 5 blocks it has no list"),
    ],
)
def test_what_cannot_be_cut_says_so(change: Any, layers: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        first_blocks(change(tiny.llama(num_hidden_layers=4)), layers)


def test_blocks_that_are_counted_from_the_end_are_refused() -> None:
    config = AutoConfig.for_model("llama", **COMMON, num_kv_shared_layers=2)
    with pytest.raises(UserError, match="num_kv_shared_layers is 2, and its last blocks would go"):
        cut_config(config, 2, "gemma3n")


def test_a_config_that_makes_another_model_is_refused(tmp_path: Path) -> None:
    """xLSTM counts its blocks a second time, in num_blocks: saved, the cut one had blocks that were drawn at random."""
    made("xlstm", embedding_dim=32, num_heads=2, num_blocks=4).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"fields for its blocks that are not understood \(backbone.blocks.2.* would be another"
    ):
        cut_folder(tmp_path, 2)


def test_a_class_that_computes_with_the_number_of_blocks_is_refused(tmp_path: Path) -> None:
    """MiniCPM scales every residual by the root of the depth: the same weights in a shallower model give other logits."""
    heads = {"num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 16}
    model = made("minicpm3", **heads, qk_nope_head_dim=8, qk_rope_head_dim=8, head_dim=8)
    model.save_pretrained(tmp_path / "whole")
    cut = cut_folder(tmp_path / "whole", 2)
    cut.save_pretrained(tmp_path / "cut")
    with pytest.raises(UserError, match="one built with so many blocks computes other logits"):
        check_saved(tmp_path / "cut", cut)


def test_a_class_that_reads_the_number_of_blocks_as_it_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut model and the one read again agree then, and both are another model than was trained."""
    tiny.llama().save_pretrained(tmp_path)
    plain = LlamaDecoderLayer.forward

    def scaled(block: Any, *args: Any, **given: Any) -> Tensor:
        return plain(block, *args, **given) / block.self_attn.config.num_hidden_layers

    monkeypatch.setattr(LlamaDecoderLayer, "forward", scaled)
    with pytest.raises(UserError, match="a llama cannot be cut: without its later blocks, block 1 computes otherwise"):
        cut_folder(tmp_path, 1)
    assert cut_folder(tmp_path, 2).config.num_hidden_layers == 2


def test_other_weights_than_were_cut_are_refused(tmp_path: Path) -> None:
    live = tiny.llama()
    live.save_pretrained(tmp_path)
    check_saved(tmp_path, live)
    other = copy.deepcopy(live)
    other.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(UserError, match=r"saved and read again, model.layers.1.mlp.up_proj.weight is another"):
        check_saved(tmp_path, other)


def test_folders_that_cannot_be_cut_say_so(tmp_path: Path) -> None:
    t5 = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match=r"is an encoder-decoder \(t5\): only decoders can be cut"):
        cut_folder(tmp_path / "t5", 1)
    model = tiny.llama(num_hidden_layers=3)
    model.config.num_hidden_layers = 2  # the file has three
    model.save_pretrained(tmp_path / "more")
    with pytest.raises(
        UserError, match=r"has weights that its config has no place for, the first are model\.layers\.2"
    ):
        cut_folder(tmp_path / "more", 1)
    model = tiny.llama()
    model.config.quantization_config = {"quant_method": "fp8"}
    model.save_pretrained(tmp_path / "quantised")
    with pytest.raises(UserError, match="is quantised: cut the model that it was made from"):
        cut_folder(tmp_path / "quantised", 1)
