"""*Should it?*: what a step is worth at each target, in micro-dollars.

    worth = P(right) x value of a right answer  (+ the policy's bias)
            - price, read as the prompt cache would bill it
            - seconds until the answer x what a second is worth
            - cost of switching away from the model that holds the conversation

Everything becomes money because money is the one unit in which quality, delay and price can be
traded, and because the owner can then be told why: "Claude was 12 points likelier to be right,
worth 1.2 cents, and cost 1.9". The prompt cache is what makes per-step routing dear: moving a
long conversation pays the cache-write price for all of its history, which is how a router that
switches freely was measured to cost three times the cloud alone (TwinRouterBench,
arXiv 2605.18859). So unread history is priced at the write price, and a switch inside a
conversation must clear a margin besides.
"""

from __future__ import annotations

from appliance.router.types import Candidate, Place, Policy, Score, StepFacts, TargetFacts, Tuning

_MILLION = 1_000_000
TYPICAL_OUTPUT_TOKENS = 400
"""Expected length of a step's answer where nothing better is known; agents' steps are short."""

_BIAS = {
    Policy.LOCAL_ONLY: 0.0,
    Policy.LOCAL_FIRST: 0.35,
    Policy.BALANCED: 0.0,
    Policy.CLOUD_FIRST: -0.50,
    Policy.CLOUD_ONLY: 0.0,
}
"""By policy, by how many answers in one local has to be worse before cloud is worth it."""

_PRICE_WEIGHT = {Policy.CLOUD_FIRST: 0.1}
"""An agent sent cloud-first has been told that its prices are accepted; budgets still hold."""


def weigh(step: StepFacts, target: TargetFacts, score: Score, tuning: Tuning) -> Candidate:
    """The target with all its numbers, as if every gate were open."""
    p_right = score.p_right(target)
    value = tuning.value_micro_usd * lateness_weight(step)
    cost = cost_micro_usd(step, target) * _PRICE_WEIGHT.get(step.policy, 1.0)
    time_s = seconds(step, target)
    a_second = tuning.second_micro_usd if step.interactive else tuning.background_second_micro_usd
    moved = step.history_target is not None and step.history_target != target.name
    bias = _BIAS[step.policy] if target.place is Place.LOCAL else 0.0
    return Candidate(
        target=target.name,
        place=target.place,
        p_right=p_right,
        cost_micro_usd=round(cost * tuning.money_weight),
        seconds=time_s,
        quality_micro_usd=p_right * value,
        delay_micro_usd=time_s * a_second,
        switch_micro_usd=tuning.switch_margin * value if moved else 0.0,
        bias_micro_usd=bias * value,
    )


def cost_micro_usd(
    step: StepFacts,
    target: TargetFacts,
    cached: int | None = None,
    output_tokens: int | None = None,
) -> int:
    """The bill for the step, rounded up. What is not in the cache is billed at the write price,
    since the next step will want it there; a provider without that price bills plain input."""
    if cached is None:
        cached = min(step.cached_tokens.get(target.name, 0), step.prompt_tokens)
    if output_tokens is None:
        output_tokens = expected_output_tokens(step)
    prices = target.prices
    write = max(prices.cache_write_micro_usd, prices.input_micro_usd)
    total = (
        cached * prices.cache_read_micro_usd
        + (step.prompt_tokens - cached) * write
        + output_tokens * prices.output_micro_usd
    )
    return -(-total // _MILLION)


def seconds(step: StepFacts, target: TargetFacts) -> float:
    """Forecast until the answer is whole: queue, load, reading what is not cached, writing."""
    cached = min(step.cached_tokens.get(target.name, 0), step.prompt_tokens)
    reading = (step.prompt_tokens - cached) / max(target.prefill_tokens_per_s, 1.0)
    writing = expected_output_tokens(step) / max(target.tokens_per_s, 0.1)
    return target.wait_s + target.load_s + target.first_token_s + reading + writing


def expected_output_tokens(step: StepFacts) -> int:
    return min(step.max_output_tokens, TYPICAL_OUTPUT_TOKENS)


def lateness_weight(step: StepFacts) -> float:
    """Late steps matter more: moving one down costs 5.25, 7.59, 9.53 % of the answers in the
    early, middle and late third of a request (AIMS, doi 10.1145/3767295.3803622, section 2)."""
    if step.turn_steps_limit <= 0:
        return 1.0
    position = min(1.0, step.step_index / step.turn_steps_limit)
    return 0.7 + 0.6 * position
