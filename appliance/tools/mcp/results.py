"""What a server answered, as blocks for a model: bounded, cleaned, labelled."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from appliance.tools import files, output
from appliance.tools.confine import Outside, Workspace
from appliance.tools.types import Intent, ToolContext, ToolOutcome
from appliance.types import ImageBlock, Label, TextBlock

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
IMAGE_MAX_BYTES = 4 << 20
IMAGES_MAX = 8
PARTS_MAX = 256


def content_of(
    result: Any, intent: Intent, ctx: ToolContext, label: Label, max_bytes: int
) -> ToolOutcome:
    """A `CallToolResult` as an outcome. Texts are joined; images stay if they are ordinary ones;
    everything else is described. May write the whole text into the workspace."""
    texts: list[str] = []
    images: list[ImageBlock] = []
    for part in result.content[:PARTS_MAX]:
        kind = part.type
        if kind == "text":
            texts.append(part.text)
        elif kind == "image" and len(images) < IMAGES_MAX and _is_image(part):
            images.append(ImageBlock(part.mime_type, part.data, label))
        elif kind == "resource" and hasattr(part.resource, "text"):
            texts.append(f"{part.resource.uri}:\n{part.resource.text}")
        else:
            texts.append(f"({kind} left out)")
    if not texts and not images and result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    if len(result.content) > PARTS_MAX:
        texts.append(f"({len(result.content) - PARTS_MAX} more parts left out)")
    outcome = text_outcome(
        intent, "\n".join(texts), ctx, label, max_bytes, is_error=bool(result.is_error)
    )
    if not images:
        return outcome
    kept = outcome.content if texts else ()
    return ToolOutcome(
        intent.call_id,
        (*kept, *images),
        outcome.is_error,
        label,
        outcome.truncated,
        outcome.full_output_path,
    )


def text_outcome(
    intent: Intent,
    text: str,
    ctx: ToolContext,
    label: Label,
    max_bytes: int,
    is_error: bool,
) -> ToolOutcome:
    """Text as an outcome; what is too long is kept in the workspace."""
    data = text.encode("utf-8", "replace")
    shown = output.show(data, max_bytes)
    kept = None
    note = shown.text or "(no output)"
    if shown.is_cut:
        try:
            ctx.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
            with Workspace(str(ctx.workspace)) as workspace:
                kept = files.keep_output(workspace, intent.call_id, data)
            note += f"\nThe whole output is in {kept}."
        except (files.FileProblem, Outside, OSError):
            note += "\nThe whole output could not be kept."
    return ToolOutcome(
        intent.call_id, (TextBlock(note, label),), is_error, label, shown.is_cut, kept
    )


def _is_image(part: Any) -> bool:
    if part.mime_type not in IMAGE_TYPES or len(part.data) > IMAGE_MAX_BYTES * 4 // 3:
        return False
    try:
        base64.b64decode(part.data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
