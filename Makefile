# make demo, make test: the README's two commands; make docs: the site; make lint, make bench for developers.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint bench chaos docs

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/beatray demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: .venv/installed
	for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

chaos: .venv/installed
	BEATRAY_CHAOS=1 $(BIN)/python -m pytest -n 0 --timeout=3600 tests/chaos tests/hostile tests/distributed tests/unit/test_every_objective.py tests/unit/test_export.py \
		tests/unit/test_ray_session.py tests/unit/test_step.py tests/unit/test_chunked_contrast.py
