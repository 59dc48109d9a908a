"""What users of the Trainer switch on: checkpointing, bf16, LoRA, compilation, isolated documents. Same gradients."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tokensieve.core import objective
from tokensieve.training.token_log import TokenLogConfig
from tokensieve.training.trainer import SelectiveTrainer

ROWS = tiny.rows(8)
BATCH: dict[str, Any] = ROWS.to_dict()


@pytest.mark.parametrize(("scope", "reentrant"), [("batch", True), ("step", False)])
def test_gradient_checkpointing(tmp_path: Path, scope: str, reentrant: bool) -> None:
    """A second forward inside the backward must neither run the loss again nor find the seam closed."""
    made = objective("rho1", ratio=0.4, scope=scope)
    plain = tiny.step_gradients(tmp_path / "a", ROWS, made, 4, 2)
    kwargs = {"use_reentrant": reentrant}
    again = tiny.step_gradients(
        tmp_path / "b", ROWS, made, 4, 2, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs
    )
    assert tiny.gap(again, plain) < 1e-12


def test_bf16_keeps_nll_in_float32(tmp_path: Path) -> None:
    """bfloat16 has 8 bits: an nll of 5 would be a multiple of 1/32, and a ranking full of ties."""
    import pyarrow.parquet as pq

    model = tiny.llama()
    truth = tiny.shifted_nll(model, BATCH).detach()
    log = TokenLogConfig(every=1, rows=100)
    trainer = tiny.train(
        model, tiny.arguments(tmp_path, 8, bf16=True, learning_rate=0.0), ROWS, objective("rho1"), token_log=log
    )
    found = pq.read_table(tmp_path / "tokens" / "step-00000001.parquet").to_pydict()
    nll = torch.tensor(found["nll"])
    assert (nll.bfloat16().float() != nll).float().mean() > 0.9
    wanted = torch.tensor([truth[p].item() for p in zip(found["row"], found["position"], strict=True)])
    # weights are large here (nll up to 30): bfloat16 activations move a logit by up to half a nat
    assert (nll - wanted).abs().mean() < 0.2
    assert (nll - wanted).abs().max() < 1.5
    assert trainer.model.dtype == torch.float32
    grads = tiny.step_gradients(tmp_path / "g", ROWS, objective("clm"), 8, model=tiny.llama(), bf16=True)
    close = tiny.truth_gradients(tiny.llama(), BATCH, torch.ones_like)
    cosine = torch.nn.functional.cosine_similarity(*(torch.cat([t[n].flatten().double() for n in close])
                                                     for t in (grads, close)), dim=0)  # fmt: skip
    assert cosine > 0.99


def lora_model() -> Any:
    peft = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny.llama(dtype=torch.float64), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero to begin with: then lora_A would have no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_lora(tmp_path: Path) -> None:
    """The seam sits on the model inside peft's wrapper; only the adapter moves, along the same gradient as ever."""
    model = lora_model()
    before = tiny.weights(model)
    tiny.train(model, tiny.arguments(tmp_path, 4, 2), ROWS, objective("rho1", ratio=0.4, scope="step"))
    moved = {n: before[n] - p for n, p in tiny.weights(model).items()}
    truth = lora_model()
    nll = tiny.shifted_nll(truth, BATCH)
    keep = tiny.rho1_keep(nll.detach(), BATCH, 0.4, [range(8)])
    nll[keep].mean().backward()
    for name, parameter in truth.named_parameters():
        assert ("lora" in name) == (parameter.grad is not None) == bool(moved[name].any()), name
    wanted = {n: p.grad for n, p in truth.named_parameters() if p.grad is not None}
    assert tiny.gap({n: moved[n] for n in wanted}, wanted) < 1e-6


def compiled_gap(folder: Path, **fields: Any) -> float:
    """Of a model of one block: each is traced by itself."""
    made = objective("rho1", ratio=0.4)
    one, other = (tiny.llama(num_hidden_layers=1) for _ in range(2))
    plain = tiny.step_gradients(folder / "a", ROWS, made, 4, 2, model=one)
    compiled = tiny.step_gradients(folder / "b", ROWS, made, 4, 2, model=other, torch_compile=True, **fields)
    return tiny.gap(compiled, plain)


def test_torch_compile_traces_around_the_loss(tmp_path: Path) -> None:
    """A hook that the compiler traces away would leave the loss out. The graph is captured, but run as it is."""
    assert compiled_gap(tmp_path, torch_compile_backend="eager") < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler, and there is no g++")
def test_torch_compile(tmp_path: Path) -> None:
    assert compiled_gap(tmp_path) < 1e-4


def isolated_rows() -> tuple[Any, list[list[int]]]:
    """Four rows of pieces kept apart."""
    starts = [[0, 7], [0], [0, 3, 4, 10], [0, 15]]
    data = tiny.rows(4, uneven=False, doc_starts=starts, isolated=[True] * 4)
    return data.remove_columns("labels"), starts


@pytest.mark.parametrize("checkpointing", [False, True])
def test_isolated_pieces_train_as_if_alone(tmp_path: Path, checkpointing: bool) -> None:
    """Positions that restart but attention that does not stop: the pieces see each other, and nothing tells."""
    data, starts = isolated_rows()
    found = tiny.step_gradients(tmp_path, data, objective("clm"), 2, 2, gradient_checkpointing=checkpointing)
    model, sums, count = tiny.llama(dtype=torch.float64), [], 0
    for ids, cuts in zip(data["input_ids"], starts, strict=True):
        for start, end in zip(cuts, [*cuts[1:], tiny.LENGTH], strict=True):
            sums.append(tiny.shifted_nll(model, {"input_ids": [ids[start:end]]}).sum())
            count += end - start - 1
    (torch.stack(sums).sum() / count).backward()
    assert tiny.gap(found, {n: p.grad for n, p in model.named_parameters()}) < 1e-6


def test_dropout_is_the_same_in_both_passes_of_a_step(tmp_path: Path) -> None:
    """scope: step ranks by a first pass. With other dropout masks than the second it would rank another network."""
    model = tiny.llama(attention_dropout=0.5)
    trainer = SelectiveTrainer(
        model,
        tiny.arguments(tmp_path, 2, 4, learning_rate=0.0),
        train_dataset=ROWS,
        objective=objective("rho1", ratio=0.4, scope="step"),
    )
    seen: list[torch.Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()), prepend=True)
    trainer.train()
    seen = seen[3:]  # the probe's three
    assert len(seen) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen[:4], seen[4:], strict=True))
    assert not torch.equal(seen[0], tiny.llama().model(torch.tensor(BATCH["input_ids"][:2])).last_hidden_state)


def test_several_workers_load_the_same_rows(tmp_path: Path) -> None:
    made = objective("rho1", ratio=0.4)
    plain = tiny.step_gradients(tmp_path / "a", ROWS, made, 4, 2)
    workers = tiny.step_gradients(tmp_path / "b", ROWS, made, 4, 2, dataloader_num_workers=1)
    assert tiny.gap(workers, plain) < 1e-12
