# Every target is a few lines; what needs more lives in tools/.
PY := .venv/bin/python
TWO := -n 2 --dist loadfile --no-loadscope-reorder  # two test files at a time, with one thread each (tests/conftest.py)
TASKS := $(patsubst %/Dockerfile,%,$(filter-out docker/Dockerfile,$(wildcard */Dockerfile)))

.PHONY: demo test test-fast test-docker test-lock lint sync lock lock-check image bench venv fetch bundle doctor faults nightly check site notebooks record
.DELETE_ON_ERROR:

venv: .venv/.ready  ## .venv with everything that a laptop needs
.venv/.ready: requirements-cpu.txt tools/venv.sh
	@bash tools/venv.sh

.venv/.site: .venv/.ready requirements-site.txt
	@$(PY) -m pip install --quiet --no-deps -r requirements-site.txt && touch $@

demo: venv  ## the medical recipe from messy CSV files to answers, on a CPU
	$(PY) medical/data.py --check medical/sample
	$(PY) medical/train.py --demo
	$(PY) medical/infer.py --question "Why does my knee hurt when I climb the stairs?"

test: .venv/.site  ## every test; those that need a Docker engine are skipped where there is none
	$(PY) -m pytest $(TWO)

test-fast: .venv/.site  ## the tests that train nothing, two minutes
	$(PY) -m pytest $(TWO) -m "not slow"

check: venv  ## make check EX=alpaca/2: an exercise of the course, checked here; without EX the list of all
	@$(PY) course/exercises/check.py $(EX)

nightly: .venv/.site  ## what takes hours: launchers, every image, every kill point
	TEST_NIGHTLY=1 TEST_DOCKER_ALL=1 $(PY) -m pytest $(TWO)
	$(PY) tools/faults.py

faults: venv  ## every trainer killed at every write, and started again: figures for docker/RESULTS.md
	@$(PY) tools/faults.py $(ARGS)

test-docker: venv  ## every image, built and run on a stand-in base
	TEST_DOCKER_ALL=1 $(PY) -m pytest tests/docker

site: .venv/.site  ## every page in both languages, with search, in site/: open site/index.html [REPO=OWNER/NAME, for source links]
	@$(PY) tools/website.py $(if $(REPO),--repo $(REPO))

notebooks: .venv/.site  ## course/notebooks/*.ipynb again, from the scripts [REPO=OWNER/NAME, for the buttons]
	@$(PY) tools/notebooks.py $(if $(REPO),--repo $(REPO))

record: .venv/.site  ## make demo in a pseudo-terminal -> the pictures of the root READMEs (minutes)
	@$(PY) tools/record.py

lint: venv  ## style, the copies of common/, and whether the house is as planned
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) tools/sync_common.py --check && $(PY) tools/house.py

sync:  ## copy into every task folder what it imports of common/
	python3 tools/sync_common.py

lock:  ## resolve requirements-cpu.in and every */requirements.in again; then: make lock-check
	bash tools/lock.sh $(TASKS)

lock-check: venv  ## whether every pin is in its locks, and nothing went down since the last commit
	$(PY) tools/lock_check.py

test-lock:  ## make test-lock [LOCK=medical/requirements-cu128.txt]: a GPU lock in an empty container (fetches 3 GB)
	bash tools/test_lock.sh $(or $(LOCK),medical/requirements.txt)

image:  ## make image TASK=medical [CUDA=12.8, for drivers before 580]
	@bash tools/image.sh $(TASK) $(CUDA)

bench: venv  ## make bench BENCH=medical_data
	$(PY) bench/$(BENCH).py $(ARGS)

fetch: venv  ## make fetch MODEL=Qwen/Qwen2.5-7B-Instruct [SOURCE=modelscope]
	@$(PY) tools/fetch.py $(MODEL) $(if $(SOURCE),--source $(SOURCE))

bundle: venv  ## make bundle TASK=medical [ARGS="--model ... --data ..."]: a folder for a machine with no network
	@bash tools/bundle.sh $(TASK) $(ARGS)

doctor:  ## make doctor TASK=medical: what would stop a run here
	@$(if $(wildcard $(PY)),$(PY),python3) docker/doctor.py $(if $(TASK),--task $(TASK)) $(ARGS)
