"""The columns of a row by the names that formats know, and those that belong to its prompt."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from eaft_probe.data.formats.format import Example, Row
from eaft_probe.data.messages import checked, encodable, from_json
from eaft_probe.errors import RowError

Names = Mapping[str, str]  # a format's name of a column → the data's, with dots into structs

KWARGS = "chat_template_kwargs"  # what TRL gives the template of a row
MOST_KWARGS = 10_000  # characters; some of them are kept, see `Renderer.locator`
# Other names of the columns that formats need, tried in this order where theirs is not there.
QUESTIONS = ("instruction", "question", "query", "prompt", "problem", "input")
OTHER_NAMES = {
    "messages": ("conversation", "dialog", "dialogue", "contents", "chat_messages"),
    "question": QUESTIONS,
    "answer": (
        *("response", "output", "solution", "completion", "target"),
        *("best_answer", "long_answer", "answers"),
    ),
}
# Columns that belong to what is asked or answered, with their other names: a format reads them, or
# they are named in the summary, or the row is rejected.
PROMPT_COLUMNS: dict[str, tuple[str, ...]] = {
    "system": ("system_prompt", "system_message", "system_instruction", "systeminstruction"),
    "tools": (),
    "functions": (),  # as OpenAI once named the tools
    "history": (),
    "input": (),
    "query": (),
    "context": ("contexts",),
    "choices": ("options",),
    "thinking": ("thinking_trajectories",),
    **dict.fromkeys(("reasoning", "reasoning_content", "cot", "complex_cot", "rationale"), ()),
    **dict.fromkeys(("instruction", "question", "prompt", "problem"), ()),
    **dict.fromkeys(("answer", "answers", "response", "output", "solution", "completion"), ()),
    "final_decision": (),
    **dict.fromkeys(("chosen", "rejected", "rejected_response"), ()),
    "label": ("kto_tag",),  # of KTO: rows of false are no targets
    "parent_id": (),  # the row answers another one
    KWARGS: (),
}
GIVEN = ("messages", "tools", "documents", "chat_template", "add_generation_prompt")
LABELS = ("role", "from", "type")  # fields of a message or a part that say what it is
_LETTER = re.compile(r"\w", re.ASCII)  # Chinese has no spaces
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


class Known(NamedTuple):
    """What the columns of a row are to a format."""

    renamed: Names  # the data's name → the format's, of columns that it knows by another
    belonging: tuple[str, ...]  # those of PROMPT_COLUMNS besides its own, by the format's names
    media: tuple[str, ...]


@lru_cache(1024)  # the rows of a data set have few sets of columns
def known_columns(names: tuple[str, ...], columns: tuple[str, ...]) -> Known:
    """What the columns `names` are to a format that needs `columns`. Case, hyphens and spaces do
    not matter, where no column has the very name."""
    plain = {_plain(name): name for name in reversed(names)}
    wanted = {c: OTHER_NAMES.get(c, ()) for c in columns} | {
        c: others for c, others in PROMPT_COLUMNS.items() if c not in columns
    }
    renamed = dict[str, str]()
    for ours, others in wanted.items():
        theirs = (plain[n] for n in (ours, *others) if n in plain)
        free = next((n for n in theirs if n not in (*columns, *renamed)), None)
        if ours not in names and free is not None:
            renamed[free] = ours
    known = {renamed.get(name, name) for name in names}
    belonging = tuple(c for c in PROMPT_COLUMNS if c in known and c not in columns)
    return Known(renamed, belonging, tuple(name for name in names if _plain(name) in MEDIA))


def _plain(name: str) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def mapped(row: Row, columns: Names) -> Row:
    """The row with the columns that a user maps under the format's names alone."""
    if not columns:
        return row
    values = {ours: reached(row, theirs) for ours, theirs in columns.items()}
    found = {ours: value[0] for ours, value in values.items() if value}
    return {k: v for k, v in row.items() if k not in columns.values()} | found


def reached(row: Row, name: str) -> tuple[object, ...]:
    """The value of a column, or of a field of one: "a.b" reaches into a struct; () for none."""
    if name in row:
        return (row[name],)
    outer, dot, inner = name.partition(".")
    return reached(row[outer], inner) if dot and isinstance(row.get(outer), Mapping) else ()


def require_text_only(row: Row, media: Iterable[str]) -> None:
    """Raises `RowError` for a row that shows more than text."""
    for name in media:
        if not is_empty(row[name]):
            raise RowError(
                f"the row has something in column {name!r}, and only text can be scored; remove "
                f"the column to score the text alone"
            )


def not_read(row: Row, example: Example, names: Iterable[str]) -> Iterator[str]:
    """Those of the row's columns `names`, which belong to its prompt or its answer, that show in
    no message."""
    texts = [text for m in example.messages for text in (m.content, *m.extra.values())]
    shown = "\n".join(text for text in texts if isinstance(text, str))
    for name in names:
        value = row[name]
        is_read = (name == "label" and value is True) or (
            name in ("tools", "functions") and bool(example.tools)
        )
        is_read |= name == KWARGS and not example.plain
        is_verdict = name == "final_decision" or (
            name == "label" and isinstance(value, int | float) and len(example.messages) > 1
        )
        if not (is_read or is_empty(value) or (_is_shown(value, shown) and not is_verdict)):
            yield name


def template_arg(row: Row) -> Mapping[str, object]:
    """The values that a row has for the chat template. Raises `RowError`."""
    value = from_json(row.get(KWARGS), KWARGS)
    if not value:
        return {}
    values = encodable(checked(value, dict, KWARGS), KWARGS)
    if taken := next((name for name in GIVEN if name in values), None):
        raise RowError(f"{KWARGS} cannot set {taken!r}, which the row or a flag says")
    if len(json.dumps(values, default=str)) > MOST_KWARGS:
        raise RowError(f"{KWARGS} has more than {MOST_KWARGS:,} characters")
    return values


def is_empty(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (isinstance(value, list | dict) and not value)


def _is_shown(value: object, text: str) -> bool:
    """Whether all that a value says stands in the text. Numbers say nothing, true and false do."""
    if isinstance(value, str):
        parsed = parsed_structure(value)
        return _stands_in(value.strip(), text) if parsed is None else _is_shown(parsed, text)
    if isinstance(value, Mapping):
        value = value.get("contexts", [v for k, v in value.items() if k not in LABELS])
    if isinstance(value, list | tuple):
        return all(_is_shown(v, text) for v in value)
    return not isinstance(value, bool)


def _stands_in(words: str, text: str) -> bool:
    """As words of their own: "no" does not stand in "notable". Not as a pattern of the words: to
    compile one took 3 ms for each row with a context of a page."""
    at = text.find(words)
    while at >= 0:
        if not (_LETTER.match(text[at - 1 : at]) or _LETTER.match(text, at + len(words))):
            return True
        at = text.find(words, at + 1)
    return False


def parsed_structure(value: str) -> object:
    """The list or the object that a text is the JSON of; None for other text."""
    if value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return None
