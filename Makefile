# Everything a fresh machine needs is installed into .venv by the first command.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test install lint ci clean

demo: install  ## build recipes/digits.yaml and ask it about an image
	$(BIN)/zipvl-compile demo

test: install  ## the whole suite, as CI runs it
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2

install: .venv/.installed

# torch first and alone: with it in place nothing else brings another build. Where the index at hand serves CUDA builds
# under this version, install the CPU build from PyTorch's own index instead.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-aiperf .venv-guidellm build
