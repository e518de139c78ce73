#!/bin/bash
# All tests, of the wheel as users install it, on a real engine: installs and starts what they need.
# Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
cd "$root"

needed=()
has git || needed+=(git)
has git-lfs || needed+=(git-lfs)
has ssh-keygen || needed+=(openssh-client)
[ -x /usr/sbin/sshd ] || needed+=(openssh-server)   # a Git server over ssh, for the tests' time only
has openssl || needed+=(openssl)
has mmdebstrap || needed+=(mmdebstrap)
has docker || needed+=(docker.io iptables)
has busybox || needed+=(busybox-static)
has chromium || needed+=(chromium fonts-dejavu-core)   # the dashboard's tests look at it
/sbin/ldconfig -p | grep 'libatomic\.so\.1' > /dev/null || needed+=(libatomic1)   # for what speaks with the browser
has npm || needed+=(npm)                              # brings axe-core
for processor in x86-64 aarch64; do                   # their assemblers check the listing of the start gate
  has "${processor/x86-64/x86_64}-linux-gnu-as" || needed+=("binutils-$processor-linux-gnu")
done
has qemu-aarch64-static || has qemu-aarch64 || needed+=(qemu-user-static)   # runs the start gate of the other processor
[ -d /usr/lib/postgresql ] || needed+=(postgresql)
if [ "${#needed[@]}" -gt 0 ]; then install_packages "for the tests" "${needed[@]}"; fi
has docker-registry || unpack_package docker-registry || die "docker-registry is missing"

scripts/engine.sh start
scripts/wheel.sh
wheel=$state/wheel
# Neither the current folder nor this tree is a place to import from; `tests` is found by a link.
export PYTHONSAFEPATH=1 PYTHONPATH=$wheel/path PATH="$wheel/venv/bin:$PATH"
case $(python -c 'import buildrunner; print(buildrunner.__file__)') in
  "$wheel"/*) ;;
  *) die "the tests would not run what the wheel installed" ;;
esac

if [ "$#" -eq 0 ]; then
  # pytest rewrites the assertions of all modules of tests, and stores what it made of them. This does it once, beside
  # the images; else each worker would. An error of a module shows in the run.
  pytest --collect-only -qq > /dev/null 2>&1 &
fi

say "Builder images"
# Those that tests use; `make builders-test` tries them all.
buildrunner builders install docker git curl wget gcc python node npm yarn gsutil twine \
  alpine busybox bash fetch engine
if ! docker compose version > /dev/null 2>&1; then   # Debian 12 has only version 1; the image has version 2
  mkdir -p "$state/tools/usr/bin"
  carrier=$(docker create buildrunner/docker)
  docker cp "$carrier:/usr/libexec/docker/cli-plugins/docker-compose" "$state/tools/usr/bin/"
  docker rm "$carrier" > /dev/null
fi
wait
say "Tests"
# Who starts this in the background may have told it to ignore Ctrl-C, and its children inherit that;
# tests of Ctrl-C need it as a terminal would send it. The files of tests have a folder of their own, which stays if
# a test fails: pytest removes its older folders by a recursion that ends in an error where a test left deep ones.
run() {
  local folder
  folder=$(mktemp -d /tmp/tests.XXXXXX)
  env --default-signal=HUP,INT,QUIT pytest --basetemp "$folder" "$@" && rm -rf "$folder"
}

if [ "$#" -gt 0 ]; then
  run "$@"
else
  # Most tests wait for engines and servers: two more at a time than there are processors. Files as
  # they come: by their number of tests, the one test that waits for a minute would be the last.
  run -q -n "$(($(nproc) + 2))" --dist loadfile --no-loadscope-reorder -m 'not chaos and not alone and not kubernetes'
  # Collecting all tests again would take longer than some of these run. Those in tests/web bear each other, and would
  # wait for one browser at a time.
  alone=$(grep -rl --include='*.py' --exclude-dir=web --exclude-dir=kubernetes 'pytest\.mark\.alone' tests)
  # shellcheck disable=SC2086  (several paths)
  run -q -m alone $alone
  run -q -n "$(nproc)" --dist loadfile --no-loadscope-reorder -m alone tests/web
fi
