# make demo       train and compare Faster R-CNN and G-RCN on the built-in data
# make test       run the tests
# make slow       run the tests that take minutes, which make test skips
# make faults     kill runs at random moments, many times, and compare the results; takes minutes
# make check      run ruff and mypy
# make generated  regenerate configs/schema.json, configs/README.md, docs/config.md and the tables of measurements
# make venv       only make .venv, which the others do first
#
# PYTHON is the interpreter that .venv is made from. Its packages, above all torch, are reused if their
# versions fit. After choosing another PYTHON, remove .venv.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

.PHONY: venv demo test slow faults check generated
.DELETE_ON_ERROR:
venv: .venv/installed

.venv/installed: pyproject.toml | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install --editable '.[dev,fast,plot,tb,timm]'
	touch $@

# A venv sees the packages of PYTHON's base interpreter, but not those of a venv that PYTHON is in;
# the .pth file adds them, after .venv's own.
$(VENV_PYTHON):
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or \
	    sys.exit(f'grcn needs Python 3.11 or newer (got {sys.version.split()[0]}); make PYTHON=/path/to/python')"
	$(PYTHON) -m venv --system-site-packages .venv
	$(PYTHON) -c "import sys, sysconfig; sys.prefix == sys.base_prefix or \
	    print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	    > "$$($@ -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/reuse.pth"

demo: venv
	@$(VENV_PYTHON) tools/demo.py

# One thread per process: on a few cores, parallel tests are faster than one test with several threads.
test: venv
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest --numprocesses auto --maxprocesses 4

slow: venv
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -m slow --numprocesses auto --maxprocesses 4

faults: venv
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest tests/faults --faults 12 --numprocesses auto --maxprocesses 4

check: venv
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy grcn tools

generated: venv
	$(VENV_PYTHON) tools/generate_config_reference.py
	$(VENV_PYTHON) tools/generate_config_table.py
	$(VENV_PYTHON) tools/generate_results.py
	$(VENV_PYTHON) tools/generate_hours.py
