"""The prefix tree against the obvious: comparing lists."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.engines.llamacpp.prefix import PrefixTree, common_length

TOKENS = st.lists(st.integers(0, 2), max_size=8)


class Trees(RuleBasedStateMachine):
    """Any order of inserts and removes finds what comparing every list would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.lists: dict[int, list[int]] = {}

    @rule(key=st.integers(0, 5), tokens=TOKENS)
    def insert(self, key: int, tokens: list[int]) -> None:
        self.tree.insert(key, tokens)
        self.lists.pop(key, None)
        if tokens:
            self.lists[key] = tokens

    @rule(key=st.integers(0, 5))
    def remove(self, key: int) -> None:
        self.tree.remove(key)
        self.lists.pop(key, None)

    @rule(tokens=TOKENS)
    def look_up(self, tokens: list[int]) -> None:
        expected = {key: common_length(held, tokens) for key, held in self.lists.items()}
        assert self.tree.matches(tokens) == {k: n for k, n in expected.items() if n}

    @invariant()
    def keeps_what_was_put(self) -> None:
        assert len(self.tree) == len(self.lists)
        assert all(self.tree.tokens(key) == held for key, held in self.lists.items())


Trees.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTrees = Trees.TestCase


@given(TOKENS, TOKENS)
def test_common_length_is_the_longest_shared_beginning(a: list[int], b: list[int]) -> None:
    n = common_length(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
