"""Draws the losses of training runs, one behind the other: `python scripts/plot_curves.py OUT.svg RUN...`

RUN is the folder of a run, `$PADDOCK_HOME/runs/NAME`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import altair

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from finetune.log import read_log  # noqa: E402

KINDS = {"loss": "training", "val_loss": "validation"}


def points(folders: list[Path]) -> list[dict[str, Any]]:
    """Training losses, each the mean of ten steps, and validation losses, by million tokens since the first run."""
    found: list[dict[str, Any]] = []
    before = 0
    for folder in folders:
        seen, recent = 0, list[float]()
        for row in read_log(folder):
            seen += row.get("tokens", 0)
            for key, kind in KINDS.items():
                if key not in row:
                    continue
                recent = [*recent[-9:], row[key]] if key == "loss" else recent
                value = sum(recent) / len(recent) if key == "loss" else row[key]
                found.append({"tokens": (before + seen) / 1e6, "loss": value, "kind": kind, "run": folder.name})
        before += seen
    return found


def main(out: Path, folders: list[Path]) -> None:
    chart = (
        altair.Chart(altair.Data(values=points(folders)), width=640, height=240)
        .mark_line(point={"size": 12})
        .encode(
            x=altair.X("tokens:Q", title="million tokens"),
            y=altair.Y("loss:Q", title="loss, nats a token", scale=altair.Scale(zero=False)),
            color=altair.Color("kind:N", title=None),
            detail="run:N",
        )
    )
    chart.save(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
