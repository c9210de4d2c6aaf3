"""What a check of the data found, in three kinds of lines."""

from dataclasses import dataclass, field

from src.data.errors import listed


@dataclass
class Findings:
    """Lines for the user.

    Attributes:
        seen: what is there.
        notes: what a person should know and no training suffers from.
        problems: what would make a training wrong, each with the way out.
    """

    seen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def include(self, other: "Findings") -> None:
        """Add the lines of another check."""
        self.seen += other.seen
        self.notes += other.notes
        self.problems += other.problems


def merged(lines: list[str]) -> list[str]:
    """Return lines `WHERE: text` with those of equal text in one, which names all places."""
    places: dict[str, list[str]] = {}
    for line in lines:
        where, _, text = line.partition(": ")
        places.setdefault(text, []).append(where)
    return [f"{listed(found, 3)}: {text}" for text, found in places.items()]


def sample_places(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of `count` places, evenly spread, the same ones every time."""
    if count <= wanted:
        return list(range(count))
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]
