#!/bin/bash
# fetch-archive against a server in the same container.
set -eu
mkdir -p /tmp/served/top && cd /tmp/served
printf '#!/bin/sh\necho hello\n' > top/program && chmod 755 top/program
tar -czf archive.tar.gz top
python3 -m zipfile -c archive.zip top/program
(cd top && tar -cf ../flat.tar program)
cp top/program plain
python3 -m http.server --bind 127.0.0.1 8000 > /tmp/log 2>&1 &
at=http://127.0.0.1:8000
for _ in $(seq 100); do curl --silent --output /dev/null "$at" && break; sleep 0.1; done

for name in archive.tar.gz archive.zip flat.tar plain; do
  fetch-archive --into "/tmp/$name" --url "$at/$name" --name program
  sh "/tmp/$name/program" | grep -x hello
  echo "ok: $name"
done
test -x /tmp/archive.tar.gz/program && test -x /tmp/plain/program

sum=$(sha256sum plain | cut -d ' ' -f 1)
fetch-archive --into /tmp/checked --url "$at/plain" --sha256 "$sum" --name program
code=0
fetch-archive --into /tmp/wrong --url "$at/archive.zip" --sha256 "$sum" 2> /tmp/said || code=$?
test "$code" = 1 && grep -q 'the SHA-256 is' /tmp/said && test -z "$(ls /tmp/wrong)"
echo "ok: checksums"

echo "$(dpkg --print-architecture) $sum $at/plain" > /tmp/archives
fetch-archive --into /tmp/listed --archives /tmp/archives --name program
sh /tmp/listed/program
echo "amd64 $sum http://127.0.0.1:1/none
arm64 $sum http://127.0.0.1:1/none" > /tmp/archives
code=0
fetch-archive --into /tmp/none --archives /tmp/archives --argument X_URL 2> /tmp/said || code=$?
test "$code" = 3 && grep -q -- '--build-arg X_URL=URL' /tmp/said
fetch-archive --into /tmp/none --archives /tmp/archives --argument X_URL --optional | grep '^note: '
code=0
fetch-archive --into /tmp/none --url "$at/none" --argument X_URL --optional 2> /dev/null || code=$?
test "$code" = 1
echo "ok: addresses that don't answer"
