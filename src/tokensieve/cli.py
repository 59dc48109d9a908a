"""The command line: ``tokensieve VERB --config FILE.yaml --field value``. Heavy imports happen inside the verb.

Exit codes: 0 done; 1 unexpected error (``--debug`` shows where); 2 bad input, told in one sentence; 130 interrupted.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from typing import Any

from .pipeline.verbs import VERBS, field_docs, one_line
from .runs import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        return _fail(f"unknown verb {verb!r}{_did_you_mean(verb)}; see tokensieve --help")
    debug = "--debug" in rest
    try:
        return _run(verb, [a for a in rest if a != "--debug"])
    except UserError as e:
        if debug:
            raise
        return _fail(one_line(e), verb)
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("interrupted; start it again to go on", verb, 130)
    except Exception as e:
        if debug:
            raise
        return _fail(f"unexpected {type(e).__name__}: {one_line(e)} (--debug shows where)", verb, 1)


def overview() -> str:
    """What ``tokensieve --help`` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: tokensieve VERB [--config FILE.yaml] [--field value ...]\n\n"
        "Selective language modeling: train on the tokens that matter (Rho-1, arXiv 2404.07965).\n\n"
        f"verbs:\n{verbs}\n\n"
        "Every verb has --help, --print_config, --json (a machine-readable last line) and --debug (tracebacks).\n"
        "Start with: tokensieve demo"
    )


def parser(verb: str) -> Any:
    """The argument parser of one verb, built from its config dataclass."""
    import argparse

    from jsonargparse import ArgumentParser

    config_class = VERBS[verb].config_class()
    made = ArgumentParser(
        prog=f"tokensieve {verb}",
        description=(config_class.__doc__ or "").strip(),
        epilog=f"example:\n  {VERBS[verb].example}",
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--config", action="config", help="YAML file with these fields; later arguments win")
    made.add_argument("--json", action="store_true", help="print a machine-readable last line")
    made.add_class_arguments(config_class, fail_untyped=False)
    docs = field_docs(config_class)
    for action in made._actions:
        if action.dest in docs:
            action.help = docs[action.dest].replace("%", "%%")
    return made


def _run(verb: str, arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    if verb == "run" and arguments and not arguments[0].startswith("-"):
        arguments = ["--recipe", *arguments]
    made = parser(verb)
    try:
        parsed = made.parse_args(arguments)
        fields = vars(made.instantiate_classes(parsed))
    except ArgumentError as e:
        return _fail(one_line(e), verb)
    as_json = fields.pop("json")
    fields.pop("config", None)
    result = VERBS[verb].runner()(VERBS[verb].config_class()(**fields))
    _tell(verb, result, as_json)
    return 0


def _tell(verb: str, result: Any, as_json: bool) -> None:
    """What a verb came to: text as it is, a folder with what its manifest says in a line."""
    from pathlib import Path

    if as_json:
        told = {"folder": str(result), **_facts(result)} if isinstance(result, Path) else {"text": result}
        print(json.dumps({"verb": verb, **told}, ensure_ascii=False))
    elif isinstance(result, Path):
        print(f"{result}{_sentence(result)}")
    else:
        print("\n".join(result) if isinstance(result, list) else result)


def _facts(folder: Any) -> dict[str, Any]:
    from .runs import is_done, read_manifest

    manifest = read_manifest(folder) if is_done(folder) else {}
    return {key: manifest[key] for key in ("kind", "fingerprint", "stats", "summary") if key in manifest}


def _sentence(folder: Any) -> str:
    facts = _facts(folder)
    if "stats" in facts:
        from .data.corpus import describe
        from .runs import read_manifest

        return "\n" + describe(read_manifest(folder))
    if "summary" in facts:
        s = facts["summary"]
        return (
            f": {s['steps']} steps, {s['tokens_seen']:,} tokens seen, {s['tokens_trained']:,} trained "
            f"({s['kept_share']:.1%}), {s['seconds']:.0f} s"
        )
    if facts.get("kind") in ("comparison", "run"):
        table = folder / "table.txt"
        return "\n\n" + table.read_text(encoding="utf-8") if table.is_file() else ""
    return ""


def _did_you_mean(verb: str) -> str:
    close = difflib.get_close_matches(verb, VERBS, 1)
    return f", did you mean {close[0]!r}?" if close else ""


def _fail(sentence: str, verb: str | None = None, code: int = 2) -> int:
    print(f"tokensieve{f' {verb}' if verb else ''}: error: {sentence}", file=sys.stderr)
    return code
