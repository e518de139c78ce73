# A real image registry on 127.0.0.1 for as long as the sourcing script runs. To be sourced.
# start_registry sets registry=127.0.0.1:PORT.

start_registry() {
  local port folder
  has docker-registry || unpack_package docker-registry \
    || die "Debian's docker-registry is not to be had here" \
      "Install it, or any docker-registry program, then try again."
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

stop_registry() {
  kill "$registry_pid" 2> /dev/null || true
  wait "$registry_pid" 2> /dev/null || true
  rm -rf "$registry_folder"
}
