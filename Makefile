# Everyday commands. Each sets up the environment first, once.
#   make search [TRIALS=n] [STUDY=file.toml] [ARGS="…"]   find configurations; typed again, it resumes
#   make test [ARGS="…"]    tests        make lint   style        make types   types        make clean   start over
#   make test-mmcv-full [ARGS="…"]   the OpenMMLab tests with mmcv-full, compiled here once (C++17 compiler; 5 minutes)
#   make supernet [GPUS=n]  train the built-in supernet again (NVIDIA GPUs; four H200 trained it in 16 minutes)
# JOBS=n tests run at once (2). VENV=folder and PYTHON=interpreter say where the environment lies and what it is made from.
SHELL := bash
VENV  := .venv
FULL  := $(VENV)-full
GPUS  := 1
JOBS  := 2
STUDY := studies/digits.toml
BIN    = $(VENV)/bin
STAMP  = $(VENV)/.stamp
FULL_STAMP = $(FULL)/.stamp

.PHONY: search test test-mmcv-full supernet lint types clean set-up
search: set-up
	@"$(BIN)/sparsevit" search "$(STUDY)" $(if $(TRIALS),--trials $(TRIALS)) $(ARGS)

test: set-up
	@"$(BIN)/python" -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# Every test file that mmdet or mmcv has a part in.
test-mmcv-full: $(FULL_STAMP)
	@"$(FULL)/bin/python" -m pytest -n $(JOBS) --dist worksteal $$(grep -rlE 'mmdet|mmcv' tests --include='test_*.py') $(ARGS)

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

ifneq ($(file <$(FULL_STAMP)),$(CURDIR))
.PHONY: $(FULL_STAMP)
endif
$(FULL_STAMP): $(STAMP) tools/mmcv_full.py tools/set_up_mmcv_full.sh
	@tools/set_up_mmcv_full.sh "$(VENV)" "$(FULL)"

# What was made here, but for the results of searches in runs/.
clean:
	rm -rf "$(VENV)" "$(FULL)" dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
