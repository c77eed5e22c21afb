"""The half of a context manager that everything with a `close` shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """`with` gives the object itself and closes it at the end, whatever happened."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what the object holds. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
