"""Makes the built site independent of the network: python docs/offline_site.py site

For pages that are opened from a disk the theme loads a script from the net, which lets the search
work without a worker; `offline_worker.js` takes its place. Exit status 1 if a page still loads
something.
"""

import re
import sys
from pathlib import Path

LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?://[^"]+)"')
OF_THE_THEME = "https://unpkg.com/iframe-worker/shim"


def main(site: Path) -> int:
    for script in site.glob("*.py"):  # the scripts that write pages lie in docs/ too
        script.unlink()
    status = 0
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8").replace(OF_THE_THEME, "offline_worker.js")
        page.write_text(text, encoding="utf-8")
        for address in LOADED.findall(text):
            print(f"{page}: loads {address}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
