"""What goes into a page of bounded size: whole groups, from first, last and evenly spaced steps.

Invariant: a group is never cut. Its replies are read against each other, so all of them are in or none.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def pick_evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` items: the first, the last and evenly spaced ones between, in their order."""
    if most < 1:
        raise ValueError(f"most must be at least 1: got {most}")
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def take_within_budget(queues: Sequence[Sequence[T]], cost: Callable[[T], int], budget: int) -> list[T]:
    """Take the first item of every queue, then the second of every queue, ... as long as ``budget`` lasts.

    So every step is represented before any step is complete. What does not fit is passed over.
    """
    taken: list[T] = []
    for place in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if place < len(queue) and (price := cost(queue[place])) <= budget:
                taken.append(queue[place])
                budget -= price
    return taken
