#!/bin/bash
# Installs what the tests need beside .venv/: Debian packages, and Node's gRPC client.
# Without root it says what to install, and ends with status 1; but a container engine and a registry may be missing:
# then the tests say what they could not test.
set -euo pipefail
cd "$(dirname "$0")"

# Installs packages, and starts none of the services in them: the tests start their own, and here there may be no init.
install() {
  export DEBIAN_FRONTEND=noninteractive
  local policy=/usr/sbin/policy-rc.d status=0
  if [[ -e $policy ]]; then policy=; else
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@" >/dev/null; } || status=$?
  [[ -z $policy ]] || rm "$policy"
  return $status
}

missing=()
command -v linux.uml >/dev/null || missing+=(user-mode-linux) # a kernel with cgroup v2, as a process
command -v curl >/dev/null || missing+=(curl)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)

if ((${#missing[@]})); then
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "The tests need ${missing[*]}. On Debian or Ubuntu, as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  install "${missing[@]}"
fi

wanted=()
command -v dockerd >/dev/null || [[ -S /var/run/docker.sock || -n ${DOCKER_HOST:-} ]] || wanted+=(docker.io)
command -v docker-registry >/dev/null || wanted+=(docker-registry)
if ((${#wanted[@]})); then
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "To test containers, too: as root, on Debian or Ubuntu: apt-get install ${wanted[*]}" >&2
  elif echo "installing ${wanted[*]}" && ! install "${wanted[@]}"; then
    echo "${wanted[*]} cannot be installed: some of the tests of containers will not run" >&2
  fi
fi

if [[ ! -d integration/node/node_modules || integration/node/package-lock.json -nt integration/node/node_modules ]]; then
  (cd integration/node && npm ci --no-audit --no-fund --silent && touch node_modules)
fi
