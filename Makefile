# The developers' everyday commands; PYTHON=... picks the interpreter.
PYTHON ?= python

.PHONY: check format test slow docs bench
check:  ## what CI checks beside the tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) docs/generate_cli.py --check
	$(PYTHON) -m mkdocs build --strict --quiet --site-dir site

format:  ## format, and mend what can be mended
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:  ## the quick tests
	$(PYTHON) -m pytest

slow:  ## the others
	$(PYTHON) -m pytest -m slow

docs:  ## the command reference from --help, then the site
	$(PYTHON) docs/generate_cli.py
	$(PYTHON) -m mkdocs build --strict --site-dir site

bench:  ## every benchmark of speed, one after the other; evidence.py, which trains for hours, is called by itself
	for script in $(filter-out %/evidence.py,$(wildcard benchmarks/[!_]*.py)); do echo "== $$script"; $(PYTHON) "$$script" || exit 1; done
