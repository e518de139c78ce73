#!/bin/bash
# buildrunner as users get it: its wheel, built from this tree and installed into a virtual environment
# of its own, .cache/wheel/venv. Tests run from there: what a wheel loses (modes, files) shows.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"
folder=$state/wheel

say "The wheel, installed into $folder/venv"
rm -rf "$folder/source" "$folder/dist"
mkdir -p "$folder/source" "$folder/path"
# A copy: setuptools leaves its build folders beside what it packs.
git ls-files -z --cached --others --exclude-standard \
  | tar --create --null --files-from - --ignore-failed-read 2> /dev/null \
  | tar --extract --directory "$folder/source"
[ -x "$folder/venv/bin/python" ] || .venv/bin/python -m venv "$folder/venv"
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
  --wheel-dir "$folder/dist" "$folder/source"
"$folder/venv/bin/python" -m pip uninstall --quiet --yes buildrunner
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt "$(echo "$folder"/dist/*.whl)[dev,server]"
rm -rf "$folder/source"
# The tests are a package beside this one; PYTHONPATH names the folder of the link.
ln -sfn "$root/tests" "$folder/path/tests"
