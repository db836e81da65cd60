"""Real data sets under a real tokenizer, where the shared folder is at hand."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eaft_probe.data.formats import infer_format
from eaft_probe.data.rendering.render import Renderer
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
    done, reasons = 0, list[str]()
    for record in records:
        try:
            rendered = renderer(read(record.parse()))
        except RowError as error:
            reasons.append(str(error))
            continue
        done += 1
        spans = rendered.chars[rendered.trained].tolist()
        shown = "".join(rendered.text[i] for i in sorted({i for s in spans for i in range(*s)}))
        answers = (m.content for m in rendered.messages if m.role == "assistant")
        wanted = "".join(a + "</s>" for a in answers)
        assert "".join(shown.split()) == "".join(wanted.split())
    assert all(reasons)
    assert done > 0.9 * len(records)
