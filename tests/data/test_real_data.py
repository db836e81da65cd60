"""Real data sets under a real tokenizer, where the shared folder is at hand."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eaft_probe.data.formats import infer_format
from eaft_probe.data.render import Renderer
from eaft_probe.data.sources import open_source
from eaft_probe.errors import RowError

SHARED = Path(os.environ.get("EAFT_PROBE_SHARED", Path(__file__).parents[3] / "shared"))
MODEL = SHARED / "models" / "stories260K"
pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="no shared folder")

DATA = {
    "gsm8k": ("gsm8k/*.jsonl", {}),
    "fastchat": ("fastchat/dummy_conversation.json", {}),
    "self_instruct": (
        "self_instruct/user_oriented_instructions.jsonl",
        {"question": "instruction", "answer": "motivation_app"},
    ),
    "wikitext": ("text/wikitext2_test.txt", {}),
}


@pytest.mark.parametrize("name", DATA)
def test_rows_are_rendered_or_rejected_with_a_reason(name: str) -> None:
    pattern, columns = DATA[name]
    renderer = Renderer(AutoTokenizer.from_pretrained(MODEL))
    records = [
        r
        for r, _ in zip(
            open_source(str(SHARED / "data" / pattern)).records(), range(100), strict=False
        )
    ]
    read = infer_format((r.parse() for r in records), columns)
    done = 0
    for record in records:
        try:
            rendered = renderer(read(record.parse()))
        except RowError as error:
            assert str(error)
            continue
        done += 1
        texts = [rendered.text[a:b] for a, b in rendered.chars[rendered.trained]]
        if rendered.text.isascii():
            answers = "".join(m.content for m in rendered.messages if m.role == "assistant")
            assert "".join("".join(texts).split()) >= "".join(answers.split())[:1]
    assert done > 0.9 * len(records)
