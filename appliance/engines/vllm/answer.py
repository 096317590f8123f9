"""What the chunks of a streamed text completion become: text, counts, and why it ended. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.engines.provider.bill import Tally
from appliance.engines.remote.reader import Malformed, tally_of, whole_characters
from appliance.types import StopReason, TokenLogprob


class TextAnswer:
    """Fold of one stream. `pieces` counts chunks with text, for an answer that is broken off."""

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self.logprobs: list[TokenLogprob] = []
        self.finish: str | None = None
        self.pieces = 0

    def read(self, chunk: Mapping[str, Any]) -> str:
        """The text of one chunk. Raises `Malformed`."""
        if isinstance(usage := chunk.get("usage"), Mapping):
            self.tally = tally_of(usage)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise Malformed("a chunk has no choices")
        if not choices:
            return ""
        choice = choices[0]
        text = choice.get("text") if isinstance(choice, Mapping) else None
        if not isinstance(text, str):
            raise Malformed("a choice has no text")
        if isinstance(values := choice.get("logprobs"), Mapping):
            self.logprobs += _logprobs(values)
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish = reason
        self.pieces += bool(text)
        return whole_characters(text)

    @property
    def stop_reason(self) -> StopReason:
        return StopReason.MAX_TOKENS if self.finish == "length" else StopReason.END_TURN


def _logprobs(values: Mapping[str, Any]) -> list[TokenLogprob]:
    try:
        tops = values.get("top_logprobs") or [{}] * len(values["tokens"])
        return [
            TokenLogprob(
                str(token),
                float(logprob),
                tuple((str(t), float(v)) for t, v in (top or {}).items()),
            )
            for token, logprob, top in zip(
                values["tokens"], values["token_logprobs"], tops, strict=True
            )
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Malformed("a log-probability is malformed") from error
