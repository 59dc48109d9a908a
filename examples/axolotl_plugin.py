"""An axolotl plugin: a rule of docs/objectives.md, or a column of weights, in the trainer that axolotl makes (axolotl 0.19).

    python -c 'import tokensieve as ts; ts.load_scored("runs/x/corpus", "runs/x/scores").to_parquet("rows/train.parquet")'
    PYTHONPATH=examples axolotl train config.yaml

where config.yaml has, beside the model and the training,

    plugins: [axolotl_plugin.TokensievePlugin]
    tokensieve: {name: rho1, ratio: 0.6}        # {name: clm}: a column `weight` alone
    datasets: [{path: rows, data_files: train.parquet, ds_type: parquet, type: }]

Rows are ids with the columns that the rule reads beside them, which axolotl passes on where a data set has no type. Nothing of
axolotl is patched: its builder asks plugins for the trainer's class. The loss, its denominator, the order of rows and their
padding are tokensieve's; model, adapters, callbacks and saving are axolotl's. What would be passed over is refused.
"""

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

import tokensieve as ts

# Settings whose work axolotl's own trainer, collators or kernels do, which are not asked here.
NOT_SERVED = (
    *("sample_packing", "batch_flattening", "pretraining_dataset", "streaming", "curriculum_sampling"),
    *("liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy", "loraplus_lr_ratio"),
    *("embedding_lr", "embedding_lr_scale", "lr_groups", "relora"),
)


class TokensieveArgs(BaseModel):
    tokensieve: dict[str, Any] | None = None


class SelectiveAxolotlTrainer(ts.SelectiveTrainer):
    rule: dict[str, Any]

    def __init__(self, model: Any, args: Any, dataset_tags: Any = None, **given: Any) -> None:
        of_axolotl = ("data_collator", "eval_data_collator", "bench_data_collator")  # labels as axolotl pads them
        ours = {name: value for name, value in given.items() if name not in of_axolotl}
        super().__init__(model, args, objective=ts.objective(**self.rule), **ours)


class TokensievePlugin(BasePlugin):
    def get_input_args(self) -> str:
        return f"{__name__}.TokensieveArgs"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """axolotl averages a step over ranks; here it is divided by what counts on all of them."""
        return {"average_tokens_across_devices": True} if cfg.tokensieve else {}

    def get_trainer_cls(self, cfg: Any) -> type | None:
        if not cfg.tokensieve:
            return None
        given = [name for name in NOT_SERVED if getattr(cfg, name, None)]
        if (getattr(cfg, "context_parallel_size", None) or 1) > 1:
            given.append("context_parallel_size")
        if given:
            raise ts.UserError(f"{', '.join(given)}: not served beside tokensieve's trainer; leave it out")
        return type("SelectiveAxolotlTrainer", (SelectiveAxolotlTrainer,), {"rule": dict(cfg.tokensieve)})
