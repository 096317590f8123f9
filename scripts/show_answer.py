"""Shows `appliance ask --json` to a person as it comes in, and writes the turn's id to a file.

    appliance ask assistant "Hello" --json | python scripts/show_answer.py TURN_FILE

Reads one JSON object a line: progress becomes one line that is overwritten, text appears as it is
generated. Exits with 1 unless the last line is a completed turn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STAGE_WORDS = {
    "queued": "waiting for a slot",
    "loading": "loading the model",
    "prefill": "reading the prompt",
}


def show(turn_file: Path) -> int:
    is_terminal = sys.stderr.isatty()
    shown_stage = ""
    event: dict = {}
    for line in sys.stdin:
        event = json.loads(line)
        if event["type"] == "progress":
            words = STAGE_WORDS.get(event["stage"], event["stage"])
            share = f" {100 * event['done'] // event['total']} %" if event.get("total") else ""
            if is_terminal:
                sys.stderr.write(f"\r\033[K   … {words}{share}")
            elif words != shown_stage:
                sys.stderr.write(f"   … {words}\n")
            shown_stage = words
            sys.stderr.flush()
        elif event["type"] == "delta" and event.get("kind") == "text":
            if shown_stage and is_terminal:
                sys.stderr.write("\r\033[K")
                sys.stderr.flush()
            shown_stage = ""
            sys.stdout.write(event["text"])
            sys.stdout.flush()
    print()
    if event.get("turn"):
        turn_file.write_text(event["turn"])
    if event.get("type") == "turn.completed":
        return 0
    error = event.get("error", event)
    sys.stderr.write(f"error: {error.get('message', event)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(show(Path(sys.argv[1])))
