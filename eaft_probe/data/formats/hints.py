"""What to do about columns that no format has, from the values in them."""

from collections.abc import Iterator, Mapping
from typing import Any

from eaft_probe.data.formats.columns import OTHER_NAMES
from eaft_probe.data.formats.format import FORMATS, Row
from eaft_probe.data.messages import CONTENT_KEYS, ROLE_KEYS, ROLES

REPLIES = ("replies", "children")


def hint(row: Row) -> str:
    """The flag that helps, if the values of a row show one."""
    found = (said for name, value in row.items() for said in _of_column(name, value))
    return next(found, None) or _of_texts(row)


def _of_column(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _of_struct(name, value)
    if not isinstance(value, list) or not value:
        return
    items = [item for item in value if isinstance(item, dict)]
    if all(isinstance(item, str) for item in value) and len(value) > 1:
        yield f"column {name!r} holds [text, text, …]: give --columns {_flag(messages=name)}"
    elif len(items) == len(value):
        yield from _of_objects(name, items)


def _of_objects(name: str, items: list[dict[str, Any]]) -> Iterator[str]:
    keys = list(items[0])
    shown = ", ".join(keys[:6])
    role = next((k for k in keys if _is_role(items, k)), None)
    texts = [k for k in keys if k != role and isinstance(items[0][k], str | list)]
    content = next((k for k in (*CONTENT_KEYS, *texts) if k in texts), None)
    if role and content:
        named = {} if role in ROLE_KEYS else {"role": role}
        named |= {} if content in CONTENT_KEYS else {"content": content}
        flag = _flag(messages=name, **named)
        yield f"column {name!r} holds [{{{shown}}}]: give --columns {flag}"
    elif any(all(c in keys for c in columns) for columns in _shapes()):
        yield f"column {name!r} holds rows, [{{{shown}}}]: write each as a row of its own"


def _is_role(items: list[dict[str, Any]], key: str) -> bool:
    return all(str(item.get(key)).lower() in ROLES for item in items)


def _shapes() -> Iterator[tuple[str, ...]]:
    yield from (f.columns for f in FORMATS.values())
    yield ("input", "target")
    yield ("input", "output")


def _of_struct(name: str, value: Mapping[str, Any]) -> Iterator[str]:
    if any(isinstance(value.get(key), list) for key in REPLIES):
        yield (
            f"column {name!r} holds a tree of replies: write each path through it as one row "
            f"with a column 'messages'"
        )
    for columns in _shapes():
        if all(c in value for c in columns):
            flag = _flag(**{c: f"{name}.{c}" for c in columns})
            yield f"column {name!r} holds {{{', '.join(value)}}}: give --columns {flag}"
            return
    for other in OTHER_NAMES["messages"]:
        if isinstance(value.get(other), list):
            flag = _flag(messages=f"{name}.{other}")
            yield f"column {name!r} holds {{{', '.join(value)}}}: give --columns {flag}"
            return


def _of_texts(row: Row) -> str:
    """The two longest texts are most likely a question and its answer."""
    texts = [name for name, value in row.items() if isinstance(value, str)]
    longest = sorted(texts, key=lambda name: -len(row[name]))[:2]
    asked, answered = sorted(longest, key=texts.index) if len(longest) == 2 else ("…", "…")
    return (
        f"say which hold the question and the answer, for example --columns "
        f"{_flag(question=asked, answer=answered)}, or see `eaft-probe list formats`"
    )


def _flag(**names: str) -> str:
    """What follows --columns, quoted where a shell would split it."""
    given = ",".join(f"{ours}={theirs}" for ours, theirs in names.items())
    return f"'{given}'" if any(c.isspace() for c in given) else given
