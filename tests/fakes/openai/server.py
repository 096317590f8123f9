"""The stand-in OpenAI server: `python -m tests.fakes.openai.server [--load-s S] [--slots N]`.

Prints its port on the first line. Answers 503 until `--load-s` seconds are over, as a server does
that is still loading. It says the last user text again, one word a chunk, honours `max_tokens` and
`stop`, calls the first tool when a call is demanded, and refuses a prompt of over 4,096 tokens
(four characters each). A user text `fault:NAME` asks for a fault: cut, no_done, garbage, error_mid,
429, 500, 401, bad_arguments, object_arguments, surrogate, endless. `GET /_seen` tells the answers
under way and the last body.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from aiohttp import web

WINDOW_TOKENS = 4096


class StandIn:
    def __init__(self, load_s: float, slots: int) -> None:
        self.ready_s = time.monotonic() + load_s
        self.slots = asyncio.Semaphore(slots)
        self.running = 0
        self.last: dict[str, Any] = {}

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response({"running": self.running, "last": self.last})

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        data = [
            {"index": n, "embedding": [float(len(text)), 4.0]}
            for n, text in enumerate(body["input"])
        ]
        return web.json_response({"data": data[::-1], "model": body["model"]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if time.monotonic() < self.ready_s:
            return _error(503, "the model is still loading")
        body = self.last = await request.json()
        prompt = "".join(str(m.get("content") or "") for m in body["messages"])
        if len(prompt) // 4 > WINDOW_TOKENS:
            return _error(400, f"This model's maximum context length is {WINDOW_TOKENS} tokens.")
        said = str(body["messages"][-1]["content"])
        fault = said.removeprefix("fault:") if said.startswith("fault:") else ""
        if fault.isdigit():
            return _error(int(fault), "as asked", {"Retry-After": "7"})
        async with self.slots:
            self.running += 1
            try:
                return await self._streamed(request, body, said, fault)
            finally:
                self.running -= 1

    async def _streamed(
        self, request: web.Request, body: dict[str, Any], said: str, fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        deltas, finish, stop = _answer(body, said, fault)
        for delta in deltas:
            await _send(response, {"choices": [{"index": 0, "delta": delta}]})
        while fault == "endless":
            await _send(response, {"choices": [{"index": 0, "delta": {"content": "and "}}]})
            await asyncio.sleep(0.005)
        if fault == "cut":
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "garbage":
            await response.write(b"data: {not json\n\n")
        if fault == "error_mid":
            await _send(response, {"error": {"type": "server_error", "message": "as asked"}})
        last = {"index": 0, "delta": {}, "finish_reason": finish, "stop_reason": stop}
        await _send(response, {"choices": [last]})
        usage = {
            "prompt_tokens": max(len(json.dumps(body["messages"])) // 4, 1),
            "completion_tokens": len(deltas),
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        await _send(response, {"choices": [], "usage": usage})
        if fault != "no_done":
            await response.write(b"data: [DONE]\n\n")
        return response


def _answer(
    body: dict[str, Any], said: str, fault: str
) -> tuple[list[dict[str, Any]], str, str | None]:
    choice = body.get("tool_choice")
    if body.get("tools") and choice not in ("auto", "none", None):
        name = body["tools"][0]["function"]["name"]
        if fault == "object_arguments":
            whole = {"name": name, "arguments": {"city": "Paris"}}
            return [{"tool_calls": [{"index": 0, "function": whole}]}], "tool_calls", None
        pieces = ['{"city": ', '"Paris"' if fault == "bad_arguments" else '"Paris"}']
        first = {"index": 0, "id": "theirs!", "function": {"name": name, "arguments": pieces[0]}}
        rest = {"index": 0, "function": {"arguments": pieces[1]}}
        return [{"tool_calls": [first]}, {"tool_calls": [rest]}], "tool_calls", None
    for stop in body.get("stop") or ():
        if stop in said:
            return [{"content": said.partition(stop)[0]}], "stop", stop
    if fault == "surrogate":
        return [{"content": "half \ud83d"}], "stop", None
    words = [{"content": f"{word} "} for word in said.split(" ")]
    limit = body.get("max_tokens") or len(words)
    thought = [{"reasoning_content": "hm"}] if said.startswith("think") else []
    return [*thought, *words[:limit]], "length" if limit < len(words) else "stop", None


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    told = json.dumps(chunk, ensure_ascii="\\ud83d" in json.dumps(chunk))
    await response.write(f"data: {told}\n\n".encode())


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": text, "type": "stand_in", "code": None}}
    return web.json_response(body, status=status, headers=headers)


async def _serve(load_s: float, slots: int) -> None:
    stand_in = StandIn(load_s, slots)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", stand_in.chat)
    app.router.add_post("/v1/embeddings", stand_in.embeddings)
    app.router.add_get("/_seen", stand_in.seen)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=64)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.load_s, arguments.slots))
