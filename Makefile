# `make` prints the targets. Everything runs out of .venv, which the first target that needs it creates.

PYTHON ?= python3
STACK ?= embedded
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
EXTENSION_SOURCES := $(shell find hotpath perf -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi')

.DEFAULT_GOAL := help
.PHONY: help venv demo test prove up down compose-secrets image-locks lint bench perf-gate figures clean

help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/.built ## Create .venv, install everything, build the compiled modules

demo: .venv/.built ## A whole flash sale under load on this machine, one kill -9 of Redis, payments, and a report
	@$(BIN)/flashsale demo

test: .venv/.built ## The test suite with the real servers it needs
	@$(BIN)/python -m tests

prove: .venv/.built ## Everything, also what takes longer: all tests, then all faults
	@$(BIN)/python -m tests --slow
	@$(BIN)/flashsale faults

up: .venv/.built ## The stack in the background until `make down` (STACK=full: as in production)
	@$(BIN)/flashsale up --detach --stack $(STACK)

down: .venv/.built ## Stop what `make up` started
	@$(BIN)/flashsale down

compose-secrets: .venv/.built ## Create the secrets of docker-compose.yml in .flashsale-compose/; existing ones stay
	@$(BIN)/flashsale compose-secrets

LOCKS := devstack/compose/locks
LOCK = $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 --no-header --no-annotate

image-locks: .venv/.built ## Pin the newest Python packages of the image by version and hash
	@# psycopg's C implementation is compiled in the image, so the image needs no binary one.
	@echo 'psycopg[c,pool]' | $(LOCK) --no-emit-package psycopg-binary pyproject.toml - --output-file $(LOCKS)/runtime.txt
	@printf 'cython\nsetuptools\nwheel\n' | $(LOCK) - --output-file $(LOCKS)/build.txt
	@echo 'aiosmtpd' | $(LOCK) --constraint $(LOCKS)/runtime.txt - --output-file $(LOCKS)/demo.txt

lint: .venv/.built ## ruff, mypy, cython-lint, import rules, formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(EXTENSION_SOURCES)
	@$(BIN)/lint-imports

bench: .venv/.built ## Benchmarks of the hot path; fails if a compiled kernel is below 10x its Python reference
	@$(BIN)/python -m perf.bench

perf-gate: .venv/.built ## Throughput of both doors and of peers as ratios of one run, with wrk (about 8 minutes)
	@$(BIN)/python -m perf.gate

FIGURES := bench script_bench lanes gate writer_bench pipeline broker flatness growth login cached_reads search cache_hits letters overload "open_loop --whole-stack --rate 4000" open_loop webhooks idle event_log analytics pooled

figures: .venv/.built ## Measure every figure on a quiet machine, save them in perf/results/ (about 40 minutes)
	@# A missed target or a failed measurement does not stop the others.
	@failed=; for figure in $(FIGURES); do \
		echo "== $$figure"; $(BIN)/python -m perf.$$figure --save || failed="$$failed $${figure%% *}"; \
	done; [ -z "$$failed" ] || { echo "a target missed, or not measured:$$failed" >&2; exit 1; }

clean: ## Remove .venv and everything that was built; never data of a stack
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name .git -prune -o \( -name '*.so' -o -name '*.c' -o -name __pycache__ \) -print0 | xargs -0 rm -rf

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.created pyproject.toml setup.py
	@# Build tools first, and then no isolation: the modules are compiled once, by the tools that rebuild them later.
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		> .venv/.build-requires
	$(PIP) -r .venv/.build-requires
	$(PIP) --no-build-isolation -e '.[devstack,dev]'
	@touch $@

# The installation compiles the modules, too. This target compiles sources that changed afterwards.
.venv/.built: .venv/.installed $(EXTENSION_SOURCES)
	$(if $(filter .venv/.installed,$?),,$(BIN)/python setup.py --quiet build_ext --inplace --parallel 2)
	@touch $@
