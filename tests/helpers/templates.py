"""Chat templates as models have them: the constructs of the common ones."""

TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "system": """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday: " + date_string + "\\n" + system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {{- message.tool_calls[0].function | tojson(indent=4) }}
    {%- endif %}
{%- endfor %}
""",
    "thinking": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + ('' if thought is undefined else '[' ~ thought ~ ']') }}
    {%- if loop.last or (not loop.last and loop.index0 > ns.last_query_index) %}{{- '<|im_end|>' }}{%- endif %}
    {{- '\\n' if not loop.last else eos_token }}
{%- endfor %}
""",
    "macros": """{%- macro part(message, first=true) -%}
{{ '<start>' if first }}{{ message.role | upper }}: {{ message['content'] | replace('\\n', ' ') | trim }}
{%- endmacro -%}
{{ bos_token }}{% set loop_messages = messages | selectattr('role', 'in', ['user', 'assistant']) | list %}
{% for message in loop_messages %}
{{ part(message, loop.first) }}{{ "," if not loop.last }} {{ loop.index }}/{{ loop.length }} {{ loop.revindex }}
{% if loop.index > 30 %}{% break %}{% endif %}
{% endfor %}
{% set ns = namespace(count=0, seen=[]) %}{% for message in messages %}{% if message.content %}
{% set ns.count = ns.count + 1 %}{% set ns.seen = ns.seen + [message.role] %}{% endif %}{% endfor %}
{{ ns.count }} {{ ns.seen | join('-') }} {{ messages | map(attribute='role') | unique | list | tojson }}
{% for key, value in {'a': 1, 'b': [1, 2.5, none, true]}.items() %}{{ key }}={{ value }};{% endfor %}
{% set text %}{% for i in range(3) %}{{ i * 2 }} {% endfor %}{% endset %}{{ text.strip() | indent(2) }}
""",
}
