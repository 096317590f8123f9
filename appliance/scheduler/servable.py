"""Who cannot be served, and what he is told."""

from __future__ import annotations

from appliance.scheduler import best
from appliance.scheduler.book import Book
from appliance.scheduler.values import RefusalCode, Refuse, StepRequested


def refuse(
    book: Book,
    request_id: str,
    code: RefusalCode,
    reason: str,
    now_s: float,
    retry_after_s: float | None = None,
    predicted_wait_s: float | None = None,
) -> None:
    book.effects.append(Refuse(request_id, code, reason, retry_after_s, predicted_wait_s))
    book.record(
        now_s,
        "refuse",
        request_id,
        code=code.value,
        why=reason,
        retry_after_s=retry_after_s,
        predicted_wait_s=predicted_wait_s,
    )


def obstacle_of(book: Book, model: str, now_s: float) -> tuple[RefusalCode, str] | None:
    """Why this model cannot serve anybody now; None if it can, sooner or later."""
    state = book.models[model]
    if state.current is not None:
        return None
    if state.breaker.broken:
        return RefusalCode.MODEL_BROKEN, f"{model} cannot be loaded: {state.breaker.reason}"
    if state.breaker.is_open(now_s):
        crashes = len(state.breaker.crashes_s)
        reason = f"{model} crashed {crashes} times in a minute: {state.breaker.reason}"
        return RefusalCode.ENGINE_FAILED, reason
    if state.spec.needs_memory and state.claim is None:
        best.examine(book, state)
        if state.misfit is not None:
            return RefusalCode.NO_CAPACITY, f"{model} does not fit: {state.misfit.tell()}"
    return None


def retry_s(book: Book, model: str, now_s: float) -> float | None:
    """After how long the model may be tried again; None where that is not known."""
    seconds = book.models[model].breaker.retry_in_s(now_s)
    return seconds if seconds > 0 else None


def is_hopeless(book: Book, step: StepRequested, model: str, wait_s: float, now_s: float) -> bool:
    """The deadline passes before the predicted wait, as measured; a guess refuses nobody."""
    if step.deadline_s is None:
        return False
    return book.models[model].loads > 0 and now_s + wait_s > step.deadline_s


def refuse_unservable(book: Book, now_s: float) -> None:
    """Refuses those who wait for a model that cannot come: broken, or too large by now."""
    for model in book.queue.models():
        found = obstacle_of(book, model, now_s)
        if found is None:
            continue
        for waiting in list(book.queue.of_model(model)):
            book.queue.cancel(waiting.step.request_id)
            after_s = retry_s(book, model, now_s)
            refuse(book, waiting.step.request_id, *found, now_s, after_s)
