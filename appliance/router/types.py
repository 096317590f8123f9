"""What the router is told, and what it answers: frozen values, no I/O, no policy.

Money is integer micro-dollars, rates are per million tokens, times are seconds. Nothing here holds
a clock reading: times are *left* or *predicted* at the moment of the decision, so that a recorded
decision can be taken again years later with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.types import Label

MAX_TEXT_CHARS = 4000
"""The router reads this much of the latest user text: the first and the last 2,000 characters."""


class Policy(StrEnum):
    """Where an agent's steps may and should run, most local first."""

    LOCAL_ONLY = "local-only"
    LOCAL_FIRST = "local-first"
    BALANCED = "balanced"
    CLOUD_FIRST = "cloud-first"
    CLOUD_ONLY = "cloud-only"


class Place(StrEnum):
    """Whether a target's prompt stays on this machine or leaves it."""

    LOCAL = "local"
    CLOUD = "cloud"


class BreakerState(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    """Open time is over: one probe may go."""
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One step that needs a place to run.

    `label` is the highest over everything the prompt holds. `chain` is the agent's models in order
    of its preference. `text` is the latest user text, bounded by `bounded_text`. `history_target`
    is the model that wrote the conversation's last answer; `in_tool_loop` says that the prompt
    ends with tool results of this very turn. `cached_tokens` counts, by model, the prompt tokens
    that model could read from a cache now. `time_left_s` is what the caller's deadline leaves.
    """

    agent: str
    policy: Policy
    label: Label
    chain: tuple[str, ...]
    prompt_tokens: int
    max_output_tokens: int
    text: str = ""
    needs_tools: bool = False
    needs_images: bool = False
    n_tools: int = 0
    tool_names: tuple[str, ...] = ()
    tool_shape: tuple[float, ...] = ()
    """What the tools ask for (`tools.tool_shape`)."""
    last_tool: str | None = None
    last_tool_failed: bool = False
    failures_in_a_row: int = 0
    """Tool errors and repaired or rejected answers since the last one that worked."""
    step_index: int = 0
    turn_steps_limit: int = 0
    history_target: str | None = None
    in_tool_loop: bool = False
    escalated: bool = False
    """The turn was already moved up after a bad local answer; it stays up until its end."""
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    time_left_s: float | None = None
    air_gap: bool = False
    interactive: bool = True
    workflow_id: str = ""
    session_id: str = ""
    turn_id: str = ""


@dataclass(frozen=True, slots=True)
class Prices:
    """Micro-dollars per million tokens, as config states them; zero for a local model."""

    input_micro_usd: int = 0
    output_micro_usd: int = 0
    cache_read_micro_usd: int = 0
    cache_write_micro_usd: int = 0


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """One model as a place to run: what it can, what it costs, how long it would take now.

    `queue` is the steps waiting before this one and `wait_s` the forecast for them;
    `load_s` is zero for a resident model. `fits` is false where no GPU could ever hold it.
    `budget_left_micro_usd` and `rate_limit_tokens_left` are None where nothing limits or nothing
    is known. `permitted` is egress's word (allow-list, key present); `max_label` is the highest
    label config lets out to this provider, and `private` never leaves whatever it says.
    """

    name: str
    place: Place
    context_window: int
    supports_tools: bool = True
    supports_images: bool = False
    prices: Prices = Prices()
    fits: bool = True
    is_resident: bool = False
    queue: int = 0
    wait_s: float = 0.0
    load_s: float = 0.0
    first_token_s: float = 0.0
    prefill_tokens_per_s: float = 2000.0
    tokens_per_s: float = 50.0
    breaker: BreakerState = BreakerState.CLOSED
    budget_left_micro_usd: int | None = None
    rate_limit_tokens_left: int | None = None
    permitted: bool = True
    max_label: Label = Label.INTERNAL
    shut_note: str = ""
    """Why it is not permitted, or being rested, in words; decides nothing."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the learned score expects: by model, the probability of a right answer.

    `local_right` and `cloud_right` stand for models it has no history of. `certainty` in 0..1
    grows with the outcomes behind the numbers.
    """

    local_right: float
    cloud_right: float
    by_model: Mapping[str, float] = field(default_factory=dict)
    certainty: float = 0.0
    params_version: str = "none"

    @property
    def gain(self) -> float:
        """Expected gain in right answers of cloud over local, -1..1."""
        return self.cloud_right - self.local_right

    def p_right(self, target: TargetFacts) -> float:
        default = self.local_right if target.place is Place.LOCAL else self.cloud_right
        return self.by_model.get(target.name, default)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What answers, money and time are worth to the owner; steered by config and budgets.

    `money_weight` is the multiplier on real prices (above 1 when a budget runs ahead of its
    period). `explore` is the share of free choices given to chance, so that outcomes of the road
    not taken are seen; it never touches private steps or tool loops. A local answer that is right
    with `escalate_below` or more is kept, whatever another would be worth.
    """

    value_micro_usd: int = 100_000
    second_micro_usd: int = 2_000
    background_second_micro_usd: int = 50
    money_weight: float = 1.0
    switch_margin: float = 0.10
    explore: float = 0.02
    escalate_below: float = 1.0


class Rejection(StrEnum):
    """Why a target is out, before any weighing. Each belongs to *may it* or *can it*."""

    POLICY = "policy"
    AIR_GAP = "air_gap"
    LABEL = "label"
    NOT_PERMITTED = "not_permitted"
    NO_FIT = "no_fit"
    WINDOW = "window"
    TOOLS = "tools"
    IMAGES = "images"
    BUDGET = "budget"
    RATE_LIMIT = "rate_limit"
    BREAKER = "breaker"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One target weighed. Amounts in micro-dollars; `worth` is their sum, what is maximised.

    A rejected candidate keeps its numbers as far as they are known, and every reason it is out.
    """

    target: str
    place: Place
    rejections: tuple[Rejection, ...] = ()
    p_right: float = 0.0
    cost_micro_usd: int = 0
    seconds: float = 0.0
    quality_micro_usd: float = 0.0
    delay_micro_usd: float = 0.0
    switch_micro_usd: float = 0.0
    bias_micro_usd: float = 0.0
    note: str = ""

    @property
    def is_open(self) -> bool:
        return not self.rejections

    @property
    def worth(self) -> float:
        return (
            self.quality_micro_usd
            + self.bias_micro_usd
            - self.cost_micro_usd
            - self.delay_micro_usd
            - self.switch_micro_usd
        )


class Reason(StrEnum):
    """What settled a route."""

    ONLY_ONE = "only_one"
    BEST_WORTH = "best_worth"
    STICKY = "sticky"
    SPILL_OVER = "spill_over"
    """The local model would have been worth more but for its queue or load."""
    FALL_BACK = "fall_back"
    """The policy's first choice is out; this is what remains."""
    ESCALATED = "escalated"
    LAST_USABLE = "last_usable"
    """Its breaker is open, and everything else is out."""
    EXPLORED = "explored"


@dataclass(frozen=True, slots=True)
class Route:
    """Where the step runs, what lost against it, and why. `propensity` is the probability that
    these inputs lead to this target, over the draw."""

    target: str
    place: Place
    candidates: tuple[Candidate, ...]
    reasons: tuple[Reason, ...]
    propensity: float
    params_version: str

    @property
    def chosen(self) -> Candidate:
        return next(each for each in self.candidates if each.target == self.target)


@dataclass(frozen=True, slots=True)
class NoRoute:
    """No target is open: `candidates` say, target by target, why."""

    candidates: tuple[Candidate, ...]

    @property
    def reasons(self) -> dict[str, tuple[Rejection, ...]]:
        return {each.target: each.rejections for each in self.candidates}


def bounded_text(text: str) -> str:
    """At most `MAX_TEXT_CHARS` characters: the whole, or its first and last half."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    return text[:half] + text[-half:]
