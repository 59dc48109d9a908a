"""Conversations: in whatever columns they lie, whatever their template writes, what the assistant says is trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokensieve.data.build.chat import Template, as_text
from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read.chat_rows import chat_document
from tokensieve.data.read.documents import BadRow, Document
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.weight_rules import WeightRule
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.runs.errors import UserError

# Each like a family of templates that is about.
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMS = (  # its own name for the assistant, the system's words in the first user's, words trimmed, BOS
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content | trim + ' ' %}{% else %}<start>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ ns.system if loop.index0 < 2 }}{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
FORGETS = (  # thoughts of earlier turns are left out; the last turn has some, be they empty
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '' %}"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
SHOUTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHUFFLES = "{% for m in messages | reverse %}{{ m.content | upper }}{% endfor %}"

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "assistant"},
    {"role": "user", "content": " hm "},
    {"role": "assistant", "content": "<think>is it 4?</think>\n\n4 "},
]
CALLS = [
    {"role": "user", "content": "time?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}]},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "noon"},
]
WHERE: list[tuple[str, Any, list[str]]] = [
    (CHATML, TALK, ["assistant<|im_end|>", "<think>is it 4?</think>\n\n4 <|im_end|>"]),
    (TRIMS, TALK, ["assistant<|im_end|>", "<think>is it 4?</think>\n\n4<|im_end|>"]),
    (FORGETS, TALK, ["assistant<|im_end|>", "<think>\nis it 4?\n</think>\n\n4<|im_end|>"]),
    (FORGETS, [*TALK, *TALK[1:3]], ["assistant<|im_end|>", "4<|im_end|>", "<think>\n\n</think>\n\nassistant<|im_end|>"]),
    (BARE, TALK, ["assistant", "<think>is it 4?</think>\n\n4"]),
    (MARKED, TALK, ["assistant<|im_end|>", "<think>is it 4?</think>\n\n4 <|im_end|>"]),
    (SHOUTS, TALK, ["ASSISTANT<|im_end|>", "<THINK>IS IT 4?</THINK>\n\n4 <|im_end|>"]),
    (
        CHATML,
        CALLS,
        ['<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call><|im_end|>', "noon<|im_end|>"],
    ),
]  # fmt: skip


def template(text: str) -> Template:
    return Template(text, {"bos_token": "<s>"}, ("<|im_start|>", "<|im_end|>", "<think>"))


def document(row: dict[str, Any], column: str = "text") -> Any:
    return chat_document(row, "1", "s", "rows.jsonl line 1", column, ())


def written(text: str, row: dict[str, Any]) -> Any:
    return as_text(document(row), template(text))


@pytest.mark.parametrize(("text", "messages", "said"), WHERE)
def test_what_the_assistant_says(text: str, messages: Any, said: list[str]) -> None:
    """With the end of its turn, which it must write; not the header, which it is given; not the same words elsewhere."""
    made = written(text, {"messages": messages})
    assert isinstance(made, Document), made
    assert [made.text[a:b] for a, b, _ in made.weights] == said
    assert made.text == template(text).render(messages, None)


def test_other_roles_have_their_words() -> None:
    made = written(CHATML, {"messages": TALK})
    said = [(t.role, made.text[t.start : t.end]) for t in made.turns if t.role != "assistant"]
    assert said == [("system", "be brief"), ("user", "user"), ("user", "hm")]


def test_a_frame_is_made_once_for_conversations_of_one_shape() -> None:
    made = template(CHATML)
    for words in ("a", "bb", "c c c"):
        found = as_text(document({"messages": [{"role": "user", "content": words}, *TALK[2:3]]}), made)
        assert isinstance(found, Document)
        assert [found.text[a:b] for a, b, _ in found.weights] == ["assistant<|im_end|>"]
    assert len(made._frames) == 1


SAME = [{"role": "user", "content": "hi\n\nthere"}, {"role": "assistant", "content": "ho"}]
LAYOUTS: list[dict[str, Any]] = [
    {"messages": SAME, "prompt": None},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi\n\nthere"}]}, {**SAME[1], "name": None}]},
    {"conversations": [{"from": "human", "value": "hi\n\nthere"}, {"from": "gpt", "value": "ho"}], "system": ""},
    {"prompt": SAME[:1], "completion": SAME[1:]},
    {"instruction": "hi", "input": "there", "output": "ho"},
    {"instruction": "hi\n\nthere", "input": "", "output": "ho", "text": "unread"},
]


@pytest.mark.parametrize("row", LAYOUTS)
def test_layouts_come_to_the_same_messages(row: dict[str, Any]) -> None:
    assert document(row).chat.messages == SAME


def test_system_and_tools_beside_the_messages() -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}
    made = document({**row, "tools": '[{"name": "now", "of": null}]'})
    assert made.chat.messages[0] == {"role": "system", "content": "s"}
    assert made.chat.tools == [{"name": "now", "of": None}]
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}, "id": None}
    called = document({"talk": [{"role": "assistant", "content": None, "tool_calls": [call]}]}, "talk")
    assert called.chat.messages[0]["tool_calls"] == [{"function": {"name": "f", "arguments": {"a": 1}}}]


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    (CHATML, {"text": "a"}, r"no columns of a conversation \(messages or conversations or prompt and completion"),
    (CHATML, {"messages": []}, "'messages' holds no message"),
    (CHATML, {"messages": ["hi"]}, "message 0 of 'messages' must be an object, this is a string"),
    (CHATML, {"messages": [{"content": "hi"}]}, "message 0 of 'messages' has no role"),
    (CHATML, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of its content is no text"),
    (CHATML, {"messages": [{"role": "user", "content": 3}]}, "content must be text, this is a number"),
    (CHATML, {"messages": SAME, "tools": "[{"}, "column 'tools' is not valid JSON"),
    # A RecursionError is no ValueError: it went through as an unexpected error, with exit code 1.
    (CHATML, {"messages": SAME, "tools": "[" * 100_000}, "column 'tools' is not valid JSON"),
    (CHATML, {"messages": SAME, "weight": [1, 2]}, "'weight' must be a number beside a conversation"),
    (CHATML, {"messages": [{**SAME[0], "weight": "x"}]}, "'weight' must be a number beside a conversation"),
    (CHATML, {"prompt": "a", "completion": SAME[1:]}, "column 'completion' must be a string"),
    (CHATML, {"messages": [{"role": "user", "content": "a<|im_end|>"}]}, "the control token '<|im_end|>' written out"),
    (SHUFFLES, {"messages": SAME}, "where message 1 stands in what the chat template writes cannot be told"),
    ("{{ raise_exception('no system') }}", {"messages": SAME}, "the chat template refuses it: no system"),
]


@pytest.mark.parametrize(("text", "row", "says"), FAULTS)
def test_what_is_no_conversation_is_named(text: str, row: dict[str, Any], says: str) -> None:
    made = document(row)
    made = as_text(made, template(text)) if isinstance(made, Document) and made.chat is not None else made
    assert isinstance(made, BadRow)
    assert re.search(says, made.reason), made.reason


# --- through prepare -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token a byte, the control tokens of CHATML, and a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=259, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["a"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    folder = tmp_path_factory.mktemp("base")
    tokenizer.save_pretrained(str(folder))
    return folder


def prepare(out: Path, base: Path, path: Path, **settings: Any) -> Corpus:
    config = PrepareConfig(
        str(out), [SourceConfig(str(path), format="chat")], tokenizer=str(base), **{"length": 256, **settings}
    )
    return open_corpus(run(config, progress=False), "full")


def parts(corpus: Corpus, wanted: Any) -> list[str]:
    """Runs of tokens for which ``wanted(label, weight)`` holds, as text."""
    tokenizer, found, ids = corpus.tokenizer(), [], []
    for row in corpus.rows:
        for i in range(row["num_tokens"]):
            if wanted(row["labels"][i], row["weight"][i] if "weight" in row else 1.0):
                ids.append(row["input_ids"][i])
            elif ids:
                found.append(tokenizer.decode(ids))
                ids = []
    return [*found, *([tokenizer.decode(ids)] if ids else [])]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_labels_and_weights_of_conversations(tmp_path: Path, base: Path, form: str) -> None:
    """Without a rule what the assistant says, at weight 1; weights of messages and rules change that, and add other roles."""
    rows = [{"messages": TALK}, {"messages": [TALK[1], {**TALK[2], "weight": 0.5}]}, {"messages": CALLS}]
    if form == "folder":
        path = tmp_path / "rows"
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        path = tmp_path / f"rows.{form}"
        if form == "jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    corpus = prepare(tmp_path / "plain", base, path, isolate_documents=True)
    called = '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call><|im_end|>'
    said = [
        "assistant<|im_end|>",
        "<think>is it 4?</think>\n\n4 <|im_end|>",
        "assistant<|im_end|>",
        called,
        "noon<|im_end|>",
    ]
    assert parts(corpus, lambda label, weight: label != -100) == said
    assert parts(corpus, lambda label, weight: weight == 0.5) == ["assistant<|im_end|>"]
    assert corpus.stats["token_bytes_exact"]
    rules = [
        WeightRule(0.25, tag="think"),
        WeightRule(2.0, regex=r"\d", role="assistant"),
        WeightRule(-1.0, role="tool"),
    ]
    ruled = prepare(tmp_path / "ruled", base, path, weights=rules)
    assert parts(ruled, lambda label, weight: weight == 0.25) == ["<think>is it ", "?</think>"]
    assert parts(ruled, lambda label, weight: weight == 2.0) == ["4", "4"]
    assert parts(ruled, lambda label, weight: weight == -1.0) == ["12:00"]
    assert ruled.manifest["fingerprint"] != corpus.manifest["fingerprint"]


def test_a_prompt_and_its_completion_are_taken_as_they_are(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "2+2=", "completion": "4"}\n{"prompt": "a", "completion": "b", "weight": 0.5}\n')
    corpus = prepare(tmp_path / "out", base, path)
    assert parts(corpus, lambda label, weight: label != -100) == ["4<|endoftext|>", "b<|endoftext|>"]
    assert parts(corpus, lambda label, weight: weight == 0.5) == ["b<|endoftext|>"]


def test_conversations_that_are_cut_are_told(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": SAME}) + "\n" for _ in range(8)))
    corpus = prepare(tmp_path / "out", base, path, length=100)  # of 40 tokens each
    lengths = np.asarray(corpus.documents()["num_tokens"])
    ends = np.cumsum(lengths)
    cut = int((ends // 100 != (ends - lengths) // 100)[ends % 100 != 0].sum())
    assert 0 < corpus.stats["cut_chats"] == cut < corpus.stats["chats"] == 8
    assert f"conversations that a row's end cuts in two: {cut} of 8" in describe(corpus.manifest)


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": SAME}) + "\n")
    bare = PreTrainedTokenizerFast.from_pretrained(str(base))
    bare.chat_template = None
    bare.save_pretrained(str(tmp_path / "bare"))
    with pytest.raises(
        UserError, match=r"rows.jsonl line 1: a conversation needs a chat template, and the tokenizer has none"
    ):
        prepare(tmp_path / "out", tmp_path / "bare", path)


ASSISTANTS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '!' }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def test_a_template_given_for_a_tokenizer_without_one(tmp_path: Path, base: Path) -> None:
    """Base models have none. As text or as a file it is the same work; another one is another corpus."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": SAME}) + "\n")
    bare = PreTrainedTokenizerFast.from_pretrained(str(base))
    bare.chat_template = None
    bare.save_pretrained(str(tmp_path / "bare"))
    corpus = prepare(tmp_path / "out", tmp_path / "bare", path, chat_template=ASSISTANTS)
    assert parts(corpus, lambda label, weight: label != -100) == ["ho!<|endoftext|>"]
    assert corpus.tokenizer().chat_template == ASSISTANTS  # models trained on it are saved with it
    (tmp_path / "given.jinja").write_text(ASSISTANTS)
    again = prepare(tmp_path / "out", tmp_path / "bare", path, chat_template=str(tmp_path / "given.jinja"))
    assert again.manifest["fingerprint"] == corpus.manifest["fingerprint"]
    with pytest.raises(UserError, match="is done, but from other inputs"):
        prepare(tmp_path / "out", tmp_path / "bare", path, chat_template=ASSISTANTS.replace("!", "."))
    over = prepare(tmp_path / "over", base, path, chat_template=ASSISTANTS)  # of a tokenizer that has its own
    assert parts(over, lambda label, weight: label != -100) == ["ho!<|endoftext|>"]
    with pytest.raises(
        UserError, match=r"chat_template: gone.jinja: there is no such file, and as a template it has neither"
    ):
        prepare(tmp_path / "gone", base, path, chat_template="gone.jinja")
