"""What a check of an image may find: words for a person, and what helps."""

from dataclasses import dataclass
from enum import Enum


class Remedy(Enum):
    """What to do about it."""

    REPAIR = "repair"  # it can be put right without guessing about data
    COMPACT = "compact"  # nothing is wrong; space is not in use
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is odd about an image."""

    text: str
    remedy: Remedy
