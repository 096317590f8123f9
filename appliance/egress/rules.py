"""What may leave, as pure functions over frozen values: hosts, addresses, labels, air gap."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from appliance.config.models import ClaudeModel, reached
from appliance.config.schema import Config
from appliance.egress.errand import Errand
from appliance.types import Label, highest

MAX_LABEL_OUT = Label.INTERNAL
"""The most sensitive data that may go to another machine."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes. `port` is never None: the scheme's own where the URL names none."""

    scheme: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return is_loopback_host(self.host)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a way out is for: `model`, `mcp` or `tool`, and the configured name. The processes of a
    sandbox have two of their own: `shell` with an agent's name, `program` with an MCP server's."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def target_of(url: str) -> Target:
    """The target of an absolute http(s) URL. Raises `ValueError` for any other."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is no http or https URL")
    return Target(parts.scheme, parts.hostname.lower(), parts.port or _DEFAULT_PORTS[parts.scheme])


def refusal(config: Config, purpose: Purpose, target: Target, errand: Errand | None) -> str | None:
    """Why this request must not be sent; None when it may.

    Air gap first, since nothing else matters there; then the host, then the label, that of the
    agent as it is now included. A request nobody labelled is refused like a private one.
    """
    if config.network.air_gap and not target.is_loopback:
        return f"air gap: {target} is not this machine"
    if config.network.air_gap and _is_cloud(config, purpose):
        return f"air gap: {purpose} counts as the cloud wherever it listens"
    if not _is_allowed_host(config, purpose, target):
        return f"{target} is not an allowed host of {purpose}"
    if errand is None:
        return f"a request to {target} carries no label"
    agent = config.agents.get(errand.agent)
    label = errand.label if agent is None else highest(errand.label, agent.label)
    if leaves(config, purpose, target) and label.rank > MAX_LABEL_OUT.rank:
        return f"{label} data must not leave for {target}"
    return None


def leaves(config: Config, purpose: Purpose, target: Target) -> bool:
    """Whether what is sent there counts as having left the machine."""
    return _is_cloud(config, purpose) or not target.is_loopback


def address_refusal(config: Config, target: Target, address: str) -> str | None:
    """Why a resolved address must not be connected to; None when it may.

    A public name that resolves to this machine or to a link-local address is an attack (DNS
    rebinding, cloud metadata) or a mistake, never a wish.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if config.network.air_gap and not ip.is_loopback:
        return f"air gap: {target} is {address}"
    if target.is_loopback and not ip.is_loopback:
        return f"{target} is {address}, which is not this machine"
    if is_address(target.host):
        return None
    if ip.is_loopback and not target.is_loopback:
        return f"{target} resolves to {address}, which is this machine"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return f"{target} resolves to {address}"
    return None


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback_host(host: str) -> bool:
    """Whether a name or an address can only mean this machine, without asking a resolver."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def matches(pattern: str, target: Target) -> bool:
    """Whether a pattern of a list of hosts fits: `name`, `name:port` or `*.name`."""
    name, _, port = pattern.lower().partition(":")
    if port and int(port) != target.port:
        return False
    if name.startswith("*."):
        return target.host.endswith(name[1:])
    return target.host == name


def _is_allowed_host(config: Config, purpose: Purpose, target: Target) -> bool:
    match purpose.kind:
        case "model":
            entry = config.models.get(purpose.name)
            server = None if entry is None else reached(purpose.name, entry)
            return server is not None and target in _targets([server.base_url])
        case "mcp":
            mcp = config.mcp.get(purpose.name)
            return mcp is not None and target in _targets([mcp.url])
        case "tool":
            return _fits_any(config.network.allowed_hosts, target)
        case "shell":
            agent = config.agents.get(purpose.name)
            return agent is not None and _fits_any(agent.shell_hosts, target)
        case "program":
            mcp = config.mcp.get(purpose.name)
            return mcp is not None and _fits_any(mcp.hosts, target)
        case _:
            return False


def _fits_any(patterns: Iterable[str], target: Target) -> bool:
    return any(matches(pattern, target) for pattern in patterns)


def _targets(urls: Iterable[str]) -> list[Target]:
    return [target_of(url) for url in urls if url]


def _is_cloud(config: Config, purpose: Purpose) -> bool:
    """A Claude model is the cloud even where a stand-in plays it on loopback."""
    return purpose.kind == "model" and isinstance(config.models.get(purpose.name), ClaudeModel)
