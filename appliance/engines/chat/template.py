"""A model's own Jinja template, compiled in a bounded sandbox, and what it turned out able to
do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial

import jinja2

from appliance.engines.chat.bounds import Limit, dated
from appliance.engines.chat.sandbox import bounded_environment
from appliance.engines.chat.traits import Traits, find_traits
from appliance.errors import BadRequest, ModelBroken
from appliance.types import Json

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""For models whose file brings no template."""

SOURCE_LIMIT = 512 * 1024
"""Characters of template source; the largest of real models is 17 KB."""


class TemplateRefused(BadRequest):
    """The template raised, as an error of the request that was rendered."""


class TemplateOverran(TemplateRefused):
    """The template took more than a render may take."""


class ChatTemplate:
    """Renders messages. `traits` were found at construction by rendering probes, so a template is
    judged by what it does, never by its model's name. Raises `ModelBroken` if the source does not
    compile or cannot render the simplest conversation within its bounds."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        self.source = source if source.strip() else CHATML
        self.bos_token = bos_token
        self.eos_token = eos_token
        if len(self.source) > SOURCE_LIMIT:
            raise ModelBroken(f"the chat template is {len(self.source)} characters long")
        self._environment = bounded_environment()
        try:
            self._template = self._environment.from_string(self.source)
        except (jinja2.TemplateError, Limit, RecursionError, SyntaxError, ValueError) as error:
            raise ModelBroken(
                f"the chat template does not compile: {error}",
                hint="set `chat_template` of the model in config.toml",
            ) from error
        self.traits: Traits = find_traits(self)

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        today: date,
        tools: Sequence[Mapping[str, Json]] = (),
        thinking: bool = False,
        generation_prompt: bool = True,
    ) -> str:
        """The prompt's text. `tools` stays undefined when there are none. Raises
        `TemplateRefused`."""
        names: dict[str, Json] = {
            "messages": messages,
            "add_generation_prompt": generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "enable_thinking": thinking,
            "thinking": thinking,
            "date_string": today.strftime("%d %b %Y"),
            "strftime_now": partial(dated, today.strftime),
        }
        if tools:
            names["tools"] = tools
        try:
            return self._environment.render_bounded(self._template, names)
        except Limit as error:
            raise TemplateOverran(f"the chat template overran: {error}") from error
        except RecursionError as error:
            raise TemplateOverran("the chat template overran: too deep a recursion") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, LookupError) as error:
            raise TemplateRefused(f"the chat template refused the messages: {error}") from error
        except (AttributeError, ArithmeticError) as error:
            raise TemplateRefused(f"the chat template failed: {error}") from error
