"""Makes the built site independent of the network, and keeps its options in one piece: python
docs/offline_site.py site

For pages that are opened from a disk the theme loads a script from the net, which lets the search
work without a worker; `offline_worker.js` takes its place. Exit status 1 if a page still loads
something. A browser breaks a line behind each hyphen, also between those of `--limit`.
"""

import re
import sys
from pathlib import Path

LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?://[^"]+)"')
CODE = re.compile(r"<code\b[^>]*>.*?</code>", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OF_THE_THEME = "https://unpkg.com/iframe-worker/shim"


def main(site: Path) -> int:
    for script in site.glob("*.py"):  # the scripts that write pages lie in docs/ too
        script.unlink()
    status = 0
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8").replace(OF_THE_THEME, "offline_worker.js")
        text = CODE.sub(
            lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), text
        )
        page.write_text(text, encoding="utf-8")
        for address in LOADED.findall(text):
            print(f"{page}: loads {address}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
