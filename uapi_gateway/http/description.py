"""The page that describes the HTTP API: made of its OpenAPI document here, for a machine without the internet."""

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

INTRODUCTION = (
    "Agents, and conversations with them.\n\n"
    'A message is on disk before the agent sees it. With `"stream": true`, or `Accept: text/event-stream`, `run` '
    "answers with server-sent events: `id` is the sequence number, `event` the kind (message, attempt, chunk, "
    "tool_call, state, interruption, cancellation, completion, failure; `error` if the stream fails), `data` JSON. "
    "A stream that broke goes on with the same request, the same `message_id` and the header `Last-Event-ID`.\n\n"
    'Errors are {"error": {"code", "reason", "message"}}. The same conversations are there for OpenAI\'s clients at '
    "/v1, for A2A's at /agents/{agent}/a2a, and over gRPC."
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; }
summary { cursor: pointer; padding: .4rem 0; }
summary b { font-family: monospace; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } pre { background: #2a2a2a; } }
"""


def page(document: Mapping[str, Any]) -> str:
    """The page.

    Args:
        document: in the form of OpenAPI 3.1.
    """
    info = document["info"]
    paragraphs = "".join(f"<p>{html.escape(each)}</p>" for each in info["description"].split("\n\n"))
    operations = "".join(
        _operation(document, path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    title = html.escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{title}</h1>{paragraphs}'
        f'<p>For programs: <a href="/openapi.json">openapi.json</a></p>{operations}</html>'
    )


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(each['name'])}</code></td><td>{html.escape(each['in'])}</td>"
        f"<td>{html.escape(each.get('description', ''))}</td></tr>"
        for each in operation.get("parameters", ())
    )
    parts = [f"<table>{rows}</table>" if rows else ""]
    for heading, content in _contents(operation):
        shape = json.dumps(_shape(document, content), indent=2, ensure_ascii=False)
        parts.append(f"<p>{heading}</p><pre>{html.escape(shape)}</pre>")
    head = f"<b>{method.upper()} {html.escape(path)}</b> — {html.escape(operation.get('summary', ''))}"
    return f"<details><summary>{head}</summary>{''.join(parts)}</details>"


def _contents(operation: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is sent, and what comes back."""
    if "requestBody" in operation:
        yield "Request", operation["requestBody"]["content"]["application/json"]["schema"]
    for code, answer in operation["responses"].items():
        # Errors are the same everywhere.
        if code.startswith("2") and (content := answer.get("content", {}).get("application/json")):
            yield "Answer", content["schema"]


def _shape(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """A schema as an example that says the kinds of things."""
    if "$ref" in schema:
        return _shape(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "properties" in schema:
        return {name: _shape(document, each) for name, each in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_shape(document, schema["items"])]
    if "anyOf" in schema:
        several = [_shape(document, each) for each in schema["anyOf"] if each.get("type") != "null"]
        return several[0]
    kind = " | ".join(schema["enum"]) if "enum" in schema else str(schema.get("const", schema.get("type", "any")))
    described = schema.get("description", "")
    return f"{kind}: {described}" if described else kind
