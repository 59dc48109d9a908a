"""One rank of ``tokensieve train`` that may be told to signal itself: python rank_train.py SIGNALS VERB --field value ...

SIGNALS: {"rank": [[step, number], ...]} as JSON.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import zygote

from tokensieve import cli

torch.set_num_threads(1)
zygote.install_signals(json.loads(sys.argv[1]).get(os.environ["RANK"], []))
sys.exit(cli.main(sys.argv[2:]))
