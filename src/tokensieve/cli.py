"""The command line: ``tokensieve VERB --config FILE.yaml --field value``. Heavy imports happen inside the verb.

Exit codes: 0 done; 1 unexpected error (``--debug`` shows where); 2 bad input or a full disk, told in one sentence; 3 NaN or
infinity in training; 130, 138, 143 stopped by SIGINT, SIGUSR1, SIGTERM (``train`` leaves a checkpoint to go on from).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .pipeline.config.fields import WrongFields, unknown
from .pipeline.config.given import Given
from .pipeline.config.help import describe_fields, one_line
from .pipeline.verbs import GROUPS, VERBS, Verb
from .runs.errors import Stopped, UserError

COMMON = """\
  --config FILE.yaml      Read these fields from a file; what stands after it on the command line wins.
  --field.key value       One key of a field that is a mapping.
  --print_config          Print the fields as YAML, defaults included, and stop.
  --json                  Print a machine-readable last line.
  --debug                 Show where an error came from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    try:
        code = _told(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: tokensieve show ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _told(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        return _fail(f"{unknown(verb, VERBS, 'verb')}; see tokensieve --help")
    if "-h" in rest or "--help" in rest:
        print(usage(verb))
        return 0
    debug = "--debug" in rest
    try:
        return _run(verb, [a for a in rest if a != "--debug"])
    except BrokenPipeError:
        raise
    except Stopped as e:
        return _stopped(e, verb)
    except (Exception, KeyboardInterrupt) as e:
        if debug:
            raise
        return _fail_with(e, verb)


def _fail_with(error: BaseException, verb: str) -> int:
    """What went wrong as one sentence on stderr; the exit code."""
    if isinstance(error, UserError):
        return _fail(one_line(error), verb, error.code)
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted; start it again to go on", verb, 130)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return _fail(f"{error.filename}: {error.strerror}", verb)
    return _fail(f"unexpected {type(error).__name__}: {one_line(error)} (--debug shows where)", verb, 1)


def _stopped(stopped: Stopped, verb: str) -> int:
    """Every rank stops, the first one says so."""
    from .pipeline.launch import ranks

    if ranks().rank == 0:
        print(f"tokensieve {verb}: {stopped}", file=sys.stderr)
    return stopped.code


def overview() -> str:
    """What ``tokensieve --help`` prints."""
    width = max(map(len, VERBS))
    told = {group: [f"  {n:<{width}}  {v.summary}" for n, v in VERBS.items() if v.group == group] for group in GROUPS}
    verbs = "\n\n".join(f"{group}:\n" + "\n".join(lines) for group, lines in told.items() if lines)
    return (
        "usage: tokensieve VERB [--config FILE.yaml] [--field value ...]\n\n"
        "Selective language modeling: train on the tokens that matter (Rho-1, arXiv 2404.07965).\n\n"
        f"{verbs}\n\n"
        "tokensieve VERB --help lists a verb's fields. Start with: tokensieve demo"
    )


def usage(verb: str) -> str:
    """What ``tokensieve VERB --help`` prints."""
    config_class, positional = VERBS[verb].config_class(), VERBS[verb].positional
    words = f" {positional.upper()}" if positional else ""
    fields = "\n".join(describe_fields(config_class))
    return (
        f"usage: tokensieve {verb}{words} [--config FILE.yaml] [--field value ...]\n\n"
        f"{(config_class.__doc__ or '').strip()}\n\nfields:\n{fields}\n\nalways:\n{COMMON}\n\n"
        f"example:\n  {VERBS[verb].example}"
    )


def given(verb: str, arguments: Sequence[str]) -> Given:
    """What the words after the verb say of its fields."""
    return Given(VERBS[verb].config_class(), list(parser_words(VERBS[verb], arguments)))


def _run(verb: str, arguments: list[str]) -> int:
    switches = [a for a in arguments if a in ("--json", "--print_config", "--print-config")]
    told = given(verb, [a for a in arguments if a not in switches])
    if set(switches) - {"--json"}:
        print(told.printed())
        return 0
    config = told.config()
    if not _works_here(verb):
        return 0
    try:
        result = VERBS[verb].command()(config)
    except WrongFields as e:
        raise told.located(e) from None
    _tell(verb, result, "--json" in switches)
    return 0


def _works_here(verb: str) -> bool:
    """Whether this process takes part, where a launcher has started several of them."""
    from .pipeline.launch import ranks

    here, among = ranks(), VERBS[verb].ranks
    if here.size > 1 and among == "one":
        raise UserError("several processes cannot share a recipe: start its train and score stages by themselves")
    return here.rank == 0 or among == "all"


def parser_words(verb: Verb, arguments: Sequence[str]) -> Iterator[str]:
    """What people type as what the parser reads: ``--dry-run`` is ``--dry_run true``, ``--only a b`` is ``--only [a, b]``.

    Words before the first ``--field`` belong to the verb's positional field.
    """
    types = {f.name: str(f.type) for f in dataclasses.fields(verb.config_class())}
    waiting = list(arguments)
    if waiting and not waiting[0].startswith("-") and verb.positional:
        waiting.insert(0, f"--{verb.positional}")
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            yield word
            continue
        name, equals, value = word[2:].partition("=")
        head, dot, key = name.partition(".")
        head = verb.aliases.get(head, head)
        name, values = head.replace("-", "_") + dot + key, [value] if equals else []
        while waiting and not equals and not waiting[0].startswith("--"):
            values.append(waiting.pop(0))
        if name.startswith("no_") and name not in types and types.get(name[3:], "").startswith("bool") and not values:
            yield from (f"--{name[3:]}", "false")  # --no-color
            continue
        if types.get(name, "").startswith("bool") and (not values or (verb.positional and not _is_switch(values[0]))):
            yield from (f"--{name}", "true")
            if not values:
                continue
            name = verb.positional or ""  # tokensieve run --dry-run demo
        if types.get(name, "").startswith("list[str]") and values and values[0][:1] not in ("[", "{"):
            values = [json.dumps(values)]
        yield from (f"--{name}={values[0]}",) if equals else (f"--{name}", *values)


def _is_switch(value: str) -> bool:
    return value.lower() in ("true", "false", "yes", "no", "on", "off", "null")


def _tell(verb: str, result: Any, as_json: bool) -> None:
    """What a verb came to: text as it is, a folder with what its manifest says in a line. The first process speaks."""
    from pathlib import Path

    from .pipeline.launch import ranks

    if ranks().rank > 0:
        return
    if as_json:
        told = {"folder": str(result), **_facts(result)} if isinstance(result, Path) else {"text": result}
        print(json.dumps({"verb": verb, **told}, ensure_ascii=False), flush=True)
    elif isinstance(result, Path):
        print(_printable(f"{result}{_sentence(result)}"), flush=True)
    else:  # text is for a terminal already, and may be coloured
        print(_printable("\n".join(result)) if isinstance(result, list) else result, flush=True)


def _printable(text: str) -> str:
    """Names and errors quote corpora, which are other people's: no escape sequence of theirs reaches the terminal."""
    from .data.text import visible_text

    return visible_text(text)


def _manifest(folder: Any) -> dict[str, Any]:
    from .runs.manifest import is_done, read_manifest

    return read_manifest(folder) if is_done(folder) else {}


def _facts(folder: Any) -> dict[str, Any]:
    manifest = _manifest(folder)
    return {key: manifest[key] for key in ("kind", "fingerprint", "stats", "summary", "exported") if key in manifest}


def _sentence(folder: Any) -> str:
    manifest = _manifest(folder)
    if manifest.get("kind") == "documents":
        from .data.filter.table import describe_table

        return "\n" + describe_table(manifest)
    if "stats" in manifest:
        from .data.corpus import describe

        return "\n" + describe(manifest)
    if "summary" in manifest:
        s = manifest["summary"]
        return (
            f": {s['steps']} steps, {s['tokens_seen']:,} tokens seen, {s['tokens_trained']:,} trained "
            f"({s['kept_share']:.1%}), {s['seconds']:.0f} s"
        )
    if "exported" in manifest:
        e, use = manifest["exported"], str((folder / "USE.md").read_text(encoding="utf-8")).rstrip("\n")
        rows = f"{e['samples']:,} samples of {e['rows']:,} rows"
        return f": {rows}, {e['tokens_trained']:,} of {e['tokens']:,} tokens trained\n{use}"
    told = [folder / s["folder"] for s in manifest.get("stages", {}).values() if s["verb"] in ("compare", "plan")]
    tables = [path / "table.txt" for path in (folder, *told)]
    return "".join("\n\n" + t.read_text(encoding="utf-8").rstrip("\n") for t in tables if t.is_file())


def _fail(sentence: str, verb: str | None = None, code: int = 2) -> int:
    print(f"tokensieve{f' {verb}' if verb else ''}: error: {_printable(sentence)}", file=sys.stderr)
    return code
