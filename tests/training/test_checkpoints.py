"""A checkpoint is good if its manifest is there and every byte is as it was written; all else is told of, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import faults
import pytest
import tiny
import torch
from transformers import TrainerCallback

from tokensieve.core import objective
from tokensieve.runs.errors import UserError
from tokensieve.runs.files import MANIFEST, file_hash
from tokensieve.training import checkpoints
from tokensieve.training.checkpoints import Split, last_good, numbered, verify
from tokensieve.training.guards import GuardConfig, NonFinite
from tokensieve.training.trainer import SelectiveTrainer

SAVING = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 0.01}


def trainer(folder: Path, max_steps: int = 3, **kwargs: Any) -> SelectiveTrainer:
    fields = {**SAVING, "max_steps": max_steps, **kwargs.pop("fields", {})}
    args = tiny.arguments(folder, 2, 2, **fields)
    given = {"train_dataset": tiny.rows(16), "objective": objective("clm"), **kwargs}
    return SelectiveTrainer(tiny.llama(), args, **given)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).train()
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_every_file_is_in_the_manifest(run: Path) -> None:
    for checkpoint in numbered(run):
        manifest = verify(checkpoint)
        there = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()}
        assert {f["file"] for f in manifest["files"]} == there - {MANIFEST}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= there
        assert "training_args.bin" not in there  # a pickle
        assert all(f["hash"] == file_hash(checkpoint / f["file"]) for f in manifest["files"])
        assert manifest["config"] == {
            "step": checkpoints.step_of(checkpoint),
            "split": {"ranks": 1, "rows": 2, "accumulation": 2},
        }


@pytest.mark.parametrize("how", faults.DAMAGES)
def test_each_damage_to_each_file_is_found(how: str, copy: Path) -> None:
    last = numbered(copy)[-1]
    for path in sorted(p for p in last.rglob("*") if p.is_file()):
        data, manifest = path.read_bytes(), (last / MANIFEST).read_bytes()
        faults.DAMAGES[how](path)
        with pytest.raises(UserError) as found:
            verify(last)
        named = path if how != "half-written" else last / MANIFEST
        assert str(named.parent) in str(found.value)
        assert named.name in str(found.value)
        path.write_bytes(data)
        (last / MANIFEST).write_bytes(manifest)
        verify(last)


def test_a_flipped_bit_in_a_sharded_checkpoint_is_found(copy: Path) -> None:
    """torch's own loader of sharded checkpoints gives other numbers and says nothing."""
    from torch.distributed import checkpoint as sharded

    last = numbered(copy)[-1]
    sharded.save({"w": torch.ones(64)}, checkpoint_id=last / "pytorch_model_fsdp_0")
    checkpoints.seal(last, Split(1, 2, 2), checkpoints.log_bytes(last))
    verify(last)
    shard = next(last.rglob("*.distcp"))
    faults.flip_bit(shard)
    with pytest.raises(UserError, match=rf"pytorch_model_fsdp_0/{shard.name} has other bytes than were written"):
        verify(last)


def test_the_last_good_one_is_taken_and_damaged_ones_are_set_aside(copy: Path) -> None:
    said: list[str] = []
    assert last_good(copy, said.append) == copy / "checkpoint-3"
    assert not said
    faults.flip_bit(copy / "checkpoint-3" / "optimizer.pt")
    (copy / "checkpoint-2" / MANIFEST).unlink()
    assert last_good(copy, said.append) == copy / "checkpoint-1"
    assert "checkpoint-3/optimizer.pt has other bytes" in said[0]
    assert "checkpoint-2 has no manifest.json: it is half-written" in said[1]
    assert {p.name for p in copy.glob("*checkpoint-*")} == {
        "checkpoint-1",
        "damaged-checkpoint-2",
        "damaged-checkpoint-3",
    }
    trainer(copy).train(resume_from_checkpoint=True)
    assert [p.name for p in sorted(copy.glob("*checkpoint-*"))] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_by_name_is_verified_too(copy: Path) -> None:
    last = numbered(copy)[-1]
    trainer(copy, 4).train(resume_from_checkpoint=str(last))
    faults.truncate(last / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors has \d+ bytes, \d+ were written"):
        trainer(copy, 4).train(resume_from_checkpoint=str(last))


def test_a_limit_on_checkpoints_is_kept_and_none_is_removed_before_the_next_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer removes the old checkpoint before the new one is whole: a kill in between left none."""
    from tokensieve.training import guarded

    there: list[list[str]] = []
    seal = checkpoints.seal

    def sealing(checkpoint: Path, *args: Any, **kwargs: Any) -> None:
        there.append([p.name for p in numbered(tmp_path)])
        seal(checkpoint, *args, **kwargs)

    monkeypatch.setattr(guarded, "seal", sealing)
    trainer(tmp_path, fields={"save_total_limit": 1}).train()
    assert there == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-3"]


def test_another_split_of_the_step(copy: Path) -> None:
    last = numbered(copy)[-1]
    same, fewer, ranked = Split(2, 1, 2), Split(1, 2, 1), Split(1, 4, 1)
    checkpoints.check_split(last, same, ranks_rows_together=True)
    checkpoints.check_split(last, ranked, ranks_rows_together=False)
    with pytest.raises(UserError, match=r"with 4 \(1 ranks x 2 rows x 2 accumulated\) rows a step, now there are 2 \("):
        checkpoints.check_split(last, fewer, ranks_rows_together=False)
    with pytest.raises(UserError, match="tokens of 2 rows ranked together, now 4"):
        checkpoints.check_split(last, ranked, ranks_rows_together=True)


def test_a_model_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    """Finite gradients can make an update that is not: such weights were saved over and over, and the run ended well."""

    class Overflow(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 1:
                model.lm_head.weight.data[3, 0] = float("inf")

    with pytest.raises(NonFinite, match=r"step 2: the model is not finite after the update, lm_head\.weight") as error:
        trainer(tmp_path, callbacks=[Overflow()]).train()
    assert error.value.code == 3
    assert "the last good checkpoint is checkpoint-1" in str(error.value)
    assert [p.name for p in numbered(tmp_path)] == ["checkpoint-1"]
    (record,) = tmp_path.glob("nonfinite-*.json")
    assert len(json.loads(record.read_text())["rows"]) == 4


@pytest.mark.parametrize("scope", ["batch", "step"])
def test_a_dry_step_changes_nothing(scope: str, tmp_path: Path) -> None:
    """Dropout masks, weights, logs: all as without it."""
    found = {}
    for dry in (False, True):
        folder = tmp_path / f"{dry}"
        made = trainer(folder, objective=objective("rho1", ratio=0.5, scope=scope), guards=GuardConfig(dry_step=dry))
        made.model.config.attention_dropout = 0.3
        for layer in made.model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        made.train()
        found[dry] = faults.outcome(folder, checkpoint=3), [p.detach().clone() for p in made.model.parameters()]
    assert found[True][0] == found[False][0]
    assert all(torch.equal(a, b) for a, b in zip(found[True][1], found[False][1], strict=True))


def test_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real allocation that fails, in the dry step: no step was done by then."""
    made = trainer(tmp_path, guards=GuardConfig(dry_step=True))
    compute = made.compute_loss

    def greedy(*args: Any, **kwargs: Any) -> Any:
        torch.empty(1 << 60, dtype=torch.uint8)
        return compute(*args, **kwargs)

    monkeypatch.setattr(made, "compute_loss", greedy)
    with pytest.raises(
        UserError, match=r"out of memory on cpu in a step of 2 rows: lower training\.per_device"
    ) as error:
        made.train()
    assert "raise training.gradient_accumulation_steps (now 2) as much" in str(error.value)
    assert made.state.global_step == 0
    assert not (tmp_path / "tokens.jsonl").exists()
