"""What is trained under published templates, told by means that share nothing with the package.

Under a template with generation marks: what transformers finds between them. Under one whose twin
has marks: what they enclose, less what DESIGN 6 leaves out. Under every other, and again under
those with a twin: by words that occur only once, a conversation's prompt, and its end of turn.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from templates_public import Public, of_environment, of_trl
from transformers.utils.chat_template_utils import render_jinja_template

from eaft_probe.data.formats import RowFormat
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.errors import RowError

SHARED = Path(os.environ.get("EAFT_PROBE_SHARED", Path(__file__).parents[3] / "shared"))
CONVERSATIONS = SHARED / "cases" / "conversations" / "conversations.jsonl"
THOUGHT_NAMES = ("reasoning_content", "reasoning", "thinking")
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>|<\|channel>thought\s*<channel\|>")
NEEDLESS = 0.01  # the share of refusals that nothing forces

Span = tuple[int, int]
Row = dict[str, Any]


def rows() -> list[Row]:
    if not CONVERSATIONS.exists():
        pytest.skip(f"no conversations: {CONVERSATIONS} is absent; set EAFT_PROBE_SHARED")
    return [json.loads(line) for line in CONVERSATIONS.read_text(encoding="utf-8").splitlines()]


class Verdict(NamedTuple):
    """What a cell is: "right", "refused" with a reason that holds, "needless" or "wrong"."""

    kind: str
    why: str = ""


# --- renderings by transformers alone ---


@dataclass(frozen=True)
class Spelling:
    """One of the ways to hand a conversation to a template."""

    arguments_as_text: bool
    empty: str | None
    parts: bool
    developer: str

    def of(self, messages: Sequence[Row]) -> list[Row]:
        return [self._message(m) for m in json.loads(json.dumps(messages))]

    def _message(self, message: Row) -> Row:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        calls = [self._call(call) for call in message.get("tool_calls") or ()]
        if calls and not content.strip():
            content = self.empty
        elif self.parts:
            content = [{"type": "text", "text": content}]
        role = self.developer if message["role"] == "developer" else message["role"]
        dropped = ("train", "weight", "tool_calls")
        kept = {k: v for k, v in message.items() if k not in dropped}
        thought = next((message[n] for n in THOUGHT_NAMES if message.get(n)), None)
        if thought is not None:  # older transformers leave the other names to the caller
            kept |= {"thinking": thought, "reasoning_content": thought}
        return {
            **kept,
            "role": role,
            "content": content,
            **({"tool_calls": calls} if calls else {}),
        }

    def _call(self, call: Row) -> Row:
        function = dict(call["function"])
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if self.arguments_as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": arguments}}


def spellings(row: Row) -> Iterator[Spelling]:
    roles = [m["role"] for m in row["messages"]]
    calls = any(m.get("tool_calls") for m in row["messages"])
    developer = ["developer", "system"] if "developer" in roles else [""]
    either = [False, True] if calls else [False]
    empty = ["", None] if calls else [""]
    return itertools.starmap(
        lambda d, p, a, e: Spelling(a, e, p, d),
        itertools.product(developer, [False, True], either, empty),
    )


def rendered_by_transformers(
    source: str,
    messages: Sequence[Row],
    tools: Any,
    tokens: Row,
    prompt: bool = False,
) -> str | None:
    """The text; None where the template refuses."""
    try:
        (text,), _ = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=source,
            add_generation_prompt=prompt,
            **tokens,
        )
    except Exception:  # a template raises what it likes
        return None
    return text


def marks_by_transformers(source: str, messages: Any, tools: Any, tokens: Row) -> list[Span]:
    _, (spans,) = render_jinja_template(
        conversations=[list(messages)],
        tools=tools,
        chat_template=source,
        return_assistant_tokens_mask=True,
        **tokens,
    )
    return [(start, end) for start, end in spans]


# --- rows of which every word occurs once ---

WORD = re.compile(r"(<[^<>]*>)|[^\W\d_]{2,}")
NUMBERED = re.compile(r"[^\W\d_]+\d+q")
SPELT_OUT = {"assistant", "user", "system"}


def with_words_of_their_own(row: Row) -> Row:
    """The row with a number behind each word, but for tags and names of tools; a question begins
    with a word."""
    count = itertools.count()

    def numbered(text: str) -> str:
        return WORD.sub(
            lambda m: m[0] if m[1] or m[0] in SPELT_OUT else f"{m[0]}{next(count)}q", text
        )

    def value(key: str, item: Any) -> Any:
        if isinstance(item, str):
            return item if key in ("role", "id", "type", "tool_call_id", "name") else numbered(item)
        if isinstance(item, dict):
            return {k: value(k, v) for k, v in item.items()}
        return [value(key, i) for i in item] if isinstance(item, list) else item

    def message(given: Row) -> Row:
        asks = given["role"] == "user" and isinstance(given["content"], str)
        content = {"content": f"Ask {given['content'].lstrip()}"} if asks else {}
        return value("", {**given, **content})

    return {**row, "messages": [message(m) for m in row["messages"]]}


def words_of(message: Row) -> list[str]:
    """The numbered words of what a message says; the names of arguments are said, too."""
    said = {k: v for k, v in message.items() if k in ("content", "tool_calls", *THOUGHT_NAMES)}
    return list(dict.fromkeys(NUMBERED.findall(" ".join(texts_in(said)))))


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def trained_turns(row: Row) -> list[int]:
    said = [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"]
    return [i for i in said if row["messages"][i].get("train", True)]


# --- one template ---


@dataclass(frozen=True)
class Oracle:
    """What a template should train, and whether the package does."""

    template: Public

    @cached_property
    def tokens(self) -> Row:
        return dict(self.template.tokenizer.special_tokens_map)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.template.tokenizer)

    @cached_property
    def token(self) -> re.Pattern[str]:
        names = sorted(self.template.tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    def text(self, messages: Any, tools: Any = None, prompt: bool = False) -> str | None:
        return rendered_by_transformers(
            self.template.source, messages, tools, self.tokens, prompt=prompt
        )

    # --- the cell ---

    def verdict(self, row: Row) -> Verdict:
        try:
            rendered = self.renderer(RowFormat("messages")(row))
        except RowError as error:
            return self._refused(row, str(error))
        spelling = self._spelling(row, rendered.text)
        if spelling is None:
            return Verdict("wrong", "no spelling of the row has this text")
        wrong = self._against_marks(row, rendered, spelling)
        if not wrong and not self.template.has_marks:
            wrong = self._against_words(with_words_of_their_own(row))
        return Verdict("wrong", wrong) if wrong else Verdict("right")

    def _refused(self, row: Row, why: str) -> Verdict:
        """A refusal is forced where no spelling shows each message up to the last answer."""
        own = with_words_of_their_own(row)
        last = max(trained_turns(own))
        for spelling in spellings(own):
            text = self.text(spelling.of(own["messages"]), own.get("tools"))
            messages = [words_of(m) for m in own["messages"][: last + 1]]
            if text and all(any(w in text for w in words) for words in messages if words):
                return Verdict("needless", why)
        return Verdict("refused", why)

    def _spelling(self, row: Row, text: str) -> Spelling | None:
        """The way of handing over the row that gives the text, but for an end of turn put on."""
        for spelling in spellings(row):
            shown = self.text(spelling.of(row["messages"]), row.get("tools"))
            if shown is not None and text.startswith(shown):
                if self.token.sub("", text[len(shown) :]).strip():
                    return None
                return spelling
        return None

    # --- by marks ---

    def _against_marks(self, row: Row, rendered: Rendered, spelling: Spelling) -> str:
        source = self.template.source if self.template.has_marks else self.template.twin
        if source is None:
            return ""
        messages, tools = spelling.of(row["messages"]), row.get("tools")
        text = rendered_by_transformers(source, messages, tools, self.tokens)
        if text is None or not rendered.text.startswith(text):
            return ""  # the twin writes another text
        if not self.template.has_marks and text != self.text(messages, tools):
            return ""
        spans = self._trained(
            row, text, marks_by_transformers(source, messages, tools, self.tokens)
        )
        optional = set[int]()
        if not self.template.has_marks:
            spans = self._less_what_is_left_out(row, rendered.text, spans, messages)
            optional = {i for s in spans for i in self._what_follows(rendered.text, s)}
        return difference(rendered, spans, optional)

    def _trained(self, row: Row, text: str, spans: list[Span]) -> list[Span]:
        """Without the marks around turns that the row does not train."""
        for this, following in itertools.pairwise(row["messages"]):
            if this.get("train") is False:
                start = text.index(this["content"])
                past = text.index(following["content"], start)
                spans = [(a, b) for a, b in spans if not (a < past and b > start)]
        return spans

    def _less_what_is_left_out(
        self, row: Row, text: str, spans: list[Span], messages: Sequence[Row]
    ) -> list[Span]:
        asked = [messages[:turn] for turn in trained_turns(row)]
        headers = {self._header(a, row) for a in asked} - {""}
        prompts = {self.text(a, row.get("tools"), prompt=True) or "" for a in asked}
        found = list[Span]()
        for start, end in spans:
            start = self._behind_prompt(text, start, end, headers)
            whole = [len(p) for p in prompts if text.startswith(p) and start < len(p) < end]
            start = max([start, *whole])
            start = behind_empty_thought(text, start, end)
            tail = re.search(rf"(?:\s*(?:{self.token.pattern}))*\s*$", text[start:end])
            at = start + (tail.start() if tail else end - start)
            stop = self._first_closer(text, at, end)
            behind_stop = text[:start].rstrip().endswith(tuple(self.closers))
            if not behind_stop or re.search(r"\w", self.token.sub("", text[start:end])):
                found.append((start, stop or end))
        return found

    def _header(self, asked: Sequence[Row], row: Row) -> str:
        """What the template writes to have these messages answered."""
        closed, opened = (self.text(asked, row.get("tools"), p) for p in (False, True))
        if closed is None or opened is None or not opened.startswith(closed):
            asked = [{"role": "user", "content": "question"}]
            closed, opened = (self.text(asked, None, p) for p in (False, True))
        if closed is None or opened is None or not opened.startswith(closed):
            return ""
        return opened[len(closed) :]

    def _behind_prompt(self, text: str, start: int, end: int, headers: Iterable[str]) -> int:
        """Past a header that reaches into the span or begins with it."""
        ends = [start]
        for header in headers:
            bare = without_thought(header)
            first = start - len(header)
            at = text.find(bare, max(first, 0), end) if bare else -1
            if at < 0 or text[start:at].strip():
                continue
            opened = re.compile(r"\s*<think>").match(text, at + len(bare))
            opens = "<think>" in header and "</think>" not in header
            ends.append(opened.end() if opens and opened else at + len(bare))
        return max(ends)

    @cached_property
    def closers(self) -> set[str]:
        """What ends a turn: the end of text, or the last token that stands behind an answer both
        where a question follows and where none does."""
        eos = self.template.ends[1]
        asked, said = {"role": "user", "content": "q0q"}, {"role": "assistant", "content": "a1a"}
        turns = [asked, said, asked, {**said, "content": "a2a"}]
        for spelling in spellings({"messages": turns}):
            text = self.text(spelling.of(turns))
            if text and "a2a" in text:
                between = text[text.index("a1a") : text.rindex("q0q")]
                last = set(self.token.findall(text, text.index("a2a")))
                both = [t for t in self.token.findall(between) if t in last]
                return {eos} | set(() if eos in both else both[-1:])
        return {eos}

    def _first_closer(self, text: str, start: int, end: int) -> int | None:
        return next(
            (m.end() for m in self.token.finditer(text, start, end) if m[0] in self.closers), None
        )

    def _what_follows(self, text: str, span: Span) -> Sequence[int]:
        """The token behind a span that ends with no closer: there the model stops."""
        inside = text[slice(*span)].rstrip()
        if any(inside.endswith(c) for c in self.closers):
            return ()
        following = re.compile(rf"\s*(?:{self.token.pattern})").match(text, span[1])
        return range(span[1], following.end()) if following else ()

    # --- by words ---

    def _against_words(self, row: Row) -> str:
        rendered = self.renderer(RowFormat("messages")(row))
        spelling = self._spelling(row, rendered.text)
        if spelling is None:
            return "no spelling of the row in words of its own has this text"
        messages = spelling.of(row["messages"])
        words = [words_of(m) for m in row["messages"]]
        checks = [self._best_shown(row, rendered), self._whose_words(row, rendered, words)]
        for turn in trained_turns(row):
            mine = (rendered.turn == turn) & rendered.trained
            if mine.any():
                first, end = rendered.chars[mine, 0].min(), rendered.chars[mine, 1].max()
                header = self._header(messages[:turn], row)
                checks.append(self._start(turn, rendered.text, int(first), header, words))
                checks.append(self._end(turn, rendered.text, int(end), words))
        return "; ".join(filter(None, checks))

    def _best_shown(self, row: Row, rendered: Rendered) -> str:
        """No way of handing over the row shows more of it."""
        every = [w for m in row["messages"] for w in words_of(m)]
        if not row.get("tools"):
            return ""
        texts = [self.text(s.of(row["messages"]), row["tools"]) or "" for s in spellings(row)]
        best = max(sum(w in text for w in every) for text in texts)
        shown = sum(w in rendered.text for w in every)
        return f"shows {shown} words of {best}" if shown < best else ""

    def _whose_words(self, row: Row, rendered: Rendered, words: list[list[str]]) -> str:
        ours, text, turns = trained_chars(rendered), rendered.text, trained_turns(row)
        for index, said in enumerate(words):
            shown = [w for w in said if w in text]
            if said and not shown and index < max(turns):
                return f"nothing of message {index} is shown"
            for word in shown:
                found = [set(range(m.start(), m.end())) for m in re.finditer(word, text)]
                if index in turns and not any(chars <= ours for chars in found):
                    return f"{word} of turn {index} is not trained"
                if index not in turns and any(chars & ours for chars in found):
                    return f"{word} of message {index} is trained"
        return ""

    def _start(self, turn: int, text: str, first: int, header: str, words: Any) -> str:
        """Behind the generation prompt, which stands in front of what is trained."""
        bare = without_thought(header)
        thought = r"(?:\s*(?:<think>|<\|channel>thought))?(?:\s*(?:</think>|<channel\|>))?\s*$"
        own = min((text.index(w) for w in words[turn] if w in text), default=first)
        if first > own:
            return f"turn {turn} starts behind its first word"
        others = (
            m.end()
            for said in words[:turn] + words[turn + 1 :]
            for w in said
            for m in re.finditer(w, text[:own])
        )
        zone = max(others, default=0)
        if bare and bare in text[zone:own]:
            right = re.search(re.escape(bare) + thought, text[zone:first])
            past = text.rindex(bare, zone, own) + len(bare)
            blank = re.match(r"\s*", header[header.index(bare) + len(bare) :])[0]  # type: ignore[index]
            early = text.startswith(blank, past) and first < past + len(blank)
            if right and not early:
                return ""
            return f"turn {turn} starts behind {text[zone:first]!r}"
        if re.search(r"assistant|model|bot\b", text[first:own], re.I):
            return f"turn {turn} starts with {text[first:own]!r}"
        return ""

    def _end(self, turn: int, text: str, end: int, words: list[list[str]]) -> str:
        """At the first closer behind the last word, or at another token where there is none."""
        shown = [text.rindex(w) + len(w) for w in words[turn] if w in text]
        last = max(shown, default=end)
        later = (text.find(w, last) for said in words[turn + 1 :] for w in said)
        past = min((at for at in later if at >= 0), default=len(text))
        closer = self._first_closer(text, last, past)
        if closer is not None:
            return "" if closer == end else f"turn {turn} ends with {text[end - 30 : end]!r}"
        tokens = [m.end() for m in self.token.finditer(text, last, past)]
        if end in tokens or (not tokens and not re.search(r"[^\W\d]", text[last:end])):
            return ""
        return f"turn {turn} ends with {text[end - 30 : end]!r}, before {text[end : end + 30]!r}"


def without_thought(header: str) -> str:
    """A header without a thought that it opens, or opens and closes."""
    return re.sub(r"\s*(<think>\s*(</think>)?|</think>)\s*$", "", header).strip()


def behind_empty_thought(text: str, start: int, end: int) -> int:
    """Past a thought that the template puts in, or what is left of one."""
    found = re.compile(rf"\s*(?:{EMPTY_THOUGHT.pattern}|</think>)").match(text, start, end)
    return found.end() if found else start


def trained_chars(rendered: Rendered) -> set[int]:
    spans = rendered.chars[rendered.trained].tolist()
    return {i for start, end in spans for i in range(start, end)}


def difference(rendered: Rendered, wanted: Iterable[Span], optional: set[int]) -> str:
    """How what is trained differs from what should be, white space at either end aside."""
    text, ours = rendered.text, trained_chars(rendered)
    should = {i for start, end in wanted for i in range(start, end)}
    missing, extra = (core(text, a) - b for a, b in ((should, ours), (ours, should)))
    found = ("".join(text[i] for i in sorted(s)) for s in (missing, extra - optional))
    return "; ".join(f"{name} {t!r}" for name, t in zip(("missing", "extra"), found) if t)  # noqa: B905


def core(text: str, chars: set[int]) -> set[int]:
    """The characters without the white space at either end of each run."""
    kept = set[int]()
    for _, group in itertools.groupby(enumerate(sorted(chars)), lambda pair: pair[1] - pair[0]):
        run = [i for _, i in group]
        while run and text[run[-1]].isspace():
            run.pop()
        while run and text[run[0]].isspace():
            run.pop(0)
        kept |= set(run)
    return kept


# --- the table ---


@cache
def table(templates: tuple[Public, ...]) -> dict[tuple[str, str], Verdict]:
    """(template, conversation) → what the cell is."""
    oracles = [Oracle(t) for t in templates]
    return {(o.template.name, row["key"]): o.verdict(row) for o in oracles for row in rows()}


@pytest.mark.parametrize(
    ("find", "otherwise"),
    [(of_trl, "trl is not installed"), (of_environment, "EAFT_PROBE_TEMPLATES names no folder")],
)
def test_no_cell_is_wrong_and_hardly_any_refused_for_nothing(find: Any, otherwise: str) -> None:
    templates = tuple(find())
    if not templates:
        pytest.skip(f"no published templates: {otherwise}")
    cells = table(templates)
    wrong = {cell: v.why for cell, v in cells.items() if v.kind == "wrong"}
    assert not wrong, "\n".join(f"{cell}: {why}" for cell, why in wrong.items())
    kinds = Counter(v.kind for v in cells.values())
    needless = {cell: v.why for cell, v in cells.items() if v.kind == "needless"}
    assert kinds["needless"] < NEEDLESS * len(cells), needless
    assert kinds["right"] > len(cells) / 2
