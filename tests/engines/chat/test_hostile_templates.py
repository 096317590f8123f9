"""A template is a program from a stranger: it reads no file, and neither runs long nor grows
large."""

from __future__ import annotations

import time
import tracemalloc
from datetime import date

import pytest

from appliance.engines.chat import bounds
from appliance.engines.chat.template import ChatTemplate
from appliance.errors import ApplianceError


@pytest.fixture(autouse=True)
def _short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "DEADLINE_S", 0.4)


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
LATER = "{% if messages|length > 5 %}{% set ns = namespace(a='x', l=[1]) %}%s{% endif %}" + PLAIN
"""Behaves while it is probed."""

LONG_OR_LARGE = {
    "nested_loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "range": "{{ range(10**9)|list|length }}",
    "range_loop": "{% for a in range(10**9) %}{% endfor %}",
    "multiply": "{{ 'a' * 10**10 }}",
    "multiply_left": "{{ 10**10 * 'a' }}",
    "multiply_list": "{{ ([1] * 10**9)|length }}",
    "power": "{{ 9**(9**9) }}",
    "squares": "{% set ns.a = 9 %}{% for i in range(99) %}{% set ns.a = ns.a * ns.a %}{% endfor %}",
    "doubling_plus": "{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "doubling_tilde": "{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "doubling_join": "{% for i in range(99) %}{% set ns.a = [ns.a, ns.a]|join %}{% endfor %}",
    "doubling_method": "{% for i in range(99) %}"
    "{% set ns.a = ns.a.join(['', '', '']) ~ ns.a %}{% endfor %}",
    "doubling_replace": "{% for i in range(99) %}{% set ns.a = ns.a.replace('x', 'xx') %}"
    "{% endfor %}",
    "doubling_filter": "{% for i in range(99) %}{% set ns.a = ns.a|replace('x', 'xx') %}"
    "{% endfor %}",
    "doubling_block": "{% for i in range(99) %}{% set b %}{{ ns.a }}{{ ns.a }}{% endset %}"
    "{% set ns.a = b %}{% endfor %}",
    "doubling_list": "{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "laughs_printed": "{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "laughs_json": "{% for i in range(60) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}"
    "{% endfor %}{{ ns.l|tojson }}",
    "laughs_compared": "{% set ns.m = [1] %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
    "laughs_mapped": "{% for i in range(9) %}"
    "{% set ns.l = range(9999)|map(attribute='q', default=ns.l)|list %}"
    "{% endfor %}{{ ns.l }}",
    "center": "{{ 'a'|center(10**9)|length }}",
    "ljust": "{{ 'a'.ljust(10**9)|length }}",
    "zfill": "{{ 'a'.zfill(10**9)|length }}",
    "format_method": "{{ '{:>999999999}'.format(1)|length }}",
    "format_filter": "{{ '%999999999d'|format(1)|length }}",
    "format_operator": "{{ ('%999999999d' % 1)|length }}",
    "format_star": "{{ ('%*d' % (999999999, 1))|length }}",
    "date_format": "{{ strftime_now('%999999999Y')|length }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big')|length }}",
    "json_indent": "{{ [1]|tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(n=10**6)|length }}",
    "macro_recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro_tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "loop_recursion": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "long_output": "{% for i in range(9999) %}{{ 'abcdefghij' * 999 }}{% endfor %}",
    "cycles": "{% for i in range(9999) %}{{ range(9999)|list|sum }}{% endfor %}",
    "sorting": "{% for i in range(9999) %}{{ range(9999)|map('string')|sort|length }}{% endfor %}",
}

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch owned').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.func.__globals__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ ['x']|map(attribute='__class__')|list }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}",
    "{% extends '/etc/passwd' %}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ messages.append(1) }}",
)


def render(source: str, *contents: str) -> str:
    template = ChatTemplate(source, bos_token="", eos_token="")
    messages = [{"role": "user", "content": content} for content in contents]
    return template.render(messages, today=date(2026, 1, 1))


@pytest.mark.parametrize("body", LONG_OR_LARGE.values(), ids=LONG_OR_LARGE.keys())
def test_a_template_that_runs_long_or_grows_large_is_stopped(body: str) -> None:
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ApplianceError):
            render(LATER.replace("%s", body), *"abcdef")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - started < 10
    assert peak < 400 * 1024 * 1024


def test_a_template_that_overruns_at_once_is_broken_after_one_deadline() -> None:
    body = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    started = time.process_time()
    with pytest.raises(ApplianceError, match="overran") as raised:
        ChatTemplate(body + PLAIN, bos_token="", eos_token="")
    assert raised.value.code == "model_broken"
    assert time.process_time() - started < 10


@pytest.mark.parametrize("body", ESCAPES)
def test_a_template_reaches_nothing_outside(body: str) -> None:
    try:
        text = render(body + PLAIN, "a")
    except ApplianceError:
        return
    assert "class" not in text
    assert "root:" not in text
    assert "module" not in text


def test_an_ordinary_long_conversation_renders_well_within_the_bounds() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|u|>' + m.content|trim }}"
        "{% else %}{{ m.content ~ '<|end|>' }}{% endif %}{% endfor %}"
    )
    text = render(source, *("x" * 1000 for _ in range(2000)))
    assert len(text) == 2000 * 1005


def test_a_source_that_does_not_compile_is_named_broken() -> None:
    with pytest.raises(ApplianceError, match="does not compile") as raised:
        ChatTemplate("{% for %}", bos_token="", eos_token="")
    assert raised.value.code == "model_broken"


def test_generation_tags_and_loop_controls_are_understood() -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% break %}{% endfor %}"
    )
    assert render(source, "a", "b") == "a"
