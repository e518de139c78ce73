#!/bin/bash
# Starts Kubernetes in the machine it runs in: a control plane and one node. Waits until the node is ready.
#
#   node.sh ADDRESS     the address of this machine at which other machines reach the API server
#
# Needs /opt/kubernetes/bin (etcd, CNI plugins, and `kubernetes`, the programs of Kubernetes in one) on a
# machine of its own (scripts/engine-machine.sh): it changes the machine's network and control groups. The
# kubeconfig of an administrator goes to standard output; logs are in /var/log/kubernetes.
set -euo pipefail
address=$1
bin=/opt/kubernetes/bin
home=/root/kubernetes        # on a real file system, as an engine in a Pod needs it for its layers
logs=/var/log/kubernetes
pods=10.96.0.0/16
services=10.98.0.0/16
api=10.98.0.1
mkdir -p $home/pki $logs
cd $home

fail() { printf 'error: %s\n' "$1" >&2; tail -n 20 $logs/"${2:-kubelet}".log >&2; exit 1; }

# start NAME COMMAND...: a program that outlives this script, with a log of its own.
start() {
  local name=$1
  shift
  setsid "$@" < /dev/null > "$logs/$name.log" 2>&1 &
}

# until_it SECONDS COMMAND...: whether the command succeeds in time.
until_it() {
  local end=$((SECONDS + $1))
  shift
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# --- certificates and kubeconfigs ---------------------------------------------------------------

key() { openssl ecparam -name prime256v1 -genkey -noout -out "pki/$1.key"; }

# certificate NAME SUBJECT [EXTENSIONS]
certificate() {
  key "$1"
  openssl req -new -key "pki/$1.key" -subj "$2" | openssl x509 -req -days 365 -CA pki/ca.crt -CAkey pki/ca.key \
    -CAcreateserial -extfile <(printf 'extendedKeyUsage=clientAuth,serverAuth\n%s' "${3:-}") -out "pki/$1.crt" 2> /dev/null
}

# kubeconfig NAME: of the bearer of a certificate, on standard output
kubeconfig() {
  cat << YAML
apiVersion: v1
kind: Config
current-context: buildrunner
contexts: [{name: buildrunner, context: {cluster: buildrunner, user: $1}}]
clusters: [{name: buildrunner, cluster: {server: "https://$address:6443", certificate-authority-data: $(base64 -w0 pki/ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "pki/$1.crt"), client-key-data: $(base64 -w0 "pki/$1.key")}}]
YAML
}

key ca
openssl req -x509 -new -key pki/ca.key -days 365 -subj /CN=buildrunner-tests -out pki/ca.crt
key accounts
certificate admin /O=system:masters/CN=admin
certificate server /CN=kube-apiserver \
  "subjectAltName=IP:$address,IP:127.0.0.1,IP:$api,DNS:kubernetes.default.svc,DNS:kubernetes.default"
certificate node "/O=system:nodes/CN=system:node:$HOSTNAME"
for name in kube-controller-manager kube-scheduler kube-proxy; do certificate $name "/CN=system:$name"; done
for name in admin node kube-controller-manager kube-scheduler kube-proxy; do kubeconfig $name > $name.conf; done

# --- control plane ------------------------------------------------------------------------------

# Nothing here outlives the machine, so etcd need not wait for the disk.
start etcd $bin/etcd --data-dir $home/etcd --unsafe-no-fsync --listen-peer-urls http://127.0.0.1:2380
start kube-apiserver $bin/kubernetes kube-apiserver --etcd-servers http://127.0.0.1:2379 \
  --advertise-address "$address" --service-cluster-ip-range $services --authorization-mode Node,RBAC \
  --enable-admission-plugins NodeRestriction,ResourceQuota \
  --client-ca-file pki/ca.crt --tls-cert-file pki/server.crt --tls-private-key-file pki/server.key \
  --kubelet-client-certificate pki/admin.crt --kubelet-client-key pki/admin.key \
  --service-account-issuer https://kubernetes.default.svc --service-account-key-file pki/accounts.key \
  --service-account-signing-key-file pki/accounts.key --allow-privileged
until_it 60 curl -sf --cacert pki/ca.crt --cert pki/admin.crt --key pki/admin.key https://127.0.0.1:6443/readyz \
  || fail "the API server did not start" kube-apiserver
# The controllers notice a lost node and evict its Pods in tens of seconds instead of minutes.
start kube-controller-manager $bin/kubernetes kube-controller-manager --kubeconfig kube-controller-manager.conf \
  --use-service-account-credentials --root-ca-file pki/ca.crt --service-account-private-key-file pki/accounts.key \
  --node-monitor-grace-period 20s --node-monitor-period 2s --leader-elect=false
start kube-scheduler $bin/kubernetes kube-scheduler --kubeconfig kube-scheduler.conf --leader-elect=false

# --- node ---------------------------------------------------------------------------------------

# The kubelet sets these settings of the kernel, which this machine shares with its host: it gets copies.
for setting in kernel/panic kernel/panic_on_oops kernel/keys/root_maxbytes kernel/keys/root_maxkeys \
  vm/overcommit_memory vm/panic_on_oom
do
  mkdir -p "sys/$(dirname $setting)"
  cat /proc/sys/$setting > sys/$setting
  mount --bind sys/$setting /proc/sys/$setting
done
echo 1 > /proc/sys/net/ipv4/ip_forward

mkdir -p /etc/cni/net.d /etc/containerd
mtu=$(cat /sys/class/net/tap0/mtu)
cat > /etc/cni/net.d/10-buildrunner.conflist << JSON
{"cniVersion": "1.0.0", "name": "buildrunner", "plugins": [
  {"type": "bridge", "bridge": "kubernetes0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": $mtu,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
cat > /etc/containerd/config.toml << TOML
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "docker.io/buildrunner/pause:latest"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["$bin"]
TOML
start containerd containerd
until_it 60 ctr version || fail "containerd did not start" containerd

# The container that holds a Pod's namespaces: Debian's catatonit has a mode for it.
image=$(mktemp -d)
mkdir "$image/files"
cp /usr/bin/catatonit "$image/files/pause"
tar -C "$image/files" -cf "$image/layer.tar" pause
layer=$(sha256sum "$image/layer.tar" | cut -d ' ' -f 1)
printf '{"architecture": "%s", "os": "linux", "config": {"Entrypoint": ["/pause", "-P"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' \
  "$(dpkg --print-architecture)" "$layer" > "$image/config.json"
echo '[{"Config": "config.json", "RepoTags": ["buildrunner/pause:latest"], "Layers": ["layer.tar"]}]' > "$image/manifest.json"
tar -C "$image" -c manifest.json config.json layer.tar | ctr -n k8s.io images import - > /dev/null

cat > kubelet.yaml << YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $home/pki/ca.crt}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: true
evictionHard: {nodefs.available: 1%, imagefs.available: 1%, memory.available: 50Mi}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 12
registerWithTaints: []
YAML
start kubelet $bin/kubernetes kubelet --config kubelet.yaml --kubeconfig node.conf --root-dir $home/kubelet \
  --node-ip "$address"
start kube-proxy $bin/kubernetes kube-proxy --kubeconfig kube-proxy.conf --hostname-override "$HOSTNAME" \
  --proxy-mode iptables --cluster-cidr $pods --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 \
  --conntrack-tcp-timeout-close-wait 0

is_ready() {
  curl -sf --cacert pki/ca.crt --cert pki/admin.crt --key pki/admin.key "https://127.0.0.1:6443/api/v1/nodes/$HOSTNAME" |
    python3 -c 'import json, sys; sys.exit(not any(c["type"] == "Ready" and c["status"] == "True" for c in json.load(sys.stdin)["status"]["conditions"]))'
}
until_it 90 is_ready || fail "the node did not become ready"
kubeconfig admin
