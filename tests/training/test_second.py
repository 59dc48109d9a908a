"""Distillation and smoothing in a training step: gradients against float64 autograd on full logits, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rule_oracles import second_loss, similar
from torch import Tensor

from tokensieve import UserError
from tokensieve.core import objective
from tokensieve.training.trainer import HeadOptions, SelectiveTrainer


def log_probs(model: Any, batch: dict[str, Any]) -> Tensor:
    """Of ``input_ids[t]``'s place, at t; nothing stands at 0. [B, T, V]"""
    logits = copy.deepcopy(model).eval()(input_ids=torch.tensor(batch["input_ids"])).logits.double()
    return torch.nn.functional.pad(logits[:, :-1].log_softmax(-1), (0, 0, 1, 0))


def truth(model: Any, batch: dict[str, Any], target: Any, weigh: Any, share: float, rest: bool) -> dict[str, Tensor]:
    """Gradients of the weighted mean of ``second_loss``, token by token; ``target(b, t)`` gives ids and probabilities."""
    model = copy.deepcopy(model).eval()
    logits = model(input_ids=torch.tensor(batch["input_ids"])).logits.double()
    log_p = torch.nn.functional.pad(logits[:, :-1].log_softmax(-1), (0, 0, 1, 0))
    ids, valid = torch.tensor(batch["input_ids"]), tiny.valid_targets(batch)
    weight = weigh(-log_p.detach().gather(-1, ids[..., None]).squeeze(-1)).double() * valid
    total = sum(
        weight[b, t] * second_loss(log_p[b, t], int(ids[b, t]), *target(b, t), share, rest, False)
        for b, t in (weight != 0).nonzero().tolist()
    )
    (total / weight.sum()).backward()  # type: ignore[union-attr]
    return {n: p.grad.double() for n, p in model.named_parameters()}


def rho1(batch: dict[str, Any]) -> Any:
    return lambda nll: tiny.rho1_keep(nll, batch, 0.5, [range(4), range(4, 8)])


@pytest.mark.parametrize("rest", ["bucket", "renormalised"])
def test_columns_on_the_tokens_of_a_rule(rest: str, tmp_path: Path) -> None:
    """A column taken at the place before or after its token trains on a neighbour's distribution, at a plausible loss."""
    data, model = tiny.rows(8, **tiny.topk_columns()), tiny.llama(dtype=torch.float64)
    made = objective("distill", of={"name": "rho1", "ratio": 0.5}, share=0.4, rest=rest)
    batch = data.to_dict()

    def target(b: int, t: int) -> tuple[list[int], list[float]]:
        q = torch.tensor(batch["topk_logp"][b][t], dtype=torch.float64).exp()
        return batch["topk_ids"][b][t], (q / q.sum() if rest == "renormalised" else q).tolist()

    wanted = truth(model, batch, target, rho1(batch), 0.4, rest == "bucket")
    found = tiny.step_gradients(tmp_path, data, made, 4, 2)
    assert tiny.gap(found, wanted) < 1e-6  # the columns are float32


def test_a_teacher_beside_the_student(tmp_path: Path) -> None:
    """With as many entries as there are it is the whole KL: teacher and student at the same places of the same rows."""
    data, model = tiny.rows(8), tiny.llama(dtype=torch.float64)
    teacher = tiny.llama(dtype=torch.float64, seed=5)
    batch, of_teacher = data.to_dict(), log_probs(teacher, data.to_dict()).exp()
    made = objective("distill", of={"name": "rho1", "ratio": 0.5}, teacher="beside", top_k=tiny.VOCAB)
    wanted = truth(
        model, batch, lambda b, t: (list(range(tiny.VOCAB)), of_teacher[b, t].tolist()), rho1(batch), 1.0, True
    )
    before = tiny.weights(model)
    trainer = tiny.train(model, tiny.arguments(tmp_path, 4, 2), data, made, teacher=teacher)
    assert tiny.gap({n: before[n] - w for n, w in tiny.weights(model).items()}, wanted) < 1e-9
    assert all(p.grad is None for p in teacher.parameters())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(tiny.log_lines(tmp_path)[0]["loss"], rel=1e-5)
    plain = trainer.token_log.flops.student.train(8 * tiny.LENGTH, tiny.log_lines(tmp_path)[0]["kept"])
    assert tiny.log_lines(tmp_path)[0]["flops_student"] > 1.2 * plain


def test_a_sparse_backward_learns_from_the_teacher_what_an_exact_one_does(tmp_path: Path) -> None:
    """The head hears kept tokens alone in either: its gradient, distilled share included, is the same to the last digits."""
    made = objective("distill", of={"name": "rho1", "ratio": 0.5}, share=0.7, teacher="beside", top_k=tiny.VOCAB)
    heads = {}
    for backward in ("exact", "sparse"):
        model = tiny.llama(dtype=torch.float64, tie_word_embeddings=False)
        before = model.lm_head.weight.detach().clone()
        teacher = tiny.llama(dtype=torch.float64, seed=5)
        args = tiny.arguments(tmp_path / backward, 4, 2)
        tiny.train(model, args, tiny.rows(8), made, teacher=teacher, backward=backward)
        heads[backward] = before - model.lm_head.weight.detach()
    assert float((heads["exact"] - heads["sparse"]).abs().max()) < 1e-12 * float(heads["exact"].abs().max())


def test_a_teacher_that_is_the_student_teaches_nothing(tmp_path: Path) -> None:
    model = tiny.llama(dtype=torch.float64)
    before = tiny.weights(model)
    made = objective("distill", teacher="itself", top_k=5)
    tiny.train(model, tiny.arguments(tmp_path, 8), tiny.rows(8), made, teacher=copy.deepcopy(model))
    assert max(float((before[n] - w).abs().max()) for n, w in tiny.weights(model).items()) < 1e-12


def test_similar_tokens_of_the_start(tmp_path: Path) -> None:
    data, model = tiny.rows(8), tiny.llama(dtype=torch.float64)
    table = model.get_input_embeddings().weight.detach().tolist()
    batch = data.to_dict()

    def target(b: int, t: int) -> tuple[list[int], list[float]]:
        found = similar(table, batch["input_ids"][b][t], 4, 0.5)
        return list(found), list(found.values())

    wanted = truth(model, batch, target, lambda nll: (-nll).exp(), 0.3, False)
    made = objective("smooth", of={"name": "dft", "denominator": "weight"}, share=0.3, temperature=0.5, top_k=4)
    assert tiny.gap(tiny.step_gradients(tmp_path, data, made, 4, 2), wanted) < 1e-6


def test_a_share_that_goes_to_nothing(tmp_path: Path) -> None:
    """At a share of 0 the step is the plain one; the share follows the steps done before."""
    made = objective("schedule", of={"name": "distill"}, option="share", points=[[1, 1.0], [2, 0.0]])
    data = tiny.rows(4, **tiny.topk_columns(4))
    tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4, max_steps=3, learning_rate=1e-9), data, made)
    lines = tiny.log_lines(tmp_path)
    assert lines[0]["loss"] == lines[1]["loss"] != pytest.approx(lines[0]["nll"])
    assert lines[2]["loss"] == pytest.approx(lines[2]["nll"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("topk_ids"), "needs a column 'topk_ids'"),
        (lambda c: c["topk_ids"][1][2].__setitem__(0, 97), "row 1: column 'topk_ids' .* position 2 .* beyond the voc"),
        (lambda c: c["topk_ids"][0][6].__setitem__(0, c["topk_ids"][0][6][1]), "position 6 that is there twice"),
        (lambda c: c["topk_logp"][0][5].__setitem__(1, 0.3), "'topk_logp' has an entry at position 5 that is no log"),
        (lambda c: c["topk_logp"][0][5].__setitem__(1, float("nan")), "position 5 that is no log"),
        (lambda c: c["topk_logp"].__setitem__(3, c["topk_logp"][3][:-1]), "row 3: column 'topk_logp' is not a list"),
        (lambda c: [row.__setitem__(slice(None), [e[:2] for e in row]) for row in c["topk_ids"]], "as many entries"),
    ],
)
def test_columns_that_make_no_sense(change: Any, says: str, tmp_path: Path) -> None:
    columns = tiny.topk_columns(4)
    change(columns)
    with pytest.raises(UserError, match=says):
        tiny.train(
            tiny.llama(), tiny.arguments(tmp_path, 4), tiny.rows(4, uneven=False, **columns), objective("distill")
        )


def test_what_does_not_go_together(tmp_path: Path) -> None:
    args, data = tiny.arguments(tmp_path, 4), tiny.rows(4)
    taught = objective("distill", teacher="x")
    for fields, says in (
        ({"objective": taught}, "distils from a teacher"),
        ({"objective": objective("clm"), "teacher": tiny.llama()}, "objective 'clm' asks none"),
        ({"objective": taught, "teacher": tiny.llama(vocab_size=98)}, "vocabulary of 98, the student one of 97"),
        ({"objective": objective("smooth"), "embeddings": torch.ones(5, 3)}, "embeddings has a vocabulary of 5"),
        ({"objective": taught, "teacher": tiny.llama(), "head": HeadOptions(backend="torch")}, "one target a token"),
    ):
        with pytest.raises(UserError, match=says):
            SelectiveTrainer(tiny.llama(), args, train_dataset=data, **fields)


@pytest.mark.parametrize(("scope", "reference"), [("batch", "ref_divergence"), ("step", None)])
def test_the_furthest_from_the_teacher(scope: str, reference: str | None, tmp_path: Path) -> None:
    """AdaSPEC's filter: the tokens of the highest KL less the reference's, within the scope; the gradient is of these."""
    g = torch.Generator().manual_seed(3)
    column = torch.rand(8, tiny.LENGTH, generator=g)
    data = tiny.rows(8, ref_divergence=column.tolist())
    model, teacher = tiny.llama(dtype=torch.float64), tiny.llama(dtype=torch.float64, seed=5)
    batch = data.to_dict()
    log_p, log_q = log_probs(teacher, batch), log_probs(model, batch)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).detach()
    score = kl - column if reference else kl
    valid, keep = tiny.valid_targets(batch), torch.zeros(8, tiny.LENGTH)
    for group in [range(8)] if scope == "step" else [range(4), range(4, 8)]:
        places = {(b, t): float(score[b, t]) for b in group for t in range(tiny.LENGTH) if valid[b, t]}
        for place in tiny.top(places, 0.4):
            keep[place] = 1
    every = list(range(tiny.VOCAB))
    wanted = truth(model, batch, lambda b, t: (every, log_p[b, t].exp().tolist()), lambda nll: keep, 1.0, True)
    made = objective("distill", teacher="x", top_k=tiny.VOCAB, ratio=0.4, scope=scope, reference=reference)
    before = tiny.weights(model)
    tiny.train(model, tiny.arguments(tmp_path, 4, 2), data, made, teacher=teacher)
    assert tiny.gap({n: before[n] - w for n, w in tiny.weights(model).items()}, wanted) < 1e-6


def test_a_teacher_that_is_asked_twice_is_counted_twice(tmp_path: Path) -> None:
    """Ranking a step by divergence takes a forward of the teacher in the first pass too: the log counted one of two."""
    spent = {}
    for scope in ("batch", "step"):
        made = objective("distill", teacher="x", top_k=4, ratio=0.5, scope=scope, reference=None)
        trainer = tiny.train(
            tiny.llama(), tiny.arguments(tmp_path / scope, 4), tiny.rows(4), made, teacher=tiny.llama(seed=5)
        )
        spent[scope] = tiny.log_lines(tmp_path / scope)[0]["flops_student"]
    places = 4 * tiny.LENGTH
    both = trainer.token_log.flops.student.forward(places) + trainer.token_log.flops.teacher.forward(places)
    assert spent["step"] == pytest.approx(spent["batch"] + both)
