"""A route in sentences a person understands, with the numbers that settled it."""

from __future__ import annotations

from appliance.router.types import Candidate, NoRoute, Place, Reason, Rejection, Route
from appliance.router.verify import EscalationReason, Judgement, Keep

_WHY_OUT = {
    Rejection.POLICY: "the agent's policy rules it out",
    Rejection.AIR_GAP: "the machine is air-gapped",
    Rejection.LABEL: "the prompt holds data whose label may not leave the machine",
    Rejection.NOT_PERMITTED: "it cannot be reached",
    Rejection.NO_FIT: "it does not fit into the GPUs' memory",
    Rejection.WINDOW: "the prompt does not fit its context window",
    Rejection.TOOLS: "it cannot call tools",
    Rejection.IMAGES: "it cannot read images",
    Rejection.BUDGET: "the budget left could not pay for it",
    Rejection.RATE_LIMIT: "the provider's rate limit leaves too few tokens",
    Rejection.BREAKER: "it failed too often just now and is being rested",
    Rejection.DEADLINE: "it could not answer before the deadline",
}

_WHY_CHOSEN = {
    Reason.ONLY_ONE: "it is the only model open to it",
    Reason.BEST_WORTH: "it is worth most, quality, price and delay together",
    Reason.STICKY: "it is in the middle of a tool loop, and moving would cost more than it gains",
    Reason.SPILL_OVER: "the local model would have been worth more, but for its queue or load time",
    Reason.FALL_BACK: "what would have come first is out",
    Reason.ESCALATED: "this turn was moved up after a bad local answer and stays up to its end",
    Reason.LAST_USABLE: "everything else is out, and refusing cannot be better than trying",
    Reason.EXPLORED: "chance chose it, to learn how the road not taken does",
}

_WHY_ESCALATED = {
    EscalationReason.INVALID_CALL: "its tool call did not fit the tool's schema",
    EscalationReason.TESTS_FAILED: "the tests failed",
    EscalationReason.CUT_SHORT: "it was cut at its length limit",
    EscalationReason.EMPTY: "it was empty",
    EscalationReason.REFUSED: "the model refused",
    EscalationReason.UNLIKELY: "it was too unlikely to be right",
}


def explain(found: Route | NoRoute) -> list[str]:
    """Sentences, most important first; one for each candidate after the first."""
    if isinstance(found, NoRoute):
        return ["No model can take this step.", *map(_out, found.candidates)]
    chosen = found.chosen
    why = "; ".join(_WHY_CHOSEN[each] for each in found.reasons)
    lines = [f"{chosen.target} ({_place(chosen)}) takes this step: {why}.", _numbers(chosen)]
    for each in found.candidates:
        if each.target != found.target:
            lines.append(_lost(each, chosen) if each.is_open else _out(each))
    if found.propensity < 1.0:
        lines.append(
            f"Left to chance with probability {1 - found.propensity:.1%} against it; "
            f"score {found.params_version}."
            if Reason.EXPLORED not in found.reasons
            else f"The draw had {found.propensity:.1%} for it; score {found.params_version}."
        )
    return lines


def explain_judgement(judgement: Judgement) -> str:
    """What was made of a finished answer, and what of it counted."""
    verdict = judgement.verdict
    if isinstance(verdict, Keep):
        return f"The answer was kept: {verdict.p_right:.0%} likely to be right{_moved(judgement)}."
    text = f"The local answer was handed to the cloud: {_WHY_ESCALATED[verdict.reason]}"
    if verdict.reason is not EscalationReason.UNLIKELY:
        return text + "."
    gain, cost = money(verdict.gain_micro_usd), money(verdict.cost_micro_usd)
    return (
        f"{text} ({verdict.p_right:.0%}{_moved(judgement)}); "
        f"another was expected to gain {gain} for {cost}."
    )


def _moved(judgement: Judgement) -> str:
    """How the answer changed what was expected, by the signs that counted a point or more."""
    if not judgement.because:
        return ""
    found = sorted(judgement.because.items(), key=lambda each: -abs(each[1]))
    told = [f"{name} {100 * moved:+.0f}" for name, moved in found if abs(moved) >= 0.01]
    points = f"; in points: {', '.join(told)}" if told else ""
    twice = ", two samples" if judgement.answer.was_sampled_again else ""
    version = judgement.params_version
    return f" (expected {judgement.expected:.0%} before it{twice}{points}; score {version})"


def money(micro_usd: float) -> str:
    """Micro-dollars in the unit a person would say: dollars, or cents below one."""
    if abs(micro_usd) >= 1_000_000:
        return f"${micro_usd / 1_000_000:.2f}"
    return f"{micro_usd / 10_000:.2f} ct"


def _numbers(each: Candidate) -> str:
    return (
        f"Expected there: {each.p_right:.0%} likely to be right, {money(each.cost_micro_usd)}, "
        f"{each.seconds:.1f} s."
    )


def _lost(each: Candidate, chosen: Candidate) -> str:
    points = (each.p_right - chosen.p_right) * 100
    gap = chosen.worth - each.worth
    verdict = f"{money(gap)} less" if gap >= 0 else f"{money(-gap)} more"
    switch = f", {money(each.switch_micro_usd)} for switching" if each.switch_micro_usd else ""
    return (
        f"{each.target} ({_place(each)}) was open too: {points:+.0f} points of quality, "
        f"{money(each.cost_micro_usd)}, {each.seconds:.1f} s{switch}; worth {verdict} in all."
    )


def _out(each: Candidate) -> str:
    reasons = "; ".join(_WHY_OUT[reason] for reason in each.rejections)
    note = f" ({each.note})" if each.note else ""
    return f"{each.target} ({_place(each)}) is out: {reasons}{note}."


def _place(each: Candidate) -> str:
    return "on this machine" if each.place is Place.LOCAL else "in the cloud"
