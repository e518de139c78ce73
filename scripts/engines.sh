#!/bin/bash
# Tests buildrunner on container engines: each is brought up on a machine of its own, made from Debian's
# packages (scripts/engine-machine.sh), and runs the contract suite, the scenarios and the example.
#
#   scripts/engines.sh [ENGINE...]     all but the optional ones; results go to docs/engines.toml
#   scripts/engines.sh --list          names of the engines in the table of the docs
#
# Variables: ENGINES_HOME as in scripts/engine-machine.sh; PYTEST_OPTIONS for more options of pytest.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"

# name                  release   kind                version that the release must have
engines='
docker-20              bookworm  docker              20.10
docker-26              trixie    docker              26
docker-26-containerd   trixie    docker-containerd   26
docker-26-rootless     trixie    docker-rootless     26
docker-28              sid       docker              28
docker-28-containerd   sid       docker-containerd   28
podman-5               trixie    podman              5
podman-5-rootless      trixie    podman-rootless     5
'
# Docker 29 is not in Debian: it is compiled from its Go modules, which takes some minutes the first time. Podman 6 is in
# Debian's experimental release only.
optional='
docker-29              sid       docker              29
docker-29-containerd   sid       docker-containerd   29
podman-6               experimental  podman           6
podman-6-rootless      experimental  podman-rootless  6
'
docker_29=v2.0.0-beta.24

tests='tests/contract/test_container_engine.py tests/contract/test_workspace.py
  tests/contract/test_workspace_kept.py tests/contract/test_artifact_objects.py
  tests/contract/test_lost_network.py tests/scenarios tests/e2e/test_engine_in_steps.py'
of_root='tests/contract/test_nested_engine.py'   # engines without root have no nested sandbox

machine() { scripts/engine-machine.sh "$@"; }

# Compile dockerd and docker-proxy once; print the folder with them.
compiled_docker() {
  local folder=${ENGINES_HOME:-$HOME/.cache/buildrunner-engines}/docker-$docker_29
  if [ ! -x "$folder/bin/dockerd" ]; then
    has go || export PATH=/usr/local/go/bin:$PATH
    has go || die "Docker 29 is compiled from its Go modules, and there is no go" "Install Go 1.26 or newer."
    mkdir -p "$folder"
    printf 'module engine\ngo 1.26.3\nrequire github.com/moby/moby/v2 %s\n' "$docker_29" > "$folder/go.mod"
    # No `go mod tidy`: that fetches what the tests of all modules need, too.
    (cd "$folder" && CGO_ENABLED=0 GOFLAGS=-mod=mod go build -trimpath \
      -ldflags "-s -w -X github.com/moby/moby/v2/dockerversion.Version=29-${docker_29#v2.0.0-}" -o bin/ \
      github.com/moby/moby/v2/cmd/dockerd github.com/moby/moby/v2/cmd/docker-proxy) > "$folder/log" 2>&1 \
      || { tail -20 "$folder/log" >&2; die "Docker 29 could not be compiled" "The whole log is in $folder/log."; }
  fi
  echo "$folder/bin"
}

# Bring up an engine and run the tests on it. Runs in a shell of its own, which ends where something fails.
test_engine() { # NAME RELEASE KIND VERSION
  local name=$1 release=$2 kind=$3 wanted=$4 user=run files="$tests" folder=$state/engines code=0 groups= found images compiled
  say "$name: $kind of Debian $release"
  mkdir -p "$folder"
  machine root "$release" || die "$name: the files of Debian $release could not be made; the reason is above"
  machine stop "$name"
  trap "scripts/engine-machine.sh stop $name" EXIT
  case $name in
    podman-6*) groups=v2 ;;   # it refuses control groups version 1
  esac
  machine start "$name" "$release" $groups || die "$name: its machine did not start; the reason is above"
  case $name in
    docker-29*)
      compiled=$(compiled_docker)
      tar -C "$(dirname "$compiled")" -c bin | machine run "$name" sh -c 'mkdir -p /opt/docker && tar -x -C /opt/docker' ;;
  esac
  DOCKER_HOST=$(machine engine "$name" "$kind") || die "$name: the engine did not start; the reason is above"
  export DOCKER_HOST=${DOCKER_HOST#DOCKER_HOST=}
  machine run "$name" curl -s --unix-socket "${DOCKER_HOST#unix://}" http://engine/info > "$folder/$name.json"
  found=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["ServerVersion"])' "$folder/$name.json")
  case $found in
    "$wanted"*) ;;
    *) die "$name: Debian $release has version $found by now" "Correct the table in scripts/engines.sh." ;;
  esac
  machine run "$name" bash -c "cd '$root' && python3 -m venv /opt/venv && /opt/venv/bin/pip install -q -c constraints.txt -e '.[dev,server]' && /opt/venv/bin/python -m compileall -q buildrunner" \
    || die "$name: buildrunner could not be installed there; the reason is above"
  ENGINE_ENV= images='docker python'   # made before the tests: no test has minutes
  case $kind in
    docker-rootless) user=as; ENGINE_ENV="TEST_REGISTRY_HOST=$(machine address)" ;;
    podman-rootless) user=as ;;
    *) files+=" $of_root" images+=' engine' ;;
  esac
  export ENGINE_ENV
  # shellcheck disable=SC2086  (several images)
  machine $user "$name" bash -c 'cd "$1" && shift && exec python3 -m buildrunner builders install "$@"' install "$root" $images || code=$?
  # shellcheck disable=SC2086  (several files, several options)
  machine $user "$name" bash -c 'cd "$1" && shift && exec env --default-signal=HUP,INT,QUIT python3 -m pytest "$@"' test "$root" \
    -q -n "$(nproc)" --dist loadfile -p no:cacheprovider -k 'not fake and not in_memory' --junitxml /tmp/report.xml ${PYTEST_OPTIONS:-} $files || code=$?
  machine run "$name" cat /tmp/report.xml > "$folder/$name.xml"
  unset DOCKER_HOST ENGINE_ENV
  ENGINE_INFO=$folder/$name.json .venv/bin/python scripts/engine_results.py "$name" "$folder/$name.xml" || code=1
  return "$code"
}

if [ "${1:-}" = --list ]; then
  awk 'NF { print $1 }' <<< "$engines$optional"
  exit
fi
[ "$(id -u)" -eq 0 ] || die "only root can bring up engines on machines of their own" "Try: sudo make engines"
needed=()
has mmdebstrap || needed+=(mmdebstrap)
has slirp4netns || needed+=(slirp4netns)
if [ "${#needed[@]}" -gt 0 ]; then install_packages "for machines with engines" "${needed[@]}"; fi

failed=()
for name in ${*:-$(awk 'NF { print $1 }' <<< "$engines")}; do
  read -r _ release kind wanted <<< "$(grep "^$name " <<< "$engines$optional")"
  [ -n "$release" ] || die "unknown engine: $name" "Known: $(scripts/engines.sh --list | paste -sd ' ')"
  set +e   # not `test_engine ... || ...`: that would switch `set -e` off inside
  (set -e; test_engine "$name" "$release" "$kind" "$wanted")
  [ "$?" -eq 0 ] || failed+=("$name")
  set -e
done
.venv/bin/python docs/generate.py
[ "${#failed[@]}" -eq 0 ] || die "not everything works on: ${failed[*]}" "The reports are in ${state#"$root"/}/engines."
