"""A type checker knows every setting of the public functions."""

from pathlib import Path

import mypy.api
import stub

PACKAGE = Path(__file__).parents[1] / "eaft_probe"
RIGHT = """\
from eaft_probe import Scan, compare, export, rollout, scan, train

made: Scan = scan("data.jsonl", "out", model="m", limit=3, turns="each")
compare(made, "b", delta=0.5)
export(made, "rows.jsonl", for_="tokens", masked=True)
"""
WRONG = {
    'scan("x", modle=3)': "modle",
    'scan("x", limit="many")': "limit",
    'train("x", objectiv=7)': "objectiv",
    'compare("a", "b", detla="x")': "detla",
    'rollout("x", n="three")': '"n"',
    'export("s", "o.jsonl", for_="token")': "for_",
}


def test_the_types_are_those_of_the_settings() -> None:
    written = (PACKAGE / "__init__.pyi").read_text()
    assert written == stub.stub(), "python tests/stub.py > eaft_probe/__init__.pyi"


def test_a_misspelt_setting_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(RIGHT + "\n".join(WRONG))
    out, _, status = mypy.api.run(["--strict", str(program)])
    assert status == 1
    errors = {int(line.split(":")[1]): line for line in out.splitlines() if ": error: " in line}
    first = len(RIGHT.splitlines()) + 1
    assert errors.keys() == set(range(first, first + len(WRONG))), out
    for number, said in enumerate(WRONG.values(), first):
        assert said in errors[number]
