"""What a model can be made of others: each against its definition, and against what it must not change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tokensieve.modeling.cut import random_logits
from tokensieve.modeling.grow import grow_experts, grow_intermediate, grow_layers, grown_config, interposed
from tokensieve.modeling.merge import check_mergeable, linear, merge, task_arithmetic, ties, trim_threshold
from tokensieve.modeling.mixture import moe_from_dense
from tokensieve.modeling.prune import Importance, Sizes, importance, most_important, prune
from tokensieve.modeling.rebuilt import largest_difference
from tokensieve.modeling.rope import with_rope
from tokensieve.modeling.vocabulary import new_rows, rows_of_pieces
from tokensieve.runs.errors import UserError

HEADS = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
IDS = torch.randint(tiny.VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))


def model(kind: str = "llama", seed: int = 0, **fields: Any) -> Any:
    if kind == "llama":
        return tiny.llama(**{**HEADS, "num_hidden_layers": 3, **fields}, seed=seed).eval()
    torch.manual_seed(seed)
    given = {**HEADS, "vocab_size": tiny.VOCAB, "num_hidden_layers": 2, "initializer_range": 0.3, **fields}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given)).eval()


def weights(one: Any) -> dict[str, Tensor]:
    return {n: w.clone() for n, w in one.state_dict().items()}


# --- pruned ----------------------------------------------------------------------------------------------------------------


def calibrated(whole: Any) -> Importance:
    return importance(whole, [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}], width=True)


def test_importance_is_its_definition() -> None:
    """As loops over what the model's own hidden states and hooks say; two batches are one."""
    whole = model()
    found = calibrated(whole)
    with torch.no_grad():
        states = whole.model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    inside: list[Tensor] = []
    handle = whole.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: inside.append(args[0]))
    random_heads: list[Tensor] = []
    other = whole.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, a: random_heads.append(a[0]))
    with torch.no_grad():
        whole(input_ids=IDS)
    handle.remove()
    other.remove()
    for i in range(2):  # the last state has been through the last norm
        total = 0.0
        for a, b in zip(states[i].flatten(0, 1).double(), states[i + 1].flatten(0, 1).double(), strict=True):
            total += 1 - float(a @ b / (a.norm() * b.norm()))
        assert found.of_blocks[i] == pytest.approx(total / IDS.numel(), rel=1e-6)
    for f in (0, 7, 47):
        by_row = [sum(abs(float(v)) for v in row[:, f]) / len(row) for row in inside[0]]
        assert float(found.neurons[1][f]) == pytest.approx(sum(m * m for m in by_row), rel=1e-5)
    for h in range(4):
        parts = random_heads[0][..., h * 8 : h * 8 + 8]
        by_row = [sum(float(v.norm()) for v in row) / len(row) for row in parts]
        assert float(found.heads[1][h]) == pytest.approx(sum(m * m for m in by_row), rel=1e-5)


def test_pruned_to_what_is_there_is_the_model() -> None:
    whole = model()
    made, told = prune(copy.deepcopy(whole), calibrated(whole), Sizes(3, 48, 4, 32))
    assert told["kept_blocks"] == [0, 1, 2]
    assert {n: w.tolist() for n, w in made.state_dict().items()} == {n: w.tolist() for n, w in weights(whole).items()}


def test_the_least_important_goes() -> None:
    """Planted: a block that changes nothing, neurons and a group of heads that write nothing much, a dead channel."""
    whole = model()
    with torch.no_grad():
        whole.model.layers[1].self_attn.o_proj.weight.zero_()
        whole.model.layers[1].mlp.down_proj.weight.zero_()
        for block in whole.model.layers:
            block.mlp.up_proj.weight[[3, 17, 40]] *= 1e-3
            block.self_attn.v_proj.weight[:8] *= 1e-3  # keys and values of heads 0 and 1
            block.input_layernorm.weight[5] = block.post_attention_layernorm.weight[5] = 1e-6
    found = calibrated(whole)
    made, told = prune(copy.deepcopy(whole), found, Sizes(2, 45, 2, 31))
    assert told["kept_blocks"] == [0, 2]
    assert told["kept_channels"] == [d for d in range(32) if d != 5]
    stay = [f for f in range(48) if f not in (3, 17, 40)]
    channels = told["kept_channels"]
    assert torch.equal(
        made.model.layers[1].mlp.up_proj.weight, whole.model.layers[2].mlp.up_proj.weight[stay][:, channels]
    )
    assert torch.equal(
        made.model.layers[0].self_attn.o_proj.weight, whole.model.layers[0].self_attn.o_proj.weight[channels][:, 16:]
    )
    assert (made.config.num_attention_heads, made.config.num_key_value_heads, made.config.head_dim) == (2, 1, 8)
    without, _ = prune(copy.deepcopy(whole), found, Sizes(layers=2))
    assert largest_difference(whole, without) < 1e-5


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("mistral", {"tie_word_embeddings": True}),
        ("llama", {"mlp_bias": True}),
    ],
)
def test_families_are_pruned_in_their_width(kind: str, fields: dict[str, Any]) -> None:
    """Biases, norms of queries and keys, heads wider than their share, a tied head; neurons and heads are proved inside."""
    whole = model(kind, **fields)
    made, _ = prune(whole, calibrated(whole), Sizes(None, 24, 2, 16))
    assert random_logits(made).isfinite().all()
    assert made.config.hidden_size == 16


def test_ties_keep_the_earlier_and_the_order() -> None:
    assert most_important([1.0, 3.0, 1.0, 2.0], 3) == [0, 1, 3]


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        ("llama", Sizes(layers=4), "prune.layers: the model has 3, so 4 cannot be kept"),
        ("llama", Sizes(heads=3), "2 heads share keys and values, so a multiple of 2 is kept, not 3"),
        ("gemma", Sizes(hidden_size=8), "a gemma cannot be pruned in its width: that is known for llama"),
    ],
)
def test_what_cannot_be_pruned_says_so(kind: str, sizes: Sizes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        prune(model(kind), Importance(torch.zeros(3)), sizes)


# --- merged ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "share"), [("linear", [1.0, 2.0, 0.7]), ("task_arithmetic", [0.4, 0.6]), ("ties", [1, 1])]
)
def test_identical_models_merge_into_themselves(method: Any, share: list[float]) -> None:
    """To the last bit, also where the base is another one and all of the difference is kept."""
    one = model()
    before = weights(one)
    same = [copy.deepcopy(one) for _ in range(2)]
    merge(one, same, method, share, 1.0, 1.0)
    assert all(torch.equal(w, before[n]) for n, w in one.state_dict().items())
    if method != "linear":
        base = model(seed=1)
        merge(base, same, method, share, 1.0, 1.0)
        assert all(torch.equal(w, before[n]) for n, w in base.state_dict().items())


def oracle_ties(base: list[float], models: list[list[float]], density: float, scale: float) -> list[float]:
    """Algorithm 1 of the paper, a weight at a time."""
    taus = [[m - b for m, b in zip(one, base, strict=True)] for one in models]
    trimmed = []
    for tau in taus:
        keep = sorted(range(len(tau)), key=lambda i: -abs(tau[i]))[: int(density * len(tau))]
        trimmed.append([v if i in keep else 0.0 for i, v in enumerate(tau)])
    merged = []
    for i, b in enumerate(base):
        values = [t[i] for t in trimmed]
        total = sum(values)
        agree = [v for v in values if v * total > 0]
        merged.append(b + scale * (sum(agree) / len(agree) if agree else 0.0))
    return merged


def test_merges_are_their_formulas() -> None:
    g = torch.Generator().manual_seed(0)
    base, *models = (torch.randn(40, generator=g) for _ in range(4))
    limits = [trim_threshold({"w": base}, {"w": m}, 0.3) for m in models]
    found = ties(base, models, [1, 1, 1], 0.7, limits)
    wanted = oracle_ties(base.tolist(), [m.tolist() for m in models], 0.3, 0.7)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    for i, v in enumerate(task_arithmetic(base, models, [1.0, 0.5, 0.0], 0.4).tolist()):
        assert v == pytest.approx(
            float(base[i]) + 0.4 * sum(s * float(m[i] - base[i]) for s, m in zip((1, 0.5, 0), models, strict=True))
        )
    for i, v in enumerate(linear([base, *models], [1, 2, 3, 4]).tolist()):
        assert v == pytest.approx(sum(s * float(m[i]) for s, m in zip((1, 2, 3, 4), (base, *models), strict=True)) / 10)


def test_a_tied_head_is_merged_once() -> None:
    """It stands in the state twice: merged a second time the base was no longer the base."""
    base, other = (model(seed=s, tie_word_embeddings=True) for s in (0, 1))
    wanted = (base.lm_head.weight + other.lm_head.weight).double() / 2
    merge(base, [other], "linear", [1, 1], 1.0, 1.0)
    torch.testing.assert_close(base.lm_head.weight.double(), wanted, rtol=1e-6, atol=1e-7)
    assert base.lm_head.weight is base.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: model("mistral"), "b is a mistral, a a llama"),
        (
            lambda: model(intermediate_size=40),
            "differ in model.layers.0.mlp.down_proj.weight: only models of one shape",
        ),
        (lambda: model(rms_norm_eps=1e-3), "the configs of b and a differ in rms_norm_eps"),
    ],
)
def test_what_cannot_be_merged_says_so(other: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_mergeable([model(), other()], ["a", "b"])


def test_what_a_merge_does_not_depend_on() -> None:
    """A chat model has another EOS, and perhaps longer rows: that says nothing of its weights, and was refused."""
    check_mergeable([model(), model(seed=1, eos_token_id=3, pad_token_id=4, max_position_embeddings=128)], ["a", "b"])


# --- grown, and shared out -------------------------------------------------------------------------------------------------


def test_copies_stand_behind_their_blocks() -> None:
    assert interposed(3, 6) == [0, 0, 1, 1, 2, 2]
    assert interposed(3, 4) == [0, 0, 1, 2]
    assert interposed(3, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("llama", {}), ("gpt2", {"n_layer": 3, "n_embd": 32, "n_head": 2}), ("gemma2", {"head_dim": 8})],
)
def test_more_blocks_are_the_same_function(kind: str, fields: dict[str, Any]) -> None:
    whole = (
        model(kind, **fields)
        if kind != "gpt2"
        else AutoModelForCausalLM.from_config(
            AutoConfig.for_model("gpt2", vocab_size=97, initializer_range=0.3, **fields)
        ).eval()
    )
    made = grow_layers(whole, 5)
    assert made.config.num_hidden_layers == 5
    assert largest_difference(whole, made) < 1e-6
    if kind == "llama":
        exact = grow_layers(whole, 5, "exact")
        assert torch.equal(exact.model.layers[1].mlp.down_proj.weight, whole.model.layers[0].mlp.down_proj.weight)
        assert largest_difference(whole, exact) > 0.01


def test_wider_blocks_are_the_same_function_and_can_learn() -> None:
    whole = model()
    made = grow_intermediate(whole, 80)
    assert largest_difference(whole, made) < 1e-5
    made(input_ids=IDS, labels=IDS).loss.backward()
    new = made.model.layers[0].mlp.down_proj.weight.grad[:, 48:]
    assert float(new.abs().min()) > 0


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_more_experts_are_the_same_function(kind: str) -> None:
    """Twice as many of which twice as many are visited: each pair counts half."""
    number = (
        {"num_local_experts": 4}
        if kind == "mixtral"
        else {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}
    )
    whole = model(kind, num_experts_per_tok=2, **number)
    assert largest_difference(whole, grow_experts(whole, 8, 0.0, 0)) < 1e-5
    noisy = grow_experts(whole, 8, 0.01, 0)
    assert 1e-5 < largest_difference(whole, noisy) < 0.5
    assert torch.equal(noisy.model.layers[0].mlp.experts.down_proj[:4], whole.model.layers[0].mlp.experts.down_proj)


@pytest.mark.parametrize(("kind", "fields"), [("llama", {}), ("qwen3", {"head_dim": 16, "tie_word_embeddings": True})])
def test_all_experts_are_the_dense_model(kind: str, fields: dict[str, Any]) -> None:
    dense = model(kind, **fields)
    every = moe_from_dense(dense, 4, 4, 0)
    assert largest_difference(dense, every) < 1e-3  # the router's weights are equal to 1e-4
    some = moe_from_dense(dense, 4, 2, 0)
    assert largest_difference(dense, some) > 0.01
    assert some.config.num_experts_per_tok == 2
    chosen = []
    some.model.layers[0].mlp.gate.register_forward_hook(lambda _, args, out: chosen.append(out[2]))
    random_logits(some)
    assert len(chosen[0].unique()) == 4  # not everybody goes to the same ones
    again = moe_from_dense(dense, 4, 2, 0)
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in some.state_dict().items())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: grow_layers(model(), 2), "grow.layers: the model has 3 blocks, so it does not grow to 2"),
        (lambda: grow_intermediate(model("gemma"), 60), "a gemma cannot be grown in its width"),
        (lambda: grow_experts(model(), 4, 0.0, 0), "a llama cannot be grown in experts: that is known for mixtral"),
        (lambda: moe_from_dense(model(), 5, 2, 0), "48 neurons are shared out evenly over at least 2, not 5"),
        (lambda: moe_from_dense(model("qwen2"), 4, 2, 0), "a qwen2 cannot be made a mixture: that is known for llama"),
        (lambda: moe_from_dense(model(mlp_bias=True), 4, 2, 0), "a llama with biases cannot be made a mixture"),
    ],
)
def test_what_cannot_be_grown_says_so(make: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


# --- vocabulary ------------------------------------------------------------------------------------------------------------


def test_rows_of_pieces_are_means() -> None:
    table = torch.arange(12.0).view(4, 3)
    found = rows_of_pieces(table, [[2], [0, 1, 3], []], "mean")
    assert found.tolist() == [[6, 7, 8], [4, 5, 6], [4.5, 5.5, 6.5]]
    assert rows_of_pieces(table, [[3, 0]], "first").tolist() == [[9, 10, 11]]


def test_a_token_of_several_parts_ends_texts_first() -> None:
    """GPT-2's <|endoftext|> is BOS, EOS, padding and unknown at once: it got the old row of <unk> instead of that of EOS."""
    old = PreTrainedTokenizerFast(
        tokenizer_object=spelled("<s>", "</s>", "<pad>", "<unk>"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    new = PreTrainedTokenizerFast(
        tokenizer_object=spelled("<end>"), **{f"{r}_token": "<end>" for r in ("bos", "eos", "pad", "unk")}
    )
    rows = new_rows(old, new)
    assert rows.pieces[new.eos_token_id] == [old.eos_token_id]


def test_tokens_that_are_written_otherwise_keep_their_spaces() -> None:
    """Decoded by itself a token of marks loses its space: " the" got the rows of "the". Amid a word none is put before."""
    marks = Tokenizer(models.BPE({t: i for i, t in enumerate(("<s>", *"▁theö", "<0xC3>", "▁t", "he", "▁the"))},
                                 [("▁", "t"), ("h", "e"), ("▁t", "he")]))  # fmt: skip
    marks.decoder = decoders.Metaspace()
    space, oe = "Ġ", "Ã¶"
    vocab = ("<e>", space, *"the", *oe, space + "t", "he", space + "the", oe)
    merges = [(space, "t"), ("h", "e"), (space + "t", "he"), (oe[0], oe[1])]
    level = Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, merges))
    level.decoder = decoders.ByteLevel()
    one = PreTrainedTokenizerFast(tokenizer_object=marks, eos_token="<s>")
    other = PreTrainedTokenizerFast(tokenizer_object=level, eos_token="<e>")
    for old, new in ((one, other), (other, one)):
        rows, known = new_rows(old, new), old.get_vocab()
        twin = {"Ġthe": "▁the", "▁the": "Ġthe", "he": "he", "ö": oe, oe: "ö", "<e>": "<s>", "<s>": "<e>"}
        for token in {*twin} & {*new.get_vocab()}:
            assert rows.pieces[new.get_vocab()[token]] == [known[twin[token]]], token
        assert rows.unknown == (old is one)  # the byte B6, which it does not have
    assert new_rows(one, other).pieces[vocab.index(oe[0])] == [one.get_vocab()["<0xC3>"]]


def spelled(*control: str) -> Tokenizer:
    made = Tokenizer(models.BPE({t: i for i, t in enumerate((*control, "a", "b"))}, []))
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize("rope", [{"theta": 5e5}, {"factor": 4.0}, {"rope_theta": -1}, {"rope_theta": "1e6"}])
def test_positions_that_nothing_reads_are_refused(rope: dict[str, Any]) -> None:
    """transformers takes any key and does nothing with it: a misspelt base gave the model as it was, named long."""
    with pytest.raises(UserError, match=r"rope: .*(says nothing|above 0)"):
        with_rope(model(), rope, 256)
    assert with_rope(model(), {"rope_type": "linear", "factor": 2.0}, 64).config.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize("sizes", [(None, None, 8), (2, None, None), (None, 8, None)])
def test_a_plan_says_what_does_not_grow(sizes: Any) -> None:
    """A dry run died of a KeyError, or planned the smaller model, and the run was refused only once it came to it."""
    with pytest.raises(UserError, match="grow"):
        grown_config(model().config, *sizes)


def test_how_it_generates_stays() -> None:
    """A model put together anew lost its generation config: chat models have a second EOS there alone."""
    whole = model()
    whole.generation_config.eos_token_id = [1, 2]
    assert grow_intermediate(whole, 64).generation_config.eos_token_id == [1, 2]
