"""Random histories as crashes, compaction and two kinds of model leave them."""

from __future__ import annotations

from hypothesis import strategies as st

from appliance.types import (
    Block,
    ImageBlock,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
)

SIGNATURE = "sig-given-out"
"""The one signature the validator of these tests has given out."""

_words = st.sampled_from(["", " ", "\n", "Hello.", "naïve ☃", "x" * 50, "\ud800"])
_ids = st.sampled_from(["call_1", "call_2", "call_3", "toolu_9", "weird id/ü", "functions.f:0"])
_names = st.sampled_from(["read_file", "mcp.git.log", "ünïcode", "shell"])
_images = st.sampled_from(
    [ImageBlock("image/png", "aGFsbG8="), ImageBlock("image/tiff", "aGFsbG8="), ImageBlock("x", "")]
)
_texts = st.builds(TextBlock, _words)
_thoughts = st.sampled_from(
    [
        ThinkingBlock("Signed.", SIGNATURE, "anthropic"),
        ThinkingBlock("", SIGNATURE, "anthropic.redacted"),
        ThinkingBlock("Unsigned.", None, "anthropic"),
        ThinkingBlock("Local.", None, None),
        ThinkingBlock("Foreign.", "of-another", "other"),
    ]
)
_calls = st.builds(ToolCallBlock, _ids, _names, st.just({"path": "a"}))
_results = st.builds(
    ToolResultBlock,
    _ids,
    st.lists(st.one_of(_texts, _images), max_size=2).map(tuple),
    st.booleans(),
)


def _message(role: Role, blocks: st.SearchStrategy[Block]) -> st.SearchStrategy[Message]:
    return st.lists(blocks, max_size=4).map(lambda found: Message(role, tuple(found)))


messages = st.one_of(
    _message(Role.USER, st.one_of(_texts, _images, _results)),
    _message(Role.ASSISTANT, st.one_of(_texts, _thoughts, _calls)),
    _message(Role.SYSTEM, _texts),
)
histories = st.lists(messages, max_size=12).map(
    lambda found: (*found, Message(Role.USER, (TextBlock("And now?"),)))
)
