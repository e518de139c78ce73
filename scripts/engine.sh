#!/bin/bash
# The container engine: used as it is where one answers, else installed (Debian) and started.
#
#   scripts/engine.sh start     until an engine answers
#   scripts/engine.sh stop      ends the one that `start` started, and no other
#   scripts/engine.sh status    exit code 0 when one answers
#
# DOCKER_HOST is honoured. With DOCKER_HOST=unix://PATH and ENGINE_DATA=FOLDER, `start` starts a
# second engine there, with its data in that folder; that engine is the caller's to isolate.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"

name=engine${DOCKER_HOST:+-$(printf '%s' "$DOCKER_HOST" | tr -cs 'a-zA-Z0-9' '-')}
pid_file=$state/$name.pid
log_file=$state/$name.log
address=

# Sets `address` to where buildrunner looks for an engine (DOCKER_HOST, docker contexts, the default
# socket); succeeds when one answers there.
answers() {
  local code=0
  address=$("$root/.venv/bin/python" - <<'PYTHON'
import sys
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.errors import BuildrunnerError

address = ""
try:
    engine = DockerEngine()
    address = engine.endpoint.address
    print(address)
    engine.info()
except BuildrunnerError as error:
    sys.exit(1 if address else f"error: {error}")
PYTHON
  ) || code=$?
  [ -n "$address" ] || exit 2
  return "$code"
}

start() {
  if answers; then
    echo "A container engine answers at $address: it is used as it is."
    return
  fi
  case $address in
    unix://*) ;;
    *) die "no engine answers at $address" "Start it there, or unset DOCKER_HOST." ;;
  esac
  if [ -z "${DOCKER_HOST:-}" ] && [ "$address" != unix:///var/run/docker.sock ]; then
    die "no engine answers at $address, where the docker context points" \
      "Start it, or choose another context: docker context use default"
  fi
  if [ -S "${address#unix://}" ] && [ ! -w "${address#unix://}" ]; then
    die "this user may not use the engine at $address" \
      "Join the docker group (sudo usermod -aG docker \$USER, then log in again), or run as root."
  fi
  if ! has dockerd; then
    install_packages "since no container engine answers at $address" docker.io iptables
  fi
  say "Starting the container engine (log: ${log_file#"$root"/})"
  local options=(--host "$address" --pidfile "$pid_file")
  if [ -n "${ENGINE_DATA:-}" ]; then
    options+=(--data-root "$ENGINE_DATA/data" --exec-root "$ENGINE_DATA/exec")
  fi
  # A session of its own: it outlives this script, and no terminal's Ctrl-C reaches it. GOGC as for nested engines
  # (steps/engine/start-engine): containers take a third less processor time.
  as_root setsid env GOGC=400 dockerd "${options[@]}" < /dev/null > "$log_file" 2>&1 &
  for _ in $(seq 300); do
    if answers; then
      echo "It runs. \`make stop\` ends it."
      return
    fi
    kill -0 $! 2> /dev/null || break
    sleep 0.2
  done
  tail -20 "$log_file" >&2
  die "the engine did not start" "The whole log is in $log_file."
}

stop() {
  if [ ! -s "$pid_file" ]; then
    echo "No engine was started from here."
    return
  fi
  local pid
  pid=$(cat "$pid_file")
  as_root kill "$pid" 2> /dev/null || true
  for _ in $(seq 150); do
    as_root kill -0 "$pid" 2> /dev/null || break
    sleep 0.2
  done
  rm -f "$pid_file"
  echo "The engine that was started from here has ended."
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  status) answers ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
