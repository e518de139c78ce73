#!/bin/bash
# The pictures in docs/images: a build on a terminal, and the dashboard of a server with builds.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"

needed=()
has chromium || needed+=(chromium fonts-dejavu-core)
has busybox || needed+=(busybox-static)
has git || needed+=(git)
has pngquant || needed+=(pngquant)
if [ "${#needed[@]}" -gt 0 ]; then install_packages "for screenshots" "${needed[@]}"; fi
.venv/bin/python -m tests.web.terminal docs/images/terminal.svg
exec .venv/bin/python -m tests.web.screenshots docs/images
