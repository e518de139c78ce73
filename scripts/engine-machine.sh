#!/bin/bash
# Container engines of other Debian releases, each in a machine of its own on this machine.
#
# A machine has its own mounts, network, processes, host name and control groups. Its files are a
# Debian release, made from Debian's packages. The engines that run here are not touched.
#
#   scripts/engine-machine.sh root SUITE                 make the files of a release: bookworm, trixie, sid, or
#                                                        experimental (sid with the Podman of experimental)
#   scripts/engine-machine.sh start NAME SUITE [v1|v2]   start a machine; v2: only control groups version 2
#   scripts/engine-machine.sh engine NAME KIND           start an engine in it, print DOCKER_HOST=ADDRESS
#   scripts/engine-machine.sh run NAME COMMAND...        run a command in it, as root
#   scripts/engine-machine.sh as NAME COMMAND...         run a command in it, as the user `builder`
#   scripts/engine-machine.sh address                    print an address of every machine that is not 127.0.0.1
#   scripts/engine-machine.sh stop NAME                  stop a machine, delete what was written in it
#
# KIND: docker, docker-containerd (Docker with the containerd image store), docker-rootless,
# podman, podman-rootless.
#
# Variables:
#   ENGINES_HOME   where releases and machines are kept (~/.cache/buildrunner-engines)
#   SHARED         a folder that every machine has at the same path (the checkout)
#   DEBIAN_MIRROR  where `root` gets packages (where apt gets them)
#   DOCKER_HOST    handed to the commands of `run` and `as`, as is every NAME=VALUE in ENGINE_ENV
#
# Root only. Needs: apt-get install mmdebstrap slirp4netns util-linux
set -euo pipefail
home=${ENGINES_HOME:-$HOME/.cache/buildrunner-engines}
shared=${SHARED:-$(cd "$(dirname "$0")/.." && pwd)}

own_address=10.99.0.1   # rootless engines have a 127.0.0.1 of their own, and reach the machine by this

address() { echo "$own_address"; }

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# --- root: the files of a Debian release ---------------------------------------------------------

packages_of() { # SUITE
  local packages=python3,python3-venv,git,git-lfs,openssh-client,ca-certificates,openssl,curl
  packages+=,iproute2,procps,iptables,nftables,util-linux,kmod,e2fsprogs,tini,mmdebstrap,busybox-static
  packages+=,docker.io,docker-registry,containerd,runc,crun
  packages+=,podman,catatonit,fuse-overlayfs,uidmap,slirp4netns
  case $1 in
    bookworm) packages+=,containernetworking-plugins ;;
    *) packages+=,docker-cli,docker-buildx,rootlesskit,netavark,aardvark-dns,passt ;;
  esac
  echo "$packages"
}

own_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -1 || true
}

root() {
  local suite=$1 made=$home/$1 mirror newer=()
  [ ! -e "$made/.complete" ] || return 0
  mirror=${DEBIAN_MIRROR:-$(own_mirror)}
  if [ -z "$mirror" ]; then apt-get update -qq; mirror=$(own_mirror); fi   # only of what was once updated
  [ -n "$mirror" ] || fail "apt names no mirror of Debian here: set DEBIAN_MIRROR"
  if [ "$suite" = experimental ]; then   # it has only packages that are not in sid yet
    suite=sid
    newer=("deb [trusted=yes] $mirror experimental main" --setup-hook='printf "%s\n" \
      "Package: podman netavark aardvark-dns" "Pin: release a=experimental" "Pin-Priority: 990" \
      > "$1/etc/apt/preferences.d/experimental"')
  fi
  rm -rf --one-file-system "$made"
  mkdir -p "$home"
  # The mount namespace: mmdebstrap would make this machine's mounts private. The check of dates: the
  # Release file of sid expires after a week. Signatures: the keys of sid may be newer than this Debian.
  unshare --mount mmdebstrap --variant=apt --skip=check/empty --quiet \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --include="$(packages_of "$suite")" \
    "$suite" "$made" "deb [trusted=yes] $mirror $suite main" "${newer[@]}"
  configure "$made"
  touch "$made/.complete"
}

configure() { # FOLDER
  local file limit
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do   # this machine's proxies
    if [ -e $file ]; then cp $file "$1$file"; fi
  done
  echo 'builder:x:1000:1000::/home/builder:/bin/bash' >> "$1/etc/passwd"
  echo 'builder:x:1000:' >> "$1/etc/group"
  echo 'builder:100000:65536' | tee "$1/etc/subuid" > "$1/etc/subgid"
  mkdir -p "$1/etc/docker" "$1/etc/containers/registries.conf.d"
  echo '{"features": {"containerd-snapshotter": true}}' > "$1/etc/docker/containerd.json"
  echo '{"features": {"containerd-snapshotter": false}, "storage-driver": "overlay2"}' > "$1/etc/docker/overlay2.json"
  # Podman: the tests' registries, at any port, speak plain HTTP. Without CAP_SYS_RESOURCE, limits stay as they are.
  printf '[[registry]]\nprefix = "127.0.0.1"\nlocation = "127.0.0.1"\ninsecure = true\n' \
    > "$1/etc/containers/registries.conf.d/tests.conf"
  limit="\"nofile=$(ulimit -Hn):$(ulimit -Hn)\", \"nproc=$(ulimit -Hu):$(ulimit -Hu)\""
  printf '[containers]\ndefault_ulimits = [%s]\npids_limit = 0\n' "$limit" > "$1/etc/containers/containers.conf"
}

# --- start and stop: a machine ------------------------------------------------------------------

# Folders that a machine keeps on a real file system: an engine's data, and sources of builds. The
# rest is an overlay over the release, so that machines of one release do not share files.
own_folders="home root tmp var/tmp var/lib/docker var/lib/containerd var/lib/containers"

# Print this process's control group folders, one a line, and the controllers of each.
group_folders() { # PROCESS
  local kind path base
  while IFS=: read -r _ kind path; do
    base=/sys/fs/cgroup/${kind#name=}
    [ -n "$kind" ] || base=/sys/fs/cgroup/unified
    [ -d "$base" ] || base=/sys/fs/cgroup
    path=$base${path%/}
    if [ -d "$path" ]; then echo "$path $kind"; fi
  done <<< "$(cat "/proc/$1/cgroup")"   # read at once: it changes while this process moves
}

start() { # NAME SUITE [v1|v2]
  local name=$1 release=$home/$2 groups=${3:-} machine=$home/machines/$1 folder kind
  [ -e "$release/usr" ] || fail "there is no release $2: run $0 root $2"
  [ ! -e "$machine" ] || fail "there is a machine $name already"
  [ -n "$groups" ] || { groups=v1; [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ] || groups=v2; }
  mkdir -p "$machine/upper" "$machine/work" "$machine/files"
  for folder in $own_folders; do
    mkdir -p "$machine/own/$folder"
    if [ -d "$release/$folder" ]; then chmod --reference="$release/$folder" "$machine/own/$folder"; fi
  done
  install -d -o 1000 -g 1000 "$machine/own/home/builder"{,/.config,/.config/docker}
  echo "{\"insecure-registries\": [\"$own_address/32\"]}" > "$machine/own/home/builder/.config/docker/daemon.json"

  while read -r folder kind; do   # its own control groups, below those of this process
    mkdir -p "$folder/machine-$name"
    if [ "$kind" = cpuset ]; then
      cat "$folder/cpuset.cpus" > "$folder/machine-$name/cpuset.cpus"
      cat "$folder/cpuset.mems" > "$folder/machine-$name/cpuset.mems"
    fi
    echo $$ > "$folder/machine-$name/cgroup.procs" 2> /dev/null || true
  done <<< "$(group_folders self)"

  export machine release groups name shared own_folders own_address
  setsid unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child \
    bash -euc "$first_process" < /dev/null > "$machine/log" 2>&1 &
  local outer=$! process=
  for _ in $(seq 200); do
    process=$(pgrep -P $outer | head -1) || true
    if [ -n "$process" ] && [ "$(cat "/proc/$process/comm" 2> /dev/null)" = tini ]; then break; fi
    sleep 0.1
  done
  if [ "$(cat "/proc/$process/comm" 2> /dev/null)" != tini ]; then cat "$machine/log" >&2; fail "$name did not start"; fi
  echo "$process" > "$machine/process"
  # A network in user space: no rule of this machine's firewall changes.
  slirp4netns --configure --mtu=1400 --disable-host-loopback "$process" tap0 < /dev/null > "$machine/network.log" 2>&1 &
  echo $! > "$machine/network"
  for _ in $(seq 100); do
    if nsenter -t "$process" -n ip route | grep -q default; then break; fi
    sleep 0.1
  done
  disown -a
}

# What the first process of a machine does before it sleeps: mounts, devices, then pivot_root (runc
# and user namespaces refuse a chroot).
first_process='
  mount --make-rprivate /
  mount -t overlay -o lowerdir=$release,upperdir=$machine/upper,workdir=$machine/work overlay $machine/files
  cd $machine/files
  for folder in $own_folders; do
    mkdir -p $folder
    mount --bind $machine/own/$folder $folder
  done
  mkdir -p proc sys dev run old .$shared
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  if [ $groups = v1 ]; then
    mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
    for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
      mkdir sys/fs/cgroup/$controller
      mount -t cgroup -o $controller cgroup sys/fs/cgroup/$controller
    done
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
  else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mkdir -p sys/fs/cgroup/init
    for process in $(cat sys/fs/cgroup/cgroup.procs); do echo $process > sys/fs/cgroup/init/cgroup.procs || :; done
    for controller in $(cat sys/fs/cgroup/cgroup.controllers); do
      echo +$controller > sys/fs/cgroup/cgroup.subtree_control || :
    done
  fi
  mount -t tmpfs -o mode=755 dev dev
  mkdir dev/net dev/pts dev/shm dev/mqueue
  for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "kmsg 1 11" \
    "fuse 10 229" "net/tun 10 200"
  do
    set -- $device
    mknod -m 666 dev/$1 c $2 $3
  done
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
  ln -s pts/ptmx dev/ptmx
  mount -t tmpfs -o mode=1777 shm dev/shm
  mount -t mqueue mqueue dev/mqueue
  ln -s /proc/self/fd dev/fd
  for stream in "stdin 0" "stdout 1" "stderr 2"; do set -- $stream; ln -s /proc/self/fd/$2 dev/$1; done
  mount -t tmpfs -o mode=755 run run
  mkdir -m 1777 run/lock
  mkdir -p -m 711 run/user
  mkdir -m 700 run/user/1000
  chown 1000:1000 run/user/1000
  cat /etc/resolv.conf > etc/resolv.conf
  printf "127.0.0.1 localhost\n127.0.1.1 %s\n" $name > etc/hosts
  mount --rbind $shared .$shared
  hostname $name
  ip link set lo up
  ip address add $own_address/32 dev lo
  pivot_root . old
  umount -l /old
  mount --make-rshared /     # as systemd has it
  exec /usr/bin/tini -- sleep infinity'

# End the process whose number is in a file, unless by now the number is another program's.
end() { # FILE PROGRAM
  local process
  process=$(cat "$1" 2> /dev/null) || return 0
  if [ "$(cat "/proc/$process/comm" 2> /dev/null)" = "$2" ]; then kill -9 "$process"; fi
}

stop() { # NAME
  local machine=$home/machines/$1
  end "$machine/process" tini
  end "$machine/network" slirp4netns
  for _ in $(seq 50); do   # the kernel ends every other process of the machine
    find /sys/fs/cgroup -depth -type d -path "*/machine-$1*" -exec rmdir {} + 2> /dev/null && break
    sleep 0.1
  done
  rm -rf --one-file-system "$machine"
}

# --- commands in a machine -----------------------------------------------------------------------

run() { # NAME COMMAND...
  local process folder variable settings=()
  process=$(cat "$home/machines/$1/process" 2> /dev/null) || fail "there is no machine $1"
  shift
  while read -r folder _; do echo "$BASHPID" > "$folder/cgroup.procs" 2> /dev/null || true; done <<< "$(group_folders "$process")"
  # shellcheck disable=SC2086  (several variables in one)
  for variable in {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY PIP_{INDEX_URL,EXTRA_INDEX_URL,TRUSTED_HOST}; do
    if [ -n "${!variable:-}" ]; then settings+=("$variable=${!variable}"); fi   # this machine's way to packages
  done
  exec nsenter -t "$process" -m -n -p -u -i -C env -i HOME=/root LANG=C.UTF-8 TERM=xterm \
    PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "${settings[@]}" ${DOCKER_HOST:+DOCKER_HOST=$DOCKER_HOST} ${ENGINE_ENV:-} "$@"
}

become_builder='exec setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/builder XDG_RUNTIME_DIR=/run/user/1000 "$@"'

as() { # NAME COMMAND...
  local name=$1
  shift
  run "$name" bash -c "$become_builder" as "$@"
}

engine() { # NAME KIND
  local name=$1 kind=$2 socket=/run/$2.sock command
  case $kind in *-rootless) socket=/run/user/1000/${kind%-rootless}.sock ;; esac
  case $kind in
    docker) command="dockerd --config-file /etc/docker/overlay2.json --host unix://$socket" ;;
    docker-containerd) command="dockerd --config-file /etc/docker/containerd.json --host unix://$socket" ;;
    docker-rootless)
      command="env DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns /usr/share/docker.io/contrib/dockerd-rootless.sh" ;;
    podman|podman-rootless)
      command="env PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman system service --time=0 unix://$socket" ;;
    *) fail "unknown kind of engine: $kind" ;;
  esac
  case $kind in *-rootless) command="bash -c '$become_builder' engine $command" ;; esac
  # Debian's runc and dockerd may be newer in /opt/ENGINE/bin (see scripts/engines.sh).
  (run "$name" bash -c "cd /; PATH=/opt/docker/bin:\$PATH setsid $command < /dev/null > /var/log/engine.log 2>&1 &
    for i in \$(seq 300); do
      curl -sf --unix-socket $socket http://engine/_ping > /dev/null && exit
      sleep 0.1
    done
    tail -20 /var/log/engine.log
    exit 1") >&2 || fail "the engine $kind did not start"
  echo "DOCKER_HOST=unix://$socket"
}

verb=${1:-}
case $verb in
  root|start|engine|run|as|address|stop) shift; "$verb" "$@" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
