"""What a template can do, found by rendering probes and looking for their words in the text.

Every probe is a tiny conversation with words no template contains. A probe that raises says no.
Nothing is decided by a model's name, so a template edited by its user is judged like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from appliance.engines.chat.syntax import ThinkMarks
from appliance.errors import BadRequest, ModelBroken
from appliance.types import Json

if TYPE_CHECKING:
    from appliance.engines.chat.template import ChatTemplate

_DAY = date(2024, 1, 1)
_ID = "Zq7Zq7Zq7"
_TOOL: Json = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqabout",
        "parameters": {
            "type": "object",
            "properties": {"zqkey": {"type": "string", "description": "zqhint"}},
            "required": ["zqkey"],
        },
    },
}
_JSON_ARGUMENTS = re.compile(r'\{\s*"zqkey":\s*"zqvalue"\s*\}')
_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|<｜[^<>]+｜>")
_THINK_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True, slots=True)
class CallTexts:
    """The literal texts round a rendered call, cut at the probe's own words."""

    first: str
    middle: str
    after_id: str | None
    between: str | None
    last: str


@dataclass(frozen=True, slots=True)
class Traits:
    describes_tools: bool
    renders_calls: bool
    renders_results: bool
    system: bool
    late_system: bool
    """A system message after the first is rendered too."""
    needs_alternation: bool
    part_lists: bool
    string_arguments: bool
    """Arguments given as a string appear once encoded, not twice."""
    several_calls: bool
    short_call_ids: bool
    """Call ids must be nine alphanumeric characters (Mistral)."""
    thinking_switch: bool
    """`enable_thinking` changes the prompt."""
    history_thoughts: str | None
    """The message key under which the template prints a past answer's reasoning."""
    trims: bool
    bos_in_text: bool
    end_of_turn: str
    """The control text after an answer; "" where there is none."""
    tool_turn_follows_call: bool
    """Results are only accepted after a rendered call."""
    call_texts: CallTexts | None
    tagged_arguments: bool
    """Arguments are written as `<parameter=name>` tags."""
    think: ThinkMarks


def find_traits(template: ChatTemplate) -> Traits:
    probe = _Probe(template)
    bare = probe.text(_user("zqhello"))
    if bare is None or "zqhello" not in bare:
        raise ModelBroken(
            f"the chat template cannot render a single user message: {probe.failure}",
            hint="set `chat_template` of the model in config.toml",
        )
    system = probe.shows("zqsystem", _system("zqsystem"), _user("zqhello"))
    answer = probe.text(_user("zqhello"), _assistant("zqanswer"), generation_prompt=False) or ""
    end_of_turn = _end_of_turn(answer.partition("zqanswer")[2], template.eos_token)
    short_ids = not probe.shows("zqtool", *_calls("call_1")) and probe.shows("zqtool", *_calls(_ID))
    one = probe.text(*_calls(_ID), generation_prompt=False, tools=(_TOOL,)) or ""
    two = probe.text(*_calls(_ID, 2), generation_prompt=False, tools=(_TOOL,)) or ""
    plain = probe.text(
        _user("zqhello"), _assistant("zqanswer"), generation_prompt=False, tools=(_TOOL,)
    )
    texts = _call_texts(one, two, plain or answer, end_of_turn, template.eos_token)
    tagged = "<parameter=zqkey>" in one
    if tagged:
        texts = _tagged_texts(one, two, plain or answer)
    return Traits(
        describes_tools=probe.shows("zqabout", _user("zqhello"), tools=(_TOOL,))
        and probe.shows("zqtool", _user("zqhello"), tools=(_TOOL,)),
        renders_calls=texts is not None,
        renders_results=probe.shows("zqresult", *_calls(_ID), _result("zqresult")),
        system=system,
        late_system=system and _keeps_late_system(probe),
        needs_alternation=not probe.shows("zqsecond", _user("zqhello"), _user("zqsecond")),
        part_lists=_renders_parts(probe),
        string_arguments=_JSON_ARGUMENTS.search(
            probe.text(*_calls(_ID, arguments='{"zqkey": "zqvalue"}')) or ""
        )
        is not None,
        several_calls=texts is not None and texts.between is not None,
        short_call_ids=short_ids,
        thinking_switch=probe.text(_user("zqhello"), thinking=True) != bare,
        history_thoughts=_history_thoughts(probe),
        trims="  zqhello  " not in (probe.text(_user("  zqhello  ")) or ""),
        bos_in_text=bool(template.bos_token) and bare.startswith(template.bos_token),
        end_of_turn=end_of_turn,
        tool_turn_follows_call=not probe.shows("zqresult", _user("zqhello"), _result("zqresult")),
        call_texts=texts,
        tagged_arguments=tagged,
        think=_think_marks(template.source),
    )


class _Probe:
    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.failure = "it prints nothing of it"

    def text(
        self,
        *messages: Mapping[str, Json],
        tools: Sequence[Mapping[str, Json]] = (),
        thinking: bool = False,
        generation_prompt: bool = True,
    ) -> str | None:
        try:
            return self._template.render(
                messages,
                today=_DAY,
                tools=tools,
                thinking=thinking,
                generation_prompt=generation_prompt,
            )
        except BadRequest as error:
            if "overran" in error.message:
                # Two dozen probes must not each take all the time that one may.
                raise ModelBroken(error.message) from error
            self.failure = error.message
            return None

    def shows(
        self, word: str, *messages: Mapping[str, Json], tools: Sequence[Mapping[str, Json]] = ()
    ) -> bool:
        return word in (self.text(*messages, tools=tools) or "")


def _system(text: str) -> Mapping[str, Json]:
    return {"role": "system", "content": text}


def _user(text: str) -> Mapping[str, Json]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Mapping[str, Json]:
    return {"role": "assistant", "content": text}


def _result(text: str) -> Mapping[str, Json]:
    return {"role": "tool", "name": "zqtool", "tool_call_id": _ID, "content": text}


def _calls(
    call_id: str, count: int = 1, arguments: Json | None = None
) -> tuple[Mapping[str, Json], ...]:
    function = {"name": "zqtool", "arguments": arguments or {"zqkey": "zqvalue"}}
    calls = [{"id": call_id, "type": "function", "function": function} for _ in range(count)]
    return _user("zqhello"), {"role": "assistant", "content": "", "tool_calls": calls}


def _keeps_late_system(probe: _Probe) -> bool:
    text = probe.text(_system("zqsystem"), _user("zqhello"), _system("zqlate")) or ""
    places = [text.find(word) for word in ("zqsystem", "zqhello", "zqlate")]
    return places[0] >= 0 and places == sorted(places)


def _renders_parts(probe: _Probe) -> bool:
    parts: Json = [{"type": "text", "text": "zqpart"}]
    text = probe.text({"role": "user", "content": parts}) or ""
    return "zqpart" in text and "'text'" not in text


def _history_thoughts(probe: _Probe) -> str | None:
    for key in ("reasoning_content", "thinking"):
        user, call = _calls(_ID)
        if probe.shows("zqthought", user, {**call, key: "zqthought"}, _result("zqresult")):
            return key
    return None


def _end_of_turn(tail: str, eos_token: str) -> str:
    marker = _MARKER.search(tail)
    if marker is not None and not tail[: marker.start()].strip():
        return marker[0]
    return eos_token if eos_token and eos_token in tail else ""


def _call_texts(one: str, two: str, plain: str, end: str, eos: str) -> CallTexts | None:
    found = _JSON_ARGUMENTS.search(one)
    if found is None:
        return None
    start = _shared_prefix(one, plain)
    name = one.find("zqtool", start)
    if name < 0 or name > found.start():
        return None
    middle: str = one[name + len("zqtool") : found.start()]
    before_id, id_found, behind_id = middle.partition(_ID)
    spans = list(_JSON_ARGUMENTS.finditer(two))
    between = None
    if len(spans) == 2:
        between = two[spans[0].end() : two.find("zqtool", spans[0].end())]
    return CallTexts(
        first=one[start:name],
        middle=before_id,
        after_id=behind_id if id_found else None,
        between=between,
        last=_until(one[found.end() :], end, eos),
    )


def _tagged_texts(one: str, two: str, plain: str) -> CallTexts | None:
    start = _shared_prefix(one, plain)
    name = one.find("zqtool", start)
    parameter = one.find("<parameter=zqkey>", name)
    closing = "</parameter>\n"
    end = one.find(closing, parameter)
    if name < 0 or parameter < 0 or end < 0:
        return None
    first_end = two.find(closing, two.find("<parameter=zqkey>")) + len(closing)
    next_name = two.find("zqtool", first_end)
    tail = one[end + len(closing) :]
    last = tail[: tail.rfind("</tool_call>") + len("</tool_call>")]
    return CallTexts(
        first=one[start:name],
        middle=one[name + len("zqtool") : parameter],
        after_id=None,
        between=two[first_end:next_name] if next_name >= 0 else None,
        last=last,
    )


def _shared_prefix(one: str, other: str) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def _until(text: str, *ends: str) -> str:
    for end in ends:
        if end:
            text = text.split(end, 1)[0]
    return text.rstrip()


def _think_marks(source: str) -> ThinkMarks:
    for opening, closing in _THINK_PAIRS:
        if closing in source:
            return ThinkMarks(opening, closing)
    return ThinkMarks(*_THINK_PAIRS[0])


def json_text(value: Json) -> str:
    """JSON as templates print it: with spaces after separators, other scripts as they are."""
    return json.dumps(value, ensure_ascii=False)
