"""Templates to test on: fourteen of real models where they are here, and small ones of ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pytest

from appliance.engines.chat.template import ChatTemplate
from tests.engines.chat.vocab import SHARED

FOLDER = SHARED / "chat-templates"


@dataclass(frozen=True)
class Real:
    file: str
    format_name: str
    bos: str = ""
    eos: str = "<|im_end|>"


_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_LLAMA = ("<|begin_of_text|>", "<|eot_id|>")
REAL = (
    Real("HuggingFaceTB-SmolLM3-3B", "generic"),
    Real("Mistral-Small-3.2-24B-Instruct-2506", "enveloped", "<s>", "</s>"),
    Real("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "enveloped", "<|begin_of_text|>"),
    Real("Qwen-Qwen2.5-7B-Instruct", "enveloped"),
    Real("Qwen-Qwen3-0.6B", "enveloped"),
    Real("Qwen3-Coder", "tagged"),
    Real("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "enveloped", *_DEEPSEEK),
    Real("deepseek-ai-DeepSeek-V3.1", "enveloped", *_DEEPSEEK),
    Real("google-gemma-2-2b-it", "generic", "<bos>", "<eos>"),
    Real("ibm-granite-granite-4.0", "enveloped", "<|end_of_text|>", "<|end_of_text|>"),
    Real("meta-llama-Llama-3.1-8B-Instruct", "bare", *_LLAMA),
    Real("meta-llama-Llama-3.3-70B-Instruct", "bare", *_LLAMA),
    Real("microsoft-Phi-3.5-mini-instruct", "generic", "<s>", "<|endoftext|>"),
    Real("openai-gpt-oss-120b", "harmony", "<|startoftext|>", "<|return|>"),
)
BY_NAME = {real.file: real for real in REAL}


@lru_cache
def real_template(name: str) -> ChatTemplate:
    real = BY_NAME[name]
    path = FOLDER / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("the real chat templates are not here (../shared/chat-templates)")
    return ChatTemplate(path.read_text(), bos_token=real.bos, eos_token=real.eos)


HERMES = """\
{%- if tools %}<|im_start|>system
{{ messages[0].content + '\n' if messages[0].role == 'system' }}<tools>
{%- for tool in tools %}
{{ tool|tojson }}
{%- endfor %}
</tools><|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.tool_calls %}<|im_start|>assistant
{{ m.content }}
{%- for call in m.tool_calls %}
{{- '\n' if not loop.first }}<tool_call>
{{- '\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments|tojson + '}\n' }}
{{- '</tool_call>' }}
{%- endfor %}<|im_end|>
{% elif not (loop.first and tools and m.role == 'system') %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""A small Hermes-like template of our own."""


def hermes() -> ChatTemplate:
    return ChatTemplate(HERMES, bos_token="", eos_token="<|im_end|>")


TAGS = """\
{%- for tool in tools|default([]) %}<tool>{{ tool.function.name }} {{ tool.function.description }}
{{- tool.function.parameters|tojson }}</tool>
{% endfor %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls|default([]) %}
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments|items %}<parameter={{ key }}>
{{ value if value is string else value|tojson }}
</parameter>
{% endfor %}</function>
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Arguments as tags."""

MARKED = """\
{{- bos_token }}
{%- if tools %}[TOOLS]{{ tools|tojson }}[/TOOLS]{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'tool' %}[RESULT]{{ m.tool_call_id }} {{ m.content }}[/RESULT]
{%- elif m.tool_calls %}
{%- for call in m.tool_calls %}
{%- if call.id|length != 9 %}{{ raise_exception('nine characters') }}{% endif %}
{{- '[CALLS]' + call.function.name + '[ID]' + call.id }}
{{- '[ARGS]' + call.function.arguments|tojson }}
{%- endfor %}{{ eos_token }}
{%- elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}
{%- endif %}
{%- endfor %}"""
"""Brackets and call ids; knows no system role."""

CHANNELS = """\
{%- if tools %}<|start|>developer<|message|>
{%- for t in tools %}{{ t.function.name }} {{ t.function.description }}{% endfor %}<|end|>
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|start|>functions to=assistant<|message|>{{ m.content|tojson }}<|end|>
{%- elif m.tool_calls %}<|start|>assistant to=functions.{{ m.tool_calls[0].function.name }}
{{- '<|channel|>commentary json<|message|>' + m.tool_calls[0].function.arguments|tojson }}<|call|>
{%- else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
"""Channels, one call a turn."""
