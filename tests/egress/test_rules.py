"""What may leave: hosts, labels, air gap, addresses, rates and keys, as pure functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.schema import Config
from appliance.egress.errand import Errand
from appliance.egress.keys import find_key
from appliance.egress.rates import Rates, observed
from appliance.egress.rules import (
    Purpose,
    Target,
    address_refusal,
    is_loopback_host,
    matches,
    refusal,
    target_of,
)
from appliance.errors import ConfigError
from appliance.types import Label

MODEL, TOOL = Purpose("model", "claude"), Purpose("tool", "fetch")
PUBLIC = Errand(Label.PUBLIC)


def config(**network: object) -> Config:
    return Config.model_validate(
        {
            "models": {
                "claude": {"engine": "claude", "model": "m", "base_url": "https://api.example.org"},
                "near": {"engine": "remote", "model": "m", "base_url": "http://127.0.0.1:8000/v1"},
            },
            "network": {"allowed_hosts": ["docs.example.org", "*.wiki.org:8443"], **network},
        }
    )


def test_a_model_reaches_its_own_host_and_no_other() -> None:
    assert refusal(config(), MODEL, target_of("https://api.example.org"), PUBLIC) is None
    for url in (
        "http://api.example.org",
        "https://api.example.org:444",
        "https://docs.example.org",
        "https://evil-api.example.org",
        "https://api.example.org.evil.net",
    ):
        assert refusal(config(), MODEL, target_of(url), PUBLIC), url


def test_a_tool_reaches_allowed_hosts_and_not_the_models() -> None:
    assert refusal(config(), TOOL, target_of("https://docs.example.org/x"), PUBLIC) is None
    assert refusal(config(), TOOL, target_of("https://a.b.wiki.org:8443"), PUBLIC) is None
    for url in ("https://wiki.org:8443", "https://a.wiki.org", "https://api.example.org"):
        assert refusal(config(), TOOL, target_of(url), PUBLIC), url


def test_a_request_without_a_label_is_refused() -> None:
    assert refusal(config(), MODEL, target_of("https://api.example.org"), None)


def test_private_data_reaches_a_model_on_this_machine_and_none_elsewhere() -> None:
    private = Errand(Label.PRIVATE)
    near = Purpose("model", "near")
    assert refusal(config(), near, target_of("http://127.0.0.1:8000"), private) is None
    assert refusal(config(), MODEL, target_of("https://api.example.org"), private)
    assert (
        refusal(config(), MODEL, target_of("https://api.example.org"), Errand(Label.INTERNAL))
        is None
    )


def test_air_gap_leaves_only_this_machine() -> None:
    shut = config(air_gap=True)
    near = Purpose("model", "near")
    assert refusal(shut, near, target_of("http://127.0.0.1:8000"), PUBLIC) is None
    assert refusal(shut, MODEL, target_of("https://api.example.org"), PUBLIC)
    assert refusal(shut, TOOL, target_of("https://docs.example.org"), PUBLIC)


@given(st.ip_addresses())
def test_under_air_gap_no_address_but_loopback_is_connected_to(address: object) -> None:
    shut = config(air_gap=True)
    target = Target("tcp", str(address), 443)
    reason = address_refusal(shut, target, str(address))
    assert (reason is None) == is_loopback_host(str(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "fe80::1"])
def test_a_public_name_that_resolves_inwards_is_refused(address: str) -> None:
    assert address_refusal(config(), Target("tcp", "docs.example.org", 443), address)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "fits"),
    [
        ("a.org", "a.org", 443, True),
        ("a.org", "b.a.org", 443, False),
        ("*.a.org", "b.a.org", 443, True),
        ("*.a.org", "a.org", 443, False),
        ("*.a.org", "evila.org", 443, False),
        ("a.org:8443", "a.org", 443, False),
        ("A.ORG", "a.org", 443, True),
    ],
)
def test_patterns_of_hosts(pattern: str, host: str, port: int, fits: bool) -> None:
    assert matches(pattern, Target("https", host, port)) is fits


HEADERS = {
    "anthropic-ratelimit-requests-remaining": "5",
    "anthropic-ratelimit-requests-reset": "1970-01-01T00:01:00Z",
    "anthropic-ratelimit-tokens-remaining": "700",
    "anthropic-ratelimit-tokens-reset": "1970-01-01T00:01:00Z",
    "anthropic-ratelimit-input-tokens-remaining": "400",
    "anthropic-ratelimit-input-tokens-reset": "1970-01-01T00:00:30Z",
}


def test_rates_are_known_until_they_are_reset() -> None:
    rates = observed(Rates(), HEADERS, 200, now_s=100.0, wall_ms=0)
    assert rates.tokens_left(101.0) == 400
    assert rates.tokens_left(131.0) == 700
    assert rates.tokens_left(161.0) is None
    assert Rates().tokens_left(0.0) is None


def test_a_429_with_a_wait_means_nothing_is_left_until_then() -> None:
    rates = observed(Rates(), {"retry-after": "7"}, 429, now_s=10.0, wall_ms=0)
    assert rates.tokens_left(16.9) == 0
    assert rates.tokens_left(17.1) is None


@given(st.dictionaries(st.sampled_from(list(HEADERS)), st.text(max_size=30)))
def test_no_header_a_server_sends_upsets_the_rates(headers: dict[str, str]) -> None:
    left = observed(Rates(), headers, 200, 0.0, 0).tokens_left(1.0)
    assert left is None or left >= 0


def test_a_key_is_found_in_credentials_first_and_then_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "claude-key").write_text("sk-file\n")
    both = {"CREDENTIALS_DIRECTORY": str(tmp_path), "KEY": "sk-variable"}
    assert find_key(both, "claude-key", "KEY") == "sk-file"
    assert find_key(both, "other", "KEY") == "sk-variable"
    assert find_key({}, "claude-key", "KEY") is None
    with pytest.raises(ConfigError):
        find_key({"KEY": "two\nlines"}, "", "KEY")
