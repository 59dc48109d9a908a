"""A tokenizer of words for tests with text: ``w0`` ... are a token each, a chat template marks what the assistant says."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny

SPECIAL = ["<eos>", "<unk>", "user", "assistant"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} <eos> "
    "{% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer() -> Any:
    """As many ids as the tiny models have; ``<eos>`` is 0 and pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(tiny.VOCAB - len(SPECIAL)))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>", "pad_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **special)


def sentences(count: int, shortest: int, longest: int, seed: int = 0) -> list[str]:
    """Random words, by the dozen."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    return [" ".join(f"w{i}" for i in rng.integers(0, tiny.VOCAB - len(SPECIAL), n)) for n in lengths]
