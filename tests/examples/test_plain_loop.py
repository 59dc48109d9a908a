"""examples/plain_loop.py: it runs as it is, and its gradients are the Trainer's."""

import importlib.util
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from transformers import LlamaForCausalLM, TrainingArguments

import tokensieve as ts

PATH = Path(__file__).parents[2] / "examples" / "plain_loop.py"


@pytest.fixture(scope="module")
def plain_loop() -> Any:
    spec = importlib.util.spec_from_file_location("plain_loop", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_fits_on_a_page() -> None:
    assert len(PATH.read_text().splitlines()) <= 120


def test_it_runs(plain_loop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, modules in (("CURATED", "csv enum"), ("CORPUS", "cmd"), ("HELD_OUT", "textwrap string")):
        monkeypatch.setattr(plain_loop, name, modules)
    plain_loop.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["full loss", "rho1"]
    assert all(0 < float(line.split()[-4]) < 8 for line in lines), "bytes cost less than log 256 after training"


def test_its_three_texts_are_of_different_modules(plain_loop: Any) -> None:
    """The held-out docstrings of modules that import each other's members stood in the curated text too, 83 % of them."""
    texts = [plain_loop.docstrings(names) for names in (plain_loop.CURATED, plain_loop.HELD_OUT)]
    assert not set(texts[0]) & {text for text in texts[1] if len(text) > 100}
    assert not set(plain_loop.CURATED.split()) & set(plain_loop.HELD_OUT.split())
    assert not set(plain_loop.CORPUS.split()) & set((plain_loop.CURATED + " " + plain_loop.HELD_OUT).split())


@pytest.mark.parametrize("ratio", [0.6, 1.0])
def test_its_gradients_are_the_trainers(plain_loop: Any, tmp_path: Path, ratio: float) -> None:
    """Two micro-batches of one step: the loop's gradients against one SGD step of learning rate 1 of the Trainer."""
    torch.manual_seed(0)
    model = tiny.in_float64(plain_loop.new_model(3))
    ids = torch.randint(0, 256, (8, 24))
    ref_nll = torch.rand(8, 24, dtype=torch.float64) * 8
    micro_batches = [{"input_ids": ids[i : i + 4], "ref_nll": ref_nll[i : i + 4]} for i in (0, 4)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    plain_loop.backward(model, micro_batches, ratio)
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    after = one_trainer_step(model, ids, ref_nll, ratio, tmp_path)
    for name, grad in expected.items():
        torch.testing.assert_close(before[name] - after[name], grad, rtol=1e-9, atol=1e-11, msg=name)
    assert any(float(grad.abs().max()) > 1e-3 for grad in expected.values())


def one_trainer_step(
    model: LlamaForCausalLM, ids: torch.Tensor, ref_nll: torch.Tensor, ratio: float, folder: Path
) -> dict[str, torch.Tensor]:
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "ref_nll": ref_nll.float().tolist()})
    rho1 = ts.objective("rho1", ratio=ratio)
    ts.SelectiveTrainer(model, args, train_dataset=rows, objective=rho1).train()
    return {name: p.detach().clone() for name, p in model.named_parameters()}
