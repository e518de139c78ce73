#!/bin/bash
# From nothing to an image in a registry, pulled back and run: see README.md.
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
source "$(dirname "${BASH_SOURCE[0]}")/registry.sh"
cd "$root"
buildrunner=.venv/bin/buildrunner

scripts/engine.sh start

say "Builder images: docker, python, curl"
# A Debian image is pulled where it can be; else one is made here from Debian's packages, and only
# then mmdebstrap is needed.
if ! has mmdebstrap && ! $buildrunner builders install docker python curl 2> "$state/builders.log"
then
  grep -q 'mmdebstrap, which' "$state/builders.log" || { cat "$state/builders.log" >&2; exit 3; }
  install_packages "since no Debian image can be pulled" mmdebstrap
fi
$buildrunner builders install docker python curl

say "Is this machine fit?"
$buildrunner doctor

say "A registry of its own, until the end of the demo"
start_registry
echo "It answers at $registry."

say "The example: examples/cloudbuild.yaml"
$buildrunner submit examples --substitutions "_PYTHON=buildrunner/python,_REGISTRY=$registry"

digest=$(python3 - "http://$registry/v2/service/manifests/latest" <<'PYTHON'
import sys, urllib.request
accepted = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
request = urllib.request.Request(sys.argv[1], method="HEAD", headers={"Accept": accepted})
print(urllib.request.urlopen(request).headers["Docker-Content-Digest"])
PYTHON
)
say "The registry has it as $digest: back, by that digest"
$buildrunner submit scripts/pull-back.yaml --no-source \
  --substitutions "_REPOSITORY=$registry/service,_DIGEST=$digest"

say "Done. Try: $buildrunner builds list, $buildrunner submit --help; \`make stop\` ends an engine that was started here."
