"""What was looked up, within bounds: a data set of any size has a bound in memory."""

from collections import OrderedDict
from typing import TypeVar

RECENT_DICT_SIZE = 1 << 16  # clips, as a rule: a name and a few numbers each

K = TypeVar("K")
V = TypeVar("V")


class RecentDict(OrderedDict[K, V]):
    """A dict of the last ``RECENT_DICT_SIZE`` keys that were put in; the oldest is dropped.

    Example:
        seconds: RecentDict[str, float] = RecentDict()
        if clip not in seconds:
            seconds[clip] = read_audio_header(clip).seconds
        return seconds[clip]
    """

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > RECENT_DICT_SIZE:
            self.popitem(last=False)
