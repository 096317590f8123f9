"""What a step is made from: agent, history, tools, label; and the same as the router reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.config.agents import AgentConfig
from appliance.config.schema import Config
from appliance.router.tools import tool_shape
from appliance.router.types import Policy, StepFacts, Tuning, bounded_text
from appliance.turns.limits import Left
from appliance.turns.prompt import estimate_tokens, in_words
from appliance.turns.state import TurnState
from appliance.types import (
    ImageBlock,
    Label,
    Message,
    Priority,
    ToolResultBlock,
    ToolSpec,
)

DEFAULT_ANSWER_TOKENS = 1024
TOOL_CHARS_PER_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Ready:
    """What stays the same over all attempts at a step. `deadline_s` is monotonic.

    `label` is the highest of the agent, the turn and everything the session said before.
    """

    agent_name: str
    agent: AgentConfig
    state: TurnState
    step: int
    system: tuple[Message, ...]
    earlier: tuple[Message, ...]
    current: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    label: Label
    left: Left
    deadline_s: float

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.system, *self.earlier, *self.current)

    @property
    def priority(self) -> Priority:
        """The agent's, or what the caller asked for where that is less urgent."""
        asked, own = self.state.accepted.priority, Priority[self.agent.priority.upper()]
        return own if asked is None else Priority(max(asked, own))

    @property
    def policy(self) -> Policy:
        return Policy(self.state.accepted.policy or self.agent.policy.value)

    @property
    def chain(self) -> tuple[str, ...]:
        """Models that may take the step, preferred first."""
        only = self.state.accepted.model
        return (only,) if only else self.agent.models

    @property
    def prompt_tokens(self) -> int:
        """An estimate; engines count."""
        return estimate_tokens(self.messages) + tool_tokens(self.tools)

    @property
    def asks_with_images(self) -> bool:
        """Whether the question itself shows some. Of other images (in results of tools, in what
        was said before) a model that cannot read them is told in words."""
        return any(isinstance(block, ImageBlock) for block in self.current[0].blocks)

    def in_words(self) -> Ready:
        return replace(self, earlier=in_words(self.earlier), current=in_words(self.current))

    def for_the_cloud(self) -> Ready:
        """Without the tools whose very description is private."""
        told = tuple(tool for tool in self.tools if tool.label is not Label.PRIVATE)
        return replace(self, tools=told)

    @property
    def answer_tokens(self) -> int:
        wanted = self.agent.sampling.max_tokens or DEFAULT_ANSWER_TOKENS
        return min(wanted, self.left.output_tokens)


def step_facts(
    ready: Ready, config: Config, given_up: frozenset[str], escalated: bool, time_left_s: float
) -> StepFacts:
    """The step as the router wants it described. `given_up` are targets that failed it."""
    state = ready.state
    done = [step for step in state.steps if step.message is not None]
    last = done[-1] if done else None
    results = [call.result for call in last.calls if call.result] if last else []
    return StepFacts(
        agent=ready.agent_name,
        policy=ready.policy,
        label=ready.label,
        chain=tuple(name for name in ready.chain if name not in given_up),
        prompt_tokens=ready.prompt_tokens,
        max_output_tokens=ready.answer_tokens,
        text=bounded_text(next((m.text for m in reversed(ready.current) if m.text), "")),
        needs_tools=bool(ready.tools),
        needs_images=any(map(has_image, ready.messages)),
        n_tools=len(ready.tools),
        tool_names=tuple(tool.name for tool in ready.tools),
        tool_shape=tool_shape((tool.description, tool.input_schema) for tool in ready.tools),
        last_tool=last.calls[-1].call.name if last and last.calls else None,
        last_tool_failed=any(result.is_error for result in results),
        failures_in_a_row=failures_in_a_row(state),
        step_index=ready.step,
        turn_steps_limit=config.limits_of(ready.agent_name).steps_max,
        history_target=last.target if last else None,
        in_tool_loop=bool(results),
        escalated=escalated or any(step.escalated for step in state.steps),
        time_left_s=time_left_s,
        air_gap=config.network.air_gap,
        interactive=ready.priority is Priority.INTERACTIVE,
        session_id=state.session_id,
        turn_id=state.turn_id,
    )


def tuning_of(config: Config, agent: AgentConfig) -> Tuning:
    """What the owner says answers, seconds and switches are worth, in the router's units."""
    routing = config.routing
    value = max(int(routing.quality_usd * agent.quality_weight * 1_000_000), 1)
    second = int(routing.second_usd * 1_000_000)
    return Tuning(
        value_micro_usd=value,
        second_micro_usd=second,
        background_second_micro_usd=second // 40,
        switch_margin=routing.switch_usd * 1_000_000 / value,
        explore=routing.explore_share,
        escalate_below=routing.escalate_below,
    )


def tool_tokens(tools: Sequence[ToolSpec]) -> int:
    """An estimate of what describing these tools takes."""
    chars = sum(len(tool.description) + len(str(dict(tool.input_schema))) for tool in tools)
    return chars // TOOL_CHARS_PER_TOKEN


def has_image(message: Message) -> bool:
    return any(
        isinstance(block, ImageBlock)
        or (
            isinstance(block, ToolResultBlock)
            and any(isinstance(part, ImageBlock) for part in block.content)
        )
        for block in message.blocks
    )


def failures_in_a_row(state: TurnState) -> int:
    """Failed tool calls since the last step in which something worked."""
    count = 0
    for step in reversed(state.steps):
        results = [call.result for call in step.calls if call.result is not None]
        if results and not all(result.is_error for result in results):
            break
        count += len(results)
    return count
