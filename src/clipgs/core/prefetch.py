"""Items read ahead of their use, by threads."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Yields `read(item)` of each item in order, read ahead by threads; knows how long it was waited for."""

    def __init__(self, read: Callable[[int], T], items: Iterable[int], threads: int) -> None:
        self._read, self._items, self._threads = read, iter(items), threads
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        try:
            ahead = deque(pool.submit(self._read, item) for item in islice(self._items, self._threads + 1))
            while ahead:
                start = time.perf_counter()
                found = ahead.popleft().result()
                self.waited_seconds += time.perf_counter() - start
                ahead.extend(pool.submit(self._read, item) for item in islice(self._items, 1))
                yield found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
