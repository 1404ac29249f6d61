#!/bin/bash
# Installs what the tests need beside .venv/: Debian packages, and Node's gRPC client.
# Without root it says what to install, and ends with status 1.
set -euo pipefail
cd "$(dirname "$0")"

missing=()
command -v linux.uml >/dev/null || missing+=(user-mode-linux) # a kernel with cgroup v2, as a process
command -v curl >/dev/null || missing+=(curl)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)

if ((${#missing[@]})); then
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "The tests need ${missing[*]}. On Debian or Ubuntu, as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

if [[ ! -d integration/node/node_modules || integration/node/package-lock.json -nt integration/node/node_modules ]]; then
  (cd integration/node && npm ci --no-audit --no-fund --silent && touch node_modules)
fi
