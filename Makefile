# The developers' everyday commands; PYTHON=... picks the interpreter.
PYTHON ?= python
OUT ?= bench-results

.PHONY: check format test slow docs pictures bench
check:  ## what CI checks beside the tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) docs/generate_cli.py --check
	$(PYTHON) docs/generate_methods.py --check
	$(PYTHON) docs/generate_reference.py --check
	$(PYTHON) docs/generate_outputs.py --check
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet --site-dir site

format:  ## format, and mend what can be mended
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:  ## the quick tests
	$(PYTHON) -m pytest

slow:  ## the others
	$(PYTHON) -m pytest -m slow

pictures:  ## the README's: pip install pyte
	$(PYTHON) docs/draw_overview.py
	$(PYTHON) docs/generate_outputs.py --pictures

docs:  ## the command reference from --help, what commands print, then the site
	$(PYTHON) docs/generate_cli.py
	$(PYTHON) docs/generate_methods.py
	$(PYTHON) docs/generate_reference.py
	$(PYTHON) docs/generate_outputs.py
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --site-dir site

bench:  ## every benchmark of speed, into OUT; a file that is there is gone on with. evidence.py trains for hours, by itself
	mkdir -p $(OUT)
	failed=; for script in $(filter-out %/evidence.py %/ranks.py %/estimate.py %/sparse_run.py,$(wildcard benchmarks/[!_]*.py)); do \
		echo "== $$script"; $(PYTHON) $$script --out $(OUT)/$$(basename $$script .py).json || failed="$$failed $$script"; \
	done; echo "== benchmarks/ranks.py"; \
	OMP_NUM_THREADS=1 $(PYTHON) -m torch.distributed.run --nproc-per-node 2 benchmarks/ranks.py --out $(OUT)/ranks.json \
		|| failed="$$failed benchmarks/ranks.py"; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }
