SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# the tools call one another by name, and container networks need what lies in sbin
export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# hundreds of programs start from .venv: it is compiled once, not by each of them
unexport PYTHONDONTWRITEBYTECODE

INVENTORY ?= inventories/lab
PLAYBOOK = ansible-playbook -i $(INVENTORY)

BENCHES := $(sort $(basename $(notdir $(wildcard tests/benchmarks/[a-z]*.py))))
CHAOS := $(sort $(basename $(notdir $(wildcard tests/chaos/[a-z]*.py))))

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z%-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup:  ## Install the pinned tools into .venv (part of every other target)
	@tools/setup

.PHONY: up
up: setup  ## Start the lab
	$(PLAYBOOK) playbooks/lab/up.yml

.PHONY: demo
demo: setup  ## Start the lab, set up the stack on it, judge it and write reports, move its data under load
	$(PLAYBOOK) -i inventories/lab_grown playbooks/lab/up.yml
	$(PLAYBOOK) playbooks/demo.yml
	$(PLAYBOOK) -i inventories/lab_grown playbooks/demo_grow.yml
	$(PLAYBOOK) playbooks/demo_shards.yml
	$(PLAYBOOK) playbooks/demo_edge.yml

.PHONY: down
down: setup  ## Remove the lab and all it made; KEEP=1 keeps images and packages
	$(PLAYBOOK) playbooks/lab/down.yml$(if $(KEEP), --extra-vars lab_keep_images=true)

.PHONY: test
test: setup  ## Run everything that must pass: lint, sanity, unit, molecule
	@tools/run-stages lint,sanity unit,molecule

.PHONY: lint
lint: setup docs  ## ansible-lint (production profile), ruff, changelog fragments, documentation
	@status=0; \
	for check in "ruff check --output-format concise" "ruff format --check --output-format concise" \
		"shellcheck .ci/run tools/build tools/run-stages tools/sanity tools/setup tools/unpack-servers" \
		"antsibull-changelog lint" "ansible-lint --offline --profile production"; do \
		echo "$$check"; $$check || status=1; \
	done; \
	exit $$status

.PHONY: format
format: setup  ## Format the Python code and mend what ruff can
	ruff check --fix --quiet || true
	ruff format

.PHONY: sanity
sanity: setup  ## ansible-test sanity
	tools/sanity

.PHONY: unit
unit: setup  ## Unit tests; those that need a real nginx, Varnish or Redis are skipped where it cannot be had
	-@tools/unpack-servers
	pytest -n 2 --dist worksteal tests/unit

.PHONY: test-k8s
test-k8s: setup  ## The tests of the HPA modules on a real API server: HEADROOM_KUBECONFIG=file, it needs rights to make namespaces
	@: $${HEADROOM_KUBECONFIG:?names the kubeconfig of a cluster to test on}
	pytest tests/unit/modules/test_hpa.py tests/unit/modules/test_hpa_info.py tests/unit/modules/test_hpa_surroundings.py \
		tests/unit/modules/test_hpa_tune.py

.PHONY: molecule
molecule: setup  ## All Molecule scenarios on one lab; make molecule SCENARIO=name for one beside default
	rm -rf tests/output
	molecule reset --scenario-name default
	status=0; \
	if molecule test --report --no-command-borders --scenario-name default --destroy never; then \
		molecule test --report --no-command-borders --workers 2 --continue-on-failure \
			$(if $(SCENARIO),--scenario-name $(SCENARIO),--all --exclude default) || status=$$?; \
		cat tests/output/*.txt || true; \
	else \
		status=$$?; \
		molecule destroy --scenario-name default; \
	fi; \
	exit $$status

.PHONY: bench
bench: $(BENCHES:%=bench-%)  ## All benchmarks on the running lab; make bench-NAME for one

bench-%: setup
	python tests/benchmarks/$*.py

.PHONY: chaos
chaos: $(CHAOS:%=chaos-%)  ## All chaos tests on the running lab; make chaos-NAME for one

chaos-%: setup
	python tests/chaos/$*.py

.PHONY: docs
docs: setup  ## Check that the documentation of every plugin and role renders
	antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck .

.PHONY: build
build: setup  ## Build the collection into build/, install it elsewhere and list its plugins
	tools/build

.PHONY: lock
lock: setup  ## Pin requirements-dev.in anew
	uv pip compile -q --universal --python-version 3.11 --upgrade --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		-o requirements-dev.lock requirements-dev.in
