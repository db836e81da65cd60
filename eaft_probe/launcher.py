"""What several processes of one launch would say, said once."""

import hashlib
import os
from datetime import timedelta

PATIENCE = timedelta(seconds=5)  # for a store that the launcher keeps, which is there at once


def first_to_say(message: str) -> bool:
    """Whether no other process of this launch has said it yet; where nobody can tell, yes."""
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
