"""Real transformers classes with tiny random weights: everything kept, the seam's loss is the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import MODELS, V, build
from torch import Tensor

from tokensieve.core import LinearHead, weighted_nll
from tokensieve.data.rows import shift_targets
from tokensieve.modeling.seam import HeadSeam
from tokensieve.runs.errors import UserError

B, T = 3, 12


def batch() -> tuple[Tensor, Tensor]:
    """(input_ids, labels): some labels ignored, at both ends and within."""
    ids = torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6] = labels[2, 8:] = -100
    return ids, labels


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def full_keep_loss(model: Any, seam: HeadSeam, ids: Tensor, labels: Tensor) -> Tensor:
    """Our loss with weight 1 on every target, and what the model adds by itself."""
    targets = shift_targets(labels)

    def compute(hidden: Tensor, head: LinearHead) -> Tensor:
        loss_sum, weight_sum = weighted_nll(hidden, head, targets, torch.ones_like(targets))
        return loss_sum / weight_sum

    with seam.run(compute):
        return model(input_ids=ids, labels=labels).loss


@pytest.mark.parametrize("name", MODELS)
def test_everything_kept_is_the_models_own_loss(name: str) -> None:
    """A head read from its weight alone: logit scale, soft-cap, bias and router losses are lost, and training still runs."""
    model, (ids, labels) = build(name), batch()
    own = model(input_ids=ids, labels=labels).loss
    wanted = gradients(model, own)
    seam = HeadSeam(model)
    ours = full_keep_loss(model, seam, ids, labels)
    torch.testing.assert_close(ours.double(), own.double(), rtol=1e-6, atol=0)
    found = gradients(model, ours)
    assert found.keys() == wanted.keys()
    largest = max(float(g.abs().max()) for g in wanted.values())
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=2e-6 * largest, msg=key)


@pytest.mark.parametrize("name", ["mixtral-router", "qwen3moe-router"])
def test_router_losses_are_kept(name: str) -> None:
    """A loss function that replaces the model's drops the router loss, and the experts collapse unseen."""
    model, (ids, labels) = build(name), batch()
    out = model(input_ids=ids, labels=labels)
    assert out.aux_loss.item() > 0
    with HeadSeam(model).run(lambda hidden, head: None):
        added = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(added.double(), 0.5 * out.aux_loss.double(), rtol=1e-5, atol=0)


def untouched(model: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels)
        return out.loss, out.logits, model.generate(ids[:, :4], max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("name", ["llama-tied", "gemma3-softcap", "mixtral-router"])
def test_an_idle_seam_changes_nothing(name: str) -> None:
    """A model patched for training that no longer generates: the seam is seen only while it runs, and goes when closed."""
    model, (ids, labels) = build(name), batch()
    before = untouched(model, ids, labels)
    own_loss, hooks = model.loss_function, len(model.get_output_embeddings()._forward_hooks)
    seam = HeadSeam(model)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(untouched(model, ids, labels), before, strict=True))
        full_keep_loss(model, seam, ids, labels)
    seam.close()
    assert all(torch.equal(a, b) for a, b in zip(untouched(model, ids, labels), before, strict=True))
    assert model.loss_function is own_loss
    assert len(model.get_output_embeddings()._forward_hooks) == hooks == 0
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_two_forwards_before_their_backwards() -> None:
    """A loss carried in the seam itself: the second forward's gradient would come out of the first one's backward."""
    model, (ids, labels) = build("llama"), batch()
    seam = HeadSeam(model)
    losses = [full_keep_loss(model, seam, ids[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    found = [gradients(model, loss) for loss in losses]
    for i in (0, 1):
        wanted = gradients(model, model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss)
        for name, value in wanted.items():
            torch.testing.assert_close(found[i][name], value, rtol=0, atol=1e-5, msg=name)


def test_a_loss_without_a_gradient() -> None:
    """Evaluation: the number comes out all the same."""
    model, (ids, labels) = build("llama"), batch()
    seam = HeadSeam(model)
    with torch.no_grad():
        own, ours = model(input_ids=ids, labels=labels).loss, full_keep_loss(model, seam, ids, labels)
    torch.testing.assert_close(ours.double(), own.double(), rtol=1e-6, atol=0)


def test_a_forward_that_fails_leaves_the_seam_idle() -> None:
    """A seam left running by an exception: the next plain forward silently returns a loss of 0."""
    model, (ids, labels) = build("llama"), batch()
    own = model(input_ids=ids, labels=labels).loss
    seam = HeadSeam(model)

    def fail(hidden: Tensor, head: LinearHead) -> None:
        raise RuntimeError("in the head")

    with pytest.raises(RuntimeError, match="in the head"), seam.run(fail):
        model(input_ids=ids, labels=labels)
    assert torch.equal(model(input_ids=ids, labels=labels).loss, own)


def test_logits_are_never_made() -> None:
    """[tokens, vocab] logits that are made and thrown away: the memory that the chunked head was to save."""
    model, (ids, labels) = build("gemma2-softcap"), batch()
    shapes: list[torch.Size] = []
    seam = HeadSeam(model)
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    with seam.run(lambda hidden, head: shapes.append(hidden.shape)):
        out = model(input_ids=ids, labels=labels)
    assert shapes == [torch.Size([B, T, 32]), torch.Size([B, 0, V])]
    assert out.logits.shape == (B, 0, V)
    assert float(out.loss) == 0


class Linear4bit(torch.nn.Linear):
    """Stands for a quantised layer: a subclass of Linear whose weight is not what it multiplies with."""


def test_quantised_head_is_refused_by_name() -> None:
    """isinstance(head, nn.Linear) holds for bitsandbytes' layers too; reading their packed weight gives noise."""
    model = build("llama")
    model.lm_head = Linear4bit(32, V, bias=False)
    with pytest.raises(UserError, match=r"Linear4bit, not torch\.nn\.Linear: quantised or adapter-wrapped"):
        HeadSeam(model)


@pytest.mark.parametrize("wrap", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_adapter_on_the_head_is_refused_by_name(wrap: dict[str, Any]) -> None:
    """LoRA on the head: its base weight alone would be trained against, and the adapter never."""
    peft = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **wrap})
    with pytest.raises(UserError, match=r"the head of LlamaForCausalLM is peft\..*not torch.nn.Linear"):
        HeadSeam(peft.get_peft_model(build("llama"), config))


def test_models_that_are_no_causal_lm_are_refused() -> None:
    with pytest.raises(UserError, match="LlamaModel has no output embedding"):
        HeadSeam(build("llama").model)
    with pytest.raises(UserError, match="Linear has no output embedding"):
        HeadSeam(torch.nn.Linear(2, 2))


def test_shift_targets() -> None:
    """A label used where it stands: the model learns to copy its input, at a loss near zero."""
    assert shift_targets(torch.tensor([[5, 6, -100, 8]])).tolist() == [[6, -100, 8, -100]]
    assert shift_targets(torch.tensor([5, 6])).tolist() == [6, -100]
