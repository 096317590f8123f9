"""A small engine on the default model, and requests for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from appliance.clock import new_id
from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.types import Completion, Delta, GenerateRequest, Role, Sampling, text_message

Ask = Callable[..., GenerateRequest]


@pytest.fixture(scope="session")
def params(default_model_path: Path) -> LlamaCppParams:
    return LlamaCppParams(default_model_path, context_window=1024, slots=2, stall_timeout_s=60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(params: LlamaCppParams) -> AsyncIterator[LlamaCppEngine]:
    async with LlamaCppEngine(params) as engine:
        yield engine


def ask(text: str, *, max_tokens: int = 12, **fields: object) -> GenerateRequest:
    """A greedy request with one user message; `fields` of the request or of its sampling."""
    sampling = {
        name: fields.pop(name) for name in list(fields) if name in Sampling.__dataclass_fields__
    }
    return GenerateRequest(
        request_id=new_id("req"),
        messages=(text_message(Role.USER, text),),
        sampling=Sampling(**{"temperature": 0.0, "max_tokens": max_tokens, **sampling}),
        **fields,
    )


async def run(engine: LlamaCppEngine, request: GenerateRequest) -> tuple[list[Delta], Completion]:
    """All deltas of one generation, and its completion."""
    deltas: list[Delta] = []
    async for item in engine.generate(request):
        if isinstance(item, Completion):
            return deltas, item
        deltas.append(item)
    raise AssertionError("the stream ended without a completion")
