"""The stand-in vLLM: `python -m tests.fakes.vllm.server --model DIR --port P … [--behaviour NAME]`.

Takes vLLM's arguments and answers text completions as it does: the last user text of a ChatML
prompt again, a word a chunk. It wants the key in VLLM_API_KEY from whoever asks. Beside the model
folder (which daemons watch for changes) it writes `started.json`: its arguments and environment.
Behaviours: `dies` at the start, after a line on stderr; `mute` is healthy and generates nothing;
`falls_mute` does so once the file `mute` is in the folder; `slow` sends a word every 50 ms;
`stalls` in mid-answer, and answers once it is started again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

WINDOW_TOKENS = 4096
STALL_AFTER = 20
"""Words: the daemon holds the last few back until it knows that they are no call of a tool."""


def started_file(folder: Path) -> Path:
    """Where the stand-in of this model folder says how it was started."""
    return folder.with_name(f"{folder.name}.started.json")


class StandIn:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.behaviour = options.behaviour
        self.is_first = not started_file(folder).exists()
        self.slots = asyncio.Semaphore(options.max_num_seqs)
        self.window = min(options.max_model_len, WINDOW_TOKENS)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": len((await request.json())["prompt"]) // 4})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        is_mute = self.behaviour == "falls_mute" and (self.folder / "mute").exists()
        if self.behaviour == "mute" or is_mute:
            await asyncio.Event().wait()
        tokens = len(body["prompt"]) // 4
        if tokens >= self.window:
            text = f"This model's maximum context length is {self.window} tokens."
            return web.json_response({"error": {"message": text}}, status=400)
        said = body["prompt"].rpartition("user\n")[2].partition("<|im_end|>")[0]
        words = said.split()[: body["max_tokens"]]
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": "a", "finish_reason": "length"}]})
        async with self.slots:
            return await self._streamed(request, words, len(said.split()) > len(words), tokens)

    async def _streamed(
        self, request: web.Request, words: list[str], is_cut: bool, tokens: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, word in enumerate(words):
            await _send(response, {"choices": [{"index": 0, "text": f"{word} "}]})
            if self.behaviour == "slow":
                await asyncio.sleep(0.05)
            if self.behaviour == "stalls" and self.is_first and number == STALL_AFTER:
                await asyncio.Event().wait()
        last = {"index": 0, "text": "", "finish_reason": "length" if is_cut else "stop"}
        await _send(response, {"choices": [last]})
        usage = {"prompt_tokens": max(tokens, 1), "completion_tokens": len(words)}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


async def _serve(options: argparse.Namespace, stand_in: StandIn) -> None:
    app = web.Application()
    app.router.add_get("/health", stand_in.health)
    app.router.add_post("/tokenize", stand_in.tokenize)
    app.router.add_post("/v1/completions", stand_in.completions)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--behaviour", default="")
    options, _ = parser.parse_known_args()
    folder = Path(options.model)
    told = {"argv": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}
    stand_in = StandIn(folder, options)
    started_file(folder).write_text(json.dumps(told))
    if options.behaviour == "dies":
        sys.exit("ValueError: no available memory for the cache blocks")
    asyncio.run(_serve(options, stand_in))


if __name__ == "__main__":
    main()
