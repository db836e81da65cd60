"""Makes the built site independent of the network: python docs/offline_site.py site

The theme loads one script from the net on pages that are opened from a disk, a worker within a
frame, without which the search works as well. Exit status 1 if a page still loads something.
"""

import re
import sys
from pathlib import Path

LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?://[^"]+)"[^>]*>')
OF_THE_THEME = re.compile(r'\s*<script src="https://unpkg\.com/iframe-worker/shim"[^>]*></script>')


def main(site: Path) -> int:
    for script in site.glob("*.py"):  # the scripts that write pages lie in docs/ too
        script.unlink()
    status = 0
    for page in sorted(site.rglob("*.html")):
        text = OF_THE_THEME.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        for address in LOADED.findall(text):
            print(f"{page}: loads {address}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
