"""The verbs of `agent` with their one-line help. Each lives in the module of its name, as `command`.

The table stands apart from the modules so that `agent --help` imports none of them; a test compares the two.
"""

VERBS = {
    "up": "Start the platform on this machine.",
    "down": "Stop the platform and every agent on it.",
    "status": "Show the platform's processes and addresses.",
    "run": "Run an agent from its image.",
    "call": "Call an agent: a prompt, or any unary method with JSON data.",
    "chat": "Talk with an agent, in a conversation that is kept.",
    "conversations": "List, show, export and delete conversations.",
    "ps": "List agents and their workers.",
    "stop": "Stop an agent, or one worker of it.",
    "restart": "Replace an agent's workers, or one of them, by new ones.",
    "update": "Give an agent another image or other settings.",
    "rollback": "Go back to an earlier image and settings of an agent.",
    "history": "List an agent's revisions, newest first.",
    "scale": "Set how many workers an agent has, or what each of them gets.",
    "logs": "Show what an agent's workers wrote, in order of time.",
    "metrics": "Show what an agent's workers use: CPU, memory, network, GPUs.",
    "monitor": "Follow what an agent's workers use, until Ctrl-C.",
    "keys": "Make, list and revoke API keys.",
    "whoami": "Show whom the platform takes you for, and what you may do.",
    "secrets": "Set, list and delete the secrets that agents find as files.",
    "audit": "Show what was done on the platform and by whom, and what was refused.",
    "debug": "Attach a debugger to a worker that runs with --debug.",
    "login": "Log in at an identity provider, for a platform elsewhere.",
    "logout": "Forget a login.",
    "init": "Write a new agent project that runs at once.",
    "build": "Build an image of a project.",
    "images": "List images.",
    "tag": "Give an image one more name.",
    "push": "Copy an image to a registry.",
    "pull": "Copy an image from a registry.",
    "keypair": "Make a key pair that signs images.",
    "sign": "Sign an image with a private key.",
    "verify": "Say who signed an image, or why nobody who counts did.",
    "rmi": "Remove an image.",
    "certs": "Make certificates for TLS: of the platform, of programs and of agents.",
    "doctor": "Say what this machine can enforce and what is missing.",
    "version": "Show the version.",
}

# What people type who know other programs, and what they mean by it here.
MEANT = {"start": "run", "rm": "stop", "list": "ps", "help": "--help"}


def help_text() -> str:
    """What `agent --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {help_line}" for name, help_line in VERBS.items())
    return f"""Usage: agent [--output table|json] VERB [ARGUMENTS]

Run AI agents as limited, supervised processes behind a gRPC gateway.

Verbs:
{verbs}

Options:
  -o, --output table|json  How to print results; also after each verb.
  --install-completion     Install completion for this shell.
  --show-completion        Print the completion script of this shell.
  -h, --help               Show this; `agent VERB --help` says more of a verb.

First steps: agent run text-generator, then agent call text-generator "Once upon a time".
"""
