# Everyday commands. Each sets up the environment first, once.
#   make search [TRIALS=n] [STUDY=file.toml] [ARGS="…"]   find configurations; typed again, it resumes
#   make test [ARGS="…"]    tests        make lint   style        make types   types        make clean   start over
# VENV=folder and PYTHON=interpreter say where the environment lies and what it is made from.
SHELL := bash
VENV  := .venv
STUDY := studies/digits.toml
BIN    = $(VENV)/bin
STAMP  = $(VENV)/.stamp

.PHONY: search test lint types clean set-up
search: set-up
	@"$(BIN)/sparsevit" search "$(STUDY)" $(if $(TRIALS),--trials $(TRIALS)) $(ARGS)

test: set-up
	@"$(BIN)/python" -m pytest $(ARGS)

lint: set-up
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .

types: set-up
	@"$(BIN)/mypy"

set-up: $(STAMP)

# The stamp names the folder it was made in: a moved checkout is set up anew.
ifneq ($(file <$(STAMP)),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt tools/set_up.sh
	@PYTHON="$(PYTHON)" tools/set_up.sh "$(VENV)"

# What was made here, but for the results of searches in runs/.
clean:
	rm -rf "$(VENV)" dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
