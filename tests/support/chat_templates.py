"""Small chat templates that write tools and calls in each model family's public format."""

from __future__ import annotations

_TOOLS = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
_PLAIN = "{% for message in messages %}[{{ message.role }}]"
_END = "[end]\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def _template(calls: str, *, result: str = "{{ message.content or '' }}", thinking: str = "") -> str:
    return _TOOLS + _PLAIN + thinking + result + "{% if message.tool_calls %}" + calls + "{% endif %}" + _END


_EACH = "{% for call in message.tool_calls %}{% set function = call.function %}"
_BOTH_FORMS = "{{ function.arguments if function.arguments is string else function.arguments | tojson }}"

HERMES = _template(
    _EACH + '\n<tool_call>\n{"name": "{{ function.name }}", "arguments": ' + _BOTH_FORMS + "}\n</tool_call>{% endfor %}"
)
QWEN_XML = _template(
    _EACH
    + "\n<tool_call>\n<function={{ function.name }}>\n{% for key, value in function.arguments | items %}"
    + "<parameter={{ key }}>\n{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}"
    + "</function>\n</tool_call>{% endfor %}"
)
LLAMA3 = (
    _template(
        "{% for call in message.tool_calls %}{% set function = call.function %}"
        '{"name": "{{ function.name }}", "parameters": {{ function.arguments | tojson }}}'
        "{{ '; ' if not loop.last }}{% endfor %}"
    )
    + "{# <|start_header_id|> #}"
)
LLAMA3_TAGGED = LLAMA3.replace("{% if message.tool_calls %}", "{% if message.tool_calls %}<|python_tag|>")
MISTRAL_ARRAY = _template(
    "[TOOL_CALLS][{% for call in message.tool_calls %}{% if call.id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]"
)
MISTRAL_ARGS = _template(_EACH + "[TOOL_CALLS]{{ function.name }}[ARGS]" + _BOTH_FORMS + "{% endfor %}")
MISTRAL_CALL_ID = _template(
    _EACH + "[TOOL_CALLS]{{ function.name }}[CALL_ID]{{ call.id }}[ARGS]" + _BOTH_FORMS + "{% endfor %}"
)
HARMONY = (
    _TOOLS + "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% if message.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>{% endif %}"
    "{% if message.content %}<|start|>assistant<|channel|>{{ 'commentary' if message.tool_calls else 'final' }}"
    "<|message|>{{ message.content }}<|end|>{% endif %}"
    "{% for call in message.tool_calls or [] %}"
    "<|start|>assistant<|channel|>commentary to=functions.{{ call.function.name }} <|constrain|>json<|message|>"
    "{{ call.function.arguments | tojson }}<|call|>{% endfor %}"
    "{% else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# {{ reasoning_effort }} #}"
    "{% if reasoning_effort is defined %}{% endif %}"
)
GLM = _template(
    _EACH + "\n<tool_call>{{ function.name }}\n{% for key, value in function.arguments | items %}"
    "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n"
    "{% endfor %}</tool_call>{% endfor %}"
)
_GEMMA_VALUE = (
    "{% macro value(v) %}{% if v is string %}QUOTE{{ v }}QUOTE{% elif v is mapping %}"
    "{ {%- for k, w in v | items %}{{ k }}:{{ value(w) }}{{ ',' if not loop.last }}{% endfor -%} }"
    "{% elif v is sequence %}[{% for w in v %}{{ value(w) }}{{ ',' if not loop.last }}{% endfor %}]"
    "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
)
FUNCTION_GEMMA = _GEMMA_VALUE.replace("QUOTE", "<escape>") + _template(
    _EACH
    + "<start_function_call>call:{{ function.name }}{{ value(function.arguments) }}<end_function_call>{% endfor %}"
)
GEMMA4 = _GEMMA_VALUE.replace("QUOTE", '<|"|>') + _template(
    _EACH + "<|tool_call>call:{{ function.name }}{{ value(function.arguments) }}<tool_call|>{% endfor %}"
)
DEEPSEEK_V3 = _template(
    "<｜tool▁calls▁begin｜>"
    + _EACH
    + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ function.name }}\n```json\n"
    + "{{ function.arguments }}"
    + "\n```<｜tool▁call▁end｜>{{ '\n' if not loop.last }}{% endfor %}<｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = _template(
    "<｜tool▁calls▁begin｜>"
    + _EACH
    + "<｜tool▁call▁begin｜>{{ function.name }}<｜tool▁sep｜>"
    + _BOTH_FORMS
    + "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"
)

# family, template
OF_FAMILIES = [
    ("hermes", HERMES),
    ("qwen-xml", QWEN_XML),
    ("llama3-json", LLAMA3),
    ("llama3-json", LLAMA3_TAGGED),
    ("mistral", MISTRAL_ARRAY),
    ("mistral", MISTRAL_ARGS),
    ("mistral", MISTRAL_CALL_ID),
    ("harmony", HARMONY),
    ("glm", GLM),
    ("gemma", FUNCTION_GEMMA),
    ("gemma", GEMMA4),
    ("deepseek", DEEPSEEK_V3),
    ("deepseek", DEEPSEEK_V31),
]
