"""Settings of every test process: offline, one thread unless asked for more, the same examples on every run."""

import gc
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

from experiment import tiny, tokensieve, warm_pools  # noqa: E402, F401  fixtures of the tests of verbs, faults and security

_modules_frozen = 0


def pytest_runtest_setup() -> None:
    """Each training ends the Trainer's way, with a full garbage collection: 0.2 s where transformers is imported, two thirds of
    a tiny run. What modules brought is set aside, so that a collection looks at what came since.
    """
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 50:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)
