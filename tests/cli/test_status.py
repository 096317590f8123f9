"""What `status` and `top` draw, on a terminal of 80 columns and without colours."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from appliance.cli.status import BAR_CELLS, render

GIB = 1 << 30


def device(**numbers: Any) -> dict[str, Any]:
    return {
        "id": "GPU-1", "name": "RTX", "total_bytes": 28 * GIB, "used_bytes": 16 * GIB,
        "reserved_bytes": 12 * GIB, "foreign_bytes": 4 * GIB, "capacity_bytes": 26 * GIB,
        "health": "ok", "temperature_c": 61, "power_w": 240.0,
    } | numbers  # fmt: skip


def model(name: str, **numbers: Any) -> dict[str, Any]:
    return {
        "name": name, "state": "ready", "detail": "", "slots": 4, "slots_free": 3, "waiting": 0,
        "predicted_wait_s": 0.0, "tokens_per_s": 41.2, "vram_bytes": 0, "bytes_by_device": {},
        "load_progress": 0.0,
    } | numbers  # fmt: skip


def drawn(devices: list[dict[str, Any]], models: list[dict[str, Any]]) -> list[str]:
    status = {
        "version": "1", "state": "ready", "reasons": [], "uptime_s": 60.0, "rss_bytes": 80 << 20,
        "config_revision": "abc", "turns_unfinished": 0, "leases": 1, "steps_waiting": 0,
        "approvals_pending": 0, "spend_today_micro_usd": 0, "air_gap": False,
        "devices": devices, "models": models,
    }  # fmt: skip
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(render(status))
    lines = captured.get().splitlines()
    assert all(len(line) <= 80 for line in lines), lines
    return lines


def test_a_bar_shows_each_model_other_programs_and_the_reserve() -> None:
    lines = drawn(
        [device()],
        [
            model("big", vram_bytes=8 * GIB, bytes_by_device={"GPU-1": 8 * GIB}),
            model("away", state="absent", slots=0, slots_free=0, tokens_per_s=None),
            model("small", vram_bytes=4 * GIB, bytes_by_device={"GPU-1": 4 * GIB}),
        ],
    )
    [row] = [line for line in lines if line.startswith("RTX")]
    assert "aaaaaaaabbbb▒▒▒▒··········--  16.0 / 28.0 GiB" in row
    assert "61 °C 240 W" in row
    assert [line.split()[:2] for line in lines if line[:1] in "ab" and "GiB" in line] == [
        ["a", "big"],
        ["b", "small"],
    ]


def test_a_small_holder_gets_a_cell_and_a_full_card_keeps_its_width() -> None:
    full = device(used_bytes=28 * GIB, reserved_bytes=28 * GIB)
    held = {f"m{n}": n * GIB for n in range(1, 7)} | {"tiny": 1 << 20, "rest": 6 * GIB}
    models = [model(name, vram_bytes=b, bytes_by_device={"GPU-1": b}) for name, b in held.items()]
    [row] = [line for line in drawn([full], models) if line.startswith("RTX")]
    bar = row.split()[1]
    assert len(bar) == BAR_CELLS
    assert "g" in bar


def test_why_a_model_is_shut_stands_below_the_table() -> None:
    lines = drawn([device()], [model("claude", state="shut", detail="no key: KEY is not set")])
    assert "  claude: no key: KEY is not set" in lines


def test_how_far_a_load_is_stands_beside_its_state() -> None:
    lines = drawn([device()], [model("big", state="starting", load_progress=0.428)])
    assert any("starting 43%" in line for line in lines)
