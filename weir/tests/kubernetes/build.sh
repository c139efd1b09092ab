#!/usr/bin/env bash
# Builds what the Kubernetes tests run, from the modules of go.mod, into target/kubernetes/bin: etcd, the API
# server, the controller manager, kube-proxy and kubectl. Nothing to do once that is done, where
# KUBEBUILDER_ASSETS names a folder that has them, and without Go: the tests then say that they are skipped.
set -euo pipefail
cd "$(dirname "$0")"

bin=$(realpath -m ../../../target/kubernetes/bin)
key=$(cat build.sh go.mod go.sum | sha256sum)
if [ -n "${KUBEBUILDER_ASSETS:-}" ] || [ "$(cat "$bin/key" 2>/dev/null)" = "$key" ]; then
  exit 0
elif ! command -v go >/dev/null; then
  echo "no Go and no KUBEBUILDER_ASSETS: the Kubernetes tests will be skipped"
  exit 0
fi

# Without these the server calls itself v0.0.0-master, and clients judge it by that.
version=$(sed -nE 's/^\tk8s.io\/kubernetes (v[0-9.]+).*/\1/p' go.mod)
IFS=. read -r major minor _ <<<"${version#v}"
said=k8s.io/component-base/version
flags="-s -w -X $said.gitVersion=$version -X $said.gitMajor=$major -X $said.gitMinor=$minor"

echo "building Kubernetes $version for the tests: some minutes the first time"
rm -rf "$bin"
mkdir -p "$bin"
export CGO_ENABLED=0
go build -ldflags "$flags" -o "$bin/" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-proxy,kubectl}
go build -ldflags "-s -w" -o "$bin/etcd" go.etcd.io/etcd/server/v3
echo "$key" >"$bin/key"
