"""Chat templates in the manner of the well-known ones, shortened."""

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

MARKED = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}\
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\
{%- else %}{{ m.content + '<|im_end|>' }}{%- endif %}{{ '\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

DEFAULT_SYSTEM = (
    """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nHelpful.<|im_end|>\\n' }}\
{%- endif %}"""
    + CHATML
)

LLAMA3 = """\
{{ '<|begin_of_text|>' }}{%- for m in messages %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}\
{%- endfor %}{%- if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """\
{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}\
{{ '[INST] ' + m.content + ' [/INST]' }}\
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}\
{%- else %}{{ raise_exception('Only user and assistant roles!') }}{%- endif %}{%- endfor %}"""

LLAMA2 = """\
{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate') }}{%- endif %}{%- if m.role == 'user' %}\
{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}\
{%- else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}"""

GLM = """\
[gMASK]<sop>{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}"""

GEMMA = """\
{{ '<bos>' }}{%- if messages[0].role == 'system' %}\
{{ raise_exception('No system role') }}{%- endif %}\
{%- for m in messages %}{%- set role = 'model' if m.role == 'assistant' else m.role %}\
{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"""

# Drops the reasoning of earlier answers, writes that of the last anew, an empty one for none.
QWEN3 = """\
{%- for m in messages %}{%- set content = m.content %}{%- set thought = '' %}\
{%- if m.role == 'assistant' and '</think>' in content %}\
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}\
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}\
{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' and loop.last %}\
{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') }}\
{%- else %}{{ content }}{%- endif %}{{ '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN25 = """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools' }}{%- for t in tools %}{{ '\\n' + t | tojson }}\
{%- endfor %}{{ '<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}\
{%- if m.role == 'tool' %}\
{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}\
{%- elif m.tool_calls %}{{ '<|im_start|>assistant' }}{%- if m.content %}{{ '\\n' + m.content }}\
{%- endif %}{%- for c in m.tool_calls %}\
{{ '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}\
{{ c.function.arguments | tojson + '}\\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\\n' }}\
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}\
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

# Ids are nine characters, and a result must answer the call before it.
MISTRAL_TOOLS = """\
{{ bos_token }}{%- set ns = namespace(calls=none) %}{%- for m in messages %}\
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{%- set ns.calls = none %}\
{%- elif m.role == 'assistant' and m.tool_calls %}{%- set ns.calls = m.tool_calls %}\
{{ '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}{%- if c.id | length != 9 %}\
{{ raise_exception('Tool call IDs should be 9 characters') }}{%- endif %}\
{{ c.function | tojson }}{%- if not loop.last %}{{ ', ' }}{%- endif %}{%- endfor %}\
{{ ']' + eos_token }}{%- elif m.role == 'tool' %}\
{%- if not ns.calls or m.tool_call_id != ns.calls[0].id %}\
{{ raise_exception('A tool result must follow its call') }}{%- endif %}\
{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}\
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"""

# Only the last two turns are shown.
FORGETFUL = """\
{%- for m in messages[-2:] %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\
{%- endfor %}"""
