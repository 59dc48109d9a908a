"""prepare: text in, a corpus of packed token rows out.

    sources ──sample──> blocks ──units (several processes)──> parts.tmp/ ──assemble──> rows-*.arrow, documents.parquet

A unit is a bounded part of a source; it is done once its part is there, so a run that was killed goes on where it stopped.
The corpus does not depend on the number of processes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data import tokenizer as tok
from ..data.bos import Bos, bos_of, set_template
from ..data.build import assemble
from ..data.build.assemble import Part
from ..data.build.chat import Template
from ..data.build.earlier import check_apart
from ..data.build.transforms import Transforms
from ..data.build.units import MAX_BAD_ROWS_LISTED, Setup, WorkUnit
from ..data.build.weigh import check_rules, silent
from ..data.build.workers import results, sampled
from ..data.corpus import write_dataset_files
from ..data.filter.table import Tables, table_hash
from ..data.read.readers import groups, input_bytes, sample, training_texts
from ..data.read.source import Source, SourceConfig
from ..data.read.sources import ONE_DOCUMENT_A_FILE, identity, read_twice, resolve, text_bytes
from ..data.tokenizer import tokenizer_folder, tokenizer_hash, tokenizer_identity, train_tokenizer, vocab_size
from ..data.tokenizer_state import file_state, other_rule
from ..runs.errors import UserError
from ..runs.files import atomic_file, file_hash, hash_json, read_json, write_json
from ..runs.manifest import is_done, read_manifest
from ..runs.stage import Stage, stage
from ..runs.work import Work
from .config.help import check_seed
from .configs.prepare import KIND, LATER, LATER_OF_SOURCE, NOT_WORK, OF_ROWS, OF_SOURCE_ROWS, PrepareConfig
from .prepare_mixture import check_shares, earlier_corpus, mixed_rows
from .recipe.cost import Cost, Known
from .transforms import check_programs, control_tokens_of, transforms_of

PARTS = "parts.tmp"
CHAT_TEMPLATE = (
    "chat_template.jinja"  # beside tokenizer.json; or it is in tokenizer_config.json, which is hashed anyway
)
MAX_WORKERS = 8
MAX_LENGTH = 1 << 24
MAX_VOCAB_SIZE = 1 << 24
_TOKENIZER_SAMPLE_BYTES = 20 << 20
_ONE_PROCESS_BYTES = 32 << 20  # below this, starting processes costs more than they bring
_BYTES_PER_TOKEN = 3.5  # of text, before a tokenizer has been seen: between small and large vocabularies


def run(config: PrepareConfig, progress: bool = True) -> Path:
    """Make the corpus and return its folder; if it is there already, do nothing. :class:`UserError` if another one is there."""
    validate(config)
    out = Path(config.out)
    sources = [resolve(s, config.seed) for s in config.sources]
    with stage(out, _work(config, sources), refuse=False) as s:  # parts of other work are thrown away: they cost little
        if not s.done:
            _start_parts(config, s)
            for sentence in read_twice(sources):
                print(f"tokensieve: {out}: {sentence}", file=sys.stderr, flush=True)
            _make(config, s, sources, progress)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return out


def work(config: PrepareConfig) -> Work:
    """What says which corpus it is: settings, what identifies each source's text (``identity``), and the tokenizer.

    No path counts. A source without a ``name`` is called after its folder as it was then; to call it otherwise, name it.
    """
    return _work(config, [resolve(s, config.seed) for s in config.sources])


def _work(config: PrepareConfig, sources: list[Source]) -> Work:
    inputs: dict[str, Any] = {f"source {i}": identity(s, config.unit_bytes) for i, s in enumerate(sources)}
    given = chat_template(config)
    if given is not None:
        inputs["chat_template"] = hash_json(given)
    if config.tokenizer is not None:
        inputs["tokenizer"] = tokenizer_identity(config.tokenizer)
        if (bos := _bos(config)) is not None:
            inputs["bos"] = bos.id
        template = tokenizer_folder(config.tokenizer) / CHAT_TEMPLATE
        if given is None and any(s.format == "chat" for s in config.sources) and template.is_file():
            inputs["chat_template"] = file_hash(template)
        made = read_manifest(config.out)["inputs"] if is_done(config.out) else {}
        if made.get("tokenizer") == inputs["tokenizer"] and _was_overridden(config):
            inputs["tokenizer_rules"] = "tokenizer.json"
    if config.documents:
        inputs["documents"] = [table_hash(folder) for folder in config.documents]
    if config.replay:
        inputs["replay"] = [read_manifest(r.corpus, KIND)["content_hash"] for r in config.replay]
    return Work.of(KIND, config, NOT_WORK, inputs, tokenizer=config.tokenizer)


def chat_template(config: PrepareConfig) -> str | None:
    """The template that a config gives: its text, or that of the file it names. None where the tokenizer's own is taken."""
    given = config.chat_template
    if given is None or "{{" in given or "{%" in given:
        return given
    try:
        return Path(given).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = "there is no such file" if isinstance(e, FileNotFoundError) else e
        raise UserError(f"chat_template: {given}: {why}, and as a template it has neither {{{{ nor {{% in it") from None


def _bos(config: PrepareConfig) -> Bos | None:
    """What each document begins with. A tokenizer trained here has no BOS."""
    if config.tokenizer is None or config.bos == "never":
        return None

    return bos_of(config.tokenizer, config.bos)


def _was_overridden(config: PrepareConfig) -> bool:
    """Whether the tokenizer saved in ``out`` has other rules than the given tokenizer.json: those of a class, laid over it.

    Early versions did so where tokenizer_config.json or config.json named one. Such a folder is other work, or not gone on
    with; a new one cannot be like that.
    """
    made = Path(config.out) / "tokenizer"
    if config.tokenizer is None or not (made / "tokenizer.json").is_file():
        return False

    return other_rule(file_state(tokenizer_folder(config.tokenizer)), file_state(made)) is not None


def estimate(config: PrepareConfig, known: Known) -> Cost:
    """Tokens from bytes of text; five bytes a token on the disk."""
    if (done := known.manifest(config.out, KIND)) is not None:
        return Cost(done["stats"]["tokens"], None, sum(f["bytes"] for f in done["files"]))
    tokens = sum(_text_tokens(s, config.seed, known) * s.epochs for s in config.sources)
    tokens /= 1 - sum(r.share for r in config.replay)
    if config.max_rows is not None:
        tokens = min(tokens, config.max_rows * config.length)
    return Cost(tokens, None, tokens * 5, False)


def _text_tokens(source: SourceConfig, seed: int, known: Known) -> float:
    """Tokens that a source can give: as the recipe states them of a text that is not here, or guessed from its bytes."""
    if (stated := known.stated_tokens(source.path)) is None:
        return _text_bytes(resolve(source, seed)) / _BYTES_PER_TOKEN
    low, high = source.split
    most = math.inf if source.max_bytes is None else source.max_bytes / _BYTES_PER_TOKEN
    return min(stated * (high - low), most)


def _text_bytes(source: Source) -> float:
    """Bytes of text that a source can give, at most its cap."""
    if source.format == "hub":
        raise UserError(f"{source.label} is not on this machine: nobody knows how large it is")
    low, high = source.config.split
    size = sum(map(text_bytes, source.files)) * (high - low)
    return size if source.config.max_bytes is None else min(size, source.config.max_bytes)


def validate(config: PrepareConfig) -> None:
    """Raise UserError for numbers that make no sense, and for source weights without rows to share out."""
    check_seed(config.seed)
    if not config.sources:
        raise UserError("prepare needs at least one source")
    for name in ("length", "unit_bytes", "shard_tokens"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.shard_tokens > 2**31 - 1:
        raise UserError(f"shard_tokens must be at most 2,147,483,647, not {config.shard_tokens}: Arrow counts in int32")
    if config.length < 2:
        raise UserError("length must be at least 2: a row of one token has nothing to predict")
    if config.length > MAX_LENGTH:
        raise UserError(f"length must be at most {MAX_LENGTH}, not {config.length}")
    if config.tokenizer is None and config.vocab_size > MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size must be at most {MAX_VOCAB_SIZE}, not {config.vocab_size}")
    if config.workers < 0:
        raise UserError(f"workers must be at least 0, not {config.workers}")
    if config.max_rows is not None and config.max_rows < 1:
        raise UserError(f"max_rows must be at least 1, not {config.max_rows}")
    if config.on_bad_row not in ("error", "skip"):
        raise UserError(f"on_bad_row must be 'error' or 'skip', not {config.on_bad_row!r}")
    if config.bos not in ("auto", "always", "never"):
        raise UserError(f"bos must be 'auto', 'always' or 'never', not {config.bos!r}")
    if config.bos == "always" and config.tokenizer is None:
        raise UserError("bos: always needs a tokenizer with a BOS: one that is trained here has none, set tokenizer")
    if not 0 <= config.max_unknown <= 1:
        raise UserError(f"max_unknown is a share of the tokens, from 0 to 1, not {config.max_unknown}")
    check_rules(config.weights)
    check_programs(config.sources, transforms_of(config.transforms))
    check_shares(config)


def _start_parts(config: PrepareConfig, s: Stage) -> None:
    """Keep the parts of an earlier run only if they are parts of this very work. Refuse a folder that holds something else."""
    out, parts = s.folder, s.folder / PARTS
    plan = parts / "plan.json"
    everything = {k: v for k, v in asdict(config).items() if k not in ("workers", *LATER)}
    everything["sources"] = [_as_it_was(c) for c in everything["sources"]]
    earlier = Work(KIND, everything, s.work.inputs).fingerprint  # before paths and defaults ceased to count
    of_units = _of_units(config, s.work)
    ours = plan.is_file() and read_json(plan) in ({"fingerprint": f} for f in (of_units, s.work.fingerprint, earlier))
    if ours and not _was_overridden(config):
        return
    strangers = [p.name for p in out.iterdir() if p.name == "tokenizer" or p.suffix in (".arrow", ".json", ".parquet")]
    if strangers and not plan.is_file():
        raise UserError(
            f"{out} holds {sorted(strangers)[0]}, which an unfinished prepare did not write: choose an empty folder"
        )
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)
    write_json(plan, {"fingerprint": of_units})


def _of_units(config: PrepareConfig, work: Work) -> str:
    """Fingerprint of the units of work: a mixture that is refused is changed without reading any text again."""
    sources = [replace(source, **OF_SOURCE_ROWS) for source in config.sources]
    inputs = {role: found for role, found in work.inputs.items() if role != "replay"}
    plain = replace(config, sources=sources, **OF_ROWS)
    return Work.of(KIND, plain, NOT_WORK, inputs, tokenizer=config.tokenizer).fingerprint


def _as_it_was(source: dict[str, Any]) -> dict[str, Any]:
    """A source's settings without fields that came later, where they are at their defaults."""
    plain = asdict(SourceConfig(source["path"]))
    return {k: v for k, v in source.items() if k not in LATER_OF_SOURCE or v != plain[k]}


def _make(config: PrepareConfig, s: Stage, sources: list[Source], progress: bool) -> None:
    out = s.folder
    sources = [_sample(config, out / PARTS / f"sample-{i:04d}.json", s, progress) for i, s in enumerate(sources)]
    tables = Tables.of(config.documents, out / PARTS) if config.documents else None
    tokenizer, setup = _setup(config, out, sources, tables)
    earlier = [earlier_corpus(config, r, setup, tokenizer_hash(tokenizer)) for r in config.replay]
    check_apart(earlier)
    parts = _run_units(config, sources, setup, progress)
    _check_unknown(config, parts)
    _tell_silent(config, parts)
    rows, earlier, told = mixed_rows(config, sources, parts, earlier)
    shard_rows = max(1, config.shard_tokens // config.length)
    writer, state = assemble.assemble(parts, rows, out, config.length, shard_rows, config.seed, earlier)
    num_rows = sum(rows) + sum(e.taken for e in earlier)
    content_hash = writer.content.hexdigest(setup.encoder.bos_id)
    names = [shard["file"] for shard in writer.shards] + ["documents.parquet"]
    names += write_dataset_files(out, writer.shards, content_hash, writer.optional) + _write_bad_rows(out, parts)
    names += sorted(f"tokenizer/{p.name}" for p in (out / "tokenizer").iterdir() if p.is_file())
    _remove_strangers(out, names)
    s.finish(
        names,
        length=config.length,
        isolate_documents=config.isolate_documents,
        vocab_size=vocab_size(tokenizer),
        eos_id=setup.encoder.eos_id,
        pad_id=setup.pad_id,
        bos_id=setup.encoder.bos_id,
        sources=list(state.numbers),
        content_hash=content_hash,
        tokenizer_hash=tokenizer_hash(tokenizer),
        shards=writer.shards,
        **({"mixture": told} if told else {}),
        stats=assemble.corpus_stats(state, num_rows, config.length, parts, [str(t["name"]) for t in config.transforms]),
    )


# ---- tokenizer ----


def _setup(config: PrepareConfig, out: Path, sources: list[Source], tables: Tables | None) -> tuple[Any, Setup]:
    """The tokenizer, saved as ``out/tokenizer``, and what units need of it."""
    folder, bos = out / "tokenizer", _bos(config)
    if bos is not None:
        print(f"tokensieve: {out}: bos: {bos.token} (id {bos.id}) before each document, {bos.why}", file=sys.stderr)
    if not folder.is_dir():
        made = tok.load_tokenizer(config.tokenizer) if config.tokenizer is not None else _train(config, sources, tables)
        tmp = out / PARTS / "tokenizer"
        shutil.rmtree(tmp, ignore_errors=True)
        if bos is not None:
            set_template(made, bos)
        if (template := chat_template(config)) is not None:
            made.chat_template = template
        made.save_pretrained(str(tmp))
        os.replace(tmp, folder)
    tokenizer = tok.load_tokenizer(folder)
    encoder = tok.Encoder(
        folder / "tokenizer.json",
        int(tokenizer.eos_token_id),
        tok.token_bytes(tokenizer),
        bos_id=None if bos is None else bos.id,
        parse_special_tokens=config.parse_special_tokens,
    )
    given = transforms_of(config.transforms)
    return tokenizer, Setup(
        out / PARTS,
        encoder,
        config.length,
        tok.pad_id(tokenizer),
        config.on_bad_row == "skip",
        tuple(config.weights),
        _template(tokenizer),
        tables,
        Transforms(given, encoder, config.seed) if given else None,
    )


def _template(tokenizer: Any) -> Template | None:
    """How the tokenizer writes conversations; None where it does not say."""
    found = tokenizer.chat_template
    text = found.get("default") if isinstance(found, dict) else found
    if not text:
        return None
    control = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    return Template(text, dict(tokenizer.special_tokens_map), control)


def _train(config: PrepareConfig, sources: list[Source], tables: Tables | None) -> Any:
    if any(s.config.format == "tokens" for s in sources):
        raise UserError("a source of format 'tokens' needs the tokenizer its ids come from: set tokenizer")
    share = _TOKENIZER_SAMPLE_BYTES // len(sources)
    texts = (
        text for s in sources for text in training_texts(s, share, config.unit_bytes, tables.takes if tables else None)
    )
    return train_tokenizer(texts, config.vocab_size, control_tokens_of(transforms_of(config.transforms)))


# ---- units ----


def _sample(config: PrepareConfig, kept: Path, source: Source, progress: bool) -> Source:
    """The source cut down to its ``max_bytes``. Rows are read for it, by all processes; a resumed run need not do so again."""
    if source.config.max_bytes is None or source.format in ONE_DOCUMENT_A_FILE:
        return sample(source, config.unit_bytes)
    if kept.is_file():
        return replace(source, limit=read_json(kept)["limit"])

    def placed() -> Iterator[tuple[float, int]]:
        total = None if source.format == "hub" else source.size
        size = input_bytes(source)
        workers = _num_workers(config, size) if size > _ONE_PROCESS_BYTES else 1
        found = sampled(light, groups(source, config.unit_bytes), workers)
        with tqdm(total=total, unit="B", unit_scale=True, desc="sample", disable=not progress) as bar:
            for group, places in found:
                yield from places
                bar.update(sum(block.cost for block in group))

    light = replace(source, files=source.files[:1])  # all that reading a block needs
    made = sample(source, config.unit_bytes, placed())
    write_json(kept, {"limit": made.limit})
    return made


def _units(config: PrepareConfig, sources: list[Source]) -> Iterator[WorkUnit]:
    for s, source in enumerate(sources):
        light = replace(source, texts={}, files=source.files[:1])  # all that reading a block needs
        for i, group in enumerate(groups(source, config.unit_bytes)):
            yield WorkUnit(s, i, light, group)


def _run_units(config: PrepareConfig, sources: list[Source], setup: Setup, progress: bool) -> list[Part]:
    """Do every unit that is not done yet; parts in unit order."""
    size = sum(min(input_bytes(s), s.config.max_bytes or input_bytes(s)) for s in sources)
    total = None if any(s.format == "hub" for s in sources) else sum(_bytes_to_read(s) for s in sources)
    found: dict[tuple[int, int], Part] = {}
    tokens = 0
    with tqdm(total=total, unit="B", unit_scale=True, desc="prepare", disable=not progress) as bar:
        for unit, counts in results(_units(config, sources), setup, _num_workers(config, size)):
            found[unit.source_index, unit.number] = Part(unit.source_index, setup.parts / unit.name, counts)
            tokens += counts.tokens
            bar.update(unit.cost)
            elapsed = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{tokens / 1e6:.1f}M tokens, {tokens / max(1e-3, elapsed):,.0f} tokens/s")
    return [found[key] for key in sorted(found)]


def _bytes_to_read(source: Source) -> int:
    """Row files are read whole; where a file is a document, only what the split and the sample keep is opened."""
    if source.format not in ONE_DOCUMENT_A_FILE:
        return source.size
    lo, hi = source.config.split
    return min(round(source.size * (hi - lo)), source.config.max_bytes or source.size)


def _num_workers(config: PrepareConfig, size: int) -> int:
    if config.workers:
        return config.workers
    return min(MAX_WORKERS, os.cpu_count() or 1) if size > _ONE_PROCESS_BYTES else 1


# ---- the corpus ----


def _check_unknown(config: PrepareConfig, parts: list[Part]) -> None:
    """Refuse text that the vocabulary cannot say. Its parts stay: with another max_unknown they are the corpus."""
    unknown, tokens = (sum(getattr(p.counts, name) for p in parts) for name in ("unknown", "tokens"))
    if unknown > config.max_unknown * tokens:
        raise UserError(
            f"unknown to the tokenizer: {unknown:,} of {tokens:,} tokens ({unknown / tokens:.2%}), more than max_unknown "
            f"({config.max_unknown:.2%}) allows: it was not made for this text; choose another, or raise max_unknown"
        )


def _tell_silent(config: PrepareConfig, parts: list[Part]) -> None:
    """A word on each rule for weights that matched nothing, each transform that changed nothing and each pattern of ``only``
    that took nothing: often one is misspelt."""
    spoke = [sum(p.counts.rule_documents[i] for p in parts) for i in range(len(config.weights))]
    for sentence in silent(config.weights, spoke):
        print(f"tokensieve: {config.out}: {sentence}", file=sys.stderr, flush=True)
    for i, transform in enumerate(config.transforms):
        if parts and not sum(p.counts.transforms[i][0] for p in parts):
            print(
                f"tokensieve: {config.out}: transforms.{i} ({transform['name']}) changed no document", file=sys.stderr
            )
    for i, source in enumerate(config.sources):
        taken = {pattern for p in parts if p.source_index == i for pattern in p.counts.taken}
        for pattern in dict.fromkeys(p for p in source.only if p not in taken):
            told = f"sources.{i}: only: {pattern!r} took no document"
            print(f"tokensieve: {config.out}: {told}", file=sys.stderr, flush=True)


def _write_bad_rows(out: Path, parts: list[Part]) -> list[str]:
    bad = [row for part in parts for row in part.counts.bad_rows][:MAX_BAD_ROWS_LISTED]
    if not bad:
        return []
    with atomic_file(out / "bad_rows.jsonl", "w") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in bad)
    return ["bad_rows.jsonl"]


def _remove_strangers(out: Path, names: list[str]) -> None:
    """Remove shards that a killed run with other settings left behind."""
    for path in (*out.glob("rows-*.arrow"), *out.glob("bad_rows.jsonl")):
        if path.name not in names:
            path.unlink()
