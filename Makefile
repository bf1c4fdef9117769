# make demo: the whole main job. make serve: its champion behind a page. make docs: the documentation as a site. make test: the
# tests. All install first, into .venv.
PYTHON ?= python3.11
VENV ?= .venv
RUN ?= runs/demo
RECIPE ?= shapes
SITE ?= build/site
BIN = $(VENV)/bin
GPU_PYTHON ?= python3
GPU_NEEDS = hjson ninja py-cpuinfo msgpack einops
JOBS = $(BIN)/python -m jobs

.PHONY: demo serve test test-unit test-slow chaos gpu gpu-wheels ui docs lint lock clean

demo: $(VENV)/installed
	$(JOBS) run --run $(RUN) --recipe $(RECIPE)

serve: $(VENV)/installed
	$(JOBS) serve

test: $(VENV)/installed
	$(BIN)/python -m pytest

test-unit: $(VENV)/installed
	$(BIN)/python -m pytest -m 'not slow and not integration'

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

chaos: $(VENV)/installed
	$(BIN)/python -m benchmarks.chaos

# On one NVIDIA GPU, by whatever Python has torch there; diffusers and DeepSpeed come from build/wheels.
gpu:
	DS_IGNORE_CUDA_DETECTION=1 $(GPU_PYTHON) -m pip install --quiet --no-index --find-links build/wheels diffusers deepspeed ftfy tomli-w cronsim rensa
	DS_IGNORE_CUDA_DETECTION=1 $(GPU_PYTHON) -m benchmarks.gpu

gpu-wheels: $(VENV)/installed
	mkdir -p build/wheels
	DS_BUILD_OPS=0 DS_IGNORE_CUDA_DETECTION=1 $(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w build/wheels deepspeed==0.19.8
	$(BIN)/pip download --quiet --no-deps --python-version 3.12 --only-binary=:all: -d build/wheels diffusers==0.42.1 $(GPU_NEEDS)
	$(BIN)/pip download --quiet --python-version 3.12 --only-binary=:all: -d build/wheels pydantic importlib-metadata ftfy tomli-w cronsim rensa
	$(BIN)/python -m benchmarks.gpu --estimates

ui: $(VENV)/installed
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --artifacts-destination runs/mlartifacts --port 5000

# A link to no page, an anchor that no heading has and a page that the navigation omits end the build. Not with `--quiet`, under
# which `--strict` counts no warning.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/site/mkdocs.yml -d $(abspath $(SITE))

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_prose.py

# torch goes first: DeepSpeed's source distribution asks for it while it is built. The library goes in last, so that `import nasa`
# works from any folder; the other packages are found from the root of the checkout alone.
$(VENV)/installed: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 setuptools wheel
	DS_IGNORE_CUDA_DETECTION=1 DS_ACCELERATOR=cpu $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The lock holds names and versions alone, so that it is the same on every platform; atheris has wheels for Linux only.
lock: $(VENV)/installed
	$(BIN)/pip install --quiet --upgrade --no-build-isolation -e .[cluster,dev]
	$(BIN)/pip freeze --exclude-editable --all --exclude pip | sed "s/+cpu$$//; s/ @ .*//; s/^atheris.*/&; sys_platform == 'linux'/" > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
