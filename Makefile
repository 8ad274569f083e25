# Everything a checkout can do. `make` alone lists it.
PYTHON := .venv/bin/python
LOCK := CUSTOM_COMPILE_COMMAND="make lock" $(PYTHON) -m piptools compile --quiet --generate-hashes --allow-unsafe \
	--strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

# Compiled once: each of the test's workers would compile and rewrite every test again, six seconds of CPU time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup up down status demo incident test test-slow drill soak compose-test bench docs dashboards screenshots lint lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.installed ## make .venv and find or install RabbitMQ and PostgreSQL
	@$(PYTHON) -m deploy.local install

up: setup ## start a private RabbitMQ and PostgreSQL on free loopback ports
	@$(PYTHON) -m deploy.local up

down: ## stop them; the data stays in .local
	@$(shell command -v $(PYTHON) || command -v python3) -m deploy.local down

status: ## show what runs, and where
	@$(shell command -v $(PYTHON) || command -v python3) -m deploy.local status

demo: setup ## run orders through the whole system and show what happens; PROVIDERS=1 adds image APIs, DEAD=1 kills 300, KEEP=1 stays
	@$(PYTHON) -m deploy.demo

incident: setup ## kill a ComfyUI server under load, let the alert fire for real, bring it back; about two minutes
	@$(PYTHON) -m deploy.incident

test: setup ## run all quick tests, against servers of their own
	@$(PYTHON) -m deploy.local install --with-prometheus --with-chromium
	@$(PYTHON) -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-slow: setup ## run what takes long: drill, outages, cluster; with `make test` under 40 minutes
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/slow

drill: setup ## die at every crash point, look what is left, and write the table in docs/drill.md
	@.venv/bin/darkroom drill --write

soak: setup ## 10,000 overlapping transactions, then orders under random faults and the audit; MINUTES=20, SEED=any
	@$(PYTHON) -m pytest -q -s tests/slow/test_machine.py
	@$(PYTHON) -m tests.soak --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

compose-test: .venv/.installed ## run docker-compose.yml under a name of its own, and kill parts of it; needs Docker
	@$(PYTHON) -m pytest tests/compose

bench: setup ## measure speed, CPU time and latency beside a naive system; about five minutes
	@$(PYTHON) -m benchmarks

docs: .venv/.installed ## write docs/messages and docs/metrics.md from the code, and the examples into docs/upstream.md
	@$(PYTHON) -m deploy.contract
	@$(PYTHON) -m deploy.reference

dashboards: .venv/.installed ## write the dashboards again, and their pictures in docs/dashboards
	@$(PYTHON) -m deploy.grafana --pictures

screenshots: setup ## take pictures of the console's pages for docs/console, in a browser
	@$(PYTHON) -m deploy.local install --with-chromium
	@$(PYTHON) -m deploy.screenshots

lint: .venv/.installed ## check style, types and who imports whom
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy -p services -p shared -p deploy
	@.venv/bin/lint-imports

lock: .venv/.installed ## pin the dependencies in pyproject.toml again
	@$(LOCK) --extra dev --output-file requirements/dev.txt pyproject.toml
	@$(LOCK) --constraint requirements/dev.txt --output-file requirements/run.txt pyproject.toml
	@$(LOCK) --constraint requirements/dev.txt --only-build-deps --all-build-deps --output-file requirements/build.txt pyproject.toml

clean: ## stop the servers; delete their data, .venv and all caches
	@$(shell command -v $(PYTHON) || command -v python3) -m deploy.local down --wipe
	@rm -rf .venv .venv.lock .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: requirements/dev.txt pyproject.toml
	@sh deploy/local/setup.sh
