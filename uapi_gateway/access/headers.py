"""The headers in which Envoy says whom a call comes from. A caller's own of these names are removed first."""

from uapi_gateway.kernel import caller

# Told to agents, too.
PRINCIPAL = "x-uapi-principal"
# All that stays between Envoy and the gateway begins so.
PREFIX = "x-uapi-caller-"
KEY = PREFIX + "key"
# Of a token: what it may be used for, separated by spaces, and the client that it was issued to or for.
SCOPES = PREFIX + "scopes"
CLIENT = PREFIX + "client"
# There if the connection is encrypted, or does not leave this machine's kernel.
SECURE = PREFIX + "secure"
# "cert:" and the URI name of the certificate that the caller has shown; there only if it is verified.
CERTIFICATE = PREFIX + "certificate"
# The agent that a call is for: that of x-uapi-agent, or that of the worker which it names, or that of the service.
FOR = "x-uapi-for"
# What no agent is told.
PRIVATE = (KEY, SCOPES, CLIENT, SECURE, CERTIFICATE, FOR, *caller.PRIVATE)
