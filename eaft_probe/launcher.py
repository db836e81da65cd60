"""Messages that several processes of one launch would print, printed once."""

import hashlib
import os
from datetime import timedelta

PATIENCE = timedelta(seconds=5)  # the launcher's store exists before its processes do


def first_to_say(message: str) -> bool:
    """Whether no other process of this launch has printed it yet; if unknown, yes."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = hashlib.sha256(message.encode()).hexdigest()
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=PATIENCE, wait_for_workers=False)
        return int(store.add(f"eaft-probe/{attempt}/{name}", 1)) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
