"""The verbs by name, and how a mapping (YAML, command line) becomes a verb's config. Imports nothing heavy."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..runs import UserError


@dataclass(frozen=True)
class Verb:
    """A verb: where its config and its ``run`` are, and what the command line says of it."""

    config: str
    """module:class, below tokensieve.pipeline."""
    summary: str
    """One line for ``tokensieve --help``."""
    example: str
    """One to copy and paste."""

    def config_class(self) -> Any:
        module, name = self.config.split(":")
        return getattr(importlib.import_module(f"tokensieve.pipeline.{module}"), name)

    def runner(self) -> Callable[[Any], Any]:
        module = self.config.split(":")[0]
        return importlib.import_module(f"tokensieve.pipeline.{module}").run  # type: ignore[no-any-return]


VERBS: dict[str, Verb] = {
    "prepare": Verb(
        "prepare:PrepareConfig",
        "text -> packed token rows",
        "tokensieve prepare --out runs/x/corpus --sources '[{path: data/*.jsonl.gz}]' --vocab_size 4096 --length 256",
    ),
    "train": Verb(
        "train:TrainConfig",
        "train a model: plain, random control, or selective",
        "tokensieve train --out runs/x/rho1 --corpus runs/x/corpus --scores '[runs/x/scores]' --model runs/x/base "
        "--objective '{name: rho1, ratio: 0.6}' --training '{max_steps: 200, learning_rate: 1e-3}'",
    ),
    "score": Verb(
        "score:ScoreConfig",
        "score every token of a corpus with a reference model",
        "tokensieve score --out runs/x/scores --model runs/x/reference --corpus runs/x/corpus",
    ),
    "evaluate": Verb(
        "evaluate:EvaluateConfig",
        "nll and bits per byte of models on evaluation sets",
        "tokensieve evaluate --out runs/x/eval --models '{rho1: runs/x/rho1}' --sets '{target: runs/x/target}'",
    ),
    "compare": Verb(
        "compare:CompareConfig",
        "the arms of an experiment in one table",
        "tokensieve compare --out runs/x/table --evaluation runs/x/eval --runs '{clm: runs/x/clm, rho1: runs/x/rho1}' "
        "--target target",
    ),
    "show": Verb(
        "show:ShowConfig",
        "rows of a run as text, kept and dropped tokens coloured",
        "tokensieve show --run runs/x/rho1 --corpus runs/x/corpus",
    ),
    "check": Verb(
        "check:CheckConfig",
        "verify folders: hashes, scores against corpus, corpora against each other",
        "tokensieve check --folders '[runs/x/corpus, runs/x/scores]' --corpus runs/x/corpus",
    ),
    "run": Verb(
        "recipe:RecipeConfig",
        "run a recipe: a list of stages; what is done is skipped",
        "tokensieve run recipes/demo.yaml --dry_run true",
    ),
    "demo": Verb(
        "demo:DemoConfig",
        "the whole method on text that is on this machine already",
        "tokensieve demo --out runs/demo",
    ),
}


def make_config(verb: str, fields: Mapping[str, Any], where: str) -> Any:
    """The config of ``verb`` from a mapping, every field checked by type. Raises UserError naming ``where`` and the field."""
    from jsonargparse import ArgumentError, ArgumentParser

    config_class = VERBS[verb].config_class()
    parser = ArgumentParser(exit_on_error=False, parser_mode="json")  # the mapping was parsed as YAML already
    parser.add_class_arguments(config_class, fail_untyped=False)
    try:
        return config_class(**vars(parser.instantiate_classes(parser.parse_object(dict(fields)))))
    except (ArgumentError, TypeError, ValueError) as e:
        raise UserError(f"{where}: {one_line(e)}") from None


def field_docs(config_class: type) -> dict[str, str]:
    """The string under each field of a dataclass: its one line of documentation."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for node, following in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(node.target, ast.Name):
            docs[node.target.id] = str(ast.literal_eval(following.value))
    return docs


def one_line(error: BaseException) -> str:
    """An error's text on one line, without the parser's indentation."""
    return " ".join(str(error).split())
