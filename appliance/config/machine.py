"""Sections about the machine: `[daemon]`, `[network]`, `[gpu]`, `[access]`."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import Field, field_validator

from appliance.config.units import ByteSize, Host, Section, Usd, subsection


class Limits(Section):
    """When a turn is stopped, whatever its agent wants. An agent may override each."""

    steps_max: int = Field(
        32, ge=1, le=10_000, description="Model calls in one turn; then the turn ends."
    )
    output_tokens_max: int = Field(
        16_384, ge=1, le=10_000_000, description="Tokens a turn may generate, all steps together."
    )
    turn_s_max: float = Field(
        1_800.0,
        gt=0,
        le=604_800,
        description="Seconds a turn may take; waiting for a person does not count.",
    )
    spend_micro_usd_max: Usd = Field(
        1_000_000,
        alias="spend_usd_max",
        description="Dollars a turn may spend in the cloud.",
    )
    same_call_max: int = Field(
        3,
        ge=1,
        le=100,
        description="Times a turn may make the same tool call and get the same result.",
    )


class DaemonConfig(Section):
    """The process: where it listens, where it keeps things, how it stops."""

    http: str = Field(
        "",
        description="Loopback TCP address such as 127.0.0.1:8080 for API clients; empty: unix "
        "socket only. Other addresses are refused: put a TLS proxy before it.",
    )
    http_hosts: tuple[str, ...] = Field(
        (),
        description="Further Host header names accepted on the TCP side (for a proxy before it).",
    )
    socket: str = Field(
        "", description="Path of the unix socket; empty: run/appliance.sock below home."
    )
    state_dir: str = Field("", description="Folder of the journal; empty: state/ below home.")
    models_dir: str = Field("", description="Folder of model files; empty: models/ below home.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is logged."
    )
    drain_s: float = Field(
        30.0, ge=0, le=3_600, description="Seconds running steps get to finish at a stop."
    )
    body_max_bytes: ByteSize = Field(
        32 << 20, gt=0, description="Largest request body; the rest is refused with 413."
    )
    turns_max: int = Field(
        10_000, ge=1, le=100_000, description="Turns unfinished at once; a further one is refused."
    )
    queue_max: int = Field(
        1_000, ge=1, le=1_000_000, description="Steps waiting at once; further ones are shed."
    )
    watch_config: bool = Field(True, description="Re-read this file when it is saved.")
    limits: Limits = subsection(Limits)

    @field_validator("http")
    @classmethod
    def _loopback_only(cls, value: str) -> str:
        if value:
            parse_loopback(value)
        return value

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port of the TCP side, or None when it is off. Port 0 lets the kernel choose."""
        return parse_loopback(self.http) if self.http else None


def parse_loopback(value: str) -> tuple[str, int]:
    """`127.0.0.1:8080`, `[::1]:8080` or `localhost:8080` taken apart.

    Raises `ValueError` for anything else: an address that others can reach needs TLS and a
    proxy that adds it, which then connects here over loopback.
    """
    host, colon, port_text = value.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65_535:
        raise ValueError("write HOST:PORT such as 127.0.0.1:8080")
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return "127.0.0.1", int(port_text)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("write a loopback address such as 127.0.0.1:8080") from None
    if not address.is_loopback:
        raise ValueError(
            f"{host} can be reached by others; use 127.0.0.1:{port_text} and a TLS proxy before it"
        )
    return host, int(port_text)


class NetworkConfig(Section):
    """The one door out of the machine."""

    air_gap: bool = Field(False, description="Refuse every connection that is not loopback.")
    allowed_hosts: tuple[Host, ...] = Field(
        (),
        description="Hosts tools may reach, as name, name:port or *.name. Hosts of configured "
        "models and MCP servers are allowed by being configured.",
    )
    proxy: str = Field(
        "", description="HTTP proxy for all that leaves, such as http://proxy:3128; empty: none."
    )
    connect_timeout_s: float = Field(
        5.0, gt=0, le=300, description="Seconds to wait for a connection to open."
    )

    @field_validator("proxy")
    @classmethod
    def _proxy_url(cls, value: str) -> str:
        if value and not re.match(r"^https?://[^/\s]+/?$", value):
            raise ValueError("write http://HOST:PORT")
        return value


class GpuConfig(Section):
    """What of the machine's memory the daemon may use."""

    devices: tuple[str, ...] = Field(
        (), description="Cards to use, by index or UUID; empty: every card there is."
    )
    reserve_bytes: ByteSize = Field(
        512 << 20, description="VRAM left free on every card, for the desktop and for surprises."
    )
    host_reserve_bytes: ByteSize = Field(
        2 << 30, description="Host RAM left free when models run on the CPU."
    )
    park_ram_bytes: ByteSize = Field(
        1 << 30, description="Host RAM for the KV of idle conversations."
    )
    park_disk_bytes: ByteSize = Field(
        8 << 30, description="Disk for the KV of idle conversations, below state_dir."
    )
    poll_s: float = Field(
        1.0, ge=0.1, le=60, description="Seconds between two looks at the cards' memory."
    )
    yield_to_foreign: bool = Field(
        True, description="Unload idle models when another program needs the card."
    )
    cpu_threads: int = Field(
        0, ge=0, le=4_096, description="Threads for models on the CPU, all together; 0: all cores."
    )


class AccessConfig(Section):
    """Who may do what over the unix socket: user names, uids, or @groups.

    root and the user the daemon runs as are always admins.
    """

    admins: tuple[str | int, ...] = Field(
        (), description="May change the configuration, tokens and budgets."
    )
    operators: tuple[str | int, ...] = Field(
        (), description="May load and unload models, and answer everybody's approvals."
    )
    users: tuple[str | int, ...] = Field(
        ("@appliance",), description="May use agents and see their own sessions."
    )

    @field_validator("admins", "operators", "users")
    @classmethod
    def _names(cls, value: tuple[str | int, ...]) -> tuple[str | int, ...]:
        for entry in value:
            if isinstance(entry, str) and not re.match(
                r"^@?[A-Za-z0-9_][A-Za-z0-9_.-]*\$?$", entry
            ):
                raise ValueError(f"{entry!r} is neither a user name, a uid nor a @group")
            if isinstance(entry, int) and entry < 0:
                raise ValueError("a uid is 0 or more")
        return value
