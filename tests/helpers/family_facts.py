"""What docs/families.md says of a family, each measured on a tiny model of it: a cell of the table, or AssertionError.

*Refused* is said of what tokensieve refuses by itself, in a sentence, and rightly: a model refused for isolated documents
is shown to look across their boundary.
"""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from datasets import Dataset
from families import NOT_CAUSAL, TERNARY, Family, build, takes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tokensieve.core import LinearHead, objective, weighted_nll
from tokensieve.data.rows import Rows, shift_targets
from tokensieve.modeling.probe import broken_property
from tokensieve.modeling.seam import HeadSeam
from tokensieve.runs.errors import UserError
from tokensieve.training.engines import refuse_deferred_router_loss
from tokensieve.training.trainer import SelectiveTrainer

Gradients = dict[str, Tensor]
RATIO, STEPS, SAVED, SEED = 0.5, 4, 2, 7
SCHEDULE = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "lr_scheduler_type": "linear"}
DATA = tiny.rows(4)
BATCH = DATA.to_dict()
IDS, LABELS = torch.tensor(BATCH["input_ids"]), torch.tensor(BATCH["labels"])
# Eight rows of several documents, at least two of them in every other row.
LENGTH, STARTS = 24, [[0, 9], [0], [0, 5, 14], [0, 20], [0, 11, 18], [0], [0, 3, 6, 18], [0, 12]]
DOCUMENTS = torch.randint(1, tiny.VOCAB, (8, LENGTH), generator=torch.Generator().manual_seed(0))
ISOLATED = Rows(Dataset.from_dict({"input_ids": DOCUMENTS.tolist(), "isolated": [True] * 8, "doc_starts": STARTS}))
PLAIN = Rows(Dataset.from_dict({"input_ids": DOCUMENTS.tolist()}))
# What the sentence says that a sparse backward is refused with -> the cell.
REFUSED = {
    "is no softmax attention": "no softmax attention",
    "routes tokens to experts": "experts",
    "makes no attention through": "attention of its own",
    "attends more than once": "attends twice",
    "beside its hidden states it takes": "blocks take more than hidden states",
}
# Of the largest entry of a gradient. transformers makes its loss, and many norms and routers, in float32 whatever comes in; in
# float32 throughout, sums over 64 tokens and 2 blocks are taken in other orders.
NEAR = {torch.float64: 1e-5, torch.float32: 1e-4}


# --- oracles: the model's own logits and what it adds to its loss; nothing of tokensieve -----------------------------------


def forward(model: Any, **inputs: Any) -> Any:
    return model(**inputs, **({"use_cache": False} if takes(model, "use_cache") else {}))


def nll_of(logits: Tensor, ids: Tensor) -> Tensor:
    """nll of ``ids[t]`` at t; entry 0 is 0. [B, T]"""
    picked = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return nn.functional.pad(-picked, (1, 0))


def added(model: Any, outputs: Any) -> Tensor:
    """The router loss as the model would add it to its own loss; 0 where it makes none."""
    aux = getattr(outputs, "aux_loss", None)
    if aux is None:
        return torch.zeros((), dtype=torch.float64)
    names = ("router_aux_loss_coef", "aux_loss_coef")
    return next(getattr(model, name) for name in names if hasattr(model, name)) * aux


def kept_loss(model: Any, keep: Tensor) -> Tensor:
    """Mean nll of the kept tokens, and the router loss."""
    torch.manual_seed(SEED)
    outputs = forward(model, input_ids=IDS)
    return nll_of(outputs.logits, IDS)[keep].mean() + added(model, outputs)


def chosen(model: Any) -> Tensor:
    """What rho1 keeps of the four rows, with Python's sort. bool [B, T]"""
    torch.manual_seed(SEED)
    with torch.no_grad():
        nll = nll_of(forward(model, input_ids=IDS).logits, IDS)
    return tiny.rho1_keep(nll, BATCH, RATIO, [range(4)])


def gradients(model: Any, loss: Tensor) -> Gradients:
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def near(found: Gradients, wanted: Gradients, dtype: torch.dtype) -> None:
    """Equal to what rounding does; a parameter without a gradient has one of 0."""
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 0
    for name in {**wanted, **found}:
        zero = torch.zeros_like((found if name in found else wanted)[name])
        gap = float((found.get(name, zero) - wanted.get(name, zero)).abs().max())
        assert gap <= NEAR[dtype] * largest, f"the gradient to {name} is {gap / largest:.1g} off"


@contextmanager
def gates(model: Any, keep: Tensor) -> Iterator[None]:
    """The hidden state of a position that predicts no kept token is a constant at the input of every block."""
    predicting = nn.functional.pad(keep[:, 1:], (0, 1)).unsqueeze(-1)

    def gate(hidden: Tensor) -> Tensor:
        return torch.where(predicting, hidden, hidden.detach())

    def at_input(block: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (gate(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": gate(kwargs["hidden_states"])}

    number = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    handles = [block.register_forward_pre_hook(at_input, with_kwargs=True) for block in lists[0]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- the facts ---------------------------------------------------------------------------------------------------------------


def own_loss(family: Family, folder: Path) -> str:
    """Everything kept: the loss and every gradient are the model's own, its router loss among them."""
    model = build(family)
    own = forward(model, input_ids=IDS, labels=LABELS)
    loss = own.loss.detach().double()
    wanted = gradients(model, own.loss)
    targets, seam = shift_targets(LABELS), HeadSeam(model)

    def compute(hidden: Tensor, head: LinearHead) -> Tensor:
        total, count = weighted_nll(hidden, head, targets, torch.ones_like(targets))
        return total / count

    with seam.run(compute):
        ours = forward(model, input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(ours.detach().double(), loss, rtol=1e-6, atol=0)
    near(gradients(model, ours), wanted, family.dtype)
    seam.close()
    return "equal" if family.dtype == torch.float64 else "equal (float32)"


def router(family: Family, folder: Path) -> str:
    """What the model adds for its router is in the loss; a rule that divides after the backward is refused beside it."""
    model = build(family)
    outputs = forward(model, input_ids=IDS, labels=LABELS)
    extra = float(added(model, outputs))
    nll = nll_of(outputs.logits.double(), IDS)[tiny.valid_targets(BATCH)].mean()
    torch.testing.assert_close(outputs.loss.double(), nll + extra, rtol=1e-5, atol=0)  # it adds that and no more
    seam = HeadSeam(model)
    with seam.run(lambda hidden, head: None):
        alone = float(forward(model, input_ids=IDS, labels=LABELS).loss)
    seam.close()
    torch.testing.assert_close(alone, extra, rtol=1e-5, atol=0)
    if not extra:
        return "none"
    try:
        refuse_deferred_router_loss(objective("dft", denominator="weight"), model)
    except UserError:
        return "added"
    raise AssertionError("a rule that divides after the backward would divide the router loss, too")


class Noted(TrainerCallback):  # type: ignore[misc]
    """The gradients of the first step, before it is taken. What a router draws in it (Phi-3.5-MoE) is what the oracles draw."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(SEED)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            named = kwargs["model"].named_parameters()
            self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}


def train(model: Any, folder: Path, *, resume: bool = False, backward: Any = "exact", **fields: Any) -> Gradients:
    """rho1 at RATIO on the four rows at once, a step each; gradients of the first step."""
    noted = Noted()
    args = tiny.arguments(folder, 4, **{"optim": "adamw_torch", "learning_rate": 1e-3, **fields})
    made = objective("rho1", ratio=RATIO)
    trainer = SelectiveTrainer(model, args, train_dataset=DATA, objective=made, backward=backward, callbacks=[noted])
    trainer.pop_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        trainer.seam.close()
    return noted.gradients


def selection(family: Family, folder: Path) -> str:
    """rho1: the first step's gradients are those of the kept tokens alone, and what they are of falls."""
    before, model = build(family).train(), build(family)
    keep = chosen(before)
    found = train(model, folder / "whole", **SCHEDULE)
    near(found, gradients(before, kept_loss(before, keep)), family.dtype)
    with torch.no_grad():
        loss, after = (kept_loss(m.eval(), keep) for m in (before, model))
    assert float(after) < float(loss), f"{float(loss):.4f} became {float(after):.4f}"
    if family.kind == TERNARY:
        check_ternary(before)
        check_ternary(model)
    torch.save(model.state_dict(), folder / "weights.pt")
    return "trains"


def resumed(family: Family, folder: Path) -> str:
    """Stopped half way and gone on with, in a model of other random weights: all are those of the run that was not stopped."""
    wanted = torch.load(folder / "weights.pt")
    shutil.copytree(folder / "whole", folder / "stopped")
    shutil.rmtree(folder / "stopped" / f"checkpoint-{STEPS}")
    model = build(family, seed=1)
    train(model, folder / "stopped", resume=True, **SCHEDULE)
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    wrong = [n for n in found if not torch.equal(found[n], wanted[n])]
    assert not wrong, f"{len(wrong)} weights of {len(found)} are others, the first is {wrong[0]}"
    return "exact"


def across(model: Any) -> float:
    """The most that a token's nll differs, in nats, between documents packed with positions that restart and each alone."""
    most = 0.0
    for ids, starts in zip(DOCUMENTS, STARTS, strict=True):
        ends = [*starts[1:], LENGTH]
        places = torch.cat([torch.arange(b - a) for a, b in zip(starts, ends, strict=True)])
        with torch.no_grad():
            given = {"position_ids": places[None]} if takes(model, "position_ids") else {}
            packed = nll_of(forward(model, input_ids=ids[None], **given).logits, ids[None])[0]
            for a, b in zip(starts, ends, strict=True):
                part = nll_of(forward(model, input_ids=ids[None, a:b]).logits, ids[None, a:b])[0]
                most = max(most, float((packed[a + 1 : b] - part[1:]).abs().max()) if b - a > 1 else 0.0)
    return most


def documents(family: Family, folder: Path) -> str:
    """Isolated documents in one row: the nll of each is what it is alone, or the proof before the run refuses them."""
    model = build(family)
    seam = HeadSeam(model)
    told = broken_property(seam, ISOLATED, 4, model, torch.device("cpu"))
    assert broken_property(seam, PLAIN, 4, model, torch.device("cpu")) is None  # that is all that is wrong with it
    seam.close()
    gap = across(model)
    if told is None:
        assert gap < 1e-3, f"{gap:.3f} nats between documents packed and alone"
        return "kept apart"
    assert "isolate_documents: false" in told, told
    assert gap > 1e-3, f"refused, and right: {told}"
    return "refused"


def sparse(family: Family, folder: Path) -> str:
    """A backward of kept tokens: its gradients are the gate's, or it is refused by a sentence."""
    model, reference = build(family), build(family).train()
    keep = chosen(reference)
    try:
        found = train(model, folder / "sparse", backward="sparse", max_steps=1)
    except UserError as e:
        told = str(e)
        assert told.startswith("backward: sparse"), told
        return f"refused: {next((why for said, why in REFUSED.items() if said in told), told)}"
    with gates(reference, keep):
        near(found, gradients(reference, kept_loss(reference, keep)), family.dtype)
    return "served"


FACTS: dict[str, Callable[[Family, Path], str]] = {
    "own loss": own_loss,
    "router loss": router,
    "selection": selection,
    "resumed": resumed,
    "documents": documents,
    "sparse backward": sparse,
}


def row(family: Family, folder: Path, on_error: Callable[[str], str] | None = None) -> dict[str, str]:
    """All facts of a family, by the heads of the table. ``on_error`` gives the cell of one that does not hold; else: raised."""
    cells = {}
    with torch.compiler.set_stance("force_eager"):  # BitNet's quantisation is compiled, which takes a minute
        for name, fact in FACTS.items():
            try:
                cells[name] = fact(family, folder)
            except Exception:
                if on_error is None:
                    raise
                traceback.print_exc()
                cells[name] = on_error(name)
    return cells


def refusal(name: str) -> str:
    """The sentence that a model of NOT_CAUSAL is refused with."""
    kind, config, fields = NOT_CAUSAL[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**fields)).eval()
    try:
        told = broken_property(HeadSeam(model), PLAIN, 4, model, torch.device("cpu"))
    except UserError as e:
        told = str(e)
    assert told is not None
    return re.sub(r"\d+ of (\d+ tokens) by up to [\d.]+ nats", r"\1", told)  # how many and how far differs by processor


def check_ternary(model: Any) -> None:
    """Every linear map of every block multiplies with weights of three values, -s, 0 and s; only the head does not."""
    seen: list[Tensor] = []

    class Weights(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is nn.functional.linear:
                seen.append(args[1].detach())
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Weights():
        forward(model, input_ids=IDS)
    *blocks, head = seen
    assert len(blocks) == 7 * model.config.num_hidden_layers
    for weight in blocks:
        scale = weight.abs().max()
        assert scale > 0
        assert bool(((weight == 0) | (weight.abs() == scale)).all())
    assert len(head.unique()) > 3
