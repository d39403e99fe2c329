# make demo: train, evaluate and segment on generated photographs.   make test: lint, types, tests.
# make reproduce: what pruning costs and what Reg4Pru brings back (docs/reproduce.md); FAST=1: minutes, on phantoms.
# make cameras: trainings on one camera each, tested on those that they have not seen (docs/experiments.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/fundus_vessel_segmentation
DEMO := runs/demo
CHASE_DB1 ?= ../shared/data/CHASE_DB1
HRF ?= ../shared/data/HRF
STRANGERS ?= ../shared/data/AVRDB
# One thread per core beats the default where the container may use fewer cores than the machine has.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo reproduce cameras test lint clean

# Reinstalled only when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/python -m monai.bundle run training --config_file $(BUNDLE)/configs/train.yaml --output_dir $(DEMO)/training \
		--diameter 448 --crop_size 128 --crops_per_image 4 --max_epochs 22 --val_interval 11 --learning_rate 2.0e-3 \
		--window_size 160 --inspect_images 1 --phantoms '{train: 24, test: 6, size: 448, seed: 0}'
	$(BIN)/reg4pru phantoms $(DEMO)/photographs
	$(BIN)/python -m monai.bundle run --config_file $(BUNDLE)/configs/inference.yaml --dataset_dir $(DEMO)/photographs \
		--output_dir $(DEMO)/segmented --checkpoint $(DEMO)/training/checkpoints/best.pt
	@$(BIN)/reg4pru summary $(DEMO)/training --segmented $(DEMO)/segmented

ifdef FAST
reproduce: RUNS := runs/fast
reproduce: ASKED := --seeds 42 --output-dir runs/fast -- --max_epochs 4 --val_interval 4 --keep_epochs '[2,4]' \
	--diameter 224 --crop_size 96 --window_size 128 \
	--inspect_images 0 --log_model false --phantoms '{train: 24, test: 4, size: 256, seed: 0}'
else
reproduce: RUNS := runs
reproduce: ASKED := --dataset-dir $(CHASE_DB1)
endif

reproduce: $(VENV)/.installed
	$(BIN)/reg4pru sweep configs/experiments/reproduce.yaml --jobs 2 $(ASKED)
	$(BIN)/reg4pru reproduce $(RUNS)/reproduce

cameras: $(VENV)/.installed
	$(BIN)/reg4pru sweep configs/experiments/cameras.yaml --dataset-dir $(CHASE_DB1)
	$(BIN)/reg4pru sweep configs/experiments/cameras.yaml --dataset-dir $(HRF)
	$(BIN)/python docs/measure/cameras.py runs/cameras --data $(CHASE_DB1) $(HRF) --strangers $(STRANGERS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) runs
