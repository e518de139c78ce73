#!/bin/bash
# The virtual environment: scripts/setup.sh [PYTHON]
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"
python=${1:-python3}

has "$python" || install_packages "for the virtual environment" python3 python3-venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || die "$("$python" --version) is too old: Python 3.11 or newer is needed" \
    "Name another: make setup PYTHON=python3.12"
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
  install_packages "for the virtual environment" python3-venv
fi
say "Installing Python packages into .venv (versions of constraints.txt)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --editable '.[dev,docs,server]'
# Where Python is told to write no byte code, every start would compile all modules anew.
.venv/bin/python -m compileall -q buildrunner
.venv/bin/buildrunner --version
