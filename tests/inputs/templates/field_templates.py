"""Chat templates in the manner of the field, and conversations to put through them.

Each is written anew for what it exercises: the words of a family, and the parts of Jinja that its
templates lean on.
"""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]

TALK: Messages = [
    {"role": "system", "content": " in the\nhell "},
    {"role": "user", "content": "the <b> hell\n\n\n in?  "},
    {"role": "assistant", "content": "<think>\nhe he\n</think>\n\nin é 日"},
    {"role": "user", "content": " 3 < 4 > 2  \n"},
]
PARTS: Messages = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what is in it?\n"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a hell"}]},
    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": " it"}]},
]
CALLS: Messages = [
    {"role": "user", "content": "the 3 in?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "find", "arguments": {"q": "the <hell>", "n": 3, "é": None}},
            },
            {"type": "function", "function": {"name": "add", "arguments": {"x": [1.5, True]}}},
        ],
    },
    {"role": "tool", "name": "find", "content": '{"in": "hell"}', "tool_call_id": "call00001"},
    {"role": "tool", "name": "add", "content": "2.5"},
    {"role": "assistant", "content": "it is in the hell"},
    {"role": "user", "content": "he?"},
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": 'Find "it"\nin <the> text.',
            "parameters": {
                "type": "object",
                "properties": {
                    "q": {"type": "string", "description": "é"},
                    "n": {"type": ["integer", "null"], "enum": [1, 2]},
                    "o": {"type": "object", "properties": {"in": {"type": "number"}}},
                },
                "required": ["q"],
            },
        },
    },
    {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}},
]

LOOP = "{{ bos_token }}{% for message in messages %}"
END = "{% endfor %}"

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set opening = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set opening = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (opening if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("wrong content") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

CHATML = (
    LOOP
    + """{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"""
    + END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN = """{{ bos_token }}{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
            {{- content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}
                {{- call.arguments }}
            {%- else %}
                {{- call.arguments | tojson }}
            {%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- for tool_call in message.tool_calls %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
            {{- '{"name": "' + tool_call.function.name + '", ' + '"parameters": ' }}
            {{- tool_call.function.arguments | tojson }}{{- "}" + "<|eot_id|>" }}
        {%- endfor %}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MISTRAL = """{{- bos_token }}
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined)) %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + (tool_call.id or "none") + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("no such role") }}
    {%- endif %}
{%- endfor %}
"""

DEEPSEEK = """{% set ns = namespace(is_first=false, is_tool=false, system='', first_sp=true) %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- if ns.first_sp %}{% set ns.system = ns.system + message['content'] %}
{%- set ns.first_sp = false %}
{%- else %}{% set ns.system = ns.system + '\n\n' + message['content'] %}{%- endif %}
{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}
{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}
{{'<|User|>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}
{%- for tool in message['tool_calls'] %}
{%- if not ns.is_first %}{{'<|Assistant|>' + tool['type'] + '<sep>' + tool['function']['name'] +
 '\n' + '```json' + '\n' + tool['function']['arguments']|string + '\n' + '```'}}
{%- set ns.is_first = true -%}
{%- else %}{{'\n' + tool['type'] + '<sep>' + tool['function']['name']}}{%- endif %}
{%- endfor %}{{ eos_token }}{%- endif %}
{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<|Assistant|>' + content + eos_token }}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}
{{- '<out>' + message['content'] + '</out>'}}{%- endif %}
{%- endfor -%}
{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}"""

PHI = (
    LOOP
    + "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>' + '\n'}}"
    + END
    + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

COMMAND = """{{ bos_token }}{% if documents %}{% set docs = documents %}{% endif %}
{%- macro document_turn(documents) -%}
<|CHATBOT_TOKEN|><results>
{%- for doc in documents %}
{{ "\n" }}{{ loop.index0 }}: {{ doc.title | upper }}
{%- for key, value in doc.items() %}
{{ "\n" }}{{ key | title }}: {{ value | string | indent(2) }}
{%- endfor %}
{%- endfor %}
</results>
{%- endmacro %}
{%- macro arguments(pairs) -%}
{% for name, value in pairs.items() %}
{{ name }}={{ value | tojson(ensure_ascii=true) }}{{ "" if loop.last else ", " }}
{%- endfor %}
{%- endmacro %}
{%- for message in messages %}
{%- if message.role | lower == 'user' %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ message.content }}
{%- elif message.role == 'system' %}<|START_OF_TURN_TOKEN|>{{ message.content.strip() }}
{%- elif message.tool_calls %}
{%- for call in message.tool_calls %}
{{- call.function.name }}({{ arguments(call.function.arguments) }})
{%- endfor %}
{%- elif message.role == 'assistant' %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{{ message.content }}
{%- endif %}
{%- endfor %}
{%- if docs %}{{ document_turn(docs) }}{% endif %}"""

TOOL_MACROS = """{{ bos_token }}
{%- macro type_of(spec) -%}
    {%- if spec.type is string -%}{{ spec.type }}
    {%- elif spec.type is iterable -%}{{ spec.type | join(" | ") }}
    {%- else -%}any
    {%- endif -%}
    {%- if spec.enum %} of {{ spec.enum | map("tojson") | join("/") }}{% endif %}
{%- endmacro -%}
{%- macro schema(spec, depth=0) -%}
    {%- for name, inner in (spec.properties or {}) | dictsort -%}
        {{ "\n" ~ "  " * depth ~ "- " ~ name ~ ("" if name in (spec.required or []) else "?") }}
        {{- ": " ~ type_of(inner) }}
        {%- if inner.description %} // {{ inner.description }}{% endif %}
        {%- if inner.properties %}{{ schema(inner, depth + 1) }}{% endif %}
    {%- endfor -%}
{%- endmacro -%}
{%- if tools -%}
{%- for tool in tools | map(attribute="function") | list -%}
{{ "<|im_start|>" ~ tool.name ~ ": " ~ tool.description | replace("\n", " ") }}
{{- schema(tool.parameters, 1) }}{{ "<|im_end|>" }}
{%- endfor -%}
{%- endif -%}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor -%}
"""

SMALL = {
    "generation": LOOP
    + "<start_of_turn>{% if message.role == 'assistant' %}{%- generation -%} {{ message.content }}"
    + "<end_of_turn>{%- endgeneration %}{% else %}{{ message.content }}<end_of_turn>\n{% endif %}"
    + END,
    "loop attributes": LOOP
    + "{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}"
    + "{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.cycle('<|user|>', '<|end|>') }}"
    + "{{ loop.changed(message.role == 'user') }}{{ loop.previtem.role if loop.previtem }}"
    + "{{ loop.nextitem.role if loop.nextitem is defined }}"
    + END,
    "break and continue": LOOP
    + "{% if message.role == 'system' %}{% continue %}{% endif %}<|user|>{{ message.content }}"
    + "{% if loop.index > 2 %}{% break %}{% endif %}"
    + END,
    "macro": "{{ bos_token }}{% macro turn(role, text='', end='<|im_end|>') %}"
    + "{{ '<|im_start|>' ~ role ~ '\n' ~ text | trim ~ end }}{% endmacro %}"
    + "{% for m in messages %}{{ turn(m.role, m.content) }}{{ turn(text='the', role='in') }}"
    + END,
    "call block": "{{ bos_token }}{% macro turn(role) %}<|im_start|>{{ role }}\n{{ caller(role) }}"
    + "<|im_end|>{% endmacro %}{% for m in messages %}{% call(r) turn(m.role) %}{{ r }} "
    + "{{- m.content }}{% endcall %}{% endfor %}",
    "set block": LOOP
    + "{% set turn %}<start_of_turn>{{ message.role }}\n{{ message.content }}{% endset %}"
    + "{{ turn | trim }}<end_of_turn>"
    + END,
    "filter block": LOOP
    + "{% filter trim %} <start_of_turn>{{ message.content }}<end_of_turn> {% endfilter %}"
    + END,
    "with": LOOP
    + "{% with role = message.role, text = message.content %}<|user|>{{ role }}{{ text }}"
    + "{% endwith %}"
    + END,
    "thoughts removed": LOOP
    + "{{ '<|Assistant|>' if message.role == 'assistant' else '<|User|>' }}"
    + "{%- if '</think>' in message.content and not loop.last -%}"
    + "{{ message.content.split('</think>')[-1].lstrip() }}"
    + "{%- else %}{{ message.content }}{% endif %}"
    + END,
    "thoughts found": LOOP
    + "{% set at = message.content.find('</think>') %}"
    + "{{ message.content[at + 8:] if at >= 0 else message.content }}<|end|>"
    + END,
    "dates": "{{ bos_token }}<|im_start|>{{ strftime_now('%Y-%m') }}|{{ strftime_now('%A') }}"
    + "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    "JSON": "{{ bos_token }}{{ messages | tojson }}<|end|>{{ tools | tojson(indent=4) }}<|end|>"
    + "{{ messages | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}"
    + "{{ messages | tojson(indent=0) }}",
    "Python's writing": "{{ bos_token }}{{ messages }}<|end|>{{ messages | string | length }}",
    "formats": LOOP
    + "{{ '<|im_start|>%s\n%-8s|' % (message.role, message.content[:4]) }}"
    + "{{ '{}{:>8}{x}'.format(loop.index, message.role, x='<|im_end|>') }}"
    + "{{ '%s<|end|>' | format(message.content) }}"
    + END,
    "lists of texts": LOOP
    + "{{ ['<|user|>', message.role, message.content] | join('\n') }}"
    + "{{ message.content.split('\n') | map('trim') | select | join('<|end|>') }}"
    + "{{ message.content.splitlines() | reverse | join(' ') }}"
    + END,
    "characters": LOOP
    + "{% for c in message.content %}{{ c }}{% endfor %}{{ message.content | list | join }}"
    + "{{ message.content[0] }}{{ message.content | first }}{{ message.content[-3:] }}<|end|>"
    + END,
    "cases": LOOP
    + "<|user|>{{ message.role | upper }}{{ message.role.title() }}{{ message.content | title }}"
    + "{{ message.content.capitalize() }}{{ message.content | upper }}"
    + END,
    "groups": "{{ bos_token }}{% for role, turns in messages | groupby('role') %}<|user|>{{ role }}"
    + "{% for m in turns %}{{ m.content }}{% endfor %}{% endfor %}"
    + "{% for role in messages | map(attribute='role') | unique | sort(reverse=true) %}"
    + "<|end|>{{ role }}{% endfor %}",
    "chosen": "{{ bos_token }}{% for m in messages if m.role != 'system' %}<|user|>{{ m.content }}"
    + "{% else %}none{% endfor %}{% for m in messages | rejectattr('role', 'eq', 'user') %}"
    + "{{ m.role }}<|end|>{% endfor %}{{ (messages | selectattr('role', 'in', ['user']) | list) | "
    + "length }}",
    "defaults": LOOP
    + "{{ message.name | default('in') }}{{ message.get('name', 'he') }}{{ missing }}"
    + "{{ message.content or 'none' }}{{ (message.nothing | default('', true)) ~ '<|end|>' }}"
    + END,
    "white space": "{{ bos_token }}\n  {% for m in messages %}\n    <|user|> {{ m.content }}  \n"
    + "  {%- if not loop.last %}\n\n {% endif +%}\n\t{# in #}\n  {% endfor %}\n\n",
    "escapes": LOOP
    + r"{{ '<|user|>\n\t\"' + message.content | replace('\n', '\\n') + '\x41\u00e9' }}"
    + "{{ (message.content | e)[:5] }}{{ message.content | safe }}"
    + END,
    "numbers": "{{ bos_token }}{{ (messages | length) // 2 }}{{ 7 % 3 }}{{ 2 ** 3 }}{{ 1 / 4 }}"
    + "{{ 3.0 | int }}{{ '12' | int + 1 }}{{ 2.567 | round(2) }}{{ range(1, 9, 3) | list }}"
    + "{{ [3, 1, 2] | sum }}{{ [3, 1] | max }}<|end|>",
    "nested loops": LOOP
    + "{% for word in message.content.split() %}{% for c in word %}"
    + "{{ loop.index if loop.last }}{% endfor %}{{ word }}{{ '<|end|>' if loop.last else ' ' }}"
    + "{% endfor %}"
    + END,
    "marks by name": "{{ bos_token }}{% macro all() %}{% for k, v in kwargs.items() %}"
    + "{{ '<|' ~ k ~ '|>' ~ v }}{% endfor %}{% endmacro %}{{ all(user='he', end='in') }}"
    + "{% set marks = dict(user='<|user|>', assistant='<|assistant|>', system='<|system|>') %}"
    + "{% for m in messages %}{{ marks[m.role] }}{{ m.content }}{% endfor %}"
    + "{% for k in marks %}{{ '<|' ~ k ~ '|>' }}{% endfor %}",
    "recursion": "{{ bos_token }}{% for k, v in tools[0].function.parameters.properties.items() "
    + "recursive %}<|user|>{{ k }}{{ loop.depth }}{% if v.properties %}"
    + "{{ loop(v.properties.items()) }}{% endif %}{% endfor %}",
}

# name: (source, messages, tools, further variables)
FIELD: dict[str, tuple[str, Messages, list[dict[str, Any]] | None, dict[str, Any]]] = {
    "Gemma": (GEMMA, TALK, None, {}),
    "Gemma with images": (GEMMA, PARTS, None, {}),
    "ChatML": (CHATML, TALK, None, {}),
    "Qwen": (QWEN, TALK, None, {}),
    "Qwen with tools": (QWEN, CALLS, TOOLS, {}),
    "Qwen without thoughts": (QWEN, TALK, TOOLS, {"enable_thinking": False}),
    "Llama": (LLAMA, TALK, None, {}),
    "Llama with tools": (LLAMA, CALLS, TOOLS, {"date_string": "3 in"}),
    "Mistral": (MISTRAL, TALK, None, {}),
    "Mistral with tools": (MISTRAL, CALLS, TOOLS, {}),
    "DeepSeek": (DEEPSEEK, TALK, None, {}),
    "DeepSeek with tools": (DEEPSEEK, CALLS, TOOLS, {}),
    "Phi": (PHI, TALK, None, {}),
    "Command": (COMMAND, TALK, None, {"documents": [{"title": "the", "text": "in\nhell"}]}),
    "Command with tools": (COMMAND, CALLS, TOOLS, {}),
    "macros for tools": (TOOL_MACROS, TALK, TOOLS, {}),
    **{name: (source, TALK, TOOLS, {}) for name, source in SMALL.items()},
}

CONTROLS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<|User|>",
    "<|Assistant|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<start_of_image>",
]
