"""Deltas leave the worker in few frames, in order, none lost, the first at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from appliance.engines.llamacpp.channel import BEAT_S, Channel, Reporter
from appliance.engines.llamacpp.frames import FrameDecoder
from appliance.errors import EngineError
from appliance.types import Progress, TextDelta, ThinkingDelta


class Hand:
    """A clock that stands until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


def read(connection: socket.socket) -> list[list[object]]:
    """The items of each frame that has come."""
    try:
        frames = FrameDecoder().feed(connection.recv(1 << 16))
    except BlockingIOError:
        return []
    return [frame.get("items", frame["type"]) for frame in frames]


def test_first_words_go_at_once_and_later_ones_in_beats(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    clock = Hand()
    reporter = Reporter(Channel(pair[0]), clock)
    reporter.deltas("a", [Progress("prefill", 512, 900)])
    reporter.step_ended()
    reporter.deltas("a", [TextDelta("one ")])
    reporter.step_ended()
    assert read(pair[1]) == [[["a", ["progress", "prefill", 512, 900]]], [["a", ["text", "one "]]]]
    for word in ("two ", "three "):
        clock.now_s += BEAT_S / 3
        reporter.deltas("a", [TextDelta(word)])
        reporter.step_ended()
    assert read(pair[1]) == []
    clock.now_s += BEAT_S / 2
    reporter.deltas("a", [ThinkingDelta("hm")])
    reporter.step_ended()
    assert read(pair[1]) == [[["a", ["text", "two three "]], ["a", ["thinking", "hm"]]]]


def test_a_new_answer_does_not_wait_and_takes_the_others_along(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    reporter = Reporter(Channel(pair[0]), Hand())
    reporter.deltas("a", [TextDelta("one ")])
    reporter.step_ended()
    reporter.deltas("a", [TextDelta("two ")])
    reporter.deltas("b", [TextDelta("eins ")])
    reporter.deltas("a", [TextDelta("three ")])
    reporter.step_ended()
    assert read(pair[1]) == [
        [["a", ["text", "one "]]],
        [["a", ["text", "two "]], ["b", ["text", "eins "]], ["a", ["text", "three "]]],
    ]


def test_the_end_of_an_answer_sends_what_waited_before_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    reporter = Reporter(Channel(pair[0]), Hand())
    reporter.deltas("a", [TextDelta("one ")])
    reporter.step_ended()
    reporter.deltas("a", [TextDelta("two ")])
    reporter.failed("a", EngineError("as asked"))
    assert read(pair[1]) == [[["a", ["text", "one "]]], [["a", ["text", "two "]]], "failed"]
