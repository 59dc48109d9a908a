"""Settings of every test process: offline, one thread unless asked for more, the same examples on every run."""

import os
import sys
from pathlib import Path

# Before anything imports torch or transformers: both read these once, at import.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test-kernels` asks for two

from hypothesis import settings

settings.register_profile("tokensieve", derandomize=True, deadline=None, database=None)
settings.load_profile("tokensieve")

# Shared parts of tests (tiny models, oracles): importable by tests and by the processes that they start.
sys.path.append(str(Path(__file__).parent / "helpers"))

from experiment import tiny, tokensieve  # noqa: E402, F401  fixtures of the tests of verbs, faults and security
