"""Providers that behave badly byte by byte: what the stand-in, a proper HTTP server, cannot do.

Each behaviour is what is written after a request was read whole; a number is a pause in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

TEXT = "Gr\u00fc\u00dfe \u2014 \U0001f30d done."


def event(kind: str, **more: Any) -> bytes:
    data = json.dumps({"type": kind, **more}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def start(**usage: Any) -> bytes:
    counts = {"input_tokens": 10, "output_tokens": 1, **usage}
    message = {"id": "msg_1", "role": "assistant", "content": [], "usage": counts}
    return event("message_start", message=message)


def block(index: int = 0, **content: Any) -> bytes:
    content = content or {"type": "text", "text": ""}
    return event("content_block_start", index=index, content_block=content)


def text(said: str, index: int = 0) -> bytes:
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": said})


def arguments(piece: str, index: int = 0) -> bytes:
    delta = {"type": "input_json_delta", "partial_json": piece}
    return event("content_block_delta", index=index, delta=delta)


def end(index: int = 0) -> bytes:
    return event("content_block_stop", index=index)


def stop(reason: str | None = "end_turn", **usage: Any) -> bytes:
    counts = {"output_tokens": 9, **usage}
    delta = {"stop_reason": reason, "stop_sequence": None}
    return event("message_delta", delta=delta, usage=counts) + event("message_stop")


WHOLE = start() + block() + text(TEXT) + end() + stop()
CALL = {"type": "tool_use", "id": "toolu_1", "name": "mcp_git_log", "input": {}}
SSE = {"content-type": "text/event-stream"}


def answered(
    *pieces: bytes | float, status: str = "200 OK", headers: dict[str, str] | None = None
) -> list[bytes | float]:
    """An HTTP answer in chunks; a number is a pause in seconds."""
    fields = {"transfer-encoding": "chunked", **(SSE if headers is None else headers)}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    chunks = [p if isinstance(p, float) else b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p]
    return [head.encode() + b"\r\n", *chunks, b"0\r\n\r\n"]


def refused(
    status: str, kind: str, message: str = "no", headers: dict[str, str] | None = None
) -> list[bytes | float]:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    fields = {"content-type": "application/json", **(headers or {})}
    return answered(body, status=status, headers=fields)


def bytewise(data: bytes, pause_s: float) -> Iterable[bytes | float]:
    for byte in data:
        yield bytes([byte])
        yield pause_s


DATE = "Mon, 30 Nov 2026 12:00:00 GMT"
LATER = "Mon, 30 Nov 2026 12:00:03 GMT"

RIGHT: dict[str, list[bytes | float]] = {
    "comments, retry and ids": answered(
        b": hello\n\nretry: 10\nid: 7\n\n" + WHOLE.replace(b"event: content_block_stop",
                                                           b": more\nevent: content_block_stop")
    ),
    "a byte order mark": answered(b"\xef\xbb\xbf" + WHOLE),
    "lines ended by CR": answered(WHOLE.replace(b"\n", b"\r")),
    "CR LF cut between the two": answered(
        *(p for part in WHOLE.replace(b"\n", b"\r\n").split(b"\r") for p in (part, b"\r"))
    ),
    "no space after the colon": answered(WHOLE.replace(b": {", b":{", 1)),
    "no event fields": answered(b"".join(
        line + b"\n" for line in WHOLE.split(b"\n") if not line.startswith(b"event:"))),
    "data over two lines": answered(WHOLE.replace(b', "index"', b',\ndata: "index"')),
    "characters cut in the middle": answered(*(WHOLE[i : i + 1] for i in range(len(WHOLE)))),
    "gzip": answered(gzip.compress(WHOLE), headers={**SSE, "content-encoding": "gzip"}),
    "HTTP/1.0 until it closes": [b"HTTP/1.0 200 OK\r\n\r\n", WHOLE],
    "HTTP/1.1 until it closes": [b"HTTP/1.1 200 OK\r\n\r\n", WHOLE],
    "more after the end": answered(WHOLE, b"event: x\ndata: {nonsense\n\n", WHOLE),
    "a chunk shorter than said, after the end": [answered()[0], b"fff\r\n" + WHOLE],
    "silence after the end": [*answered(WHOLE)[:2], 5.0],
    "an interim answer first": [b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n", *answered(WHOLE)],
    "unknown events and blocks": answered(
        start() + event("novelty", x=1) + block(0, type="novel_block", y=2)
        + event("content_block_delta", index=0, delta={"type": "novel_delta", "z": 3}) + end(0)
        + block(1) + text(TEXT, 1) + end(1) + stop()
    ),
    "blocks interleaved and out of order": answered(
        start() + block(5) + block(2, type="thinking", thinking="") + text(TEXT[:4], 5)
        + event("content_block_delta", index=2, delta={"type": "thinking_delta", "thinking": "h"})
        + text(TEXT[4:], 5) + end(2) + end(5) + stop()
    ),
    "usage that is null, huge, negative or a text": answered(
        start(input_tokens=10, cache_read_input_tokens=None, cache_creation_input_tokens=-4)
        + block() + text(TEXT) + end()
        + stop(output_tokens=10**40, cache_read_input_tokens="9", input_tokens=True)
    ),
    "no usage at all": answered(
        event("message_start", message={"id": "m", "role": "assistant", "content": []})
        + block() + text(TEXT) + end()
        + event("message_delta", delta={"stop_reason": "end_turn"}) + event("message_stop")
    ),
    "a turn that is paused": answered(start() + block() + text(TEXT) + end() + stop("pause_turn")),
    "a megabyte in one event": answered(
        start() + block() + text(TEXT) + event("novelty", pad="x" * (1 << 20)) + end() + stop()
    ),
}  # fmt: skip
"""Odd and whole: each is the answer TEXT."""

WRONG: dict[str, tuple[list[bytes | float], str]] = {
    "closed after the head": ([answered()[0]], "transient"),
    "closed in the head": ([b"HTTP/1.1 200 OK\r\ncontent-ty"], "transient"),
    "no HTTP": ([b"\x16\x03\x01\x02 hello\r\n\r\n"], "transient"),
    "a head without end": ([b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000], "transient"),
    "HTML with 200": (answered(b"<html>Sign in</html>", headers={"content-type": "text/html"}),
                      "transient"),
    "one JSON message instead of a stream": (answered(json.dumps(
        {"type": "message", "content": [{"type": "text", "text": "half"}],
         "stop_reason": "end_turn",
         "usage": {"input_tokens": 1, "output_tokens": 1}}).encode(),
        headers={"content-type": "application/json"}), "transient"),
    "nothing with 200": (answered(), "transient"),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], "transient"),
    "an error first": (answered(event("error", error={"type": "overloaded_error", "message": "x"})),
                       "overloaded"),
    "an error after content": (answered(
        start() + block() + text("half"), event("error", error={"type": "rate_limit_error"})),
        "throttled"),
    "an error that is no object": (answered(start() + event("error", error="boom")), "transient"),
    "an error without type, in data only": (answered(b'data: {"type": "error"}\n\n'), "transient"),
    "two starts": (answered(start() + block() + text("half") + end() + WHOLE), "transient"),
    "a delta before its block": (answered(start() + text("half") + stop()), "transient"),
    "a block that starts twice": (answered(start() + block() + block() + stop()), "transient"),
    "a block never closed": (answered(start() + block() + text("half") + stop()), "transient"),
    "no start": (answered(block() + text("half") + end() + stop()), "transient"),
    "a stop without reason": (answered(start() + block() + text("half") + end() + stop(None)),
                              "transient"),
    "a reason nobody knows": (answered(start() + block() + text("half") + end() + stop("novel")),
                              "transient"),
    "a call never closed": (answered(
        start() + block(0, **CALL) + arguments('{"path": "a", "cou') + end() + stop("tool_use")),
        "transient"),
    "a call that is no object": (answered(
        start() + block(0, **CALL) + arguments("[1]") + end() + stop("tool_use")), "transient"),
    "a call too deep to read": (answered(
        start() + block(0, **CALL) + arguments("[" * 200_000) + end() + stop("tool_use")),
        "transient"),
    "an event too deep to read": (answered(
        b"data: " + b'{"type":' * 200_000 + b"\n\n"), "transient"),
    "an event that is a list": (answered(start() + b"data: [1, 2]\n\n"), "transient"),
    "an event that is half": (answered(start() + b'data: {"type": "cont\n\n'), "transient"),
    "bytes that are no UTF-8": (answered(start() + b'data: {"type": "\xff\xfe"}\n\n'), "transient"),
    "a broken chunk": ([answered()[0], b"zz\r\nhello\r\n"], "transient"),
    "less than its length": ([b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n",
                              start() + block() + text("half")], "transient"),
    "gzip that is none": (answered(WHOLE, headers={**SSE, "content-encoding": "gzip"}),
                          "transient"),
    "gzip cut off": (answered(gzip.compress(WHOLE)[:-30],
                              headers={**SSE, "content-encoding": "gzip"}), "transient"),
    "pings for ever": (answered(start(), *[event("ping"), 0.05] * 200), "transient"),
    "a byte a while": (answered(*bytewise(WHOLE, 0.05)), "transient"),
    "a line without end": (answered(start() + b"data: ", *[b"x" * (1 << 20)] * 70), "transient"),
    "a redirect to elsewhere": (
        [b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/x\r\n"
         b"content-length: 0\r\n\r\n"], "ours"),
    "413": (refused("413 Too Large", "request_too_large"), "ours"),
    "no credit": (refused("400 Bad Request", "invalid_request_error",
                          "Your credit balance is too low to access the Anthropic API."), "spent"),
    "a key revoked": (refused("401 Unauthorized", "authentication_error"), "denied"),
    "a right revoked": (refused("403 Forbidden", "permission_error"), "denied"),
    "no such model": (refused("404 Not Found", "not_found_error"), "ours"),
    "500 that is a list": (answered(b"[1]", status="500 Oops", headers={}), "transient"),
    "520": (answered(b"origin", status="520 Unknown", headers={}), "transient"),
    "429 until a date": (refused("429 Too Many", "rate_limit_error", headers={
        "date": DATE, "retry-after": LATER}), "throttled"),
    "429 with a reset only": (refused("429 Too Many", "rate_limit_error", headers={
        "date": DATE, "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-30T12:00:03Z"}), "throttled"),
    "429 with a negative wait": (refused("429 Too Many", "rate_limit_error", headers={
        "retry-after": "-5"}), "throttled"),
    "429 with a wait of years": (refused("429 Too Many", "rate_limit_error", headers={
        "retry-after": "99999999999"}), "throttled"),
    "429 with nonsense": (refused("429 Too Many", "rate_limit_error", headers={
        "retry-after": "soon", "date": ",", "anthropic-ratelimit-tokens-remaining": "many",
        "anthropic-ratelimit-tokens-reset": "later"}), "throttled"),
}  # fmt: skip
"""Each is one typed failure, of the class named."""


@dataclass
class Nasty:
    """Plays `script` to each request, then closes."""

    url: str = ""
    script: list[bytes | float] = field(default_factory=list)
    scripts: list[list[bytes | float]] = field(default_factory=list)
    """Played first, one a request."""
    requests: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                         if line.startswith(b"content-length:"))  # fmt: skip
            self.requests.append(head + await reader.readexactly(length))
            for piece in self.scripts.pop(0) if self.scripts else self.script:
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                else:
                    writer.write(piece)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def nasty_provider() -> AsyncIterator[Nasty]:
    it = Nasty()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield it
    finally:
        server.close()
