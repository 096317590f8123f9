"""Which format a template speaks: the first sibling that recognises it; the generic one takes
all."""

from __future__ import annotations

from appliance.engines.chat.formats import bare, enveloped, generic, harmony, tagged
from appliance.engines.chat.formats.base import CallFormat, Recogniser
from appliance.engines.chat.template import ChatTemplate

_IN_ORDER: tuple[Recogniser, ...] = (
    harmony.recognise,
    tagged.recognise,
    bare.recognise,
    enveloped.recognise,
    generic.recognise,
)


def recognise(template: ChatTemplate) -> CallFormat:
    for recogniser in _IN_ORDER:
        found = recogniser(template.source, template.traits)
        if found is not None:
            return found
    raise AssertionError("the generic format takes every template")
