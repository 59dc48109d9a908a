# Everything lives in .venv; `make setup` builds it once and again only when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= data/math
# One thread a test process: two workers with two threads each on two cores are slower than two with one. A file's tests stay with
# one worker (loadscope), so that what they share is made once; files in their own order, where the long ones do not come last.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

TINY := $(patsubst %,%-tiny,rho1-math-1b rho1-math-7b rho1-general-1b rho1-self-reference rho1-weak-to-strong rho1-sft sft-selection mix dmt)

.PHONY: help setup check test test-kernels demo bench bench-references study study-demo study-math mutants faults clean \
  bench-quality recipes-tiny dist exports bench-scaling bench-scale bench-planted sweep study-tiny study-more families docs tutorials

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install into .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check: setup docs ## lint, format, types and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## the documentation as a site, build/site/index.html: every warning is an error; no network
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . build/site

test: setup ## the test suite: offline, on CPU
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m 'not slow' --durations=10

test-kernels: setup ## the numerical tests under other instruction sets, with one thread and two
	$(TEST_ENV) $(BIN)/python tests/kernels/run.py

demo: setup ## the whole method on text found on this machine; leaves runs/demo
	$(BIN)/tokensieve demo

# jemalloc, where it is installed, keeps what was freed. Given back to the kernel and asked for again, memory costs up to a second
# a GiB on a virtual machine: a third of a step then went into clearing pages, and ratios swung by a third.
bench: export LD_PRELOAD = $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2))
bench: export MALLOC_CONF = oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1
bench: setup ## head, step and scoring against what others use: an hour and a half; pip install trl lm_eval for their rows
	$(BIN)/python benchmarks/head.py --tokens 1024 --ways kept recompute --save
	$(BIN)/python benchmarks/head.py --shapes 2048x128000 896x152000 1536x256000 --tokens 2048 --ratios 0.6 --ways kept recompute \
	  --save --name head-2048-tokens
	$(BIN)/python benchmarks/head.py --tokens 1024 --ratios 0.6 --shapes 2048x32000 2048x128000 --rounds 2 \
	  --save --name head-others
	$(BIN)/python benchmarks/head.py --shapes 2048x128000 896x152000 --tokens 2048 --ratios 0.6 --ways kept recompute \
	  --dtype bfloat16 --rounds 5 --save --name head-bfloat16
	LD_PRELOAD= $(BIN)/python benchmarks/head.py --tokens 4096 8192 --ratios 0.6 --shapes 896x152000 2048x128000 --ways kept recompute \
	  --memory_only --save --name head-memory
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rules.py --tokens 256 --save
	$(BIN)/python benchmarks/step.py --save
	$(BIN)/python benchmarks/score.py --save
	$(BIN)/python benchmarks/score.py --dtype bfloat16 --batch_sizes 1 2 4 --save --name score-bfloat16

study: setup ## does it pay? recipes/scarce-math.yaml, five seeds; go on with what was stopped by the same; DATA=folder with the maths text
	$(BIN)/tokensieve run scarce-math --set '{data: $(DATA)}' --jobs 2

study-more: setup ## what that leaves open: controls, other shares of curated text, a second size, a base that has not read the text, rules; DATA=folder
	for r in scarce-math-checks scarce-math-size unread-math-rates unread-math-rules unread-math \
	  unread-math-distill docstrings \
	  unread-math-again-rates unread-math-again; do $(BIN)/tokensieve run $$r --set '{data: $(DATA)}' --jobs 2 || exit; done

study-tiny: setup ## the same in minutes, for looking at: from its registration to its verdict, recipes/study-tiny.yaml
	$(BIN)/tokensieve run study-tiny --jobs 2

sweep: setup ## thirteen tiny runs and the laws through them, recipes/sweep-tiny.yaml: minutes of a core
	$(BIN)/tokensieve run sweep-tiny

bench-scaling: setup ## are planted laws found, and do their intervals hold them; minutes of a core
	$(BIN)/python benchmarks/scaling.py

bench-scale: setup ## memory and speed of prepare, score, train and dedup at .25, .5 and 1 GB of text: two hours of a core; DATA=folder
	$(BIN)/python benchmarks/scale.py --data $(DATA) --grow 0.25 0.5 1 --steps 8 --scratch runs/scale --save
	$(BIN)/python benchmarks/scale.py --data $(DATA) --grow 0.25 0.5 1 --again 4 --length 2048 --steps 8 --bare 0 \
	  --scratch runs/scale-again --name scale-again --save
	$(BIN)/python benchmarks/filter.py --grow 0.25 0.5 1 --save
	$(BIN)/python benchmarks/filter.py --grow 0.25 0.5 1 --method exact --save
	$(BIN)/python benchmarks/mixing.py --megabytes 4 --rounds 5 --save

bench-references: setup ## references of fewer blocks: cost and selection; DATA=folder with the maths text
	$(BIN)/python benchmarks/references.py --data $(DATA) --out runs/references --save

bench-quality: setup ## exact against sparse backward, three seeds: half an hour; DATA=folder with the maths text
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sparse_quality.py --data $(DATA) --out runs/sparse-quality --save

bench-planted: setup ## planted noise: what rho1 keeps of it, and how few tokens it needs; minutes of a core; DATA=folder
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/planted_noise.py --data $(DATA) --out runs/planted-noise --save

study-demo: setup ## the demo with three seeds: the table of docs/results.md
	$(BIN)/tokensieve run demo --seeds '[0, 1, 2]' --jobs 2 --out runs/study-demo

study-math: setup ## recipes/math-tiny.yaml, one seed; DATA=folder with the maths text
	$(BIN)/tokensieve run math-tiny --seeds '[0]' --jobs 2 --out runs/study-math --set '{data: $(DATA)}'

recipes-tiny: setup ## every recipe of the paper on text of this machine, and the mixtures: a minute or two each; leaves runs/*-tiny
	for name in $(TINY); do $(BIN)/tokensieve run $$name --jobs 2 || exit 1; done

mutants: setup ## break the method on purpose, one bug at a time, and see a test fail for each
	$(TEST_ENV) $(BIN)/python tests/mutants/run.py

faults: setup ## kill, stop, damage and starve runs in every way of docs/reliability.md, and write its table
	$(TEST_ENV) $(BIN)/python tests/faults/run.py

families: setup ## every model family of docs/families.md measured, and the page's table written anew
	$(TEST_ENV) $(BIN)/python tests/families/run.py

tutorials: setup ## the shell blocks of the tutorials, each page in a folder with what it asks for, in order
	$(TEST_ENV) $(BIN)/python -m pytest tests/tutorials -v --durations=0

exports: setup ## every export read back by the reader it is for, each in an environment of its own below runs/exports
	$(TEST_ENV) $(BIN)/python tests/export/read_back.py

dist: ## sdist and wheel into dist/, and the wheel tried in an empty environment: the demo's first stages
	rm -rf dist build/dist-env
	$(PYTHON) -m venv build/dist-env
	build/dist-env/bin/python -m pip install --quiet --disable-pip-version-check build
	build/dist-env/bin/python -m build --outdir dist .
	$(PYTHON) tests/dist/try_wheel.py dist/*.whl

clean: ## remove .venv, caches and build output; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} +
