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

# Thoughts in a field or in the content; dropped before the last question; an empty one of its own.
THOUGHTS = """\
{%- set last = namespace(asked=0) %}{%- for m in messages %}{%- if m.role == 'user' %}\
{%- set last.asked = loop.index0 %}{%- endif %}{%- endfor %}\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}\
{%- set said, thought = m.content or '', m.reasoning_content or '' %}\
{%- if '</think>' in said %}{%- set thought = said.split('</think>')[0].split('<think>')[-1] %}\
{%- set said = said.split('</think>')[-1].lstrip() %}{%- endif %}\
{%- if loop.index0 > last.asked %}\
{{ '<think>\\n' + thought | trim + '\\n</think>\\n\\n' }}{%- endif %}{{ said }}\
{%- for c in m.tool_calls or [] %}\
{{ '<tool_call>' + c.function | tojson + '</tool_call>' }}{%- endfor %}\
{%- else %}{{ m.content }}{%- endif %}{{ '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

# The same, where the prompt opens the thought.
OPENS_THOUGHT = THOUGHTS.replace(
    "'<|im_start|>assistant\\n' }}{%- endif %}",
    "'<|im_start|>assistant\\n<think>\\n' }}{%- endif %}",
)

# A thought behind a marker of its own, none where there is none; an empty one in the prompt.
CHANNELS = """\
{{ bos_token }}{%- for m in messages %}{{ '<|turn>' + m.role + '\\n' }}\
{%- set thought = m.reasoning or m.reasoning_content %}\
{%- if thought %}{{ '<|channel>thought\\n' + thought + '<channel|>' }}{%- endif %}\
{{ m.content + '<turn|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|turn>assistant\\n<|channel>thought\\n<channel|>' }}\
{%- endif %}"""

# What a prompt opened and closed is left behind in the answer.
LEFT_BEHIND = """\
{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|user|>' + m.content }}\
{%- else %}{{ '<|assistant|></think>' + m.content + '</s>' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|><think>' }}{%- endif %}"""

# A header that ends in a space, as text.
SPOKEN = """\
{{ bos_token }}{%- for m in messages %}\
{{ ('ASSISTANT: ' if m.role == 'assistant' else 'USER: ') + m.content }}\
{{ eos_token if m.role == 'assistant' else ' ' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{%- endif %}"""

# Two tokens close an answer, another pair opens it.
TWO_CLOSERS = """\
{%- for m in messages %}{{ '<|START|><|' + m.role + '|>' }}{%- if m.role == 'assistant' %}\
{{ '<|SAY|>' + m.content + '<|SAID|>' }}{%- else %}{{ m.content }}{%- endif %}{{ '<|END|>' }}\
{%- endfor %}{%- if add_generation_prompt %}{{ '<|START|><|assistant|>' }}{%- endif %}"""

# Behind the last answer, and no other, the end of text.
ENDS_TEXT = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}\
{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"""

# The end of text closes the last answer, another token those before; calls have their own.
CALL_CLOSER = """\
{%- for m in messages %}{{ '<|start|>' + m.role }}{%- if m.tool_calls %}\
{%- for c in m.tool_calls %}{{ ' to=' + c.function.name + '<|message|>' }}\
{{ c.function.arguments | tojson + '<|call|>' }}{%- endfor %}{%- else %}\
{{ '<|message|>' + m.content }}\
{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{%- endif %}"""

# Next to the role tokens nothing ends a turn; a result has a role token of its own.
NEXT_ROLE = """\
[GO]{%- for m in messages %}{%- if m.role == 'tool' %}{{ '<|observation|>\\n' + m.content }}\
{%- else %}{{ '<|' + m.role + '|>\\n' + m.content }}{%- for c in m.tool_calls or [] %}\
{{ '<tool_call>' + c.function.name + c.function.arguments | tojson + '</tool_call>' }}\
{%- endfor %}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}"""

# Results stand within the turn that asked for them, which goes on behind them.
WITHIN = """\
{%- macro result(m) %}{{ '<|tool_response>' + m.name + ': ' + m.content + '<tool_response|>' }}\
{%- endmacro %}{%- for m in messages %}{%- if m.role != 'tool' %}\
{%- if not (m.role == 'assistant' and loop.previtem and loop.previtem.role == 'tool') %}\
{{ '<|turn>' + m.role + '\\n' }}{%- endif %}{{ m.content }}\
{%- for c in m.tool_calls or [] %}\
{{ '<|tool_call>' + c.function.name + c.function.arguments | tojson + '<tool_call|>' }}\
{%- endfor %}{%- set following = messages[loop.index] if not loop.last else none %}\
{%- if m.tool_calls and following and following.role == 'tool' %}{{ result(following) }}\
{%- else %}{{ '<turn|>\\n' }}{%- endif %}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|turn>assistant\\n' }}\
{%- endif %}"""

# --- generation marks in unusual places ---

TWO_MARKS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}\
{% generation %}{{ m.reasoning_content }}{% endgeneration %}{{ '=>' }}\
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\
{%- else %}{{ m.content + '<|im_end|>' }}{%- endif %}{{ '\\n' }}{%- endfor %}"""

MARKS_LAST = MARKED.replace("== 'assistant' %}{% g", "== 'assistant' and loop.last %}{% g")

MARK_OUTSIDE = """\
{%- for m in messages[:-1] %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\
{%- endfor %}{{ '<|im_start|>assistant\\n' }}\
{% generation %}{{ messages[-1].content + '<|im_end|>' }}{% endgeneration %}"""

MARKED_HEADER = """\
{%- for m in messages %}{%- if m.role == 'assistant' %}{% generation %}\
{{ '<|im_start|>assistant\\n' + m.content + '<|im_end|>' }}{% endgeneration %}\
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{%- endif %}\
{%- endfor %}"""

# --- what templates take ---

# Arguments as JSON text alone: it puts strings together.
TEXT_ARGUMENTS = QWEN25.replace("c.function.arguments | tojson + '}", "c.function.arguments + '}")
# Calls alone where there is no content at all.
CALLS_FOR_NONE = QWEN25.replace("m.tool_calls %}", "m.tool_calls and m.content is none %}", 1)
# Contents as lists of parts alone.
PARTS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- for p in m.content %}\
{{ p.text }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"""
# Two roles that take turns, and no other.
ALTERNATING = LLAMA2
# Knows a system, a user and an assistant, and passes over everything else.
THREE_ROLES = """\
{%- for m in messages %}{%- if m.role in ('system', 'user', 'assistant') %}\
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}" + CHATML
MOODY = "{%- if mood is defined %}{{ 'Be ' + mood + '.\\n' }}{%- endif %}" + CHATML
