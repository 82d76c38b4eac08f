# Everything runs in .venv, which these targets create and fill: Python, pip and make are enough.
# `make` lists the targets.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
ARGS   ?=

# PyPI's Linux wheels of torch bring gigabytes of CUDA along, PyTorch's own index has plain CPU
# wheels. For a GPU: make ... TORCH_INDEX=https://download.pytorch.org/whl/cu128 (in a fresh .venv).
# Where the index cannot be reached, pip goes on with the others.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH       := $(shell sed -n '/^torch==/p' constraints.txt)
FROM_TORCH  := --retries 1 --timeout 15 $(addprefix --extra-index-url ,$(TORCH_INDEX))

# -qq leaves errors only; on a terminal the one big download shows its progress.
PIP   := $(PY) -m pip --disable-pip-version-check
QUIET := -qq

# A process for each core, at most eight; each computes with one thread. ARGS="-n 0": one process.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/pytest -n auto --maxprocesses 8 --dist worksteal

# Names of the measurements in benchmarks/, in the order in which they run.
BENCHMARKS := prepare synth training distributed small index scorer bulk shards

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help api metrics docs demo demo-small test check lint sanitize types format bench bench-abtest bench-data bench-latency bench-quick bench-serving bench-shop bench-similar bench-tune bench-warmstart constraints faults processes clean distclean settings simulate histories soak failover power-loss

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

demo: $(VENV)/.runtime  ## simulate, train, evaluate, index, rank, write a report (5 minutes on 2 cores)
	$(VENV)/bin/limerank demo $(ARGS)

demo-small: $(VENV)/.runtime  ## the same way in a small form
	$(VENV)/bin/limerank demo --small --out limerank-demo-small $(ARGS)

test: $(VENV)/.dev  ## all tests; ARGS="-k links -x" goes to pytest
	$(PYTEST) $(ARGS)

check: lint types test  ## what CI runs: lint, formatting, types, tests

lint: $(VENV)/.dev  ## ruff: rules and formatting, nothing is changed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The sanitizers' runtime has to be there before Python is: hence the preload. Python itself leaks.
sanitize: $(VENV)/.dev  ## the tests of what is C++ on a build with the address and undefined-behaviour sanitizers
	@$(VENV)/bin/cmake -G Ninja -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Debug -DLIMERANK_SANITIZE=ON \
	  -DPython_EXECUTABLE=$(abspath $(PY)) -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV)/bin/ninja) > /dev/null
	@$(VENV)/bin/cmake --build build/sanitize > build/sanitize.log || { cat build/sanitize.log; exit 1; }
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 LIMERANK_NATIVE=build/sanitize $(PYTEST) tests/test_native.py tests/test_scorer.py tests/test_personal.py tests/test_anchors.py tests/test_profile.py tests/test_kernels_shared.py

types: $(VENV)/.dev  ## mypy, strict
	$(VENV)/bin/mypy

format: $(VENV)/.dev  ## ruff: format, and mend what can be mended
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.bench  ## run the measurements and write docs/results from their rows
	@set -e; for name in $(BENCHMARKS); do echo "benchmarks.$$name"; $(PY) -m benchmarks.$$name; done
	$(PY) -m benchmarks.report

bench-quality: NAME := quality
bench-coldstart: NAME := coldstart
bench-ablations: NAME := ablations
bench-exact: NAME := exact
bench-peers: NAME := peers
bench-warmstart: NAME := warmstart
bench-nextitem: NAME := nextitem
bench-quality: bench-data  ## train every model on real logs (DATA=FOLDER of datasets; hours, resumable)
bench-coldstart: bench-data  ## items and users that are absent from training (DATA=FOLDER)
bench-ablations: bench-data  ## what each part of LIME contributes (DATA=FOLDER)
bench-nextitem: bench-data  ## the next item of MovieLens, full catalogue, beside published figures (DATA=FOLDER; hours, resumable)
bench-warmstart: bench-data  ## a week of daily warm starts, beside training from the start (DATA=FOLDER; resumable)
bench-exact: bench-data  ## exact histories compared with requests (DATA=FOLDER)
bench-peers: $(VENV)/.bench bench-data  ## compare the models with LightGBM, item-kNN, ALS and means (DATA=FOLDER, ARGS="--only ml1m")

bench-latency: $(VENV)/.bench  ## time of full requests, five models (resumable; ARGS="--quick", "--threads 2", "--device cuda")
	$(PY) -m benchmarks.latency $(ARGS)
	$(PY) -m benchmarks.report

processes: $(VENV)/.dev  ## train with 3 and 4 processes and kill more of them (the tests have 2, and one kill)
	LIMERANK_PROCESSES=4 $(PY) -m pytest -q tests/test_distributed.py

faults: $(VENV)/.dev  ## a hundred kills and ten thousand random requests (the tests have a few of each)
	LIMERANK_KILLS=100 LIMERANK_FUZZ=10000 $(PY) -m pytest -q tests/test_faults.py

simulate: $(VENV)/.dev  ## 100,000 seeded histories of servers and their store (hours, resumable; ARGS="--seeds 0:2000", "--seed 17")
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(PY) -m simulation --seeds 0:100000 --row $(ARGS)

soak: $(VENV)/.dev  ## two hours of everything at once, the daily loop included; memory and latency by minutes (ARGS="--minutes 10")
	$(PY) -m benchmarks.soak $(ARGS)
	$(PY) -m benchmarks.report

histories: $(VENV)/.dev  ## real servers with Valkey under stops, kills, partitions and failovers, each history checked (ARGS="--seeds 0:20 --store cluster")
	OMP_NUM_THREADS=1 $(PY) -m histories $(ARGS)

failover: $(VENV)/.dev  ## what a Valkey cluster loses when a replica takes over from a killed primary (two minutes)
	$(PY) -m benchmarks.failover $(ARGS)
	$(PY) -m benchmarks.report

power-loss: $(VENV)/.dev  ## all states of the disk after a power loss, all calls that may fail (hours; ARGS="--jobs files", "--states 500")
	$(PY) -m benchmarks.power $(ARGS)
	$(PY) -m benchmarks.report

bench-serving: $(VENV)/.dev  ## the server under load from another process; size and speed of the event store
	$(PY) -m benchmarks.state
	$(PY) -m benchmarks.serving $(ARGS)
	$(PY) -m benchmarks.hostile
	$(PY) -m benchmarks.report

bench-tune: $(VENV)/.dev  ## what a search for settings gains over the defaults (resumable; ARGS="--data FOLDER --trials 30")
	$(PY) -m benchmarks.tune $(ARGS)
	$(PY) -m benchmarks.report

bench-similar: $(VENV)/.dev  ## similar items beside the truth of a simulated shop, and the price of diversity (minutes, resumable)
	$(PY) -m benchmarks.similar $(ARGS)
	$(PY) -m benchmarks.report

bench-abtest: $(VENV)/.dev  ## two weeks of daily loops with a simulated population (an hour, resumable by day; ARGS="--small")
	$(PY) -m benchmarks.abtest $(ARGS)
	$(PY) -m benchmarks.report

bench-shop: $(VENV)/.dev  ## the next purchase in a simulated shop, every model (hours, resumable)
	$(PY) -m benchmarks.shop $(ARGS)
	$(PY) -m benchmarks.report

bench-quick: $(VENV)/.dev  ## all phases of bench-quality on a small simulated log; writes no rows
	$(PY) -m benchmarks.quality --quick

bench-data: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "make bench-$(NAME) DATA=FOLDER, the folder that holds ml1m/, mind_sample/, ..."; exit 2; }
	$(PY) -m benchmarks.$(NAME) --data $(DATA) $(ARGS)
	$(PY) -m benchmarks.report

docs: $(VENV)/.dev  ## build the site into build/docs; a broken link or reference is an error
	$(PY) -m sphinx -q -n -W --keep-going -b html -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

api: $(VENV)/.runtime  ## write docs/api.md from the server's description of itself
	$(PY) -c "from limerank.serving.http.routes import OPERATIONS; from limerank.serving.http.openapi import describe, reference; \
	  print(reference(describe('', OPERATIONS, open_=False)), end='')" > docs/api.md

settings: $(VENV)/.runtime  ## write docs/settings.md from the configuration classes
	$(VENV)/bin/limerank settings --markdown > docs/settings.md

metrics: $(VENV)/.runtime  ## write docs/metrics.md from the descriptions of the metrics
	$(PY) -c "from limerank.evaluation.legend import reference; print(reference(), end='')" > docs/metrics.md

constraints: $(VENV)/.dev  ## pin the newest versions in constraints.txt (run it on Python 3.11)
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make constraints: needs a .venv of Python 3.11, the oldest supported")'
	@echo "resolving the newest versions of everything but torch..."
	@mkdir -p build
	@$(PIP) install --dry-run --ignore-installed --no-build-isolation $(FROM_TORCH) $(TORCH) -e '.[dev,tensorboard,bench,ray]' \
	  > build/resolved.txt 2> build/resolved.log || { cat build/resolved.log >&2; exit 1; }
	@{ sed -n '/^#/p' constraints.txt; \
	  sed -n 's/^Would install //p' build/resolved.txt | tr ' ' '\n' | sed -e '/^limerank-/d' \
	      -e 's/-\([^-]*\)$$/==\1/' -e 's/+.*//' | tr 'A-Z_' 'a-z-' | LC_ALL=C sort; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt
	@echo "constraints.txt is new: read the difference, then run make check"

clean:  ## remove caches, builds and the demo's output
	rm -rf build dist limerank-demo limerank-demo-small .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv as well
	rm -rf $(VENV)

# Set-up. Each stamp is newer than what it was made from: a change of pyproject.toml or
# constraints.txt brings .venv up to date before the next command. The package is installed in
# place (-e), so that what runs is always what is written; a test builds the wheel and compares.
# torch comes first and alone, so that nothing else decides which build of it is fetched. The build
# backend comes before the package, pinned like the rest, hence --no-build-isolation.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "limerank needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@if $(PYTHON) -c 'import ensurepip' 2> /dev/null; then $(PYTHON) -m venv $(VENV); else \
	  echo "this Python has no ensurepip: its own pip fills $(VENV)"; \
	  $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install $(QUIET) pip; fi
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt CMakeLists.txt $(wildcard limerank/kernels/native/*)
	@echo "installing $(TORCH) (CPU: about 200 MB, the longest step)"
	@if [ -t 1 ]; then quiet=; else quiet=$(QUIET); fi; \
	  $(PIP) install $$quiet $(FROM_TORCH) --no-deps $(TORCH)
	@echo "installing limerank and what it needs (about 150 MB)"
	@command -v $${CXX:-c++} > /dev/null || { \
	  echo "limerank builds its scorer with a C++17 compiler and found none: install g++ or clang, or set CXX" >&2; exit 1; }
	@$(PIP) install $(QUIET) -c constraints.txt scikit-build-core nanobind cmake ninja
	@$(PIP) install $(QUIET) -c constraints.txt --no-build-isolation -e '.[tensorboard,serve]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing the peers that are measured: FAISS, LightGBM, implicit"
	@$(PIP) install $(QUIET) -c constraints.txt --no-build-isolation -e '.[dev,tensorboard,bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the tools of development: pytest, hypothesis, scikit-learn, ruff, mypy"
	@$(PIP) install $(QUIET) -c constraints.txt --no-build-isolation -e '.[dev,tensorboard,serve]'
	@touch $@
