"""Noise in the input: absorbing diffusion and masked language modelling, on the trainer that there is.

    absorbing    t ~ U(eps, 1) a row; each token becomes the mask with probability t; loss = sum over masked of nll / t / masked
    masked       a share of tokens is hidden, 8 of 10 as the mask, 1 as any token, 1 as it is; loss = mean nll of those

Only hidden tokens are targets. The shift stays: hidden at t predicts token t + 1, so the vocabulary head is used as it was
learned [DiffuLLaMA, arXiv 2410.17891; for masked also LLM2Vec's masked next token prediction]. Attention opens while training:
at step s every later token can be seen with probability ``min(1, (s + 1) / anneal_steps)``, drawn anew each step, earlier ones
always. So what the step is given is a batch with other ids, targets and weights (1 / t), and nothing below knows of it.

Formula, eps, the draw of t a row and of one mask for all rows, and the division by the number of masked tokens were read in the
authors' trainer (LLaMA-Factory, ddm), of which copies are public. Theirs divides each micro-batch by its own count; here it is
the step's. All is drawn by (seed, step, row), whatever the split over micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import IGNORE_INDEX, Objective, token_nll
from ..core.objective import with_denominator
from ..core.objectives.given import WEIGHT, times
from ..data.images import PER_IMAGE
from ..data.rows import Rows, collate, shift_targets
from ..runs.errors import UserError
from .options import Noise

EPS = 1e-3
_HIDDEN, _OTHER = 0.8, 0.1  # of a masked language model's targets: BERT's (arXiv 1810.04805, section 3.1)
_OPENS = 1e-3  # nats, of tokens before a change, that say that a model looks at what it is shown


class Noising:
    """What ``SelectiveTrainer(noise=...)`` does to batches. UserError for what would be trained otherwise than it says."""

    def __init__(self, noise: Noise, args: Any, model: Any, rule: Objective, beside: Mapping[str, Any]) -> None:
        self.noise, self.seed = noise, args.seed if args.data_seed is None else args.data_seed
        if not isinstance(noise.token, int):
            raise UserError(f"noise.token: the id of the mask is needed here, not {noise.token!r}")
        self.mask_id, self.vocab_size = noise.token, int(model.get_input_embeddings().weight.shape[0])
        if not 0 <= self.mask_id < self.vocab_size:
            raise UserError(f"noise.token: the model has {self.vocab_size} tokens, and none is {self.mask_id}")
        if given := [name for name, value in beside.items() if value is not None]:
            raise UserError(
                f"noise: it is not known beside {given[0]}, which reads rows as they are: leave one of them out"
            )
        if rule.corpus_scores:
            raise UserError("noise: a threshold over the corpus would be one of rows without noise: take another scope")
        kind = getattr(model.config.get_text_config(), "_attn_implementation", None)
        if kind not in ("sdpa", "eager"):
            raise UserError(
                f"noise: attention opens by a mask a pair of tokens, which {kind} attention does not take: take sdpa"
            )
        self.as_bool = kind == "sdpa"

    def objective(self, rule: Objective) -> Objective:
        """``rule`` times 1 / t, divided by the hidden tokens that it trains; of masked the rule itself."""
        return rule if self.noise.name == "masked" else with_denominator(times(rule), "nonzero")

    def batches(self, batches: Sequence[Mapping[str, Any]], step: int) -> list[dict[str, Any]]:
        """Micro-batches of optimizer step ``step`` (from 0) with noise: input_ids, labels, targets, attention_mask, weight."""
        return [self._noised(batch, step) for batch in batches]

    def _noised(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        ids_BT, labels_BT = batch["input_ids"], batch["labels"]
        parts = [
            self.of_row(int(row), ids_T, labels_T, step)
            for row, ids_T, labels_T in zip(batch["row_id"], ids_BT.cpu(), labels_BT.cpu(), strict=True)
        ]
        fed_BT, hidden_BT = (torch.stack([p[k] for p in parts]).to(ids_BT.device) for k in (0, 1))  # type: ignore[misc]
        labels = torch.where(hidden_BT, labels_BT, IGNORE_INDEX)
        made = {**batch, "input_ids": fed_BT, "labels": labels, "targets": shift_targets(labels)}
        made["attention_mask"] = self.attention(batch, self.ratio(step), step)
        if self.noise.name == "absorbing":
            t_B = torch.tensor([p[2] for p in parts], dtype=torch.float32, device=ids_BT.device)
            made[WEIGHT] = batch.get(WEIGHT, 1.0) / t_B[:, None].expand(ids_BT.shape)
        return made

    def of_row(self, row: int, ids_T: Tensor, labels_T: Tensor, step: int) -> tuple[Tensor, Tensor, float]:
        """(ids as they are fed, whether each is hidden, the share that was to be) of a row."""
        rng = np.random.default_rng((self.seed, step, row + 1))  # a row that fills up a batch is -1
        t = EPS + (1 - EPS) * rng.random() if self.noise.name == "absorbing" else self.noise.share
        hidden_T = torch.from_numpy(rng.random(len(ids_T)) < t) & (labels_T != IGNORE_INDEX)
        fed_T = torch.where(hidden_T, self.mask_id, ids_T)
        if self.noise.name == "masked":
            as_T, other_T = (
                torch.from_numpy(rng.random(len(ids_T))),
                torch.from_numpy(rng.integers(self.vocab_size, size=len(ids_T))),
            )
            other_T = torch.where(as_T < _HIDDEN + _OTHER, other_T, ids_T)
            fed_T = torch.where(hidden_T & (as_T >= _HIDDEN), other_T, fed_T)
        return fed_T, hidden_T, t

    def ratio(self, step: int) -> float:
        """The share of later tokens that can be seen in a step."""
        return min(1.0, (step + 1) / self.noise.anneal_steps) if self.noise.anneal_steps else 1.0

    def attention(self, batch: Mapping[str, Any], ratio: float, step: int = 0) -> Tensor:
        """What may look at what, [B, 1, T, T]: earlier tokens, drawn later ones; never padding (behind a row's last label)."""
        labels_BT = batch["labels"]
        length = labels_BT.shape[1]
        seen_TT = torch.ones(length, length, dtype=torch.bool)
        if ratio < 1:
            drawn_TT = np.random.default_rng((self.seed, step)).random((length, length))
            seen_TT = torch.from_numpy(drawn_TT < ratio) | seen_TT.tril()
        real_BT = batch.get("attention_mask")
        if real_BT is None:
            real_BT = (labels_BT != IGNORE_INDEX).flip(1).cummax(1).values.flip(1)
        itself_TT = torch.eye(length, dtype=torch.bool, device=labels_BT.device)
        seen_BTT = (seen_TT.to(labels_BT.device) & (real_BT != 0)[:, None, :]) | itself_TT
        return self._as_taken(seen_BTT[:, None])

    def _as_taken(self, seen: Tensor) -> Tensor:
        if self.as_bool:
            return seen
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)

    @torch.no_grad()
    def broken(self, seam: Any, rows: Rows, count: int, call: Callable[..., Any], device: torch.device) -> str | None:
        """A sentence where the model, proved as it is, does not look at what the mask shows: four forwards."""
        name = type(seam.model).__name__
        if rows.packs or (rows.images is not None and rows.images.read):
            return "noise: rows with documents kept apart or images are not known with it: prepare isolate_documents: false"
        batch = {
            k: v.to(device)
            for k, v in collate(rows.__getitems__(range(min(count, len(rows))))).items()
            if k not in PER_IMAGE
        }

        def nll(ids_BT: Tensor, mask: Tensor) -> Tensor:
            made: list[Tensor] = []
            fed = {**batch, "input_ids": ids_BT, "attention_mask": mask}
            with seam.run(lambda hidden, head: made.append(token_nll(hidden, head, batch["targets"]))):
                call(**seam.inputs(fed))
            return made[0]

        ids_BT, half = batch["input_ids"], batch["input_ids"].shape[1] // 2
        other_BT = torch.cat([ids_BT[:, :half], ids_BT[:, half:].roll(1, 1)], 1)
        before = slice(0, max(1, half - 1))  # whose targets stay
        was_training = seam.model.training
        seam.model.eval()
        try:
            closed, opened = self.attention(batch, 0.0), self.attention(batch, 1.0)
            shut, moved = (float((nll(ids_BT, m) - nll(other_BT, m))[:, before].abs().max()) for m in (closed, opened))
        except (TypeError, ValueError, LookupError, RuntimeError) as e:
            if isinstance(e, torch.OutOfMemoryError):
                raise
            shut = moved = 0.0  # a class that takes no mask a pair of tokens
        finally:
            seam.model.train(was_training)
        if shut > moved / 10 or moved < _OPENS:
            return f"noise: {name} does not look at what its attention mask shows (state spaces, windows): take another model"
        return None
