#!/bin/bash
# The pictures of the dashboard in docs/images: starts a server, runs builds on it, looks at it.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"

needed=()
has chromium || needed+=(chromium fonts-dejavu-core)
has busybox || needed+=(busybox-static)
has git || needed+=(git)
has pngquant || needed+=(pngquant)
if [ "${#needed[@]}" -gt 0 ]; then install_packages "for screenshots" "${needed[@]}"; fi
exec .venv/bin/python -m tests.web.screenshots docs/images
