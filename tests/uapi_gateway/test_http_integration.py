"""The HTTP port beside a real Envoy: health, metrics, and who may ask."""

import asyncio
import json

import pytest
from grpc import aio
from prometheus_client.parser import text_string_to_metric_families

from tests.uapi_gateway.conftest import Platform
from tests.uapi_gateway.stand_ins import generate
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def get(platform: Platform, path: str, *headers: str) -> tuple[int, str]:
    options = [part for header in headers for part in ("-H", header)]
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "-m", "5", "-w", "\n%{http_code}", *options, platform.gateway.http_address + path,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    body, _, code = output.decode().rpartition("\n")
    return int(code), body


async def test_health_documents(platform: Platform) -> None:
    code, body = await get(platform, "/health")
    assert code == 200
    assert json.loads(body).keys() == {"status", "uptime", "requests_processed", "memory_usage", "cpu_usage"}
    await generate(platform.tcp, "x", agent="beta")
    code, body = await get(platform, "/health/beta")
    document = json.loads(body)
    assert (code, document["status"]) == (200, "healthy")
    assert document["requests_processed"] >= 1
    assert (await get(platform, "/health/nobody"))[0] == 404
    assert (await get(platform, "/nothing"))[0] == 404


async def test_metrics_count_calls_by_agent_and_code(platform: Platform) -> None:
    for prompt in ("x", "fail"):
        try:
            await generate(platform.tcp, prompt, agent="alpha-01")
        except aio.AioRpcError:
            continue

    async def counted() -> dict[str, float]:
        _, page = await get(platform, "/metrics")
        samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
        calls = {
            s.labels["code"]: s.value
            for s in samples
            if s.name == "uapi_agent_calls_total" and s.labels["agent"] == "alpha"
        }
        names = {s.name for s in samples}
        assert {"uapi_up", "uapi_workers", "uapi_node_memory_bytes", "uapi_worker_memory_bytes"} <= names
        return calls if "RESOURCE_EXHAUSTED" in calls and "uapi_agent_call_duration_seconds_bucket" in names else {}

    calls = await eventually(counted)
    assert calls["OK"] >= 1
    assert calls["RESOURCE_EXHAUSTED"] == 1


async def test_pages_of_other_sites_are_refused(platform: Platform) -> None:
    assert (await get(platform, "/health", "host: evil.example"))[0] == 403
    assert (await get(platform, "/health", "origin: http://evil.example"))[0] == 403
    assert (await get(platform, "/health", f"origin: {platform.gateway.http_address}"))[0] == 200
