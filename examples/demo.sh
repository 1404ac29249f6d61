#!/bin/bash
# `make demo`: a platform of its own in a temporary directory, on free ports; nothing is left running.
set -euo pipefail

UAPI_HOME=$(mktemp -d -t agentruntime-demo.XXXXXX)
export UAPI_HOME
# It shows the same with and without a container engine.
export AGENT_RUNTIME_MODE=native
unset UAPI_ENDPOINT UAPI_AUTH_TOKEN

finish() {
  agent down >/dev/null 2>&1 || true
  rm -rf "$UAPI_HOME"
}
trap finish EXIT
trap 'exit 130' INT TERM

bold='' plain=''
if [[ -t 1 ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi

# Shows a command as one would type it, and runs it.
step() {
  local shown='' word
  for word in "$@"; do
    if [[ $word == *' '* ]]; then word="\"$word\""; fi
    shown+=" $word"
  done
  printf '\n%s$%s%s\n' "$bold" "$shown" "$plain"
  "$@"
}

step agent up --grpc-port 0 --http-port 0
step agent run text-generator:latest
step agent call text-generator "Write a short story about a lighthouse keeper." --max-tokens 120
step agent ps
step agent down

cat <<'TEXT'

That was a real language model, in a worker of its own, behind a real gateway.
The platform is down again. From here:

  source .venv/bin/activate
  agent run text-generator:latest               start it for yourself
  agent call text-generator "Tell me a joke."   ask it something
  agent init my-agent                           write your own agent
  agent --help                                  everything else

  docs/agents.md                                how to write an agent
  docs/architecture.md                          how the pieces fit
TEXT
