"""What is said, laid over what is said elsewhere."""

from agentruntime.manifest import AgentManifest

from agent_pool.asked import (
    Asked,
    AskedAccess,
    AskedCache,
    AskedHandling,
    AskedPermissions,
    AskedPolicies,
    AskedRetention,
    AskedServing,
    AskedTraffic,
    Permissions,
)
from agent_pool.policies import AccessPolicy, CachePolicy, Policies, RetentionPolicy
from agent_pool.resources import Requested


def test_what_a_request_leaves_out_does_not_differ() -> None:
    running = Asked(resources=Requested(memory_bytes=1), network="host", env={"a": "b"})
    assert Asked().differs_from(running) == []
    assert running.differs_from(running) == []
    other = Asked(resources=Requested(memory_bytes=2), network="isolated", log_level="DEBUG")
    assert other.differs_from(running) == ["--memory", "--network", "--log-level"]


def test_an_environment_differs_by_its_variables() -> None:
    running = Asked(env={"a": "b", "c": "d"})
    assert Asked(env={"a": "b"}).differs_from(running) == []
    assert Asked(env={"a": "c"}).differs_from(running) == ["--env"]
    assert Asked(env={"e": "f"}).over(running).env == {"a": "b", "c": "d", "e": "f"}


def test_settings_of_a_revision_are_laid_over_each_other() -> None:
    below = Asked(resources=Requested(cpu_millis=100), network="host", serving=AskedServing(queue=3, debug=True))
    above = Asked(resources=Requested(memory_bytes=10**8), serving=AskedServing(queue=0, debug=False))
    assert above.over(below) == Asked(
        resources=Requested(cpu_millis=100, memory_bytes=10**8), network="host",
        serving=AskedServing(queue=0, debug=False),
    )  # fmt: skip


MANIFEST = "name: a\nversion: '1'\nentrypoint: m:C\n"


def test_conversations_are_handled_as_a_revision_says_and_kept_as_a_policy_does() -> None:
    text = "conversations: {when_busy: reject, idle: 90s, ttl: 1h, max_events: 10, max_bytes: 10kB}\n"
    manifest = AgentManifest.parse(MANIFEST + text)
    assert AskedHandling.of_manifest(manifest.conversations) == AskedHandling("reject", None, 90.0)
    authors = AskedPolicies.of_manifest(manifest)
    assert authors.retention == AskedRetention(3600.0, 10, 10_000)
    unbounded = AskedPolicies(retention=AskedRetention(ttl_s=0.0, max_bytes=0)).over(authors)
    assert Policies.of(unbounded, 64).retention == RetentionPolicy(max_events=10)
    other = Asked(handling=AskedHandling("queue", "report", 5.0))
    assert other.differs_from(Asked()) == ["--when-busy", "--on-worker-lost", "--conversation-idle"]


def test_what_agent_yaml_turns_on_without_saying_how() -> None:
    def of(text: str) -> AskedPolicies:
        return AskedPolicies.of_manifest(AgentManifest.parse(MANIFEST + text))

    assert of("").traffic == AskedTraffic()
    assert of("traffic: {circuit_breaker: true}").traffic == AskedTraffic(None, 5)
    assert of("traffic: {failure_threshold: 7}").traffic == AskedTraffic(None, 7)
    assert of("traffic: {circuit_breaker: false, failure_threshold: 7}").traffic == AskedTraffic(None, 0)
    assert of("cache: {enabled: true}").cache == AskedCache(100_000_000, None)
    assert of("cache: {ttl: 10s}").cache == AskedCache(100_000_000, 10.0)
    assert of("cache: {enabled: false, size: 1MB}").cache == AskedCache(0, None)
    assert of("restart_policy: no").restart == "no"


def test_nothing_that_agent_yaml_says_is_silence_of_an_operator() -> None:
    manifest = AgentManifest.parse(MANIFEST + "permissions: {egress: [none]}\naccess: {keys: [none]}\n")
    program = Permissions.of_manifest(manifest.permissions)
    assert program == Permissions()
    assert AskedPolicies.of_manifest(manifest).access == AskedAccess(keys=())
    authors = AskedPolicies(access=AskedAccess(keys=("ci",), oauth2_client_id="chat"))
    nobodys = AskedPolicies(access=AskedAccess.read(None, ["none"], "none"))
    assert Policies.of(nobodys.over(authors), 64).access == AccessPolicy()
    assert program.and_also(AskedPermissions(egress=("a:1", "a:1"))) == Permissions(egress=("a:1",))
    for said in (AskedPermissions(), AskedPermissions(egress=())):
        assert Permissions(egress=("a:1",)).and_also(said) == Permissions(egress=("a:1",))
    assert Asked(permissions=AskedPermissions(egress=())).differs_from(
        Asked(permissions=AskedPermissions(egress=("a:1",)))
    ) == ["--egress"]


def test_defaults_where_nobody_says_anything() -> None:
    policies = Policies.of(AskedPolicies.of_manifest(AgentManifest.parse(MANIFEST)), concurrency=64)
    assert policies == Policies()
    off = AskedPolicies(cache=AskedCache(max_bytes=0)).over(AskedPolicies(cache=AskedCache(10**6, 7.0)))
    assert Policies.of(off, 64).cache == CachePolicy(0, 7.0)
    on_again = AskedPolicies(cache=AskedCache(ttl_s=9.0)).over(off)
    assert Policies.of(on_again, 64).cache == CachePolicy(100_000_000, 9.0)
    longer = AskedPolicies(cache=AskedCache(ttl_s=9.0)).over(AskedPolicies(cache=AskedCache(10**6, 7.0)))
    assert Policies.of(longer, 64).cache == CachePolicy(10**6, 9.0)
    assert Policies.of(off, 64, debug=True).health.failure_action == "ignore"
