# Every target is a few lines; what needs more lives in tools/.
PY := .venv/bin/python
TASKS := $(patsubst %/Dockerfile,%,$(filter-out docker/Dockerfile,$(wildcard */Dockerfile)))

.PHONY: demo test test-docker lint sync lock image bench venv fetch bundle doctor
.DELETE_ON_ERROR:
export DOCKER_BUILDKIT=1

venv: .venv/.ready  ## .venv with everything that a laptop needs
.venv/.ready: requirements-cpu.txt tools/venv.sh
	@bash tools/venv.sh

demo: venv  ## the medical recipe from messy CSV files to answers, on a CPU
	$(PY) medical/data.py --check medical/sample
	$(PY) medical/train.py --demo
	$(PY) medical/infer.py --question "Why does my knee hurt when I climb the stairs?"

test: venv  ## every test; those that need a Docker engine are skipped where there is none
	$(PY) -m pytest

test-docker: venv  ## every image, built and run on a stand-in base
	TEST_DOCKER_ALL=1 $(PY) -m pytest tests/docker

lint: venv  ## style, and that the copies of common/ are the same
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) tools/sync_common.py --check

sync:  ## copy common/ into every task folder
	python3 tools/sync_common.py

lock:  ## resolve requirements-cpu.in and every */requirements.in again
	bash tools/lock.sh $(TASKS)

image:  ## make image TASK=medical
	docker build -t finetune-base docker && docker build -t $(TASK)-train $(TASK)

bench: venv  ## make bench BENCH=medical_data
	$(PY) bench/$(BENCH).py $(ARGS)

fetch: venv  ## make fetch MODEL=Qwen/Qwen2.5-7B-Instruct [SOURCE=modelscope]
	@$(PY) tools/fetch.py $(MODEL) $(if $(SOURCE),--source $(SOURCE))

bundle: venv  ## make bundle TASK=medical [ARGS="--model ... --data ..."]: a folder for a machine with no network
	@bash tools/bundle.sh $(TASK) $(ARGS)

doctor:  ## make doctor TASK=medical: what would stop a run here
	@$(if $(wildcard $(PY)),$(PY),python3) docker/doctor.py $(if $(TASK),--task $(TASK)) $(ARGS)
