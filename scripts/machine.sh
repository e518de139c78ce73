# What make's scripts share: speaking, root only where it is needed, Debian packages. To be sourced.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=$root/.cache          # what the scripts keep: pid files, logs, unpacked tools
export PATH="$state/tools/usr/bin:$PATH"

say() { printf '\n== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$1" >&2
  if [ "$#" -gt 1 ]; then printf '  %s\n' "${@:2}" >&2; fi
  exit 3
}

has() { command -v "$1" > /dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif has sudo; then
    sudo "$@"
  else
    die "this needs root: $*" "Run it as root yourself, or install sudo, then try again."
  fi
}

# install_packages WHY NAME...: Debian packages, after saying so. Services of theirs are not started.
install_packages() {
  local why=$1
  shift
  say "Installing from Debian, $why: $*"
  has apt-get || die "there is no apt-get here" "Install these yourself, then try again: $*"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" > "$state/apt.log" 2>&1 \
    || { tail -20 "$state/apt.log" >&2; die "apt-get could not install: $*"; }
}

# unpack_package NAME: only a package's files, under .cache/tools: no root, no service, no trace.
unpack_package() {
  local scratch
  has apt-get || return 1
  say "Unpacking Debian's $1 into .cache/tools (nothing is installed)"
  scratch=$(mktemp -d)
  chmod 755 "$scratch"
  mkdir -p "$state/tools"
  (cd "$scratch" && apt-get download -qq "$1" > /dev/null 2>&1) \
    || { as_root apt-get update -qq && (cd "$scratch" && apt-get download -qq "$1" > /dev/null 2>&1); } \
    || { rm -rf "$scratch"; return 1; }
  dpkg-deb --extract "$scratch"/*.deb "$state/tools"
  rm -rf "$scratch"
}

mkdir -p "$state"
