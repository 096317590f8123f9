"""Homes whose agents may use the stand-in Claude, for journeys and the bench."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = """
[models.local]
engine = "scripted"
script = "script.json"
slots = 64
context_window = 8192

[models.claude]
engine = "claude"
model = "claude-stand-in"
base_url = "{url}"
slots = 64
request_timeout_s = {timeout_s}

[models.claude.prices]
input_micro_usd = 2000000
output_micro_usd = 10000000
cache_read_micro_usd = 200000
cache_write_micro_usd = 2500000

{cloud_agent}
[agents.mixed]
models = ["claude", "local"]
policy = "cloud-first"
label = "public"
sampling = {{ max_tokens = 256 }}

[agents.secret]
models = ["claude", "local"]
policy = "cloud-first"
label = "private"

[budgets]
day_usd = {day_usd}
month_usd = {month_usd}

[network]
air_gap = {air_gap}

[routing]
explore_share = 0.0
escalate = false
"""

CLOUD_AGENT = """
[agents.cloud]
models = ["claude"]
policy = "cloud-only"
label = "public"
sampling = { max_tokens = 256 }
"""

LOCAL_REPLY = "A local answer. [the end]"


def write_cloud_home(
    home: Path,
    url: str,
    *,
    timeout_s: float = 20.0,
    day_usd: float = 1000.0,
    air_gap: bool = False,
    more: str = "",
) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(
        url=url,
        cloud_agent="" if air_gap else CLOUD_AGENT,
        timeout_s=timeout_s,
        day_usd=day_usd,
        month_usd=max(day_usd, 1.0) * 31,
        air_gap=str(air_gap).lower(),
    )
    (home / "config.toml").write_text(config + more)
    (home / "script.json").write_text(json.dumps([{"reply": LOCAL_REPLY}]))
    return home
