"""Text from token bytes: however it is cut, the same is shown."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.chat.marks import Segment
from appliance.engines.chat.text import StopScanner, TextStream
from appliance.engines.llamacpp.vocab import runs


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@given(
    st.text(alphabet="abéß漢🙂", max_size=20),
    st.lists(st.integers(0, 60), max_size=20),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=3),
)
def test_text_does_not_depend_on_where_the_bytes_are_cut(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    first = min(((text.find(s), -len(s), s) for s in stops if s in text), default=None)
    stream, shown, stop = TextStream(stops), "", None
    for piece in pieces(text.encode(), cuts):
        more, stop = stream.feed(piece, scans=True)
        shown += more
        if stop is not None:
            break
    if stop is None:
        more, stop = stream.finish()
        shown += more
    if first is None:
        assert (shown, stop) == (text, None)
    else:
        # An earlier stop may be complete before a longer one at the same place is.
        assert stop is not None
        assert text.startswith(shown + stop)
        assert not any(s in shown for s in stops)


def test_half_a_character_is_never_shown() -> None:
    stream = TextStream(())
    assert stream.feed("🙂".encode()[:3], scans=True) == ("", None)
    assert stream.feed("🙂".encode()[3:], scans=True) == ("🙂", None)


def test_a_character_cut_by_the_end_becomes_the_replacement() -> None:
    stream = TextStream(())
    stream.feed(b"a\xf0\x9f", scans=True)
    assert stream.finish() == ("�", None)


def test_stop_strings_do_not_count_where_they_are_not_scanned() -> None:
    stream = TextStream(("STOP",))
    assert stream.feed(b"xSTO", scans=True) == ("x", None)
    assert stream.feed(b"P in an argument", scans=False) == ("STOP in an argument", None)


def test_the_scanner_holds_back_only_what_could_become_a_stop() -> None:
    scanner = StopScanner(["###"])
    assert scanner.feed("a#") == ("a", None)
    assert scanner.feed("b") == ("#b", None)
    assert scanner.feed("##") == ("", None)
    assert scanner.flush() == "##"


CONTROL = re.compile(r"<\|end\|>")


def test_a_harmless_prompt_is_tokenised_whole() -> None:
    segments = [Segment("<|end|>user\n", True), Segment("hi <b>", False), Segment("<|end|>", True)]
    assert runs(segments, CONTROL) == [("<|end|>user\nhi <b><|end|>", True)]


def test_control_text_from_a_user_is_tokenised_apart() -> None:
    segments = [Segment("<|end|>", True), Segment("x<|end|>y", False), Segment("!", True)]
    assert runs(segments, CONTROL) == [("<|end|>", True), ("x<|end|>y", False), ("!", True)]


def test_a_control_token_cannot_be_completed_by_a_user() -> None:
    segments = [Segment("<|e", True), Segment("nd|>", False)]
    assert runs(segments, CONTROL) == [("<|e", True), ("nd|>", False)]
