"""How likely it is that a question can be answered from what was found: P(answerable), by logistic regression.

The parameters are data: calibration.json for the default models, and what `paddock eval calibrate` has learned for
others, one file for each identity of what the figures depend on (Platt, "Probabilistic Outputs for Support Vector
Machines", 1999; here on scores of retrieval). Without any for the embedder in use, what the words alone tell is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langchain_core.documents import Document

from app.errors import AppError

SHIPPED = Path(__file__).with_name("calibration.json")
CONSTANT = "constant"
# Of the passage that retrieval ranks first: the logarithm of the share of the question's idf whose terms stand in it;
# its cosine, times what the embedder can read of the question; that share itself; and HELD times that share, as a
# question whose meaning is known needs its words less.
HELD, MEANING, COVERED, HELD_COVERED = "held", "meaning", "covered", "held_covered"
SMALL = "small"  # how small the knowledge base is: in a large one, something always comes near
# Parameters of no embedder: they hold for every one.
OF_WORDS = (CONSTANT, HELD, SMALL)
FEATURES = (*OF_WORDS, MEANING, COVERED, HELD_COVERED)
COMMON = 0.1  # share of ordinary passages that hold a word; those above say nothing alone
NONE = 0.05  # added to the share, so that its logarithm exists
VERSION = 3  # a higher number when the features change: parameters of others mean nothing

Evidence = Mapping[str, float]
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Calibration:
    """Parameters by feature, the threshold that goes with them, and what they hold for.

    `holds_for` is the identity of embedder and terms; an embedder that is None stands for every one.
    """

    holds_for: Identity
    parameters: Mapping[str, float]
    threshold: float
    learned_on: Sequence[str] = ()

    def probability(self, evidence: Evidence) -> float:
        """P(answerable), in (0, 1)."""
        z = sum(value * evidence[name] for name, value in self.parameters.items())
        return 1 / (1 + math.exp(-max(min(z, 700.0), -700.0)))

    @property
    def digest(self) -> str:
        """What the probabilities depend on, in 16 characters."""
        parts = [dict(self.holds_for), dict(self.parameters), self.threshold]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def evidence_of(question: str, passages: Sequence[Document], coverage: Callable[[str], float]) -> Evidence | None:
    """What is seen of a question and its passages; None where they were given, not found.

    The passage that counts is the one of the highest relevance, in whatever order they were put afterwards.
    """
    scored = [each.metadata for each in passages if "relevance" in each.metadata]
    if not scored:
        return None
    best = max(scored, key=lambda data: float(data["relevance"]))
    # What was found by words alone is judged like a question that the embedder cannot read.
    covered = coverage(question) if "cosine" in best else 0.0
    held = math.log(float(best["held"]) + NONE)
    return {
        CONSTANT: 1.0,
        HELD: held,
        SMALL: float(best["ordinary"]),
        MEANING: covered * float(best.get("cosine", 0.0)),
        COVERED: covered,
        HELD_COVERED: covered * held,
    }


def _asks_about_something(question: str) -> bool:
    """Whether a question has a word that is not one of those which every other text has: "who are you" has none."""
    from vectorstore import analyze, background

    common = background.shares()
    return any(common.get(term, 0.0) < COMMON for term in analyze.terms(question))


class Confidence:
    """Judges questions by a calibration. `threshold` None takes the calibration's own."""

    def __init__(
        self, calibration: Calibration | None, coverage: Callable[[str], float], threshold: float | None = None
    ) -> None:
        self.calibration, self._coverage, self._threshold = calibration, coverage, threshold

    @property
    def threshold(self) -> float:
        """The least confidence that a question is answered with."""
        if self._threshold is not None or self.calibration is None:
            return self._threshold or 0.0
        return self.calibration.threshold

    @property
    def digest(self) -> str | None:
        """What it judges by; None for nothing."""
        return None if self.calibration is None else f"{self.calibration.digest}@{self.threshold}"

    def of(self, question: str, passages: Sequence[Document]) -> float | None:
        """P(answerable); 0 where nothing was found or asked about, and None where nothing is known about it."""
        if not passages:
            return 0.0
        evidence = None if self.calibration is None else evidence_of(question, passages, self._coverage)
        if evidence is None or self.calibration is None:
            return None
        return self.calibration.probability(evidence) if _asks_about_something(question) else 0.0

    def refuses(self, confidence: float | None) -> bool:
        """Whether a question of that confidence is refused."""
        return confidence is not None and confidence < self.threshold


# -- files -----------------------------------------------------------------------------------------------------------


def identity(embedder: str | None) -> Identity:
    """What a calibration depends on: the embedder, how texts become terms, and what is seen of both."""
    from vectorstore import analyze

    return {"embedder": embedder, "terms": analyze.VERSION, "features": VERSION}


def path_of(folder: Path, of: Identity) -> Path:
    """Where a user's calibration for this identity belongs."""
    digest = hashlib.sha256(json.dumps(dict(of), sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{digest}.json"


def find(folder: Path, of: Identity) -> tuple[Calibration | None, str]:
    """The calibration to judge by, and whose it is: 'yours', 'shipped', 'words' (that of no embedder), or 'none'.

    Raises AppError for a file of the user's that cannot be read.
    """
    own = path_of(folder, of)
    if own.exists():
        return _read(own)[0], "yours"
    shipped = _read(SHIPPED)
    if (found := next((each for each in shipped if each.holds_for == of), None)) is not None:
        return found, "shipped"
    found = next((each for each in shipped if each.holds_for == identity(None)), None)
    return found, "words" if found is not None else "none"


def _read(path: Path) -> list[Calibration]:
    try:
        found = [Calibration(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
        if not found or not all(map(_usable, found)):
            raise ValueError("no calibration")
        return found
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise AppError(f"{path} cannot be read; remove it, or run `paddock eval calibrate` again") from error


def _usable(each: Calibration) -> bool:
    numbers = [each.threshold, *each.parameters.values()]
    known = set(each.parameters) <= set(FEATURES)
    return known and all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)


def write(path: Path, calibrations: Sequence[Calibration]) -> None:
    """Replaces a file of calibrations in one step. Raises AppError when it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps([asdict(each) for each in calibrations], indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise AppError(f"{path} cannot be written ({error.strerror}); make room or give yourself permission") from error
