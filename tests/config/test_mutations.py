"""However an example is damaged, the answer is a configuration or a mistake with its line."""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.load import parse
from appliance.config.positions import line_numbers, line_of
from appliance.errors import ConfigError

EXAMPLE = (Path(__file__).parents[2] / "config.toml").read_text()
PATH = Path("config.toml")
MISTAKE = re.compile(r"^config\.toml:(\d+): \S")
ALPHABET = "\"'[]{}=.,#\n -_0123456789eE+\\\t\0truefalsäß"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.lists(st.integers(), max_size=3),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text("abcdefg", min_size=1, max_size=3), st.integers(), max_size=2),
)


def mistakes_in(text: str) -> list[int]:
    """The lines that are complained about; none if the text is a valid configuration."""
    try:
        parse(text, PATH)
    except ConfigError as error:
        message = error.message
    else:
        return []
    lines = [MISTAKE.match(line) for line in message.splitlines()]
    assert lines
    assert all(lines), message
    return [int(match[1]) for match in lines if match]


def damaged(text: str, dice: random.Random) -> str:
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(text))
        lines = text.splitlines(keepends=True)
        line = dice.randrange(len(lines))
        match dice.randrange(6):
            case 0:
                text = text[:at] + text[at + dice.randint(1, 20) :]
            case 1:
                text = text[:at] + dice.choice(ALPHABET) + text[at:]
            case 2:
                text = text[:at] + dice.choice(ALPHABET) + text[at + 1 :]
            case 3:
                text = "".join([*lines[:line], *lines[line + 1 :]])
            case 4:
                text = "".join([*lines[:line], dice.choice(lines), *lines[line:]])
            case 5:
                text = text[:at]
    return text


@pytest.mark.parametrize("seed", range(10))
def test_500_damaged_texts_never_raise_anything_but_a_located_mistake(seed: int) -> None:
    dice = random.Random(seed)
    refused = 0
    for _ in range(50):
        text = damaged(EXAMPLE, dice)
        lines = mistakes_in(text)
        refused += bool(lines)
        assert all(1 <= line <= text.count("\n") + 1 for line in lines)
    assert refused > 10, "the damage did not damage"


def every_key() -> list[tuple[str, ...]]:
    def walk(node: dict, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = []
        for key, value in node.items():
            found.append((*path, key))
            if isinstance(value, dict):
                found += walk(value, (*path, key))
        return found

    return walk(tomllib.loads(EXAMPLE), ())


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(every_key()), value=scalars)
def test_any_value_under_any_key_is_taken_or_refused_at_that_key(path, value) -> None:
    document = tomllib.loads(EXAMPLE)
    node = document
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    try:
        text = tomlkit.dumps(document)
        tomllib.loads(text)
    except ValueError:
        return  # control characters and the like that tomlkit writes but TOML forbids
    mistakes_in(text)


keys = st.text("abcXYZ_-09 .äß\"'#[]=\t\\", min_size=1, max_size=6)
trees = st.recursive(
    st.one_of(
        st.integers(-99, 99),
        st.booleans(),
        st.text("ab\n\"'#[]{}=\\ ", max_size=9),
        st.lists(st.text("a]\n\"'#", max_size=4), max_size=4),
    ),
    lambda inner: st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(tree=st.dictionaries(keys, trees, max_size=5), pad=st.integers(0, 3))
def test_the_line_of_a_key_is_the_line_that_starts_with_it(tree, pad: int) -> None:
    text = "\n" * pad + "# x = [\n" + tomlkit.dumps(tree)
    lines = line_numbers(text)
    parsed = tomllib.loads(text)
    assert {path[0] for path in lines} == set(parsed)
    rows = text.split("\n")
    for path, line in lines.items():
        row = rows[line - 1].strip()
        assert row.startswith("[") or "=" in row
        node = parsed
        for part in path:
            node = node[part]  # every path that was placed exists
        assert line_of((*path, "deeper"), lines) >= 1


def test_lines_are_right_behind_many_line_texts_lists_and_arrays_of_tables() -> None:
    text = '''a = """
[not.a.table]
b = 1"""
c = [ # ]
  "]", 2,
]
[[d.e]]
f = 1
[[d.e]]
g.h = 2
["x.y".z]
k = { l = "}" }
m = 1
'''
    lines = line_numbers(text)
    assert lines == {
        ("a",): 1,
        ("c",): 4,
        ("d", "e", 0): 7,
        ("d", "e", 0, "f"): 8,
        ("d", "e", 1): 9,
        ("d", "e", 1, "g"): 10,
        ("d", "e", 1, "g", "h"): 10,
        ("x.y", "z"): 11,
        ("x.y", "z", "k"): 12,
        ("x.y", "z", "m"): 13,
    }
