"""Templates run as transformers runs them, and each character's origin."""

import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import templates_made
from renderings_made import CHAT, TOOL, TOOL_CHAT, called, said, system, tool, user
from templates_public import Public, of_trl
from transformers.utils.chat_template_utils import render_jinja_template

from eaft_probe.data.formats import Message
from eaft_probe.data.rendering import bounded, chat_template
from eaft_probe.data.rendering.chat_template import (
    ChatTemplate,
    Rendering,
    read_template,
    reads_date,
)
from eaft_probe.data.rendering.traced import DERIVED, TEMPLATE
from eaft_probe.errors import BadInput, ModelError, RowError

TODAY = date(2024, 2, 29)
VALUES = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {n: t for n, t in vars(templates_made).items() if n.isupper() and isinstance(t, str)}
CHATS = {
    "plain": CHAT,
    "system": (system(" Be brief.\n"), *CHAT[:3]),
    "thoughts": (
        user("Hi"),
        said("A.", reasoning_content="one"),
        user("So?"),
        said("<think>\ntwo\n</think>\n\nB."),
    ),
    "tools": (*TOOL_CHAT, *CHAT),
    "two calls": (user("Weather?"), called("Look.", "Paris é", "Rome \"'<&>"), tool("a\\b\n")),
}


def rendered(source: str, *messages: Message, **how: Any) -> Rendering:
    return ChatTemplate(source, VALUES, TODAY).render(messages, how.pop("tools", None), **how)


def by_transformers(source: str, messages: Any, tools: Any, prompt: bool) -> str | None:
    conversation = [m.as_dict() for m in messages]
    for message in conversation:  # as transformers does from 5.23 on
        thought = message.get("reasoning_content")
        if thought is not None:
            message["thinking"] = thought
    try:
        return str(
            render_jinja_template(
                conversations=[conversation],
                tools=tools,
                chat_template=source,
                add_generation_prompt=prompt,
                **VALUES,
            )[0][0]
        )
    except Exception:
        return None


def same_text(source: str, messages: Any, tools: Any, prompt: bool) -> None:
    wanted = by_transformers(source, messages, tools, prompt)
    if wanted is None:
        with pytest.raises(RowError, match="refuses"):
            rendered(source, *messages, tools=tools, prompt=prompt)
        return
    made = rendered(source, *messages, tools=tools, prompt=prompt)
    assert made.text == wanted
    assert sum(p.length for p in made.pieces) == len(wanted)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", [n for n in TEMPLATES if n != "DATED"])
def test_the_text_is_what_transformers_gives(name: str, chat: str) -> None:
    for prompt in (False, True):
        for tools in (None, [TOOL]):
            same_text(TEMPLATES[name], CHATS[chat], tools, prompt)


@pytest.mark.parametrize("template", of_trl(), ids=lambda t: t.name)
def test_the_text_of_published_templates_is_what_transformers_gives(template: Public) -> None:
    if reads_date(template.source):
        pytest.skip(f"{template.name} writes the day's date")
    for chat in CHATS.values():
        same_text(template.source, chat, [TOOL], True)


# What a template may do to a text, here of the words "  Hello <b>wide</b> world\n".
EXPRESSIONS = [
    "m.content | trim",
    "m.content | upper",
    "m.content | title",
    "m.content | replace('l', 'L')",
    "m.content | replace('l', 'LL', 1)",
    "m.content | length",
    "m.content | tojson",
    "m | tojson",
    "m.content | tojson(indent=2)",
    "messages | tojson(indent=4)",
    "m.content | safe",
    "m.content | e",
    "('<i>' | safe) + m.content",
    "m.content + ('<i>' | safe)",
    "('<i>' | safe) ~ m.content",
    "m.content | escape | upper",
    "m.content | string",
    "m.content | list | join",
    "m.content.split() | join(', ')",
    "m.content | wordcount",
    "m.content.split(' ')[1]",
    "m.content[2:7]",
    "m.content[::-1]",
    "m.content[-3]",
    "m.content.strip().startswith('Hello')",
    "'wide' in m.content",
    "m.content.find('wide')",
    "m.content.upper().lower().title()",
    "m.content.replace('\\n', '')",
    "m.content ~ 1 ~ none",
    "m.content * 2",
    "'%s!' % m.content",
    "'%s!' | format(m.content)",
    "'{}!'.format(m.content)",
    "m.content.format()",
    "m.content | center(40)",
    "m.content | indent(2)",
    "m.content | truncate(9)",
    "m.content | wordwrap(6)",
    "m.content | striptags",
    "m.content | urlencode",
    "m.content | first",
    "m.content | last",
    "m.content | reverse",
    "m.content | default('x')",
    "m.nothing | default('x')",
    "m.nothing",
    "m.content | capitalize",
    "m.content.rstrip('\\n').rsplit(' ', 1)[0]",
    "m.content.partition('<b>')[2]",
    "messages | map(attribute='content') | join('|')",
    "messages | length",
    "[m.content] | tojson",
    "messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list",
    "{'b': m.content, 'a': 1} | dictsort",
    "{'b': m.content} | tojson",
    "{'b': m.content}.items() | list",
    "{m.role: m.content} | xmlattr",
    "m.content is string",
    "m.content is mapping",
    "m.role.upper()",
    "m.content.splitlines() | join('/')",
    "m.content == '  Hello'",
    "m.content > 'a'",
    "dict(a=m.content)['a']",
    "namespace(a=m.content).a",
    "m['content']",
    "m.get('content')",
    "m.get('x', m.content)",
    "m.content | batch(2) | list | length",
    "m.content | int",
    "m.content | groupby('x')",
    "range(3) | join",
    "loop.index ~ m.content",
    "m.content | unique | join",
    "m.content | map('upper') | join",
    "m.items() | list | length",
    "strftime_now.__name__",
    "m.content.__class__",
    "raise_exception(m.content)",
    "m.content.join(['a', 'b'])",
    "m.content | pprint",
    "m.content | filesizeformat",
    "m.content | tojson | safe",
    "m.content | slice(2) | list",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_a_template_does_to_a_text(expression: str) -> None:
    source = "{% for m in messages %}{{ " + expression + " }}{% endfor %}"
    same_text(source, [user("  Hello <b>wide</b> world\n"), said("é'\"&")], [TOOL], False)


STATEMENTS = [
    "{% set a = m.content %}{% set b = a + 'x' %}{{ b }}",
    "{% set a %}{{ m.content }}!{% endset %}{{ a | trim }}",
    "{% set a %}{{ m.content }}{% endset %}{{ '<i>' + a }}",
    "{% macro f(x, y=2) %}({{ x }}{{ y }}){% endmacro %}{{ f(m.content) | trim }}{{ f(m.role) }}",
    "{% macro f() %}{{ caller() }}!{% endmacro %}{% call f() %}{{ m.content }}{% endcall %}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% for c in m.content %}{{ c }}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for c in m.content if c != ' ' %}{{ loop.length }}{{ c }}{% else %}none{% endfor %}",
    "{% for k, v in m.items() %}{{ k }}={{ v }}{% endfor %}",
    "{% for a in [m.content] recursive %}{{ a }}{% endfor %}",
    "{% with x = m.content %}{{ x }}{% endwith %}",
    "{% if m.content %}{{ m.content }}{% elif m.role %}b{% else %}c{% endif %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{%- generation -%}  {{ m.content }}  {%- endgeneration -%}",
    "{% autoescape true %}{{ m.content }}{{ m.content + '<' }}{% endautoescape %}",
    "{% block x scoped %}{{ m.content }}{% endblock %}",
    "{% do x %}",
    "{% include 'x' %}",
    "{{ m.content",
    "  {% if true %}\n  {{ m.content }}\n  {% endif %}\n",
    "{# no #}{% raw %}{{ m }}{% endraw %}",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_a_template_does_with_statements(statement: str) -> None:
    source = "{% for m in messages %}" + statement + "{% endfor %}"
    same_text(source, [user("  Hello <b>wide</b> world\n"), said("é'\"&")], [TOOL], False)


# --- origins ---


def origins(made: Rendering) -> list[tuple[str, str | None]]:
    """Each piece as text, with the field it comes from; "~" before one that is made of it."""
    found, at = list[tuple[str, str | None]](), 0
    for piece in made.pieces:
        text, at = made.text[at : at + piece.length], at + piece.length
        if piece.source == TEMPLATE:
            found.append((text, None))
            continue
        source = made.sources[piece.source]
        derived = "~" * (piece.offset == DERIVED)
        if not derived:
            assert source.text[piece.offset : piece.offset + piece.length] == text
        found.append((text, f"{derived}{source.message}.{source.field}"))
    return found


@pytest.mark.parametrize(
    ("expression", "own"),
    [
        ("m.content", [" Hi you "]),
        ("m.content | trim", ["Hi you"]),
        ("m.content.split(' ')[1]", ["Hi"]),
        ("'<b>' + m.content[1:3] ~ '</b>'", ["Hi"]),
        ("m.content.split() | join('+')", ["Hi", "you"]),
        ("m.content | trim | tojson", ["Hi you"]),
        ("m.content | safe", [" Hi you "]),
        ("{'a': [m.content]} | tojson", [" Hi you "]),
    ],
)
def test_a_texts_origin_survives(expression: str, own: list[str]) -> None:
    made = rendered(
        "{% for m in messages %}[{{ " + expression + " }}]{% endfor %}", user(" Hi you ")
    )
    assert [text for text, origin in origins(made) if origin == "0.content"] == own
    assert origins(made)[0] == ("[", None)


def test_what_is_made_of_a_text_is_said_to_be() -> None:
    source = (
        "{% for m in messages %}{{ '%s!' % m.content }}{{ m.content | wordwrap(2) }}{% endfor %}"
    )
    made = rendered(source, user("Hi you"))
    assert [o for t, o in origins(made) if t] == ["~0.content", "~0.content"]


def test_calls_and_tools_have_origins() -> None:
    made = rendered(templates_made.QWEN25, *TOOL_CHAT, tools=[TOOL])
    known = dict.fromkeys(o for _, o in origins(made))
    assert list(known) == [None, "-2.tools", "0.content", "1.tool_calls", "2.content", "3.content"]
    own = [t for t, o in origins(made) if o == "1.tool_calls"]
    assert own == ["get_weather", "city", "Paris"]


def test_every_piece_says_which_message_was_being_shown() -> None:
    made = rendered("<s>" + templates_made.CHATML + "!", *CHAT[:2], prompt=False)
    shown = dict.fromkeys(p.loop for p in made.pieces if p.length)
    assert list(shown) == [TEMPLATE, 0, 1]
    assert made.pieces[-1].loop == TEMPLATE


def test_marks_are_known_by_position() -> None:
    made = rendered(templates_made.TWO_MARKS, user("Hi"), said("A.", reasoning_content="one"))
    at, marked = 0, list[str]()
    for piece in made.pieces:
        if piece.marked:
            marked.append(made.text[at : at + piece.length])
        at += piece.length
    assert "".join(marked) == "oneA.<|im_end|>"
    assert ChatTemplate(templates_made.TWO_MARKS).has_marks
    assert ChatTemplate("{%- generation %}{% endgeneration %}").has_marks
    assert not ChatTemplate("{# {% generation %} #}" + templates_made.CHATML).has_marks


def test_reasoning_goes_by_each_name_that_templates_read() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        made = rendered(source, said("A.", **{name: "one"}))
        assert made.text == "one|one"
        assert {made.sources[p.source].field for p in made.pieces if p.source != TEMPLATE} == {name}


def test_arguments_as_text() -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments }}"
    source += "{% endfor %}{% endfor %}"
    chat = [called("", "Zürich")]
    made = ChatTemplate(source).render(chat, calls_as_text=True)
    assert made.text == '{"city": "Zürich"}'
    assert made.sources[made.pieces[0].source].field == "tool_calls"


# --- the day, hanging, files ---


def test_the_day_is_the_one_that_is_given() -> None:
    assert rendered(templates_made.DATED, *CHAT).text.startswith("Today: 29 Feb 2024\n")
    assert reads_date(templates_made.DATED)
    assert not reads_date(templates_made.CHATML)


def test_a_template_that_hangs_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.05)
    monkeypatch.setattr(chat_template, "SLOW", 0.04)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if messages[0].content == 'hang' %}" + loops + "{% endif %}ok")
    for _ in range(2):
        with pytest.raises(RowError, match=r"ran longer than 0\.05 s"):
            template.render([user("hang")])
        assert template.render([user("Hi")]).text == "ok"
    monkeypatch.setattr(chat_template, "MOST_SLOW", 0.1)
    with pytest.raises(ModelError, match="too slow"):
        template.render([user("hang")])


GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
GROWN = [  # what it starts with, what each step makes of it
    ("'aa'", "ns.x ~ ns.x"),
    ("'aa'", "ns.x + ns.x"),
    ("[1]", "ns.x + ns.x"),
    ("[1]", "[ns.x, ns.x, ns.x]"),
    ("[1]", "{'a': ns.x, 'b': ns.x}"),
    ("2", "ns.x * ns.x"),
    ("'aa'", "ns.x.join([ns.x, ns.x])"),
]
BOMBS = [
    "10 ** (10 ** 8)",
    "'x' * 10 ** 10",
    "10 ** 10 * [1]",
    "'x'|center(10 ** 10)",
    "'x'.ljust(10 ** 10)",
    "'%1000000000d' % 1",
    "'%*d' % (1000000000, 1)",
    "'{:>1000000000}'.format('x')",
    "'{:{}}'.format('x', '1000000000')",
    "strftime_now('%1000000000d')",
    "5|round(-100000000)",
    "(5).to_bytes(10 ** 10, 'big')",
    "('\t' * 10 ** 6).expandtabs(10 ** 6)",
    "('a' * 10 ** 6).replace('a', 'b' * 10 ** 6)",
    "('a' * 10 ** 6).translate({97: 'b' * 10 ** 6})",
    "('a\n' * 10 ** 6)|indent(10 ** 6)",
    "range(99999)|join('a' * 10 ** 6)",
    "('{0}' * 10 ** 5).format('x' * 10 ** 6)",
    "{'a': [1]}|tojson(indent=10 ** 9)",
]
REFUSED = r"would (make|compute)|is given a|more than"


@pytest.mark.parametrize(
    "source",
    [
        *(f"{{{{ {b} }}}}" for b in BOMBS),
        *(GROW.replace("START", a).replace("STEP", b) for a, b in GROWN),
    ],
)
def test_a_step_that_makes_too_much_is_refused_before(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one step in C, or few: no clock strikes in it, and its memory is gone before."""
    monkeypatch.setattr(bounded, "MOST_MADE", 5_000_000)
    template, began = ChatTemplate(source), time.process_time()
    with pytest.raises(RowError, match=REFUSED):
        template.render([user("Hi")])
    with pytest.raises(RowError, match=REFUSED):
        template.text([user("Hi")])
    assert time.process_time() - began < 5


def test_what_a_template_may_make_grows_with_what_it_is_given() -> None:
    long = user("word " * 400_000)
    copies = ChatTemplate(
        "{% for i in range(90) %}{{ (messages[0].content ~ '.')|length }}{% endfor %}"
    )
    assert copies.text([long]) == "2000001" * 90


@pytest.mark.parametrize(
    "source", ["{{" + "(" * 50_000, "{% if x %}" * 500 + "{% endif %}" * 500, "x" * 300_000]
)
def test_a_template_too_deep_or_too_long_is_none(source: str) -> None:
    with pytest.raises(ModelError, match=r"RecursionError|SyntaxError|nested|characters"):
        _ = ChatTemplate(source).compiled


def test_a_template_that_refuses_says_why_in_one_line() -> None:
    with pytest.raises(RowError) as caught:
        rendered("{{ raise_exception('No\\nway') }}", *CHAT)
    assert str(caught.value).startswith("the chat template refuses this row: No")
    assert "\n" not in str(caught.value)


def test_half_a_character_in_a_template_rejects_the_row() -> None:
    with pytest.raises(RowError, match="refuses this row"):
        rendered("{{ '\\ud800' }}", *CHAT)


def test_a_file_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(templates_made.MARKED + "é", encoding="utf-8")
    assert read_template(str(file)) == templates_made.MARKED + "é"
    file.write_text("ok\n{% if %}", encoding="utf-8")
    with pytest.raises(BadInput, match="line 2"):
        read_template(str(file))
    with pytest.raises(BadInput, match="cannot read --chat-template"):
        read_template(str(tmp_path))
