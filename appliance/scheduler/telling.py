"""The scheduler's decisions in sentences, made from the numbers that decided them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

GIB = 1 << 30
_NEVER_S = 1e8
"""A forecast from here on says: nobody is expected to ask again."""

Numbers = Mapping[str, Any]


def tell(kind: str, subject: str, numbers: Numbers) -> str:
    """One sentence about a `values.Record`; also about one read back from the journal, whose
    writer may have known numbers that are new or gone."""
    sentence = SENTENCES.get(kind)
    try:
        return sentence(subject, numbers) if sentence else f"{subject}: {kind}."
    except KeyError:
        return f"{subject}: {kind}, {dict(numbers)}."


def _load(model: str, n: Numbers) -> str:
    if n["guess"]:
        why = "memory is idle, and it is expected to be wanted next"
    elif n["waiting"]:
        why = f"{_steps(n['waiting'])} for it"
    else:
        why = "it is to be there before anybody asks"
    places = f" ({_places(n['bytes'])})" if n["bytes"] else ""
    return (
        f"{model} is loaded{places} with {_count(n['slots'], 'slot')}: {why}; "
        f"expected to take {n['expected_load_s']:.1f} s."
    )


def _share(model: str, n: Numbers) -> str:
    if not n["is_less"]:
        return f"{model} may be loaded as it wishes: no other in use has to fit beside it."
    less = "with a shorter window or a smaller cache than it wishes"
    if n["slots"] < n["wished_slots"]:
        less = f"with {n['slots']} of {_count(n['wished_slots'], 'slot')}"
    return f"{model} is to be loaded {less}, to fit beside others: {n['models']} models are in use."


def _ready(model: str, n: Numbers) -> str:
    places = f", with {_places(n['bytes'])}" if n["bytes"] else ""
    return f"{model} is ready after {n['load_s']:.1f} s{places}."


def _preload(model: str, n: Numbers) -> str:
    chance = min(n["chance"] + n["later_chance"], 1.0)
    soonest_s = n["in_s"] if n["chance"] else n["later_s"]
    place = "free memory"
    if n["in_place_of"]:
        others = " and ".join(n["in_place_of"])
        place = f"the place of {others}, at the price of {n['lost_s']:.1f} s"
    return (
        f"{model} is to be loaded ahead, into {place}: behind agent {n['after_agent']} it is asked "
        f"for {chance:.0%} of the time, next in {_time(soonest_s)}; that saves "
        f"{n['saved_s']:.1f} s in the mean."
    )


def _evict(model: str, n: Numbers) -> str:
    never = n["next_use_s"] >= _NEVER_S
    expected = "not expected again" if never else f"expected again in {_time(n['next_use_s'])}"
    finish = f" once its {_count(n['leases'], 'running step')} ended" if n["leases"] else ""
    return (
        f"{model} makes way for {n['for_model']}{finish}: it is {expected} (going by "
        f"{n['forecast']}) and takes {n['reload_s']:.1f} s to load, the least loss for its bytes; "
        f"{n['for_model']} has been waited for {_time(n['waited_s'])}."
    )


def _make_way(model: str, n: Numbers) -> str:
    never = n["next_use_s"] >= _NEVER_S
    expected = "not expected again" if never else f"expected again in {_time(n['next_use_s'])}"
    return (
        f"{model} makes way for {n['for_model']}, which is to be loaded ahead: it is idle, "
        f"{expected} and takes {n['reload_s']:.1f} s to load."
    )


def _yield(model: str, n: Numbers) -> str:
    return (
        f"{model} is unloaded: {n['device']} is {_gib(n['short_bytes'])} short, other programs "
        f"hold {_gib(n['foreign_bytes'])} there."
    )


def _grant(request: str, n: Numbers) -> str:
    loading = f", {n['load_s']:.1f} s of it for loading" if n["load_s"] else ""
    passed = f"; {_count(n['overtaken'], 'later one')} went first" if n["overtaken"] else ""
    return (
        f"{request} of agent {n['agent']} got a slot of {n['model']} after "
        f"{_time(n['queue_s'])}{loading}{passed}."
    )


def _refuse(request: str, n: Numbers) -> str:
    again = n["retry_after_s"]
    later = "" if again is None else f"; worth another try in {_time(again)}"
    return f"{request} was refused ({n['code']}): {n['why']}{later}."


def _preempt(request: str, n: Numbers) -> str:
    return f"{request} gave its slot of {n['model']} back after {_time(n['ran_s'])}: {n['why']}."


def _breaker(model: str, n: Numbers) -> str:
    crashes = _count(n["crashes"], "crash", "crashes")
    return f"{model} is left alone for a while after {crashes}: {n['why']}."


def _stuck(instance: str, n: Numbers) -> str:
    where = ", ".join(n["devices"])
    return f"{instance} (process {n['pid']}) is gone, but its memory on {where} has not come back."


SENTENCES: Mapping[str, Callable[[str, Numbers], str]] = {
    "load": _load,
    "share": _share,
    "preload": _preload,
    "ready": _ready,
    "evict": _evict,
    "make_way": _make_way,
    "yield": _yield,
    "drain": lambda model, n: f"{model} takes no new steps and ends with its last: {n['why']}.",
    "stop": lambda model, n: f"{model} stops: {n['why']}.",
    "gone": lambda model, n: f"{model}'s process is gone and its memory is free.",
    "crash": lambda model, n: f"{model} died: {n['why']}.",
    "load_failed": lambda model, n: f"{model} could not be loaded: {n['why']}.",
    "breaker_open": _breaker,
    "bytes_stuck": _stuck,
    "preempt": _preempt,
    "grant": _grant,
    "cancel": lambda request, n: f"{request} was cancelled after {_time(n['waited_s'])}.",
    "refuse": _refuse,
}
"""By kind of record; a test holds that there is one for each kind the core makes."""


def _places(bytes_by_device: Mapping[str, int]) -> str:
    return " and ".join(f"{_gib(held)} on {device}" for device, held in bytes_by_device.items())


def _steps(count: int) -> str:
    return "one step waits" if count == 1 else f"{count} steps wait"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
