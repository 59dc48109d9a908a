"""What a stage takes, and what is known of the folders that it names: what a verb's ``estimate`` is given and gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runs.manifest import is_done, read_manifest
from ..lineage import total, training_flops
from .inputs import RecipeInput


@dataclass(frozen=True)
class Cost:
    """What a stage takes. ``None``: does not apply; NaN: unknown; ``exact`` is False where a number is an estimate."""

    tokens: float | None = None
    flops: float | None = None
    disk: float | None = None
    exact: bool = True
    checkpoints: float = 1
    """Models in the folder it leaves: those that it saves on its way, the last one among them."""
    memory: float = 0
    """Bytes that its model takes at the least while it works: weights, and for training gradients and Adam's moments."""
    model: Any = None
    """The shapes (on the meta device) of the model it leaves, where they are not those that it begins with."""


class Known:
    """What is known of the folders that a stage names: what is there, and what earlier stages will make of them."""

    def __init__(self, inputs: Iterable[RecipeInput] = (), ranks: int | None = None) -> None:
        self.ranks = ranks
        """Processes that a training is shared by, where the recipe says; None: as many as this one is of."""
        self._inputs = {i.place: i for i in inputs if i.from_hub or not i.is_here}
        self._shapes: dict[str, Any] = {}
        self.costs: dict[Path, Cost] = {}
        """folder -> what the stage that writes it takes."""
        self._configs: dict[Path, Any] = {}
        self._done: dict[Path, bool] = {}

    def add(self, folder: Path, config: Any, done: bool) -> None:
        """A stage's folder and its config. ``done``: it is there, and stays."""
        self._configs[folder], self._done[folder] = config, done

    def manifest(self, folder: str, kind: str) -> dict[str, Any] | None:
        """Of a finished folder that no stage will do again; None if there is none."""
        there = self._done.get(Path(folder), is_done(folder))
        return read_manifest(folder, kind) if there else None

    def tokens(self, corpus: str) -> tuple[float, bool]:
        """(tokens of a corpus, whether they were counted); NaN where nobody knows."""
        if (manifest := self.manifest(corpus, "corpus")) is not None:
            return float(manifest["stats"]["tokens"]), True
        cost = self.costs.get(Path(corpus), Cost())
        return (math.nan, False) if cost.tokens is None else (cost.tokens, cost.exact)

    def room(self, corpus: str) -> tuple[float, bool]:
        """(tokens that its rows have room for, as steps count them, whether they were counted); NaN where nobody knows."""
        if (manifest := self.manifest(corpus, "corpus")) is not None:
            return float(manifest["stats"]["rows"] * manifest["length"]), True
        return self.tokens(corpus)

    def stated_tokens(self, source: str) -> float | None:
        """Of a text that is not here: how many tokens the recipe says that it has; None if it says nothing of it."""
        found = self._inputs.get(source)
        return None if found is None else found.config.tokens

    def length(self, corpus: str) -> float:
        """Tokens of a row of a corpus."""
        if (manifest := self.manifest(corpus, "corpus")) is not None:
            return int(manifest["length"])
        return float(getattr(self._configs.get(Path(corpus)), "length", math.nan))

    def vocab_size(self, corpus: str) -> int | None:
        """Of a corpus, or of the corpus that it takes its tokenizer from."""
        if (manifest := self.manifest(corpus, "corpus")) is not None:
            return int(manifest["vocab_size"])
        config = self._configs.get(Path(corpus))
        tokenizer = getattr(config, "tokenizer", None)
        return self.vocab_size(tokenizer) if tokenizer else getattr(config, "vocab_size", None)

    def checkpoints(self, folder: str) -> float:
        """Models in a folder that `train` wrote or will write; 1 for a model from elsewhere."""
        from ...training.checkpoints import numbered

        if (cost := self.costs.get(Path(folder))) is not None:
            return cost.checkpoints
        return max(1, len(numbered(Path(folder))))

    def model(self, model: str | Mapping[str, Any], corpus: str = "") -> Any:
        """A model's shapes, without weights: of a folder, of a config for a corpus, or of what a stage will begin with.
        None if it is not here yet."""
        from ...modeling.load import model_config, model_shapes

        if not isinstance(model, str):
            size = self.vocab_size(corpus)
            return model_shapes(model_config(model, **({} if size is None else {"vocab_size": size})))
        path = Path(model).parent if Path(model).name == "model" else Path(model)
        if path in self._configs and not self._done[path]:
            if (left := self.costs.get(path, Cost()).model) is not None:
                return left
            begun = self._configs[path]
            return self.model(begun.model, getattr(begun, "corpus", ""))
        if model not in self._shapes:
            self._shapes[model] = self._elsewhere(model)
        return self._shapes[model]

    def _elsewhere(self, model: str) -> Any:
        """A model's shapes that no stage makes: of its folder or, where it is not here, as the recipe says that it is."""
        from ...modeling.folder import read_config
        from ...modeling.load import model_config, model_shapes

        if Path(model).is_dir():
            return model_shapes(read_config(model))
        found = self._inputs.get(model)
        return None if found is None or found.config.model is None else model_shapes(model_config(found.config.model))

    def num_parameters(self, model: str | Mapping[str, Any], corpus: str = "") -> float:
        """Of a model; NaN where its shapes are not known."""
        shapes = self.model(model, corpus)
        return math.nan if shapes is None else float(sum(p.numel() for p in shapes.parameters()))

    def total_flops(self, run: str) -> float:
        """What a run of `train` costs in all: its own training, scoring and reference; NaN where nobody knows."""
        if (manifest := self.manifest(run, "model")) is not None:
            spent = total(manifest["summary"])
            return math.nan if spent is None else spent
        from ..second import teachers

        if (config := self._configs.get(Path(run))) is None:
            return math.nan
        said = getattr(config, "scores", []), teachers(getattr(config, "objective", None))
        return self._flops(run) + self.spent_on(*said)

    def spent_on(self, scores: Sequence[str], teachers: Sequence[str] = ()) -> float:
        """FLOPs of scores, and of training the references that made them and the teachers; NaN where nobody knows."""
        made = {s: self._configs[Path(s)] for s in scores if Path(s) in self._configs}
        models = {model for config in made.values() if (model := _scored_by(config)) is not None} | set(teachers)
        elsewhere = [self.manifest(s, "scores") or {} for s in scores if s not in made]
        trained = {m.get("model_hash"): m.get("reference_flops") for m in elsewhere}  # a model's training counts once
        known = [*(m.get("flops") for m in elsewhere), *trained.values()]
        return math.fsum(
            [*(self._flops(folder) for folder in [*made, *models]), *(math.nan if f is None else f for f in known)]
        )

    def _flops(self, folder: str) -> float:
        """Of a stage, which its model and its checkpoints lie in, or, of a model that no stage makes, what trained it."""
        stages = [p for p in (Path(folder), Path(folder).parent) if p in self.costs or p in self._configs]
        flops = self.costs.get(stages[0], Cost()).flops if stages else training_flops(folder)
        return math.nan if flops is None else flops

    def forward_flops(self, model: str, tokens: float, length: float) -> float:
        """One forward of so many tokens through a model; NaN where its shapes are not known."""
        from ...modeling.flops import token_flops

        shapes = self.model(model)
        return math.nan if shapes is None else token_flops(shapes, length).forward(tokens)


def _scored_by(config: Any) -> str | None:
    """The model whose scores a stage writes: of learning time the last checkpoint's run."""
    models = [getattr(config, "model", None), *getattr(config, "models", [])]
    return next((str(m) for m in reversed(models) if m is not None), None)
