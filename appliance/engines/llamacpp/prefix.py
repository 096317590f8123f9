"""A radix tree over token sequences: who shares how long a beginning with a new prompt. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class _Node:
    """Edge label `tokens` leads here; `holders` are the keys whose sequence passes or ends here."""

    __slots__ = ("children", "holders", "tokens")

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.children: dict[int, _Node] = {}
        self.holders: set[int] = set()


class PrefixTree:
    """Sequences of tokens under integer keys. Costs follow the length of what is looked up."""

    def __init__(self) -> None:
        self._root = _Node(())
        self._held: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def tokens(self, key: int) -> list[int]:
        """What is stored under `key`; empty when nothing is."""
        return self._held.get(key, [])

    def insert(self, key: int, tokens: Sequence[int]) -> None:
        """Store (or replace) the sequence of `key`."""
        self.remove(key)
        if not tokens:
            return
        self._held[key] = list(tokens)
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(tokens[at:])
                child.holders.add(key)
                return
            shared = common_length(child.tokens, tokens, at)
            if shared < len(child.tokens):
                child = self._split(node, child, shared)
            child.holders.add(key)
            node, at = child, at + shared

    def remove(self, key: int) -> None:
        """Forget `key`; nothing happens when it is unknown."""
        tokens = self._held.pop(key, None)
        if tokens is None:
            return
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children[tokens[at]]
            child.holders.discard(key)
            if not child.holders:
                del node.children[tokens[at]]
                return
            node, at = child, at + len(child.tokens)

    def matches(self, tokens: Sequence[int]) -> dict[int, int]:
        """For each key that shares a beginning with `tokens`: how many tokens (at least one)."""
        found: dict[int, int] = {}
        for holders, depth in self._walk(tokens):
            for key in holders:
                found[key] = depth
        return found

    def _walk(self, tokens: Sequence[int]) -> Iterator[tuple[set[int], int]]:
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                return
            shared = common_length(child.tokens, tokens, at)
            at += shared
            yield child.holders, at
            if shared < len(child.tokens):
                return
            node = child

    def _split(self, parent: _Node, child: _Node, at: int) -> _Node:
        """Put a node in the middle of the edge to `child`, `at` tokens down; returns it."""
        middle = _Node(child.tokens[:at])
        middle.holders = set(child.holders)
        child.tokens = child.tokens[at:]
        middle.children[child.tokens[0]] = child
        parent.children[middle.tokens[0]] = middle
        return middle


def common_length(label: Sequence[int], tokens: Sequence[int], at: int = 0) -> int:
    """How many tokens `label` shares with `tokens[at:]`, from the start."""
    end = min(len(label), len(tokens) - at)
    for index in range(end):
        if label[index] != tokens[at + index]:
            return index
    return end
