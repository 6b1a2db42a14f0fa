# Everyday commands. Each sets up the environment first, once.
#   make search [TRIALS=n] [STUDY=file.toml] [ARGS="…"]   find configurations; typed again, it resumes
#   make test [ARGS="…"]    tests        make lint   style        make types   types        make clean   start over
#   make supernet [GPUS=n]  train the built-in supernet again (NVIDIA GPUs; four H200 trained it in 16 minutes)
# VENV=folder and PYTHON=interpreter say where the environment lies and what it is made from.
SHELL := bash
VENV  := .venv
GPUS  := 1
STUDY := studies/digits.toml
BIN    = $(VENV)/bin
STAMP  = $(VENV)/.stamp

.PHONY: search test supernet lint types clean set-up
search: set-up
	@"$(BIN)/sparsevit" search "$(STUDY)" $(if $(TRIALS),--trials $(TRIALS)) $(ARGS)

test: set-up
	@"$(BIN)/python" -m pytest $(ARGS)

supernet: set-up
	@"$(BIN)/python" -m torch.distributed.run --standalone --nproc_per_node $(GPUS) -m sparsevit.openmmlab.supernet --work-dir runs/supernet
	@cp runs/supernet/supernet.safetensors sparsevit/weights/digits.safetensors

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
