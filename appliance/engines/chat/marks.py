"""Untrusted text goes round the template, not through it.

A template pastes user text between its own control tokens, and a tokeniser that reads the result
cannot tell one `<|im_end|>` from the other. Quoting is no answer (there is nothing to quote
with), and marks around the text break where a template trims, cuts or JSON-encodes it. So the
template sees a short stand-in instead of each text: a private-use character, a number and a
double quote. The stand-in survives trim, concatenation and splitting; where the template applied
`tojson` its quote comes back escaped, which tells how often the text has to be encoded when it is
put in place. The result is a list of segments; the worker reads control tokens in trusted ones
only. Because the text never enters the template, it cannot steer it either (no `/no_think`, no
`</think>` games), and a template cannot make its work grow with it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from appliance.errors import BadRequest

_OPEN, _CLOSE = "\ue0f1", "\ue0f2"
_STAND_IN = re.compile(_OPEN + r"(\d+)(\\*)\"" + _CLOSE)
_PLAIN = re.compile(r"[\w .,:;()'/!?@#%&*+=\n\t-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of prompt. Control tokens may be read in it only if `trusted`."""

    text: str
    trusted: bool


@dataclass(slots=True)
class StandIns:
    """The texts kept out of one render, by number."""

    texts: list[str] = field(default_factory=list)
    required: set[int] = field(default_factory=set)

    def hide(self, text: str, *, may_vanish: bool = True) -> str:
        """A stand-in for `text`; the empty text stays itself, for templates ask for emptiness.
        Unless it `may_vanish`, a template that does not print it is refused."""
        if not text:
            return ""
        if not may_vanish:
            self.required.add(len(self.texts))
        self.texts.append(text)
        return f'{_OPEN}{len(self.texts) - 1}"{_CLOSE}'

    def hide_unplain(self, text: str) -> str:
        """A stand-in only for text that could hold a control token: every one has a bracket, a bar
        or a letter outside ASCII. Plain text stays, so that templates may ask `type == "string"`
        and arguments are tokenised as the model wrote them."""
        return text if _PLAIN.fullmatch(text) else self.hide(text)

    def segments(self, rendered: str) -> tuple[Segment, ...]:
        """The prompt with every text in its place. Raises `BadRequest` if one was cut or
        dropped."""
        found: list[Segment] = []
        position = 0
        missing = set(self.required)
        for match in _STAND_IN.finditer(rendered):
            found.append(Segment(rendered[position : match.start()], True))
            found.append(Segment(self._original(match), False))
            missing.discard(int(match[1]))
            position = match.end()
        found.append(Segment(rendered[position:], True))
        if any(part.trusted and (_OPEN in part.text or _CLOSE in part.text) for part in found):
            raise BadRequest(
                "the chat template cut a message in two",
                hint="set `chat_template` of the model to a template that prints messages whole",
            )
        if missing:
            lost = self.texts[min(missing)]
            raise BadRequest(f"the chat template dropped a message: {lost[:60]!r}")
        return tuple(part for part in found if part.text)

    def _original(self, match: re.Match[str]) -> str:
        text = self.texts[int(match[1])]
        # n encodings leave 2^n - 1 backslashes before the quote.
        for _ in range((len(match[2]) + 1).bit_length() - 1):
            text = json.dumps(text, ensure_ascii=False)[1:-1]
        return text
