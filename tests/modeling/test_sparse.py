"""The token-sparse backward: the gate against a chain of blocks by hand, the fast path against the gate, refusals by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sparse_models as models
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers.models.llama.modeling_llama import LlamaMLP

from tokensieve.modeling.flops import token_flops
from tokensieve.modeling.sparse import SparseBackward
from tokensieve.modeling.sparse.proof import farthest, wrong_gradients
from tokensieve.runs.errors import UserError

STORES = ("all", "nothing", "kept")


@contextmanager
def attached(model: Any, *, strict: bool = False) -> Iterator[SparseBackward]:
    sparse = SparseBackward(model, strict=strict)
    try:
        yield sparse
    finally:
        sparse.close()


def llama(**fields: Any) -> Any:
    return models.build("llama", **fields)


# --- the definition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_the_gate_is_a_chain_of_blocks(strict: bool) -> None:
    """What reaches the input of a block at a dropped position is thrown away, by hand; strict: keys and values as well."""
    model, keep = llama(), models.some()
    truth = models.chain_of_blocks(model, keep, strict=strict)
    with attached(model, strict=strict) as sparse:
        assert tiny.gap(models.by_gate(sparse, model, keep), truth) < 1e-12
        assert tiny.gap(models.by_fast_path(sparse, model, keep), truth) < 1e-12


def test_what_is_kept_whole_is_plain() -> None:
    model, everything = llama(), torch.ones(models.ROWS, models.LENGTH, dtype=torch.bool)
    plain = models.backward(model, lambda: models.loss(model, everything))
    with attached(model) as sparse:
        assert tiny.gap(models.by_gate(sparse, model, everything), plain) < 1e-12
        assert tiny.gap(models.by_fast_path(sparse, model, everything), plain) < 1e-12


def test_dropped_positions_teach_keys_and_values_alone() -> None:
    """With one kept query, the rows before it get into k and v of every block unless strict, and into no embedding."""
    model = llama(tie_word_embeddings=False)
    keep = torch.zeros(models.ROWS, models.LENGTH, dtype=torch.bool)
    keep[1, 9] = True
    before = {int(i) for i in models.ids()[1, :9]} - {int(models.ids()[1, 9])}
    loose, strict = ({}, {})  # type: ignore[var-annotated]
    for found, is_strict in ((loose, False), (strict, True)):
        with attached(model, strict=is_strict) as sparse:
            found.update(models.by_fast_path(sparse, model, keep))
        assert not found["model.embed_tokens.weight"][sorted(before)].any()
    name = "model.layers.0.self_attn.{}_proj.weight"
    assert tiny.gap({"k": strict[name.format("k")]}, {"k": loose[name.format("k")]}) > 0.1
    assert tiny.gap({"q": strict[name.format("o")]}, {"q": loose[name.format("o")]}) < 1e-12  # at the top they agree


# --- the fast path ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.SERVED)
def test_the_fast_path_is_the_gate(name: str) -> None:
    """Of every kind of block served, with all that can be stored between forward and backward; the forward is untouched."""
    kind, fields = models.SERVED[name]
    model, keep = models.build(kind, **fields), models.some()
    torch.manual_seed(7)
    value = models.loss(model, keep)
    for strict in (False, True):
        with attached(model, strict=strict) as sparse:
            truth = models.by_gate(sparse, model, keep)
            for store in STORES:
                assert tiny.gap(models.by_fast_path(sparse, model, keep, store), truth) < 1e-9, (strict, store)
            torch.manual_seed(7)
            with sparse.forward():
                assert models.loss(model, keep).item() == value.item()


ROW = torch.arange(models.LENGTH)
PADDED = torch.ones(models.ROWS, models.LENGTH, dtype=torch.long)
PADDED[1, 20:] = 0
PADDED[2, :4] = 0
INPUTS: dict[str, dict[str, Tensor]] = {
    "rows": {},
    "padding on either side": {"attention_mask": PADDED},
    "isolated documents": {"position_ids": torch.cat([ROW[:10], ROW[:14]]).expand(models.ROWS, -1)},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("inputs", INPUTS)
def test_rows_of_every_kind(inputs: str, attention: str) -> None:
    """What a query may see comes from the model's own mask, also where rows keep different numbers of tokens, or none."""
    if "padding" in inputs and attention == "eager":
        pytest.skip("in float64 eager attention of transformers is NaN where a query sees nothing")
    model, real = llama(attention=attention), PADDED.bool() if "padding" in inputs else torch.tensor(True)
    uneven = models.some(0.5, 2) & torch.tensor([[True], [False], [True]])
    one = torch.zeros_like(uneven)
    one[1, 5] = True
    equal = (ROW % 2 == 0).expand(models.ROWS, -1)
    with attached(model) as sparse:
        for keep, store in itertools.product((uneven & real, one, equal & real), STORES):
            truth = models.by_gate(sparse, model, keep, **INPUTS[inputs])
            assert tiny.gap(models.by_fast_path(sparse, model, keep, store, **INPUTS[inputs]), truth) < 1e-9


@pytest.mark.parametrize("store", STORES)
def test_nothing_kept_is_zero_for_every_weight(store: Any) -> None:
    """None for some of them would leave another rank waiting."""
    model, nothing = llama(), torch.zeros(models.ROWS, models.LENGTH, dtype=torch.bool)
    with attached(model) as sparse:
        found = models.by_fast_path(sparse, model, nothing, store)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert not any(g.any() for g in found.values())


def test_long_rows_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk of queries looks at the keys that its mask shows, and at no others."""
    monkeypatch.setattr("tokensieve.modeling.sparse.attention.CHUNK", 4)
    for model in (llama(), models.build("mistral", sliding_window=5)):
        with attached(model) as sparse:
            truth = models.by_gate(sparse, model, models.some())
            for store in STORES:
                assert tiny.gap(models.by_fast_path(sparse, model, models.some(), store), truth) < 1e-9


def test_adapters() -> None:
    """Frozen weights below, dropout in the adapter, and a lowest block that has nothing to learn."""
    peft = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    given = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.2, "task_type": "CAUSAL_LM"}
    for fields in ({}, {"layers_to_transform": [1]}):
        model = peft.get_peft_model(llama(), peft.LoraConfig(**given, **fields)).double()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros at first: nothing would reach lora_A
                torch.nn.init.normal_(parameter)
        with attached(model) as sparse:
            truth = models.by_gate(sparse, model, models.some())
            assert len(truth) == (12 if not fields else 6)
            for store in STORES:
                assert tiny.gap(models.by_fast_path(sparse, model, models.some(), store), truth) < 1e-9


@pytest.mark.parametrize("width", [24, models.ROWS * models.LENGTH])
def test_adapters_that_read_their_weights_by_a_linear_map(width: int) -> None:
    """DoRA sends a unit matrix through its adapters. Where a weight is as wide as a micro-batch has rows, the result was taken
    for one of rows and gathered: refused by a sentence about shapes, or, where the run's micro-batch was so large and not the
    proof's, an error in the first step."""
    peft = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    given = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_dora": True, "init_lora_weights": False}
    torch.manual_seed(0)
    model = peft.get_peft_model(llama(hidden_size=width), peft.LoraConfig(**given)).double()
    with attached(model) as sparse:
        truth = models.by_gate(sparse, model, models.some())
        for store in STORES:
            assert tiny.gap(models.by_fast_path(sparse, model, models.some(), store), truth) < 1e-9


def test_checkpointed_blocks_store_nothing() -> None:
    """Under the model's own checkpointing a block would be run again for all rows; closed, it is on again."""
    model, keep = llama(), models.some()
    model.gradient_checkpointing_enable()
    block = model.model.layers[0]
    with attached(model) as sparse:
        assert sparse.checkpoints
        assert not block.gradient_checkpointing
        with sparse.own_checkpointing():
            truth = models.by_gate(sparse, model, keep)
        assert tiny.gap(models.by_fast_path(sparse, model, keep), truth) < 1e-9
    assert block.gradient_checkpointing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_worse_than_the_gate_in_low_precision(dtype: Any, attention: str) -> None:
    """float64 truth, the gate in a low dtype, the fast path in the same: it must not be the worse of the two."""
    model, keep = models.build("llama", attention=attention), models.some(0.4)
    with attached(model) as sparse:
        truth = models.by_gate(sparse, model, keep)
    model = model.to(torch.float32 if dtype == "autocast" else dtype)

    def error(found: dict[str, Tensor]) -> float:
        return float(sum((found[n].double() - truth[n]).square().sum() for n in truth)) ** 0.5

    with attached(model) as sparse, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        gate = error(models.by_gate(sparse, model, keep))
        for store in STORES:
            assert error(models.by_fast_path(sparse, model, keep, store)) <= 1.1 * gate + 1e-6


def test_stored_of_kept_rows_only() -> None:
    """Known beforehand, what lies behind attention is stored of kept rows; with checkpointing, nothing is."""
    model, keep = llama(num_hidden_layers=1), models.some(0.25)
    sizes = {}
    with attached(model) as sparse:
        for store in STORES:
            with sparse.forward(keep=keep, store=store):
                value = models.loss(model, keep)
            node: Any = value.grad_fn
            while type(node).__name__ != "_BlockBackward":
                node = node.next_functions[0][0]
            tape = node.call.tape
            kept = [*tape.results, tape.seen.output, tape.seen.logsumexp]
            sizes[store] = sum(t.numel() for t in kept if t is not None)
    assert sizes["nothing"] == 0
    assert sizes["kept"] < 0.5 * sizes["all"]


def test_closed_it_is_as_it_was() -> None:
    model, keep = llama(), models.some()
    before = models.backward(model, lambda: models.loss(model, keep))
    with attached(model) as sparse:
        idle = models.backward(model, lambda: models.loss(model, keep))
        with sparse.forward(), torch.no_grad():
            assert not models.loss(model, keep).requires_grad
    assert "forward" not in model.model.layers[0].__dict__
    assert model.config._attn_implementation == "sdpa"
    for found in (idle, models.backward(model, lambda: models.loss(model, keep))):
        assert all(torch.equal(found[n], before[n]) for n in before)


def test_a_forgotten_selection_is_told() -> None:
    model = llama()
    with attached(model) as sparse:
        with sparse.forward():
            value = models.loss(model, models.some())
        with pytest.raises(RuntimeError, match="choose was not called"):
            value.backward()


# --- what is not served ----------------------------------------------------------------------------------------------------

FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({}, "MambaBlock is no softmax attention"),
    "mixtral": (FOUR, "routes tokens to experts"),
    "gptj": ({"n_head": 4, "n_layer": 2, "n_embd": 32, "rotary_dim": 4}, "makes no attention through"),
    "diffllama": ({}, "attends more than once"),
    "seed_oss": ({"head_dim": 8}, "attention dropout of 0.1"),
    "bart": ({"decoder_layers": 3}, "does not find the"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(kind: str) -> None:
    fields, why = REFUSED[kind]
    model = models.build(kind, **fields)
    told = proved(model) if kind in ("gptj", "diffllama", "seed_oss") else refused(model)
    assert why in str(told), told


def refused(model: Any) -> str:
    with pytest.raises(UserError) as e:
        SparseBackward(model)
    return str(e.value)


def proved(model: Any, dtype: torch.dtype = torch.float64) -> str | None:
    keep = models.some()
    with attached(model) as sparse:
        named = model.named_parameters()
        return wrong_gradients(sparse, named, lambda: models.loss(model, keep), keep, "all", dtype)


def test_an_implementation_that_is_not_reached() -> None:
    model = llama()
    model.config._attn_implementation = "flex_attention"
    assert "attn_implementation sdpa or eager" in refused(model)


def test_rows_mixed_outside_attention_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift of tokens in a block that looks like any other: nobody knows its name, the gradients tell."""
    model = llama()
    assert proved(model) is None
    assert proved(model.float(), torch.float32) is None
    assert all(p.grad is None for p in model.parameters())
    own = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: own(self, x + x.roll(1, 1)))
    told = proved(model.double())
    assert told is not None
    assert "does not serve LlamaDecoderLayer: its gradient to model." in told


def test_gradients_are_held_against_their_norm() -> None:
    """One that is 0 but for rounding is no evidence; one that is missing is."""
    large, small = torch.ones(4), torch.full((4,), 1e-9)
    assert farthest(["a", "b"], [large, -small], [large, small])[0] < 1e-6
    assert farthest(["a", "b"], [large, large], [large, 2 * large]) == (pytest.approx(0.5), "b")
    assert farthest(["a", "b"], [large, None], [large, small]) == (float("inf"), "b")
    assert farthest(["a"], [torch.full((4,), float("nan"))], [large])[0] == float("inf")
    assert farthest(["a"], [None], [None]) == (0.0, "")


# --- what it costs ---------------------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """FLOPs of what is done while open. torch's FlopCounterMode hooks parameters, which no gradient within a backward bears."""

    flops = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        return made


@pytest.mark.parametrize("strict", [False, True])
def test_counted_by_block(strict: bool) -> None:
    """Against the matrix products that torch counts: k and v whole, all else of the blocks for kept tokens."""
    model, keep = llama(attention="eager", tie_word_embeddings=False), models.some(0.25)
    tokens, kept = keep.numel(), int(keep.sum())
    with attached(model, strict=strict) as sparse, Products() as counter:
        models.by_fast_path(sparse, model, keep)
    # Attention is computed again for kept queries here, and not halved; the test's own loss has the whole head.
    attention, heads = 2 * 2 * 4 * 8 * 2 * models.LENGTH, 2 * 32 * tiny.VOCAB
    done = counter.flops - attention * (kept + tokens / 2 + kept) - 2 * heads * (tokens - kept)
    ours = token_flops(model, models.LENGTH, sparse=True, strict=strict)
    assert ours.train(tokens, kept) == pytest.approx(done, rel=0.05)
    assert ours.train(tokens, tokens) == pytest.approx(token_flops(model, models.LENGTH).train(tokens, tokens))
