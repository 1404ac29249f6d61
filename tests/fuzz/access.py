"""What decides who may do what: identity providers and their keys, signatures, API keys, ways out, secrets."""

import ipaddress
import json
import re

from agentruntime import api_keys, documents, egress, errors, secrets
from agentruntime._proto.uapi.v1.system_calls_pb2 import PERMISSION_KIND_TOPIC
from agentruntime.redaction import Redactor, by_name
from agentruntime.sections import egress_target
from agentruntime.signing import Claim, PrivateKey, Signature, public_keys, signer

from agent_pool.images import signatures
from tests.fuzz.target import Target, is_said, text
from uapi_gateway.access import jwks, keys, providers, scopes
from uapi_gateway.egress import addresses
from uapi_gateway.kernel import permissions
from uapi_gateway.registry import Agent, Permissions

_KEY = PrivateKey.generate()
_KEPT = keys.mint(keys.Wanted("kept", 1, ("*",)), 1e9)[1]
_CLAIM = Claim("my-agent", "sha256:" + "ab" * 32)


def identity_providers(data: bytes) -> None:
    """identity-providers.yaml: read or InvalidArgument."""
    try:
        read = providers.read(data, "providers")
    except errors.InvalidArgument as error:
        is_said(error.message)
        return
    for provider in read:
        providers.identity(provider)


def identity_keys(data: bytes) -> None:
    """A provider's keys: only public ones of kinds that we know, or Unavailable."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    try:
        key_set = jwks.reduced(document)
    except errors.Unavailable as error:
        is_said(error.message)
        return
    for key in json.loads(key_set.as_json())["keys"]:
        assert key["kty"] in ("RSA", "EC", "OKP")
        assert not {"k", "d", "p", "q"} & key.keys()


def scope(data: bytes) -> None:
    """Scopes and roles of a token: grants for agents with possible names, and each is written as it was read."""
    values = text(data).split()
    for grant in scopes.grants(values, {}):
        assert scopes.parse(grant.scope) == grant
        assert grant.scope in values
        assert grant.role is not scopes.Role.ADMINISTER or grant.agent == scopes.EVERY_AGENT


def signature(data: bytes) -> None:
    """A signature that its key did not make is nobody's: the input is a payload and, after a NUL, the signature."""
    payload, _, value = data.partition(b"\0")
    given = Signature(payload, value)
    try:
        signatures.check(given, _CLAIM.digest)
    except errors.InvalidArgument as error:
        is_said(error.message)
    try:
        signer(_CLAIM, [given], [_KEY.public("key")])
    except errors.ImageNotTrusted as error:
        is_said(error.message)
        return
    raise AssertionError("somebody else's signature counts")


def public_key(data: bytes) -> None:
    """A file of public keys: keys on P-256, or InvalidArgument. The same of a private one."""
    for read in (lambda: public_keys(data, "key.pub"), lambda: PrivateKey.parse(data)):
        try:
            read()
        except errors.InvalidArgument as error:
            is_said(error.message)


def secret_name(data: bytes) -> None:
    """A secret's name: the parts of a path that leads nowhere else, or InvalidArgument."""
    written = text(data)
    try:
        agent, file_name = secrets.split(written)
    except errors.InvalidArgument as error:
        is_said(error.message)
        return
    assert file_name not in ("", ".", "..")
    assert not set(file_name) & set("/\0\n")
    assert written == (f"{agent}/{file_name}" if agent else file_name)


def api_key(data: bytes) -> None:
    """An API key as a caller may send it: nobody's, unless it was made here; and its name and agents as asked for."""
    written = text(data)
    api_keys.key_id_of(written)
    assert not keys.belongs(written, [_KEPT])
    name, *agents = written.split("\n")
    try:
        wanted = keys.check(keys.Wanted(name, 1, tuple(agents)))
    except errors.InvalidArgument as error:
        is_said(error.message)
        return
    secret, kept = keys.mint(wanted, 1e9)
    assert api_keys.key_id_of(secret) == kept.key_id
    assert keys.belongs(secret, [_KEPT, kept])
    assert not keys.belongs(secret, [_KEPT])
    json.loads(keys.key_set([kept]))


def ways_out(data: bytes) -> None:
    """Entries of permissions.egress: each has its own place in a worker's network, and its line in /etc/hosts."""
    entries = []
    for entry in text(data).lower().split("\n"):
        try:
            egress_target(entry)
        except ValueError:
            continue
        entries.append(entry)
    found = egress.ways(entries)
    assert len({(way.address, way.port) for way in found}) == len(found)
    for way in found:
        address = ipaddress.ip_address(way.address)
        assert address.is_loopback or way.is_literal
    for line in egress.hosts_file(entries).splitlines():
        address_, host = line.split("\t")
        ipaddress.ip_address(address_)
        assert re.fullmatch(r"[a-z0-9.-]+", host), line


def address(data: bytes) -> None:
    """Addresses of this machine and its surroundings are closed, in whatever form they are written."""
    four = ipaddress.IPv4Address(data[:4].rjust(4, b"\0"))
    shut = addresses.closed(str(four))
    assert bool(shut) == (
        four.is_loopback
        or four.is_link_local
        or four.is_multicast
        or int(four) >> 24 == 0
        or str(four) in ("255.255.255.255", "100.100.100.200")
    )
    for form in (
        f"::ffff:{four}",
        f"64:ff9b::{four}",
        f"::{four}",
        f"::ffff:0:{four}",
        f"2002:{int(four) >> 16:x}:{int(four) & 65535:x}::",
    ):
        assert bool(addresses.closed(form)) >= bool(shut), form
    six = ipaddress.IPv6Address(data[:16].rjust(16, b"\0"))
    assert addresses.closed(str(six)) or not (six.is_loopback or six.is_link_local or six.is_multicast)


def denial(data: bytes) -> None:
    """A denial says what agent.yaml would have to say, as YAML that means just that."""
    name = text(data)
    agent = Agent("my-agent", (), (), permissions=Permissions(topics=("a", name)))
    error = permissions.denial(agent, PERMISSION_KIND_TOPIC, name)
    is_said(error.message)
    if len(error.metadata["needed"]) < documents.LONGEST_BYTES:
        assert documents.load(error.metadata["needed"]) == {"permissions": {"topics": ["a", name, name]}}


def redaction(data: bytes) -> None:
    """What holds a secret is written without it. The input is the secret, a NUL, and what stands around it."""
    value, _, rest = data.partition(b"\0")
    redactor = Redactor({"name": [value]})
    written = redactor.redact(rest + value + rest)
    if redactor and value.strip() not in b"[secret name]":
        # The mark and what follows it may look like the value, and tell nothing of it.
        assert not any(value.strip() in piece for piece in written.split(b"[secret name]"))
    redactor.text(text(rest + value))
    redactor.text(rest.decode(errors="surrogatepass") if _is_text(rest) else "")
    by_name({"token": text(value), "event": text(rest), "more": [{"password": text(value)}]})
    list(redactor.masks(rest))


def _is_text(data: bytes) -> bool:
    try:
        data.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


TARGETS = [
    Target(
        "providers", identity_providers, (b"providers:\n", b"- name: a\n", b"  issuer: https://", b"audiences: x")
    ),
    Target(
        "key-set", identity_keys, (b'{"keys":[', b'"kty":"RSA"', b'"n":"', b'"e":"AQAB"', b'"crv":"P-256"', b'"x":"')
    ),
    Target("scopes", scope, (b"uapi.call", b"uapi.operate:", b"uapi.administer")),
    Target("signature", signature, (b'{"critical":', b'"docker-manifest-digest"', b"\0")),
    Target("public-key", public_key, (b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----")),
    Target("api-key", api_key, (b"uapi_eyJ", b".", b"*", b"\n")),
    Target("ways-out", ways_out, (b":443\n", b"[::1]:", b"127.0.0.1:", b"localhost:")),
    Target("address", address, (b"\x7f\0\0\x01", b"\xa9\xfe", b"\xff\xff", b"\0d\xff\x9b")),
    Target("denial", denial, (b"no", b"null", b'"', b"\n", b": ", b"# ", b"\xc2\x85")),
    Target("redaction", redaction, (b"\0", b"\xf0\x9f\x98\x80", b"\n", b"Bearer ")),
    Target("secret-name", secret_name, (b"my-agent/", b"../", b"/")),
]
