"""The headers in which Envoy says whom a call comes from. A caller's own of these names are removed first."""

from uapi_gateway.access.scopes import Role
from uapi_gateway.kernel import caller

# Told to agents, too.
PRINCIPAL = "x-uapi-principal"
# Whose conversation the call belongs to, and which: calls with the same go to the same worker, where the agent's are
# spread so. Not there without a conversation. It is hashed again for each attempt, so it stays in the call.
CONVERSATION = "x-uapi-conversation-key"
# All that stays between Envoy and the gateway begins so.
PREFIX = "x-uapi-caller-"
KEY = PREFIX + "key"
# The key's id and the agent that the call is for, joined by "@".
PAIR = PREFIX + "pair"
# The principal of the agent that the call is for: who calls is that one, if it calls itself.
OWN = PREFIX + "own"
# The claims of an identity provider's token that was good, in base64url.
CLAIMS = PREFIX + "claims"
# Before a provider's name: whom its token is of, until the principal is made of it.
SUBJECT, ISSUER = PREFIX + "subject-", PREFIX + "issuer-"
# The scopes that are enough to call the agent that the call is for.
ENOUGH = {Role.CALL: PREFIX + "call", Role.OPERATE: PREFIX + "operate"}
# The gateway itself has looked whether the call may be made, and makes it again.
GRANTED = PREFIX + "granted"
# There if the connection is encrypted, or does not leave this machine's kernel.
SECURE = PREFIX + "secure"
# "cert:" and the URI name of the certificate that the caller has shown; there only if it is verified.
CERTIFICATE = PREFIX + "certificate"
# The agent that a call is for: that of x-uapi-agent, or that of the worker which it names, or that of the service.
FOR = "x-uapi-for"
# What no agent is told.
PRIVATE = (KEY, PAIR, OWN, CLAIMS, *ENOUGH.values(), GRANTED, SECURE, CERTIFICATE, FOR, *caller.PRIVATE)
