#!/usr/bin/env bash
# up.sh DIRECTORY ADDRESS: a real etcd, API server and controller manager, in the network namespace that this
# is called in, for trying things out by hand. The API server listens at ADDRESS:6443; DIRECTORY gets
# admin.kubeconfig, logs and data. Nobody may use 127.0.0.1:2379 there. They end with `kill` (DIRECTORY/pids).
# No kubelet and no scheduler: a Pod is what somebody writes. The tests start theirs with the same flags
# (support/cluster/parts.rs).
set -euo pipefail

dir=$1 address=$2
bin=${KUBEBUILDER_ASSETS:-$(dirname "$(realpath "$0")")/../../../target/kubernetes/bin}
mkdir -p "$dir"
token=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
echo "$token,admin,admin,system:masters" >"$dir/tokens.csv"
cat >"$dir/admin.kubeconfig" <<EOF
apiVersion: v1
kind: Config
clusters:
- {name: here, cluster: {server: "https://$address:6443", certificate-authority: $dir/certs/apiserver.crt}}
users:
- name: user
  user:
    token: $token
contexts:
- {name: here, context: {cluster: here, user: user}}
current-context: here
EOF

# start NAME FLAGS...
start() {
  "$bin/$1" "${@:2}" >"$dir/$1.log" 2>&1 </dev/null &
  echo $! >>"$dir/pids"
}
# ready WHAT COMMAND...
ready() {
  for _ in $(seq 600); do
    "${@:2}" >/dev/null 2>&1 && return
    sleep 0.1
  done
  echo "$1 is not ready: see $dir/*.log" >&2
  exit 1
}

start etcd --data-dir "$dir/etcd" --log-level=warn --unsafe-no-fsync
key=$dir/certs/apiserver.key
start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address="$address" --cert-dir="$dir/certs" \
  --service-account-issuer=https://fixture --service-account-key-file="$key" \
  --service-account-signing-key-file="$key" --token-auth-file="$dir/tokens.csv" --authorization-mode=RBAC \
  --service-cluster-ip-range=10.96.0.0/16,fd96::/112 --advertise-address=192.0.2.1 \
  --endpoint-reconciler-type=none --disable-admission-plugins=ServiceAccount,TaintNodesByCondition
ready "the API server" "$bin/kubectl" --kubeconfig "$dir/admin.kubeconfig" get --raw /readyz
start kube-controller-manager --kubeconfig "$dir/admin.kubeconfig" \
  --authentication-kubeconfig "$dir/admin.kubeconfig" --authorization-kubeconfig "$dir/admin.kubeconfig" \
  --controllers=endpointslice-controller,endpointslice-mirroring-controller,garbage-collector-controller,namespace-controller \
  --leader-elect=false --secure-port=0
ready "the namespace" "$bin/kubectl" --kubeconfig "$dir/admin.kubeconfig" get namespace default
