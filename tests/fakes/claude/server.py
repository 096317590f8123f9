"""The stand-in Claude server: `python -m tests.fakes.claude.server --log FILE`.

Prints its port on the first line. Validates strictly, answers JSON or an event stream, keeps its
own bill, and plays a scenario: one step per request to `/v1/messages`, `ok` when none is left.

    ok  empty  refusal  max_tokens  crlf  unknown_event  slow[:S]  slow_ping[:S]
    429[:RETRY_AFTER]  429spend  529  500  502html  503  504  401  402  403  404  413  too_long
    reset_before  reset_mid[:EVENTS]  eof_mid[:EVENTS]  stall[:EVENTS]  slow_headers[:S]
    overloaded_mid[:EVENTS]  error_mid[:EVENTS]  malformed[:EVENTS]  bad_utf8[:EVENTS]
    half_call  call (a tool call of the first tool)  thinking  wait (until /_go)

A last user text with `ORDER NAME {…}` is answered with that tool call, where the tool is offered.

`POST /_scenario {"steps": [...], "share": 0.2, "mix": [...], "seed": 1, "reply": "…"}` sets what
comes: listed steps first, then each request is a step of `mix` with probability `share`.
`GET /_bill`, `GET /_seen` (requests by outcome, violations, connections), `POST /_go`,
`POST /_reset`. Every request's raw bytes go to the log file, which is where canaries are searched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.fakes.claude.account import CHARS_PER_TOKEN, Account, Charge, count_tokens
from tests.fakes.claude.strict import violation

KEY = "sk-stand-in-0123456789"
SPEND_CODE = "enforced_spend_limit_reached"
END = "[the end]"
"""Every whole answer ends with this, so a truncated one is told by its lack."""

_ERRORS = {
    "400": (400, "invalid_request_error"),
    "401": (401, "authentication_error"),
    "402": (402, "billing_error"),
    "403": (403, "permission_error"),
    "404": (404, "not_found_error"),
    "413": (413, "request_too_large"),
    "429": (429, "rate_limit_error"),
    "500": (500, "api_error"),
    "503": (503, "api_error"),
    "504": (504, "timeout_error"),
    "529": (529, "overloaded_error"),
}


class StandIn:
    def __init__(self, log: Path) -> None:
        self.reset(log)

    def reset(self, log: Path) -> None:
        self.log = log.open("ab")
        self.account = Account()
        self.seen: Counter[str] = Counter()
        self.violations: list[str] = []
        self.connections: set[Any] = set()
        self.signatures: set[str] = set()
        self.steps: list[str] = []
        self.share, self.mix, self.chance = 0.0, ["ok"], random.Random(0)
        self.reply = ""
        self.pace_s = 0.0
        self.remaining = 400_000
        self.number = 0
        self.go = asyncio.Event()

    # --- control --------------------------------------------------------------------------------

    async def scenario(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.steps = list(body.get("steps", self.steps))
        self.share = body.get("share", self.share)
        self.mix = body.get("mix", self.mix)
        self.reply = body.get("reply", self.reply)
        self.pace_s = body.get("pace_s", self.pace_s)
        self.remaining = body.get("remaining", self.remaining)
        if "seed" in body:
            self.chance = random.Random(body["seed"])
        return web.json_response({})

    async def start_over(self, request: web.Request) -> web.Response:
        """A new life, with a log of its own: for tests that share the process."""
        self.log.close()
        self.reset(Path((await request.json())["log"]))
        return web.json_response({})

    async def bill(self, request: web.Request) -> web.Response:
        return web.json_response(self.account.to_json())

    async def seen_so_far(self, request: web.Request) -> web.Response:
        told = {"seen": self.seen, "violations": self.violations}
        return web.json_response({**told, "connections": len(self.connections)})

    async def proceed(self, request: web.Request) -> web.Response:
        self.go.set()
        return web.json_response({})

    # --- the API --------------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.Response:
        model = {"type": "model", "id": "claude-stand-in", "display_name": "Stand-in"}
        return web.json_response({"data": [model], "has_more": False})

    async def count(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        if isinstance(body, web.StreamResponse):
            return body
        if wrong := violation(body, self.signatures, counting=True):
            return self._invalid(wrong)
        return web.json_response({"input_tokens": count_tokens(body)})

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        if isinstance(body, web.StreamResponse):
            return body
        if wrong := violation(body, self.signatures):
            return self._invalid(wrong)
        step, _, argument = self._next_step().partition(":")
        self.seen[step] += 1
        early = await self._before_the_answer(request, step, argument)
        if early is not None:
            return early
        charge = self.account.open(f"req_{self.number:06}", body)
        content, stop = self._content(step, body)
        if not body.get("stream"):
            return self._whole(charge, body, content, stop)
        return await self._stream(request, step, argument, charge, body, content, stop)

    # --- inside ---------------------------------------------------------------------------------

    async def _body(self, request: web.Request) -> dict[str, Any] | web.StreamResponse:
        raw = await request.read()
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        head = "".join(f"{k}: {v}\n" for k, v in request.headers.items())
        self.log.write(f"{request.method} {request.path_qs}\n{head}\n".encode() + raw + b"\n\n")
        self.log.flush()
        self.number += 1
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if KEY not in (given, request.headers.get("x-api-key")):
            return self._error("401", "invalid x-api-key")
        if "anthropic-version" not in request.headers:
            return self._invalid("anthropic-version: header is required")
        try:
            return dict(json.loads(raw))
        except ValueError:
            return self._invalid("request body is not JSON")

    def _next_step(self) -> str:
        if self.steps:
            return self.steps.pop(0)
        return self.chance.choice(self.mix) if self.chance.random() < self.share else "ok"

    async def _before_the_answer(
        self, request: web.Request, step: str, argument: str
    ) -> web.StreamResponse | None:
        match step:
            case "429spend":
                return self._error(
                    "429", "spend limit", {"error_code": "enforced_spend_limit_reached"}
                )
            case "too_long":
                return self._invalid("prompt is too long: 250000 tokens > 200000 maximum")
            case "502html":
                return web.Response(
                    status=502, text="<html>Bad Gateway</html>", content_type="text/html"
                )
            case "reset_before":
                _reset(request)
                return web.Response()
            case "slow_headers":
                await asyncio.sleep(float(argument or 60))
                return None
            case "wait":
                await self.go.wait()
                return None
            case _ if step in _ERRORS:
                return self._error(step, f"scripted {step}", retry_after=argument)
        return None

    def _content(self, step: str, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        text = self.reply or f"Reply {self.number} " + " ".join(f"word{n}" for n in range(16))
        blocks: list[dict[str, Any]] = [{"type": "text", "text": f"{text} {END}"}]
        if step == "thinking" or "thinking" in body:
            signature = f"sig-{self.number:06}-{self.chance.randrange(1 << 40):x}"
            self.signatures.add(signature)
            thought = {"type": "thinking", "thinking": "Let me see.", "signature": signature}
            blocks.insert(0, thought)
        tools = body.get("tools") or []
        ordered = _ordered(body)
        if step == "ok" and ordered and ordered[0] in {tool["name"] for tool in tools}:
            name, given = ordered
            call = {"type": "tool_use", "id": f"toolu_{self.number:06}", "name": name}
            return [*blocks, {**call, "input": given}], "tool_use"
        if step in ("call", "half_call") and tools:
            call = {"type": "tool_use", "id": f"toolu_{self.number:06}", "name": tools[0]["name"]}
            return [*blocks, {**call, "input": _example(tools[0]["input_schema"])}], "tool_use"
        match step:
            case "empty":
                return [], "end_turn"
            case "refusal":
                return [], "refusal"
            case "max_tokens":
                return [{"type": "text", "text": text[: len(text) // 2]}], "max_tokens"
        return blocks, "end_turn"

    def _whole(
        self, charge: Charge, body: dict[str, Any], content: list[dict[str, Any]], stop: str
    ) -> web.Response:
        charge.output_tokens = _tokens(json.dumps(content))
        charge.is_complete = True
        message = {**_message(charge, body), "content": content, "stop_reason": stop}
        return web.json_response(
            {**message, "usage": charge.usage()}, headers=self._headers(charge.request_id)
        )

    async def _stream(
        self, request: web.Request, step: str, argument: str, charge: Charge,
        body: dict[str, Any], content: list[dict[str, Any]], stop: str,
    ) -> web.StreamResponse:  # fmt: skip
        headers = {"content-type": "text/event-stream", **self._headers(charge.request_id)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        newline = "\r\n" if step == "crlf" else "\n"
        after = int(argument) if argument and not step.startswith("slow") else 4
        sent = 0
        try:
            async for event in _events(charge, body, content, stop):
                if sent == after and await self._spoil(request, response, step):
                    return response
                if sent == 1 and step in ("slow", "slow_ping"):
                    await _slow(response, float(argument or 5), pings=step == "slow_ping")
                if step == "half_call" and _is_call_delta(event):
                    event["delta"]["partial_json"] = event["delta"]["partial_json"][:-1]
                if step == "unknown_event":
                    await response.write(b'event: novelty\ndata: {"type": "novelty"}\n\n')
                lines = f"event: {event['type']}", f"data: {json.dumps(event)}", "", ""
                await response.write(newline.join(lines).encode())
                sent += 1
                if self.pace_s:
                    await asyncio.sleep(self.pace_s)
            charge.is_complete = True  # all is said; who has heard it need not wait for the end
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self.seen["client_gone"] += 1
        return response

    async def _spoil(self, request: web.Request, response: web.StreamResponse, step: str) -> bool:
        """What goes wrong in mid-stream; True when that is the end of it."""
        match step:
            case "reset_mid":
                _reset(request)
            case "eof_mid":
                await response.write_eof()
            case "stall":
                await asyncio.sleep(3_600)
            case "overloaded_mid" | "error_mid":
                kind = "overloaded_error" if step == "overloaded_mid" else "api_error"
                error = {"type": "error", "error": {"type": kind, "message": "scripted"}}
                await response.write(f"event: error\ndata: {json.dumps(error)}\n\n".encode())
                await response.write_eof()
            case "malformed":
                await response.write(b'event: content_block_delta\ndata: {"type": "conte\n\n')
            case "bad_utf8":
                await response.write(b'event: content_block_delta\ndata: {"x": "\xff\xfe"}\n\n')
            case _:
                return False
        return True

    def _headers(self, request_id: str) -> dict[str, str]:
        reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
        limits = {"requests": 1_000, "tokens": self.remaining, "input-tokens": self.remaining}
        headers = {"request-id": request_id}
        for kind, remaining in {**limits, "output-tokens": 80_000}.items():
            headers[f"anthropic-ratelimit-{kind}-limit"] = "400000"
            headers[f"anthropic-ratelimit-{kind}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{kind}-reset"] = reset
        return headers

    def _invalid(self, message: str) -> web.Response:
        self.violations.append(message)
        return self._error("400", message)

    def _error(
        self, step: str, message: str, details: dict[str, Any] | None = None, retry_after: str = ""
    ) -> web.Response:
        status, kind = _ERRORS[step]
        error: dict[str, Any] = {"type": kind, "message": message}
        if details:
            error["details"] = details
        request_id = f"req_{self.number:06}"
        headers = self._headers(request_id)
        if retry_after:
            headers["retry-after"] = retry_after
        body = {"type": "error", "error": error, "request_id": request_id}
        return web.json_response(body, status=status, headers=headers)


async def _events(
    charge: Charge, body: dict[str, Any], content: list[dict[str, Any]], stop: str
) -> AsyncIterator[dict[str, Any]]:
    """The events of a whole answer; the charge grows as they are taken."""
    charge.output_tokens = 1
    yield {"type": "message_start", "message": {**_message(charge, body), "content": []}}
    said = 0
    for index, block in enumerate(content):
        pieces = _deltas(block)
        yield {"type": "content_block_start", "index": index, "content_block": _empty(block)}
        for delta in pieces:
            said += len(delta.get("text", delta.get("partial_json", delta.get("thinking", ""))))
            charge.output_tokens = max(1, said // CHARS_PER_TOKEN)
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    charge.output_tokens += 3
    delta = {"stop_reason": stop, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": charge.usage()}
    yield {"type": "message_stop"}


def _ordered(body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The tool call that the last user text orders."""
    last = body["messages"][-1]["content"]
    blocks = [{"type": "text", "text": last}] if isinstance(last, str) else last
    text = "\n".join(block.get("text", "") for block in blocks if block.get("type") == "text")
    found = re.search(r"ORDER (\w+) (\{.*?\})", text)
    return None if found is None else (found[1], json.loads(found[2]))


def _message(charge: Charge, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{charge.request_id}", "type": "message", "role": "assistant",
        "model": body["model"], "stop_reason": None, "stop_sequence": None,
        "usage": charge.usage(),
    }  # fmt: skip


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    match block["type"]:
        case "text":
            return [{"type": "text_delta", "text": piece} for piece in _cut(block["text"])]
        case "thinking":
            pieces = [{"type": "thinking_delta", "thinking": p} for p in _cut(block["thinking"])]
            return [*pieces, {"type": "signature_delta", "signature": block["signature"]}]
        case _:
            text = json.dumps(block["input"])
            return [{"type": "input_json_delta", "partial_json": piece} for piece in _cut(text)]


def _empty(block: dict[str, Any]) -> dict[str, Any]:
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case _:
            return {**block, "input": {}}


def _cut(text: str, size: int = 8) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def _tokens(text: str) -> int:
    return len(text) // CHARS_PER_TOKEN + 1


def _is_call_delta(event: dict[str, Any]) -> bool:
    return bool(event.get("delta", {}).get("type") == "input_json_delta")


def _example(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments that fit a simple schema."""
    values = {"string": "value", "integer": 1, "number": 1.5, "boolean": True, "array": []}
    properties = schema.get("properties", {})
    return {
        name: values.get(properties.get(name, {}).get("type", ""), "value")
        for name in schema.get("required", [])
    }


async def _slow(response: web.StreamResponse, seconds: float, *, pings: bool) -> None:
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        if pings:
            await response.write(b'event: ping\ndata: {"type": "ping"}\n\n')
        await asyncio.sleep(min(left_s, 0.1))


def _reset(request: web.Request) -> None:
    """Close with RST."""
    transport = request.transport
    assert transport is not None
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def application(stand_in: StandIn) -> web.Application:
    app = web.Application(client_max_size=64 << 20)
    app.add_routes(
        [
            web.post("/v1/messages", stand_in.messages),
            web.post("/v1/messages/count_tokens", stand_in.count),
            web.get("/v1/models", stand_in.models),
            web.post("/_scenario", stand_in.scenario),
            web.post("/_reset", stand_in.start_over),
            web.get("/_bill", stand_in.bill),
            web.get("/_seen", stand_in.seen_so_far),
            web.post("/_go", stand_in.proceed),
        ]
    )
    return app


async def serve(log: Path) -> None:
    runner = web.AppRunner(application(StandIn(log)), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--log", type=Path, required=True)
    asyncio.run(serve(arguments.parse_args().log))
