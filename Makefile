.PHONY: check format lint test

check: lint test  ## what continuous integration runs

format:  ## rewrite the code in the project's form
	"$$(bash scripts/setup_env.sh)" -m ruff format .

lint:
	"$$(bash scripts/setup_env.sh)" -m ruff check .
	"$$(bash scripts/setup_env.sh)" -m ruff format --check .

test:
	bash scripts/run_tests.sh
