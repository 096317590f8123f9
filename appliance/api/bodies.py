"""Request and response bodies of the native API. Units are in the names; times are UTC ms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.api.endpoint import ApiModel
from appliance.turns.events import LimitOverrides

RoutePolicy = Literal["local-only", "local-first", "balanced", "cloud-first", "cloud-only"]
LabelName = Literal["public", "internal", "private"]
PriorityName = Literal["interactive", "normal", "background"]
DecisionName = Literal["allow_once", "allow_always", "reject_once", "reject_always"]


class Page(ApiModel):
    limit: int = Field(50, ge=1, le=1000, description="Rows at most.")
    before: str | None = Field(None, max_length=64, description="Only rows older than this id.")


class TurnPage(Page):
    session: str | None = Field(None, max_length=64, description="Only turns of this session.")
    status: str | None = Field(
        None, max_length=100, description="Only turns in these states, separated by commas."
    )


class AfterSeq(ApiModel):
    after: int = Field(0, ge=0, description="Only events after this journal position.")


class NewSession(ApiModel):
    agent: str = Field(max_length=64, description="Name of an agent.")
    title: str = Field("", max_length=200)
    label: LabelName | None = Field(None, description="Least label of everything in it.")


class Session(ApiModel):
    id: str
    agent: str
    owner_uid: int
    title: str
    status: str
    created_ms: int
    updated_ms: int


class SessionList(ApiModel):
    sessions: list[Session]


class SessionDetail(Session):
    messages: list[dict[str, Any]] = Field(description="The latest messages, oldest first.")
    turns: list[Turn]


class NewTurn(ApiModel):
    """`text` or `message`; without `session` a new one is opened."""

    text: str | None = Field(None, description="What the user says.")
    message: dict[str, Any] | None = Field(None, description="The same as blocks.")
    agent: str | None = Field(None, max_length=64, description="Default: the session's agent.")
    session: str | None = Field(None, max_length=64)
    label: LabelName | None = None
    priority: PriorityName | None = None
    policy: RoutePolicy | None = Field(None, description="Overrides the agent's policy.")
    model: str | None = Field(None, max_length=64, description="Only this model.")
    limits: LimitOverrides = LimitOverrides()


class StartedTurn(ApiModel):
    turn: str
    session: str
    repeated: bool = Field(description="An earlier call with the same Idempotency-Key made it.")


class Turn(ApiModel):
    id: str
    session: str
    agent: str
    status: str
    owner_uid: int
    created_ms: int
    updated_ms: int
    parent_turn: str | None = None


class TurnList(ApiModel):
    turns: list[Turn]


class TurnStep(ApiModel):
    index: int
    target: str
    stop_reason: str
    usage: dict[str, int]
    message: dict[str, Any] | None
    calls: list[dict[str, Any]]
    why: list[str]


class TurnDetail(Turn):
    text: str
    label: str
    usage: dict[str, int]
    error: dict[str, Any]
    steps: list[TurnStep]


class Cancelled(ApiModel):
    turn: str
    cancelled: bool = Field(description="False when it had ended before.")


class Explanation(ApiModel):
    subject: str
    lines: list[str]
    records: list[dict[str, Any]]


class ModelInfo(ApiModel):
    name: str
    engine: str
    description: str
    context_window: int
    slots: int
    place: str = Field(description="local or cloud")
    state: str = Field(
        description="absent, starting, ready, draining, stopping, broken; in the cloud open or shut"
    )
    detail: str = Field(default="", description="Why it is broken or shut.")
    slots_free: int = 0
    waiting: int = 0
    predicted_wait_s: float = 0.0
    load_s: float = 0.0
    load_progress: float = Field(default=0.0, description="While it is starting: 0 to 1.")
    tokens_per_s: float | None = None
    vram_bytes: int = 0
    bytes_by_device: dict[str, int] = {}
    agents: list[str] = []


class ModelList(ApiModel):
    models: list[ModelInfo]


class AgentInfo(ApiModel):
    name: str
    description: str
    models: list[str]
    policy: str
    label: str
    tools: list[str]
    mcp: list[str]
    priority: str


class AgentList(ApiModel):
    agents: list[AgentInfo]


class SetModel(ApiModel):
    model: str = Field(min_length=1, max_length=64)


class DeviceInfo(ApiModel):
    id: str
    name: str
    total_bytes: int
    used_bytes: int
    reserved_bytes: int
    foreign_bytes: int
    capacity_bytes: int
    health: str
    reason: str = ""
    temperature_c: int | None = None
    power_w: float | None = None
    utilisation_pct: int | None = None


class Status(ApiModel):
    version: str
    state: str = Field(description="ready, degraded or stopping")
    reasons: list[str] = Field(description="Why it is degraded.")
    pid: int
    uptime_s: float
    rss_bytes: int
    config_revision: str
    config_error: str = Field(description="Why the saved config.toml is not in force; else empty.")
    devices: list[DeviceInfo]
    models: list[ModelInfo]
    turns_unfinished: int
    steps_waiting: int
    leases: int
    approvals_pending: int
    spend_today_micro_usd: int
    air_gap: bool


class ConfigState(ApiModel):
    file: str
    revision: str
    error: str
    config: dict[str, Any]


class ConfigChanges(ApiModel):
    revision: str
    changes: list[dict[str, Any]]


class Approval(ApiModel):
    id: str
    turn: str
    session: str
    agent: str
    tool: str
    status: str
    summary: str
    reason: str
    created_ms: int
    expires_ms: int | None
    decided_by: int | None = None
    always: str = Field("", description="What an answer for good would cover; empty: nothing.")
    fields: dict[str, Any] | None = Field(
        None, description="Of a server's question: the JSON schema its answer has to fit."
    )


class ApprovalPage(Page):
    status: str | None = Field("pending", description="pending, or all when empty.")


class ApprovalList(ApiModel):
    approvals: list[Approval]


class AnswerApproval(ApiModel):
    decision: DecisionName
    note: str = Field("", max_length=2000, description="Told to the agent.")
    content: dict[str, Any] = Field(
        default_factory=dict, description="What a server's question asks for; see fields."
    )


class Grant(ApiModel):
    id: str
    agent: str
    tool: str
    allow: bool = Field(description="Whether such calls run; false means never.")
    arguments: dict[str, str] = Field(description="Patterns that all must match; empty: any call.")
    granted_by: int
    created_ms: int
    revoked_ms: int | None = None


class GrantList(ApiModel):
    grants: list[Grant]


class Check(ApiModel):
    name: str
    ok: bool
    detail: str
    hint: str = ""


class Doctor(ApiModel):
    ok: bool
    checks: list[Check]


class TryRoute(ApiModel):
    agent: str = Field(max_length=64)
    text: str


class McpServer(ApiModel):
    """`state`: idle (starts when needed), starting, ready, failed, or changed: then nothing of it
    runs until its tools are accepted."""

    name: str
    state: str
    problem: str
    tools: list[str] = Field(description="As agents call them; known once it was started.")
    left_out: list[str] = Field(description="Tools that cannot be used, and why.")
    agents: list[str]


class McpServerList(ApiModel):
    servers: list[McpServer]


class Health(ApiModel):
    ok: bool


for _model in (SessionDetail,):
    _model.model_rebuild()
