# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Large images, tile by tile, and how long the rest will take."""

from __future__ import annotations

__all__ = ("RemainingTime", "Window", "stream_windows")

import dataclasses
import gc
import math
import time
from collections import deque
from collections.abc import Callable

import torch

from ._memory import is_out_of_memory


@dataclasses.dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels.

    Attributes
    ----------
    y_start, y_stop, x_start, x_stop : `int`
        Rows and columns, without the stops.
    """

    y_start: int
    y_stop: int
    x_start: int
    x_stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.y_stop - self.y_start, self.x_stop - self.x_start

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    def padded(self, width: int) -> Window:
        """Return the window with ``width`` pixels more on each side."""
        return Window(self.y_start - width, self.y_stop + width, self.x_start - width, self.x_stop + width)

    def snapped(self, step: int) -> Window:
        """Return the smallest window that holds this one and starts at multiples of ``step``.

        Fine grids that are 3/2 or 5/2 times as dense as pixels, where native
        exposures are sampled, are the same for all windows that start at even
        pixels.
        """
        return dataclasses.replace(
            self, y_start=self.y_start // step * step, x_start=self.x_start // step * step
        )

    def within(self, other: Window) -> tuple[slice, slice]:
        """Return the slices of an array over ``other`` that hold this window."""
        return (
            slice(self.y_start - other.y_start, self.y_stop - other.y_start),
            slice(self.x_start - other.x_start, self.x_stop - other.x_start),
        )

    def split(self, tile_size: int) -> list[Window]:
        """Divide the window into nearly equal ones, row by row.

        Parameters
        ----------
        tile_size : `int`
            Largest side of a part.

        Returns
        -------
        parts : `list` [ `Window` ]
            Windows that cover this one without overlap.
        """
        rows, columns = (_edges(n, tile_size) for n in self.shape)
        return [
            Window(self.y_start + y0, self.y_start + y1, self.x_start + x0, self.x_start + x1)
            for y0, y1 in zip(rows[:-1], rows[1:], strict=True)
            for x0, x1 in zip(columns[:-1], columns[1:], strict=True)
        ]


def _edges(length: int, largest: int) -> list[int]:
    n = -(-length // largest)
    return [round(length * i / n) for i in range(n + 1)]


class RemainingTime:
    """Estimate of the time that is left, from the work that is done.

    Parameters
    ----------
    total : `float`
        All of the work, in any unit.
    clock : `~collections.abc.Callable`, optional
        Returns the time in seconds.
    """

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._started = clock()
        self._done = 0.0

    def add(self, amount: float) -> None:
        """Count work as done."""
        self._done += amount

    def seconds(self, begun: float = 0.0) -> float:
        """Return the seconds that are left, infinite before anything is done.

        Parameters
        ----------
        begun : `float`, optional
            Work that is done but was not added yet.
        """
        done = self._done + begun
        if done <= 0.0:
            return math.inf
        return (self._clock() - self._started) * max(0.0, self._total - done) / done

    def describe(self, begun: float = 0.0) -> str:
        """Return the part that is done and the time that is left, in words."""
        fraction = 100.0 * min(1.0, (self._done + begun) / self._total)
        left = self.seconds(begun)
        if not math.isfinite(left):
            return f"{fraction:.0f} %"
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        duration = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
        return f"{fraction:.0f} %, about {duration} left"


def stream_windows(
    area: Window,
    tile_size: int,
    work: Callable[[Window], None],
    *,
    smallest: int = 64,
    fits: Callable[[Window], bool] | None = None,
    on_shrink: Callable[[int, str], None] | None = None,
) -> int:
    """Work on a large area tile by tile, with smaller tiles where memory ends.

    Parameters
    ----------
    area : `Window`
        All of it.
    tile_size : `int`
        Largest side of a tile to begin with.
    work : `~collections.abc.Callable`
        Called with each tile. It must leave nothing behind when memory runs
        out, because the tile is then divided and its parts are worked on.
    smallest : `int`, optional
        A tile that is no larger is not divided; the error goes on.
    fits : `~collections.abc.Callable`, optional
        Says whether a tile is expected to fit in memory. One that is not is
        divided, and the others are left as they are.
    on_shrink : `~collections.abc.Callable`, optional
        Called with the new tile size and the error's message.

    Returns
    -------
    tile_size : `int`
        Largest side of the tiles in the end.

    Raises
    ------
    MemoryError, torch.OutOfMemoryError, RuntimeError
        The smallest tiles are too large as well.
    """
    waiting = deque(area.split(tile_size))
    while waiting:
        window = waiting.popleft()
        if fits is not None and max(window.shape) > smallest and not fits(window):
            waiting.extendleft(reversed(window.split(-(-max(window.shape) // 2))))
            continue
        message = _try(work, window, can_divide=max(window.shape) > smallest)
        if message is None:
            continue
        tile_size = max(smallest, -(-max(window.shape) // 2))
        waiting = deque(part for whole in (window, *waiting) for part in whole.split(tile_size))
        # What the failed attempt held must be free before the next one.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if on_shrink is not None:
            on_shrink(tile_size, message)
    return tile_size


def _try(work: Callable[[Window], None], window: Window, can_divide: bool) -> str | None:
    """Return the message if memory ran out; drop the error and its frames."""
    try:
        work(window)
    except (MemoryError, RuntimeError) as error:
        if not can_divide or not is_out_of_memory(error):
            raise
        return str(error) or type(error).__name__
    return None
