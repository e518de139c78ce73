# A real image registry on 127.0.0.1 for as long as the sourcing script runs. To be sourced.
# start_registry sets registry=127.0.0.1:PORT.

start_registry() {
  local port folder
  if ! has docker-registry && ! unpack_package docker-registry; then
    start_registry_image
    return
  fi
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  folder=$(mktemp -d)
  cat > "$folder/config.yml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $folder/data}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$port"}
YAML
  docker-registry serve "$folder/config.yml" < /dev/null > "$folder/log" 2>&1 &
  registry_pid=$!
  registry_folder=$folder
  trap stop_registry EXIT
  for _ in $(seq 100); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      registry=127.0.0.1:$port
      return
    fi
    kill -0 "$registry_pid" 2> /dev/null || break
    sleep 0.1
  done
  cat "$folder/log" >&2
  die "the registry did not start"
}

# Where Debian's program is not to be had: the same registry as an image.
start_registry_image() {
  has docker && docker image inspect registry:2 > /dev/null 2>&1 || docker pull -q registry:2 \
    || die "neither Debian's docker-registry nor the image registry:2 is to be had here" \
      "Install one of them, then try again."
  registry_container=$(docker run --detach --rm --publish 127.0.0.1::5000 registry:2)
  trap 'docker rm --force "$registry_container" > /dev/null' EXIT
  registry=$(docker port "$registry_container" 5000/tcp)
}

stop_registry() {
  kill "$registry_pid" 2> /dev/null || true
  wait "$registry_pid" 2> /dev/null || true
  rm -rf "$registry_folder"
}
