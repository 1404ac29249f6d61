"""`agent init`."""

from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors, names
from agentruntime.cli import output

_MANIFEST = """\
# What the platform needs to know of this agent; docs/agents.md has every key.
name: {name}
version: 0.1.0
entrypoint: agent:{class_name}
python:
  requirements: []
"""

_CODE = '''\
"""{name}: an agent that answers text with text."""

from collections.abc import AsyncIterator

from agentruntime import Agent


class {class_name}(Agent):
    async def generate(self, prompt: str, *, temperature: float, max_tokens: int) -> AsyncIterator[str]:
        """Answers a prompt, piece by piece; replace this with what your agent does."""
        yield "{name} heard:"
        for word in prompt.split():
            yield f" {{word}}"
'''


def command(
    name: Annotated[str, typer.Argument(help="The agent's name; its folder is made here.")],
    format_: output.Output = None,
) -> None:
    """Write a new agent project that runs at once.

    Two files: agent.yaml and agent.py. What exists already is never overwritten.
    """
    names.check_agent_name(name)
    folder = Path(name)
    class_name = "".join(part.capitalize() for part in name.split("-"))
    # A name may begin with a digit, a class may not.
    class_name = class_name if class_name[:1].isalpha() else f"Agent{class_name}"
    texts = {"agent.yaml": _MANIFEST, "agent.py": _CODE}
    for existing in [folder / file for file in texts if (folder / file).exists()]:
        raise errors.AlreadyExists(f"{existing} exists already; choose another name, or move it away")
    try:
        folder.mkdir(exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text.format(name=name, class_name=class_name))
    except OSError as error:
        raise errors.FailedPrecondition(f"cannot write {error.filename}: {error.strerror}") from None
    files = [str(folder / file) for file in texts]
    if output.wants_json(format_):
        output.print_json({"name": name, "files": files})
        return
    print(f"wrote {' and '.join(files)}")
    print(f"Build it:  agent build {name}")
    print(f"Run it:    agent run {name}:0.1.0")
    print(f'Call it:   agent call {name} "Hello there"')
