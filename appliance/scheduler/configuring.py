"""A new configuration, and the end: which models there are, and what becomes of those loaded."""

from __future__ import annotations

from appliance.scheduler import sharing
from appliance.scheduler.book import Book
from appliance.scheduler.breaker import Breaker
from appliance.scheduler.instances import ModelState
from appliance.scheduler.servable import refuse
from appliance.scheduler.values import ConfigChanged, ModelSpec, RefusalCode, ResidentState


def configured(book: Book, event: ConfigChanged, now_s: float) -> None:
    """Takes the whole wanted state; what it leaves out is drained and unloaded."""
    book.epoch += 1
    book.policy = event.policy or book.policy
    wanted = {spec.name: spec for spec in event.models}
    bound = {model for agent in event.agents for model in agent.models[:1]}
    usable = {model for agent in event.agents for model in agent.models}
    was_bound = {model for agent in book.agents.values() for model in agent.models[:1]}
    for name in [name for name in book.models if name not in wanted]:
        _retire(book, book.models[name], "removed from the configuration", now_s)
        book.drop(name)
        book.forecast.forget(name)
        book.handovers.forget(name)
    for spec in event.models:
        _adopt(book, spec, now_s)
    for name, state in book.models.items():
        rebound = bool(was_bound) and name in bound and name not in was_bound
        state.wanted = state.spec.pinned or state.spec.preload or rebound
        unbound = name in was_bound and name not in usable and not state.wanted
        instance = state.current
        if unbound and instance is not None and instance.state is ResidentState.READY:
            state.in_use = False
            book.leave(instance, "no agent is bound to it any more", now_s)
    book.wanted = tuple(state for state in book.models.values() if state.wanted)
    book.agents = {agent.name: agent for agent in event.agents}
    for waiting in [w for w in book.queue if w.model not in wanted]:
        book.queue.cancel(waiting.step.request_id)
        reason = f"model {waiting.model} was removed from the configuration"
        refuse(book, waiting.step.request_id, RefusalCode.UNKNOWN_MODEL, reason, now_s)
    sharing.forget(book, now_s)


def drain(book: Book, now_s: float) -> None:
    book.draining = True
    for waiting in list(book.queue):
        book.queue.cancel(waiting.step.request_id)
        refuse(book, waiting.step.request_id, RefusalCode.OVERLOADED, "stopping", now_s, 5.0)
    for state in book.models.values():
        _retire(book, state, "the daemon stops", now_s)


def _adopt(book: Book, spec: ModelSpec, now_s: float) -> None:
    """Takes a model's new configuration; a loaded one that differs is drained."""
    state = book.models.get(spec.name)
    if state is None:
        breaker, service_s = Breaker(book.policy), book.policy.seed_service_s
        book.adopt(ModelState(spec, breaker, spec.load_s, service_s))
        return
    if state.spec.fingerprint != spec.fingerprint:
        _retire(book, state, "its configuration changed", now_s)
        state.breaker = Breaker(book.policy)
    state.spec, state.part, state.misfit_room = spec, None, -1
    if state.current is not None:
        state.current.spec = spec


def _retire(book: Book, state: ModelState, reason: str, now_s: float) -> None:
    book.claim(state, None)
    if state.current is not None:
        book.leave(state.current, reason, now_s)
