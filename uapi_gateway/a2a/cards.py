"""Agent cards, made of what the registry knows."""

from collections.abc import Iterable
from dataclasses import dataclass

from a2a.types import a2a_pb2 as a2a
from a2a.utils.constants import PROTOCOL_VERSION_1_0, TransportProtocol
from agentruntime.api_keys import PREFIX

from uapi_gateway import descriptors
from uapi_gateway.access.policy import ANONYMOUS, CALL_ALL, Caller, Policy, may_call
from uapi_gateway.conversations import plain, sending
from uapi_gateway.registry import Agent

# Whatever can be said as text or JSON; agents may take and give more.
_MODES = ("text/plain", "application/json")
_KEY, _BEARER, _OPENID = "apiKey", "bearer", "openId-"


@dataclass(frozen=True)
class Addresses:
    """Where a client reaches the platform, as it reached it for the card."""

    # "http://localhost:8080"
    http: str
    # "localhost:50051"
    grpc: str

    def agent(self, agent_id: str) -> str:
        """What an agent's HTTP paths begin with."""
        return f"{self.http}/agents/{agent_id}"


def converses(agent: Agent) -> bool:
    """Whether messages can be sent to it."""
    return sending.converses(agent) or plain.generates(agent)


def card(agent: Agent, addresses: Addresses, policy: Policy) -> a2a.AgentCard:
    """What a client must know of an agent to talk to it."""
    base = f"{addresses.agent(agent.agent_id)}/a2a"
    made = a2a.AgentCard(
        name=agent.agent_id,
        description=_description(agent),
        version=_version(agent),
        supported_interfaces=[
            _interface(base, TransportProtocol.JSONRPC),
            _interface(base, TransportProtocol.HTTP_JSON),
            # A platform has many agents behind one port: this one is named in each request.
            _interface(addresses.grpc, TransportProtocol.GRPC, tenant=agent.agent_id),
        ],
        capabilities=a2a.AgentCapabilities(streaming=True, push_notifications=False, extended_agent_card=False),
        default_input_modes=_MODES,
        default_output_modes=_MODES,
        skills=_skills(agent),
    )
    _secure(made, agent, policy)
    return made


def _interface(url: str, binding: TransportProtocol, tenant: str = "") -> a2a.AgentInterface:
    return a2a.AgentInterface(
        url=url, protocol_binding=binding.value, tenant=tenant, protocol_version=PROTOCOL_VERSION_1_0
    )


def _description(agent: Agent) -> str:
    origin = f", of image {agent.image}" if agent.image else ""
    return f"Agent {agent.agent_id}{origin}."


def _version(agent: Agent) -> str:
    """The image's tag, else the revision."""
    _, colon, tag = agent.image.partition("@")[0].rpartition("/")[2].partition(":")
    return tag if colon else str(agent.revision or 1)


def _skills(agent: Agent) -> list[a2a.AgentSkill]:
    """Talking, and each service of its own that can be called beside it."""
    talks = a2a.AgentSkill(
        id="conversation",
        name="Conversation",
        description=f"Takes messages to {agent.agent_id} and replies; what was said in a context is remembered."
        if sending.converses(agent)
        else f"Takes a prompt for {agent.agent_id} and replies; nothing is remembered.",
        tags=["conversation", *agent.capabilities],
    )
    own = [name for name in agent.services if name not in (sending.SERVICE, *descriptors.PLATFORM)]
    methods = descriptors.methods_of(agent.descriptors)
    return [talks, *(_skill(name, (m.name for m in methods if m.service == name)) for name in sorted(own))]


def _skill(service: str, methods: Iterable[str]) -> a2a.AgentSkill:
    listed = ", ".join(methods)
    return a2a.AgentSkill(
        id=service,
        name=service.rpartition(".")[2],
        description=f"The gRPC service {service}{': ' + listed if listed else ''}; called as such, not by A2A.",
        tags=["grpc"],
    )


def _secure(made: a2a.AgentCard, agent: Agent, policy: Policy) -> None:
    """The ways in which a caller can say who it is; one of them must be taken where nobody may call unknown."""
    schemes = {
        _BEARER: a2a.SecurityScheme(
            http_auth_security_scheme=a2a.HTTPAuthSecurityScheme(
                scheme="Bearer", description=f"An API key of the platform ({PREFIX}…)."
            )
        ),
        _KEY: a2a.SecurityScheme(
            api_key_security_scheme=a2a.APIKeySecurityScheme(
                location="header", name="x-api-key", description=f"An API key of the platform ({PREFIX}…)."
            )
        ),
    }
    for known in policy.identity:
        discovery = f"{str(known.provider.issuer).rstrip('/')}/.well-known/openid-configuration"
        schemes[_OPENID + known.provider.name] = a2a.SecurityScheme(
            open_id_connect_security_scheme=a2a.OpenIdConnectSecurityScheme(open_id_connect_url=discovery)
        )
    for name, scheme in schemes.items():
        made.security_schemes[name].CopyFrom(scheme)
    nobody = Caller(ANONYMOUS, (CALL_ALL,) if policy.anonymous else ())
    if not may_call(nobody, agent.agent_id, policy.demands.get(agent.agent_id)):
        made.security_requirements.extend(
            a2a.SecurityRequirement(schemes={name: a2a.StringList()}) for name in schemes
        )
