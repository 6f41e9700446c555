"""Whether an index survived the death of its writer. Looked at in a process of its own: a torn one may crash it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS = 600


def is_sound(folder: Path, kb: str) -> bool:
    """Whether every chunk of the knowledge base has its vector, and a search finds what it should."""
    if not any(folder.glob("*/index_metadata.pickle")):
        return True  # no vectors but those in the database yet, which SQLite keeps whole
    command = [sys.executable, "-m", "vectorstore.check", str(folder), kb]
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main(folder: str, kb: str) -> int:
    """0 if the collection can be read in full."""
    from vectorstore.store import has_all_vectors, open_client

    return 0 if has_all_vectors(open_client(Path(folder)), kb) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
