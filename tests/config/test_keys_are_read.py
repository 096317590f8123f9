"""A key that nothing reads is a promise that nobody keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import appliance
from appliance.config.units import Section

ROOT = Path(appliance.__file__).parent
FOR_PEOPLE = {"read_on", "licence"}
"""When a price was read; under which terms a model file is given."""
READ_BY_THE_CONFIGURATION_ITSELF = {"system_prompt_file"}


def sections(kind: type[Section] = Section) -> Iterator[type[Section]]:
    for section in kind.__subclasses__():
        if section.__module__.startswith("appliance.config") and section.__name__ != "Config":
            yield section
        yield from sections(section)


def test_every_key_is_read_outside_the_configuration() -> None:
    import appliance.config.schema  # noqa: F401  (all sections are known then)

    source = "\n".join(
        path.read_text() for path in ROOT.rglob("*.py") if path.parent != ROOT / "config"
    )
    read = set(re.findall(r"\.(\w+)\b", source)) | set(re.findall(r'getattr\(\w+, "(\w+)"', source))
    read |= FOR_PEOPLE | READ_BY_THE_CONFIGURATION_ITSELF
    unread = {
        f"{section.__name__}.{name}"
        for section in sections()
        for name in section.model_fields
        if name not in read
    }
    assert unread == set()
