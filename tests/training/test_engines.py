"""Processes that would not be one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import fork_ranks

ASK = """
import sys
from transformers import TrainingArguments
from tokensieve.runs.errors import UserError
from tokensieve.training.engines import check_one_device

check_one_device(TrainingArguments(sys.argv[1], use_cpu=True, report_to="none"))
from accelerate.state import AcceleratorState, PartialState
AcceleratorState._reset_state(True)
PartialState._reset_state()
try:
    check_one_device(TrainingArguments(sys.argv[1], report_to="none"))
except UserError as e:
    assert "WORLD_SIZE is 2, and each process takes itself for the only one" in str(e), e
else:
    raise AssertionError("two processes would each have trained all rows")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there, torchrun's processes are ranks of GPUs")
def test_ranks_that_know_nothing_of_each_other_are_refused(tmp_path: Path) -> None:
    """`torchrun -m tokensieve train` on a CPU without ``use_cpu``: both ranks trained everything, into one folder, and one of
    them ended when the other had moved its checkpoint away."""
    fork_ranks(["-c", ASK, str(tmp_path)], 2)
