#!/usr/bin/env bash
# usage: packages.sh COMMAND=PACKAGE...
# Makes sure that each command is there. As root on Debian the missing packages are installed;
# otherwise the one command to type is printed.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

missing=()
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

install="apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # No service of a package is wanted, only its program.
  printf '#!/bin/sh\nexit 101\n' > /tmp/weir-policy && chmod +x /tmp/weir-policy
  restore=
  if [ ! -e /usr/sbin/policy-rc.d ]; then cp /tmp/weir-policy /usr/sbin/policy-rc.d; restore=yes; fi
  trap '[ -z "$restore" ] || rm -f /usr/sbin/policy-rc.d' EXIT
  apt-get update -qq
  # shellcheck disable=SC2086
  $install -qq
else
  echo "missing programs; type this, then run make again:" >&2
  echo "  sudo $install" >&2
  exit 1
fi
