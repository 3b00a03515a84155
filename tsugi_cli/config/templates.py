"""Chat templates that come with Tsugi, for models that have none, or one that shows no tools."""

from __future__ import annotations

CHATML_TOOLS = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- if system or tools %}
{{- '<|im_start|>system\\n' + system }}
{%- if tools %}
{{- ('\\n\\n' if system else '') + 'You may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nTo call one, write its name and arguments as JSON:\\n<tool_call>\\n' }}
{{- '{"name": ..., "arguments": ...}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in (messages[1:] if system else messages) %}
{%- if message['role'] == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['reasoning_content'] %}
{{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message['content'] }}
{%- for call in message['tool_calls'] or [] %}
{{- ('\\n' if message['content'] or not loop.first else '') + '<tool_call>\\n' }}
{{- {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""Turns as ChatML has them; functions, calls, answers and thoughts between tags, as Hermes and Qwen write them."""

TEMPLATES = {"chatml_tools": CHATML_TOOLS}
"""Name, as `model.chat_template` takes it -> Jinja text."""


def jinja_of(chat_template: str | None) -> str | None:
    """The text of a setting that holds a text or one of our names."""
    return TEMPLATES.get(chat_template, chat_template) if chat_template is not None else None
