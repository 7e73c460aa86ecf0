# `make demo` and `make test` set everything up themselves, from Python and pip alone.
#
# On Linux, pip takes PyTorch with CUDA (gigabytes) unless its own configuration offers a CPU wheel: a `find-links` folder,
# or PyTorch's CPU index as `extra-index-url`. README.md shows how; nothing here has to change for it.

PYTHON ?= python3
override PYTHON := $(or $(PYTHON),python3)
# What .venv gets: a project with an extra of its own adds the extra's name here when it arrives.
EXTRAS ?= dev,track,sentiment,generation,qa,optimization,multimodal
VENV_PYTHON := .venv/bin/python
BUNDLE := outputs/model_optimization/bundles/dynamic-int8
STAMP := .venv/.installed-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help demo serve-sentiment serve-generation serve-qa serve-optimization serve-multimodal test setup lint constraints clean broken

help: ## Show this list
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | sed 's/%/<short>/' | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(STAMP) ## Run every project on its embedded default, then show the figures beside what was promised
	$(VENV_PYTHON) -m transformer_from_scratch.train_simple_lm train
	$(VENV_PYTHON) -m bert_sentiment_analysis.models.trainer train
	$(VENV_PYTHON) -m gpt_text_generation.text_generator compare
	$(VENV_PYTHON) -m gpt_text_generation.code_generator evaluate
	$(VENV_PYTHON) -m qa_system.evaluation.answer_quality evaluate
	$(VENV_PYTHON) -m model_optimization
	$(VENV_PYTHON) -m multimodal_llm.image_captioning.blip_model evaluate
	$(VENV_PYTHON) -m multimodal_llm.visual_question_answering.vqa_system evaluate
	$(VENV_PYTHON) -m multimodal_llm.document_understanding.document_qa evaluate
	$(VENV_PYTHON) -m multimodal_llm.clip_applications.zero_shot_classification evaluate
	$(VENV_PYTHON) -m multimodal_llm.clip_applications.image_search evaluate
	$(VENV_PYTHON) -m shared.results
	@echo "Next: source .venv/bin/activate, and the commands of the projects' READMEs."

serve-sentiment: $(STAMP) ## Open the sentiment demo in a browser (ARGS='--server.port 8502')
	$(VENV_PYTHON) -m streamlit run bert_sentiment_analysis/app/streamlit_ui.py --server.address localhost --browser.gatherUsageStats false --client.toolbarMode minimal $(ARGS)

serve-generation: $(STAMP) ## Open the text generation demo in a browser (ARGS='--server.port 8502')
	$(VENV_PYTHON) -m streamlit run gpt_text_generation/app/streamlit_ui.py --server.address localhost --browser.gatherUsageStats false --client.toolbarMode minimal $(ARGS)

serve-qa: $(STAMP) ## Open the question-answering demo in a browser (ARGS='--server.port 8502')
	$(VENV_PYTHON) -m streamlit run qa_system/app/streamlit_ui.py --server.address localhost --browser.gatherUsageStats false --client.toolbarMode minimal $(ARGS)

serve-optimization: $(STAMP) ## Serve a compressed classifier, /docs in a browser (ARGS='--port 8001')
	@test -f $(BUNDLE)/bundle.json || $(VENV_PYTHON) -m model_optimization.quantization.dynamic_quantization quantize
	$(VENV_PYTHON) -m model_optimization.deployment.fastapi_server serve --bundle $(BUNDLE) $(ARGS)

serve-multimodal: $(STAMP) ## Open the image and document demo in a browser (ARGS='--server.port 8502')
	$(VENV_PYTHON) -m streamlit run multimodal_llm/app/streamlit_ui.py --server.address localhost --browser.gatherUsageStats false --client.toolbarMode minimal --server.maxUploadSize 20 $(ARGS)

test: $(STAMP) ## Run all tests (ARGS='-m "not slow"' for the quick ones)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

setup: $(STAMP) ## Make or update .venv

lint: $(STAMP) ## Check style, format and the types of shared/
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

bench-%: $(STAMP) ## Measure a project against its peers (ARGS='--quick', ARGS='--only ROW')
	$(VENV_PYTHON) benchmarks/$*.py $(ARGS)

# uv reads none of pip's settings, so they are handed over; the file names none of them.
constraints: $(STAMP) ## Pin what pyproject.toml added (ARGS=--upgrade: everything anew)
	@setting() { $(VENV_PYTHON) -m pip config list | sed -n "s/^.*[.]$$1='\(.*\)'$$/\1/p" | head -n 1 | sed 's/\\n/ /g'; }; \
	set -- $(ARGS); \
	for url in $$(setting index-url); do set -- "$$@" --default-index "$$url"; done; \
	for url in $$(setting extra-index-url); do set -- "$$@" --index "$$url"; done; \
	for place in $$(setting find-links); do set -- "$$@" --find-links "$$place"; done; \
	certificates=$$(setting cert); [ -z "$$certificates" ] || export SSL_CERT_FILE="$$certificates"; \
	$(VENV_PYTHON) -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --strip-extras \
		--index-strategy unsafe-best-match --no-annotate --custom-compile-command 'make constraints' \
		--quiet --output-file constraints.txt "$$@"

clean: ## Remove .venv, caches and builds; outputs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp appears only after success and goes before every change, so a .venv without one is in an unknown state and
# is made anew, like one whose Python is gone.
$(STAMP): pyproject.toml constraints.txt $(shell $(VENV_PYTHON) -c '' 2>/dev/null || echo broken)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' must be Python 3.10 to 3.13. Got: $$($(PYTHON) --version 2>&1 | tail -n 1)"; \
		echo "hint: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' lacks the modules venv and ensurepip."; \
		echo "hint: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; } >&2
	@if $(VENV_PYTHON) -c '' 2>/dev/null && ls .venv/.installed-* >/dev/null 2>&1; then rm .venv/.installed-*; \
		else $(PYTHON) -m venv --clear .venv; fi
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
