"""What a run leaves of its model, and the proof that this is the model that was trained."""

from __future__ import annotations

import copy
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import token_nll
from ..data.rows import collate, shift_targets
from ..modeling.load import load_causal_lm, model_shapes
from ..modeling.seam import HeadSeam, base_model
from ..runs.errors import UserError
from .arguments import lora_config
from .config.help import one_line

# Mean absolute difference of nll a token, in parts of the mean nll. Merging an adapter rounds its sum with the weights once
# more: 1e-6 in float32, .01 in bfloat16; an adapter merged into weights that it was not trained for comes to .1 and more.
TOLERANCE, TOLERANCE_HALF = 1e-3, 5e-2
ASIDE = "model-not-as-trained"


def with_lora(model: Any, lora: Mapping[str, Any]) -> Any:
    """``model`` with a new adapter. Raises UserError for what PEFT does not know."""
    config = lora_config(lora)
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # untied below, before the merge
            return get_peft_model(model, config)
    except Exception as e:  # whatever peft raises for modules, initialisations and biases that it does not know
        raise UserError(f"lora: {one_line(e)}") from None


def with_shapes(config: Any, adapter: Any) -> Any:
    """The model of a transformers config with an adapter of a LoraConfig, without weights (on torch's meta device)."""
    from peft import get_peft_model

    adapter = copy.deepcopy(adapter)
    adapter.init_lora_weights, adapter.inference_mode = (
        True,
        False,
    )  # others are computed of weights, which are not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model_shapes(config), adapter)


def check_merges(config: Any, lora: Mapping[str, Any]) -> None:
    """Raise UserError for an adapter that PEFT cannot merge into a model of this config: seen before training, not after it.

    Costs a model without weights. What cannot be wrapped without weights is left to training to tell.
    """
    try:
        shapes = with_shapes(config, lora_config(lora))
    except UserError:
        raise
    except Exception:  # whatever a model class or PEFT raises
        return
    try:
        shapes.merge_and_unload()
    except NotImplementedError:  # an operation that torch has for weights only
        return
    except Exception as e:  # whatever PEFT raises for kinds of adapters that have no merged form
        raise UserError(f"lora: the adapter cannot be merged into model/: {one_line(e)}") from None


def save_model(trainer: Any, out: Path, *, lora: bool, dtype: str) -> None:
    """Write ``model/``, a whole model in Hugging Face format, and of a LoRA run ``adapter/``; close the trainer's seam.

    ``model/`` is read again and held against the trained model on the first rows of the corpus: another nll a token is a
    UserError, and ``model/`` is set aside. Costs two forwards of a micro-batch and one more copy of the weights.
    """
    batch = _first_rows(trainer)
    sharded = trainer.is_fsdp_enabled
    trained_BT = _nll(trainer, trainer.seam, batch) if sharded or trainer.is_world_process_zero() else None
    trainer.seam.close()
    trainer.save_model(str(out / ("adapter" if lora else "model")))
    # Gathered by all ranks together: merged by the first alone, shards waited for the others for ever.
    whole = trainer.accelerator.get_state_dict(trainer.model) if lora and sharded else None
    if not trainer.is_world_process_zero():
        return
    if lora:
        live = trainer.accelerator.unwrap_model(trainer.model)
        _save_merged(live if whole is None else _rebuilt(live, whole), out / "model", trainer.processing_class)
    if not sharded:
        trainer.accelerator.unwrap_model(trainer.model).to("cpu")  # room for the copy that is read again
    assert trained_BT is not None
    _check_saved(trainer, out / "model", dtype, batch, trained_BT)


def _rebuilt(sharded: Any, weights: Mapping[str, Tensor]) -> Any:
    """The PEFT model that is ``sharded`` over ranks, whole on this one, with ``weights``; those that were shared still are."""
    base = sharded.get_base_model()
    model = with_shapes(base.config, sharded.peft_config[sharded.active_adapter])
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    model.load_state_dict(dict(weights), strict=False, assign=True)
    for first, *others in shared.values():
        for other in others:
            module, _, name = other.rpartition(".")
            setattr(model.get_submodule(module), name, model.get_parameter(first))
    model.get_base_model().generation_config = base.generation_config
    return model


def _save_merged(model: Any, folder: Path, tokenizer: Any) -> None:
    if untie(model):
        print(
            f"tokensieve: {folder}: the adapter changed the input embedding only, so the head is written beside it "
            "(tie_word_embeddings: false)",
            file=sys.stderr,
            flush=True,
        )
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def untie(model: Any) -> bool:
    """Give the head weights of its own where it shares those of an input embedding with an adapter; whether it did so.

    The head was trained against without the adapter's part: merged into shared weights, that would become the head's too.
    """
    base = base_model(model)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    wrapped = type(embedding).__module__.partition(".")[0] == "peft"
    if not wrapped or not any(p is head.weight for p in embedding.parameters()):
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False
    names = {f"{name}.weight" for name, module in base.named_modules() if module is head}
    tied = getattr(base, "all_tied_weights_keys", {})
    base.all_tied_weights_keys = {k: v for k, v in tied.items() if not {k, v} & names}
    return True


def is_untied(config: Any, lora: Mapping[str, Any]) -> bool:
    """Whether an adapter of these fields changes an input embedding that a model of this config ties to its head."""
    if not config.get_text_config().tie_word_embeddings:
        return False
    try:
        return untie(with_lora(model_shapes(config), lora))
    except Exception:  # a config that cannot be built: training says so
        return False


def _first_rows(trainer: Any) -> dict[str, Tensor]:
    """The first micro-batch of the corpus."""
    rows = trainer.train_dataset
    count = min(len(rows), trainer.args.per_device_train_batch_size)
    return trainer._prepare_inputs(dict(collate(rows.__getitems__(list(range(count))))))  # type: ignore[no-any-return]


def _nll(trainer: Any, seam: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """nll of every token of the batch by the model in ``seam``, in the precision that was trained in. float32 [B, T]"""
    found: list[Tensor] = []
    targets = shift_targets(batch["input_ids"])
    wrapped = trainer.accelerator.unwrap_model(trainer.model)
    model = wrapped if seam is trainer.seam else seam.model
    was_training = model.training
    seen = seam.run(lambda hidden, head: found.append(token_nll(hidden, head, targets)))
    with torch.no_grad(), trainer.accelerator.autocast(), seen:
        model.eval()(**seam.inputs(batch))
    model.train(was_training)
    return found[0].float().cpu()


def _check_saved(trainer: Any, folder: Path, dtype: str, batch: Mapping[str, Tensor], trained_BT: Tensor) -> None:
    """Refuse, and set aside, a saved model that is not the trained one."""
    try:
        saved = load_causal_lm(folder, dtype=dtype).to(trainer.args.device)
        saved_BT = _nll(trainer, HeadSeam(saved), batch)
    except torch.OutOfMemoryError:
        print(f"tokensieve: {folder} was not compared with what was trained: no memory", file=sys.stderr, flush=True)
        return
    counts = trained_BT.isfinite() & (trained_BT != 0)  # 0: no target
    trained, found = trained_BT[counts].double(), saved_BT[counts].double()
    half = dtype in ("bfloat16", "float16") or trainer.args.bf16 or trainer.args.fp16 or trainer.args.tf32
    limit = (TOLERANCE_HALF if half else TOLERANCE) * max(1.0, float(trained.mean()))
    if not len(trained) or float((found - trained).abs().mean()) <= limit:
        return
    aside = folder.with_name(ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    kept = "adapter/ and the checkpoints are" if (folder.parent / "adapter").exists() else "the checkpoints are"
    raise UserError(
        f"{folder} is not the model that was trained: its nll is {float(found.mean()):.4f} on the first rows of the corpus, "
        f"that of the trained model {float(trained.mean()):.4f}. It is set aside as {aside.name}, {kept} kept, and the run "
        "does not count as finished"
    )
