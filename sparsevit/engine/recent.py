"""A mapping that keeps what was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Up to `limit` values; the one unused for longest makes room. A copy starts empty: values belong to a device."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recent[Key, Value]:
        return Recent(self.limit)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self.limit,)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not there."""
        if key not in self._values:
            while len(self._values) >= self.limit:  # room first: values are large
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]

    def holds(self, value: object) -> bool:
        """Whether this very value is among them."""
        return any(each is value for each in self._values.values())

    def keep(self, wanted: Callable[[Value], bool]) -> None:
        """Forget the values that are not wanted."""
        self._values = OrderedDict((key, value) for key, value in self._values.items() if wanted(value))

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
