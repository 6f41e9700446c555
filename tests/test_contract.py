"""The contract of the command line, checked from outside by the script that defines it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT.parent / "shared" / "check" / "contract.py"


@pytest.mark.timeout(600)
def test_the_contract_holds(models_dir: Path) -> None:
    if not CHECK.is_file():
        pytest.skip("the contract's check is not beside this repository (../shared/check/contract.py)")
    paddock = Path(sys.executable).with_name("paddock")
    command = [sys.executable, str(CHECK), str(paddock), "--models", str(models_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(
        [line for line in done.stdout.splitlines() if not line.startswith("ok ")] + [done.stderr[-2000:]]
    )
