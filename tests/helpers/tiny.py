"""Tiny models, rows and Trainer settings for tests, and the oracles that training is compared with."""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

VOCAB, LENGTH = 97, 16


def llama(*, dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any) -> Any:
    """A Llama of about 15 thousand parameters with random weights, large enough in scale that its nll vary.

    A copy of one that is made once, and the random state that making it leaves: making it is an eighth of a training of a step.
    """
    made, state = _llama(dtype, seed, json.dumps(fields, sort_keys=True))
    torch.set_rng_state(state)
    return made()


@functools.cache
def _llama(dtype: torch.dtype, seed: int, fields: str) -> tuple[Callable[[], Any], Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    given = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **json.loads(fields),
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**given)).to(dtype)
    return copies(in_float64(model) if dtype == torch.float64 else model), torch.get_rng_state()


def copies(model: Any) -> Callable[[], Any]:
    """A function that makes copies of a model: modules out of a pickle, a fifth of what ``deepcopy`` takes, tensors cloned."""
    file, tensors = io.BytesIO(), list[Tensor]()

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> int | None:
            if not isinstance(found, Tensor):
                return None
            if not any(found is known for known in tensors):  # tied weights stay one
                tensors.append(found)
            return next(i for i, known in enumerate(tensors) if found is known)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Tensor:
            return fresh[number]

    Pickler(file).dump(model)
    fresh: list[Tensor] = []

    def copy_of() -> Any:
        fresh[:] = [copy.deepcopy(t) for t in tensors]
        file.seek(0)
        return Unpickler(file).load()

    return copy_of


def in_float64(model: Any) -> Any:
    """The model in float64 throughout, in place.

    transformers' RMSNorm computes in float32 whatever comes in: two float64 runs that are 1e-15 apart may then be 6e-8 apart
    behind it, on one processor and not on the next.
    """
    for name, norm in list(model.double().named_modules()):
        if type(norm).__name__ in ("LlamaRMSNorm", "MixtralRMSNorm"):
            same = torch.nn.RMSNorm(len(norm.weight), norm.variance_epsilon, dtype=torch.float64)
            same.weight = norm.weight
            model.set_submodule(name, same)
    return model


def mixtral() -> Any:
    """A float64 mixture of 4 experts whose router loss is strong."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=3.0,
        initializer_range=0.3,
    )
    config._experts_implementation = "eager"  # the grouped matmul has no float64
    return in_float64(MixtralForCausalLM(config))


def rows(num_rows: int = 8, length: int = LENGTH, seed: int = 0, *, uneven: bool = True, **columns: Any) -> Dataset:
    """Random rows with ``labels`` and ``ref_nll``. ``uneven``: their numbers of targets differ by up to ten times."""
    if not columns:
        return _rows(num_rows, length, seed, uneven)  # made once: a Dataset is not changed, only made another of
    made = _columns(num_rows, length, seed, uneven) | columns
    return Dataset.from_dict({k: v if isinstance(v, list) else v.tolist() for k, v in made.items()})


@functools.cache
def _rows(num_rows: int, length: int, seed: int, uneven: bool) -> Dataset:
    return Dataset.from_dict({k: v.tolist() for k, v in _columns(num_rows, length, seed, uneven).items()})


def _columns(num_rows: int, length: int, seed: int, uneven: bool) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (num_rows, length))
    labels = ids.copy()
    if uneven:
        for i in range(num_rows):
            labels[i, : int(rng.integers(0, 4))] = -100
            labels[i, int(rng.integers(4, length + 1)) :] = -100
    ref_nll = rng.uniform(0, 9, (num_rows, length)).astype(np.float32)
    ref_nll[:, 0] = np.nan
    return {"input_ids": ids, "labels": labels, "ref_nll": ref_nll}


def topk_columns(num_rows: int = 8, length: int = LENGTH, k: int = 3, seed: int = 2) -> dict[str, Any]:
    """Second targets of random rows: ids that differ, and log p of a sum below 1; what a teacher's columns look like."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(VOCAB)[:k] for _ in range(num_rows * length)]).reshape(num_rows, length, k)
    probs = rng.dirichlet(np.ones(k + 1), (num_rows, length))[..., :k]
    return {"topk_ids": ids.tolist(), "topk_logp": np.log(probs).astype(np.float32).tolist()}


def arguments(folder: Path, batch: int = 4, accumulate: int = 1, **fields: Any) -> Any:
    """SGD at a constant rate of 1, rows in order, nothing clipped: a step moves the weights by minus its gradient.

    AdamW would hide a constant factor in the gradients.
    """
    from transformers import TrainingArguments

    given = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "max_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        **fields,
    }
    return TrainingArguments(str(folder), **given)


def train(model: Any, args: Any, dataset: Any, objective: Any, **kwargs: Any) -> Any:
    """Train ``model`` in place; the Trainer, its seam closed."""
    from tokensieve.training.trainer import SelectiveTrainer

    trainer = SelectiveTrainer(model, args, train_dataset=dataset, objective=objective, **kwargs)
    try:
        trainer.train()
    finally:
        trainer.seam.close()
    return trainer


def step_gradients(
    folder: Path, dataset: Any, objective: Any, batch: int, accumulate: int = 1, model: Any = None, **fields: Any
) -> dict[str, Tensor]:
    """What one optimizer step over ``batch * accumulate`` rows subtracts from the weights, by parameter name."""
    model = llama(dtype=torch.float64) if model is None else model
    before = weights(model)
    train(model, arguments(folder, batch, accumulate, **fields), dataset, objective)
    after = weights(model)
    return {name: before[name] - after[name] for name in before}


def weights(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between gradients, relative to the largest entry of ``b``."""
    assert a.keys() == b.keys()
    largest = max(float(t.abs().max()) for t in b.values())
    assert largest > 0
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in b) / largest


# --- truth: full logits, float64 autograd, a sort in Python ------------------------------------------------------------


def shifted_nll(model: Any, batch: dict[str, Any]) -> Tensor:
    """nll of ``input_ids[t]`` at t in float64 out of the model's full logits; entry 0 is 0. [B, T], differentiable."""
    ids = torch.tensor(batch["input_ids"])
    logits = model(input_ids=ids).logits.double()
    picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(-picked, (1, 0))


def valid_targets(batch: dict[str, Any]) -> Tensor:
    """Whether ``input_ids[t]`` is a target: not ignored, and not the first of its row."""
    valid = torch.tensor(batch["labels"]) != -100
    valid[:, 0] = False
    return valid


def top(scores: dict[tuple[int, int], float], ratio: float) -> set[tuple[int, int]]:
    """The best ``ratio`` of some tokens (row, position), ties to the earlier."""
    if not scores:
        return set()
    k = max(1, int(ratio * len(scores) + 0.5))
    return set(sorted(scores, key=lambda place: (-scores[place], place))[:k])


def rho1_keep(nll: Tensor, batch: dict[str, Any], ratio: float, groups: Sequence[range]) -> Tensor:
    """Rho-1's selection over each group of rows, written down with Python's sort. bool [B, T]"""
    keep = torch.zeros(nll.shape, dtype=torch.bool)
    valid = valid_targets(batch)
    for group in groups:
        places = [(b, t) for b in group for t in range(nll.shape[1]) if valid[b, t]]
        for place in top({p: float(nll[p]) - batch["ref_nll"][p[0]][p[1]] for p in places}, ratio):
            keep[place] = True
    return keep


def truth_gradients(model: Any, batch: dict[str, Any], weigh: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Gradients of ``sum(weight * nll) / sum(weight)`` over all rows of ``batch`` at once; ``weigh`` is given the nll."""
    model = copy.deepcopy(model).eval()
    nll = shifted_nll(model, batch)
    weight = weigh(nll.detach()).double() * valid_targets(batch)
    loss = (weight * nll).sum() / weight.sum().clamp(min=1e-300)
    loss.backward()
    return {n: p.grad.double() for n, p in model.named_parameters()}


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``tokens.jsonl``."""
    import json

    return [json.loads(line) for line in (folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]
