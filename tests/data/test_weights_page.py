"""The examples of docs/weights.md: run as they stand, and what they show is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokensieve.data.corpus import open_corpus
from tokensieve.pipeline import prepare, show, train
from tokensieve.pipeline.config.fields import from_fields
from tokensieve.pipeline.configs.prepare import PrepareConfig
from tokensieve.pipeline.configs.show import ShowConfig
from tokensieve.pipeline.configs.train import TrainConfig
from tokensieve.runs.layout import token_lines

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```\w+ (\S+)\n(.*?)^```", re.M | re.S)
EXAMPLES = {
    title: dict(FENCE.findall(text)) for title, text in re.findall(r"^## (\d)\. .*?\n(.*?)(?=^## )", PAGE, re.M | re.S)
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token a byte, which stands at its own number up to 255; control tokens behind them."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=259, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(["a"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    folder = tmp_path_factory.mktemp("page") / "base"
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("number", sorted(EXAMPLES))
def test_examples(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    example = EXAMPLES[number]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(base)
    for name, text in example.items():
        if name.endswith(".jsonl"):
            Path(name).write_text(text, encoding="utf-8")
    fields = {"out": "padded", "length": 128, **yaml.safe_load(example["prepare"])}
    prepare.run(from_fields(PrepareConfig, fields), progress=False)
    fields |= {"out": "out", "length": int(open_corpus("padded").row_tokens()[0])}
    prepare.run(from_fields(PrepareConfig, fields), progress=False)
    shown = show.run(ShowConfig("out", color=False, width=200, lines=20)).split("\n", 1)[1]
    wanted = example["shown"].rstrip("\n")
    assert shown.startswith(wanted), shown
    assert shown[len(wanted) :].strip() in ("", "<|endoftext|>")  # where it is no target
    if "train" in example:
        trained = {"out": "run", "dtype": "float64", **yaml.safe_load(example["train"])}
        trained["training"] |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        train.run(from_fields(TrainConfig, trained))
        line = token_lines(Path("run"))[0]
        kept = {"3": (5, 5), "5": (11, 6)}[number]  # the row's first token is nobody's target; half of 11
        assert (line["valid"], line["kept"]) == kept


def test_there_are_five() -> None:
    assert sorted(EXAMPLES) == ["1", "2", "3", "4", "5"]
