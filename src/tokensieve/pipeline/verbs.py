"""The verbs by name: where each one's config and work are. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..runs.errors import UserError
from .config.fields import WrongFields, from_fields

# What verbs are for, in the order of the help.
GROUPS = ("data", "models", "tokens", "judgement", "hand-over", "the whole")


@dataclass(frozen=True)
class Verb:
    """A verb: where its config and its ``run`` are, and what the command line says of it.

    Two modules, or one if it needs nothing heavy. That of its config is imported for help and parsing; beside the class stand,
    for one that writes a folder, ``KIND``, ``NOT_WORK`` and perhaps ``DEAR = True``: a recipe does a finished one again only if
    it is told to. That of its work has ``run(config)``; ``validate(config)`` for what is wrong with a config by itself; and for
    one that writes a folder ``work(config)``, ``run`` as a stage of it (see ``runs.stage``), and ``estimate(config, known)``.
    """

    config: str
    """module:class of its config, below tokensieve.pipeline; light, since help imports it."""
    summary: str
    """One line for ``tokensieve --help``."""
    example: str
    """One to copy and paste."""
    group: str
    """One of GROUPS."""
    ranks: Literal["all", "first", "one"] = "first"
    """Started as several processes: all work; the first does and the others leave; or that is refused."""
    positional: str | None = None
    """The field that words without a ``--field`` before them belong to."""
    stage: bool = False
    """It may be a stage of a recipe."""
    work: str | None = None
    """The module of its work, below tokensieve.pipeline, where it is another than the config's."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of fields on the command line: `from` is a word of Python's."""

    def module(self) -> Any:
        """That of its work: torch and transformers come with it."""
        return importlib.import_module(f"tokensieve.pipeline.{self.work or self.config.split(':')[0]}")

    def config_module(self) -> Any:
        return importlib.import_module(f"tokensieve.pipeline.{self.config.split(':')[0]}")

    def config_class(self) -> Any:
        return getattr(self.config_module(), self.config.split(":")[1])

    def takes(self, field: str) -> bool:
        """Whether its config has this field; one with ``out`` writes a folder."""
        return any(f.name == field for f in dataclasses.fields(self.config_class()))

    def command(self) -> Callable[[Any], Any]:
        """What the command line calls with a config: :meth:`runner`, but for a verb that can do something else as well."""
        return getattr(self.module(), "command", self.runner())

    def runner(self) -> Callable[[Any], Any]:
        return self.module().run  # type: ignore[no-any-return]


VERBS: dict[str, Verb] = {
    "prepare": Verb(
        "configs.prepare:PrepareConfig",
        "text -> packed token rows",
        "tokensieve prepare --out runs/x/corpus --sources '[{path: data/*.jsonl.gz}]' --vocab_size 4096 --length 256",
        group="data",
        stage=True,
        work="prepare",
    ),
    "filter": Verb(
        "configs.filter:FilterConfig",
        "which documents a corpus takes: no test data, no copies, the best by a score",
        "tokensieve filter --out runs/x/clean --kind decontaminate --sources '[{path: data/*.jsonl.gz}]' "
        "--decontaminate.against '[{path: eval.jsonl}]'",
        group="data",
        stage=True,
        work="filter",
    ),
    "init": Verb(
        "configs.init:InitConfig",
        "a model to begin with: others cut, pruned, merged, grown, with new tokens, as a mixture",
        "tokensieve init --out runs/x/small --model runs/x/base --layers 2",
        group="models",
        stage=True,
        work="init",
    ),
    "train": Verb(
        "configs.train:TrainConfig",
        "train a model: plain, random control, or selective",
        "tokensieve train --out runs/x/rho1 --corpus runs/x/corpus --scores runs/x/scores --model runs/x/base "
        "--objective.name rho1 --objective.ratio 0.6 --training.max_steps 200 --training.learning_rate 1e-3",
        group="models",
        ranks="all",
        stage=True,
        work="train",
    ),
    "score": Verb(
        "configs.score:ScoreConfig",
        "score every token of a corpus with a reference model",
        "tokensieve score --out runs/x/scores --model runs/x/reference --corpus runs/x/corpus",
        group="tokens",
        ranks="all",
        stage=True,
        work="score",
        aliases={"from": "from_file"},
    ),
    "evaluate": Verb(
        "configs.evaluate:EvaluateConfig",
        "nll and bits per byte of models on evaluation sets, or their answers to few-shot tasks",
        "tokensieve evaluate --out runs/x/eval --models.clm runs/x/clm --models.rho1 runs/x/rho1 "
        "--sets.target runs/x/target --checkpoints",
        group="judgement",
        stage=True,
        work="evaluate",
    ),
    "compare": Verb(
        "configs.compare:CompareConfig",
        "the arms of an experiment in one table",
        "tokensieve compare --out runs/x/table --evaluation runs/x/eval --runs.clm runs/x/clm --runs.rho1 runs/x/rho1 "
        "--target target",
        group="judgement",
        stage=True,
        work="compare",
    ),
    "plan": Verb(
        "configs.plan:PlanConfig",
        "laws of scale through finished runs, and how to spend a budget",
        "tokensieve plan runs/sweep --out runs/sweep-plan --flops 1e14 --unique 2e6 --domain_tokens 5e5 --ratio 0.6",
        group="judgement",
        positional="runs",
        stage=True,
        work="plan",
    ),
    "dynamics": Verb(
        "configs.dynamics:DynamicsConfig",
        "every token's nll over the checkpoints, and the paper's four classes",
        "tokensieve dynamics --out runs/x/dynamics --models runs/x/base/model runs/x/clm --corpus runs/x/validation",
        group="tokens",
        ranks="all",
        stage=True,
        work="dynamics",
    ),
    "show": Verb(
        "configs.show:ShowConfig",
        "rows as text, tokens coloured: kept, excess, nll, class",
        "tokensieve show runs/x/rho1 --corpus runs/x/corpus --scores runs/x/scores --by excess",
        group="tokens",
        positional="run",
        work="show",
    ),
    "report": Verb(
        "configs.report:ReportConfig",
        "a run as one HTML page: verdict, curves, and its tokens in colour",
        "tokensieve report runs/x",
        group="judgement",
        positional="runs",
        work="report",
    ),
    "export": Verb(
        "configs.export:ExportConfig",
        "a corpus and what is trained of it, for another trainer",
        "tokensieve export --out runs/x/trl --to jsonl --corpus runs/x/corpus --scores runs/x/scores "
        "--objective.name rho1_low_ref --objective.scope corpus",
        group="hand-over",
        stage=True,
        work="export",
    ),
    "check": Verb(
        "configs.check:CheckConfig",
        "verify folders: hashes, scores against corpus, corpora against each other",
        "tokensieve check runs/x/corpus runs/x/scores --corpus runs/x/corpus",
        group="hand-over",
        positional="folders",
        stage=True,
        work="check",
    ),
    "run": Verb(
        "configs.run:RecipeConfig",
        "run a recipe: a list of stages; what is done is skipped",
        "tokensieve run demo --dry-run",
        group="the whole",
        ranks="one",
        positional="recipe",
        work="recipe.run",
    ),
    "demo": Verb(
        "configs.demo:DemoConfig",
        "the whole method on text that is on this machine already",
        "tokensieve demo --out runs/demo",
        group="the whole",
        ranks="one",
        work="recipe.demo",
    ),
}


def make_config(verb: str, fields: Mapping[str, Any], where: str) -> Any:
    """The config of ``verb`` from a mapping. Raises WrongFields: all that is wrong, each with ``where`` and its place."""
    try:
        return from_fields(VERBS[verb].config_class(), fields, filled=True)
    except WrongFields as e:
        raise e.at(where) from None


def validate(verb: str, config: Any, where: str) -> None:
    """Raise UserError for what is wrong in a config by itself, whatever the folders it names hold."""
    check = getattr(VERBS[verb].module(), "validate", None)
    try:
        if check is not None:
            check(config)
    except WrongFields as e:
        raise e.at(where) from None
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
