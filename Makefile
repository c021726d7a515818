# Every verb sets itself up: on a fresh Linux machine with Python >= 3.11, git and
# make, `make test` creates .venv, installs the pinned packages and runs.
#
#   make demo        train a detector on built-in images, in minutes, and look at it
#   make test        the tests
#   make fuzz        the tests of properties, with examples that were never tried
#   make test-extras the tests of each extra, each in an environment of its own
#   make browser     a browser for the tests of the report, where apt-get may install one
#   make check       formatter, linter, type checker, import ladder
#   make site        the documentation as a web site -> build/site; `make site-serve` shows it
#   make bench       time the losses on this machine -> benchmarks/results/
#   make bench-train time whole training steps beside torchvision's RetinaNet
#   make gpu-check   what needs a GPU, in one command
#   make demo-test   what a newcomer does: fresh clone, `make demo`, look at the AP
#   make dist-test   a wheel and an sdist, each installed into an empty environment and used
#   make lock        choose the pinned versions anew -> requirements/
#   make help        this list

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-test dist-test test fuzz test-extras browser check format site site-serve bench bench-train gpu-check lock clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

$(BIN)/uv: requirements/bootstrap.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rankdet needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python could not create $(VENV). On Debian and Ubuntu, install python3-venv first." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
	@touch $@

$(READY): $(BIN)/uv requirements/dev.lock pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/rankdet demo $(ARGS)

demo-test:
	bash tests/demo_test.sh $(ARGS)

dist-test: $(READY)
	bash tests/dist_test.sh

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=new $(ARGS)

# What an extra brings may not fit beside that of another: so each has its own environment.
EXTRAS := mmdet transformers export
TESTS_mmdet        := tests/integrations/mmdet
TESTS_transformers := tests/integrations/transformers tests/test_docs.py -k "not test_docs or accelerate or transformers"
TESTS_export       := tests/export tests/test_inference.py tests/cli/test_export_command.py

test-extras: $(EXTRAS:%=test-extra-%)

.PHONY: $(EXTRAS:%=test-extra-%)
$(EXTRAS:%=test-extra-%): test-extra-%: .venv-extras/%/.ready
	.venv-extras/$*/bin/python -m pytest $(TESTS_$*) $(ARGS)

.venv-extras/%/.ready: requirements/%.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-extras/$*
	$(BIN)/uv pip sync --quiet --python .venv-extras/$*/bin/python --require-hashes requirements/$*.lock
	$(BIN)/uv pip install --quiet --python .venv-extras/$*/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

browser:
	bash tests/browser_setup.sh

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_ladder.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

export NO_MKDOCS_2_WARNING := 1

site: $(READY)
	$(BIN)/mkdocs build
	@echo "written to build/site; look at it with: make site-serve"

site-serve: $(READY)
	$(BIN)/mkdocs serve $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

bench-train: $(READY)
	$(BIN)/python -m benchmarks.detector_step $(ARGS)

# The GPU machine may have its own PyTorch and no network: a Python that can
# already import torch and see a GPU is used as it is, without set-up.
gpu-check:
	@if $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  PYTHONPATH="src:.$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m benchmarks.gpu_check $(ARGS); \
	else \
	  $(MAKE) --no-print-directory $(READY) && $(BIN)/python -m benchmarks.gpu_check $(ARGS); \
	fi

UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
              --no-emit-index-url --no-header --upgrade

lock: $(BIN)/uv
	$(BIN)/uv --version | sed 's/^uv \([^ ]*\).*/uv==\1/' | $(UV_COMPILE) - --output-file requirements/bootstrap.lock
	$(UV_COMPILE) pyproject.toml --group dev --extra timm --extra bench \
	  --output-file requirements/dev.lock
	$(UV_COMPILE) pyproject.toml --group test --group build --extra export --extra supervision \
	  --constraint requirements/dev.lock --output-file requirements/export.lock
	$(UV_COMPILE) pyproject.toml --group test --group build --extra transformers \
	  --constraint requirements/dev.lock --output-file requirements/transformers.lock
	echo opencv-python-headless | $(UV_COMPILE) --overrides requirements/mmdet.overrides pyproject.toml \
	  --group test --group build --extra mmdet - --output-file requirements/mmdet.lock

clean:
	rm -rf $(VENV) .venv-extras rankdet-demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
