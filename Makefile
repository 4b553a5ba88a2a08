# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Threads that sleep while they wait: a little slower alone, five times faster where another program wants the cores too.
export OMP_WAIT_POLICY ?= PASSIVE
INSTALLED := .venv/.installed
TESTABLE := .venv/.testable
DOCUMENTED := .venv-docs/.installed
PEERED := .venv-peers/.installed
FUZZABLE := .venv/.fuzzable
AUDITED := .venv-audit/.installed

.PHONY: demo test test-slow test-peers soak fuzz audit lint docs wheel ffcv clean
demo: $(INSTALLED)
	$(BIN)/fastvicreg demo

# A process a core, each with one thread: tests that train do not wait for each other. A test that takes more than 4 s
# of two cores is marked slow; those that crept over it are named at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
test: $(TESTABLE)
	$(PYTEST) -m "not slow" --durations=10 --durations-min=6

# Kills, several processes, compilers, machines that lack something, limits on waiting: what .ci/run also requires.
test-slow: $(TESTABLE)
	$(PYTEST) -m slow

# What exchanges weights with torchvision and timm, or is timed beside lightly and solo-learn, with a torch that their
# builds go with (5 GB, CUDA included).
# Only the files that hold such tests: others may import what is installed for `make test` alone.
test-peers: $(PEERED)
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest -m peers $$(grep -rl 'pytest[.]mark[.]peers' tests --include='*.py')

SOAKED := tests/fastvicreg/train/test_kills.py tests/fastvicreg/train/test_checkpoint_faults.py \
	tests/fastvicreg/train/test_growth.py tests/pipelines/test_mutations.py tests/pipelines/convert/test_convert_kills.py \
	tests/test_parsers.py

# What docs/reliability.md gives figures of: the same tests, ten times as much of each, and parsers fuzzed.
soak: $(TESTABLE) fuzz
	FASTVICREG_SOAK=10 FASTVICREG_SOAK_STEPS=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s $(SOAKED)

FUZZED := beton tar tar-summed idx jpeg manifest trace
FUZZ_SECONDS ?= 600

# Coverage guides what each parser is given; a file at which one fails is left in build/fuzz, and ends this.
fuzz: $(FUZZABLE)
	for name in $(FUZZED); do OMP_NUM_THREADS=1 $(BIN)/python tests/support/fuzzing.py $$name $(FUZZ_SECONDS) || exit 1; done

# Known vulnerabilities of the pinned versions: told, never a failure.
audit: $(AUDITED)
	.ci/audit .venv-audit/bin/pip-audit

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The pages below docs/ as a site, in site/; a warning, such as a broken link, is an error (--quiet would hide it).
docs: $(DOCUMENTED)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "built: site/index.html"

# A wheel that carries the kernels' machine code, so that its users need no compiler.
wheel: $(TESTABLE)
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/python -m zipfile --list "$$(ls -t dist/fastvicreg-*.whl | head -n 1)" | grep cubins.zip

# The constraints pin what was tested; torch==2.13.0 takes a CPU build where one is offered, else PyPI's with CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fastvicreg needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	pipelines/install_ffcv.sh $(BIN)/python
	touch $@

# Beside the program what its tests compare with and compile by: DALI and NVIDIA's compiler run without a GPU (0.4 GB).
$(TESTABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dali,cuda,parquet,remote,export,audio,wandb,mlflow]'
	touch $@

$(FUZZABLE): $(TESTABLE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	touch $@

# An environment of its own: what asks about packages is none that the program needs.
$(AUDITED): constraints.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	touch $@

# An environment of its own: torch is the one that these builds of torchvision were made for, the rest as tested.
$(PEERED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	grep -vE '^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==' constraints.txt > .venv-peers/constraints.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-peers/constraints.txt -e '.[peers]'
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps solo-learn==1.0.2
	touch $@

# An environment of its own, without torch: the reference is made from the source's text.
$(DOCUMENTED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > .venv-docs/packages.txt
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r .venv-docs/packages.txt
	touch $@

# FFCV is built against headers that apt-get installs, with root or sudo; without it all but --pipeline ffcv works.
ffcv: $(INSTALLED)
	pipelines/install_ffcv.sh $(BIN)/python --required

clean:
	rm -rf .venv .venv-docs .venv-peers .venv-audit site build dist *.egg-info
