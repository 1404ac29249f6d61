"""What decides who may do what: identity providers, their keys and scopes, signatures, names of secrets."""

import json

from agentruntime import errors, secrets
from agentruntime.signing import Claim, PrivateKey, Signature, public_keys, signer

from agent_pool.images import signatures
from tests.fuzz.target import Target, is_said, text
from uapi_gateway.access import jwks, providers, scopes

_KEY = PrivateKey.generate()
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


def key_set(data: bytes) -> None:
    """A provider's keys: only public ones of kinds that we know, or Unavailable."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    try:
        keys = jwks.reduced(document)
    except errors.Unavailable as error:
        is_said(error.message)
        return
    for key in json.loads(keys.as_json())["keys"]:
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


TARGETS = [
    Target(
        "providers", identity_providers, (b"providers:\n", b"- name: a\n", b"  issuer: https://", b"audiences: x")
    ),
    Target("key-set", key_set, (b'{"keys":[', b'"kty":"RSA"', b'"n":"', b'"e":"AQAB"', b'"crv":"P-256"', b'"x":"')),
    Target("scopes", scope, (b"uapi.call", b"uapi.operate:", b"uapi.administer")),
    Target("signature", signature, (b'{"critical":', b'"docker-manifest-digest"', b"\0")),
    Target("public-key", public_key, (b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----")),
    Target("secret-name", secret_name, (b"my-agent/", b"../", b"/")),
]
