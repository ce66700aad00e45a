# Each command is in make.py, which does the same without make: python make.py lab

PYTHON ?= python3
# Arguments of some commands: make lab LAB_OPTIONS=--no-browser, make notebooks ONLY="02 03"
LAB_OPTIONS ?=
APP_OPTIONS ?=
ONLY ?=
# How to set up: where to take PyTorch from, and whether to leave the pins aside (RANGES=1)
TORCH_INDEX ?=
RANGES ?=

.DEFAULT_GOAL := help
COMMANDS := help lab app lab-html site test check notebooks bench-fisher bench-step bench-sweep speech classroom slides wheelhouse clean
.PHONY: $(COMMANDS)

OPTIONS =
lab: OPTIONS = $(LAB_OPTIONS)
app: OPTIONS = $(APP_OPTIONS)
notebooks classroom: OPTIONS = $(ONLY)
$(COMMANDS):
	@$(PYTHON) make.py $@ $(if $(TORCH_INDEX),--torch-index=$(TORCH_INDEX)) $(if $(RANGES),--ranges) $(OPTIONS)
