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
    other bytes are kept as files of the workspace, and so is a text that is too long."""
    texts: list[str] = []
    images: list[ImageBlock] = []
    for number, part in enumerate(result.content[:PARTS_MAX], 1):
        kind = part.type
        inner = part.resource if kind == "resource" else part
        data = getattr(inner, "blob", None) or getattr(inner, "data", None)
        if kind == "text":
            texts.append(part.text)
        elif kind == "resource_link":
            texts.append(_link(part))
        elif data is None:
            text = getattr(inner, "text", None)
            texts.append(f"{inner.uri}:\n{text}" if text is not None else f"({kind} left out)")
        elif len(images) < IMAGES_MAX and _is_image(inner.mime_type, data):
            images.append(ImageBlock(inner.mime_type, data, label))
        else:
            name = str(getattr(inner, "uri", kind))
            texts.append(_kept_bytes(f"{intent.call_id}-{number}", name, inner, data, ctx))
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
        kept = _keep(intent.call_id, data, ctx)
        note += f"\nThe whole output is in {kept}." if kept else "\nIt could not be kept whole."
    return ToolOutcome(
        intent.call_id, (TextBlock(note, label),), is_error, label, shown.is_cut, kept
    )


def _link(part: Any) -> str:
    about = ", ".join(str(each) for each in (part.name, part.mime_type, part.description) if each)
    return f"(link to {part.uri}: {about})"


def _kept_bytes(name: str, uri: str, part: Any, data: str, ctx: ToolContext) -> str:
    """What a model is told of bytes it cannot read; a program of its can."""
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return f"({uri} left out: its bytes are no base64)"
    kept = _keep(name, decoded, ctx, ".bin")
    where = f"kept in {kept}" if kept else "which could not be kept"
    return f"({uri}: {part.mime_type or 'unknown type'}, {len(decoded)} bytes, {where})"


def _keep(name: str, data: bytes, ctx: ToolContext, ending: str = ".txt") -> str | None:
    try:
        ctx.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Workspace(str(ctx.workspace)) as workspace:
            return files.keep_output(workspace, name, data, ending)
    except (files.FileProblem, Outside, OSError):
        return None  # the workspace is full or its folder is in the way; the caller says so


def _is_image(media_type: str | None, data: str) -> bool:
    if media_type not in IMAGE_TYPES or len(data) > IMAGE_MAX_BYTES * 4 // 3:
        return False
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
