# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""How many processes use a device at a time."""

from __future__ import annotations

__all__ = ("choose_device", "find_devices", "hold_device", "name_device")

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch


def choose_device(device: str | torch.device) -> str | torch.device:
    """Return ``cuda`` for ``auto`` where torch finds such a device, and else ``cpu``.

    Any other device is returned as it is.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def find_devices(kind: str) -> list[str]:
    """Return the devices of a kind that this process sees.

    Parameters
    ----------
    kind : `str`
        ``cpu``, ``cuda`` or another type of `torch.device`.

    Returns
    -------
    devices : `list` [`str`]
        Such as ``cuda:0`` and ``cuda:1``; only ``kind`` itself where torch
        does not number its devices.
    """
    if kind == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [kind]


def name_device(device: str) -> str:
    """Return a name that is the same in all processes of a machine.

    Parameters
    ----------
    device : `str`
        Such as ``cuda:0``. Which one that is depends on
        ``CUDA_VISIBLE_DEVICES``, and so the name is made of its UUID.

    Returns
    -------
    name : `str`
        A name that can be that of a file.
    """
    if not device.startswith("cuda"):
        return device.replace(":", "-")
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


@contextmanager
def hold_device(
    devices: Sequence[str],
    n_holders: int,
    *,
    directory: str | os.PathLike[str] | None = None,
    on_wait: Callable[[float], None] | None = None,
    interval: float = 0.5,
) -> Iterator[str]:
    """Use a device together with at most so many other processes, or wait.

    Parameters
    ----------
    devices : `~collections.abc.Sequence` [`str`]
        Devices to choose from; see `find_devices`. The first that is free is
        taken, and one that is in use only when all are.
    n_holders : `int`
        Processes that may use one device at a time; 0 means any number, and
        the first device.
    directory : path-like, optional
        Where the lock files are. It must be on a disk of this machine, and
        the same for all processes; by default the system's temporary
        directory.
    on_wait : `~collections.abc.Callable`, optional
        Called with the seconds waited so far, each time that no device is
        free.
    interval : `float`, optional
        Seconds between looks.

    Yields
    ------
    device : `str`
        One of ``devices``. It is free again when the context ends, and the
        memory that torch keeps for later on it is given back.

    Raises
    ------
    ValueError
        If there is no device.
    OSError
        If a lock file can be neither opened nor made.

    Notes
    -----
    The locks are those of ``flock``: the kernel frees them when the process
    ends, however it ends. Files stay behind, which is of no consequence.
    """
    if not devices:
        raise ValueError("There is no device to choose from.")
    if n_holders == 0:
        yield devices[0]
        return
    place = Path(tempfile.gettempdir() if directory is None else directory)
    paths = {
        place / f"latent_coadds-{name_device(device)}-{slot}.lock": device
        for slot in range(n_holders)
        for device in devices
    }
    started = time.monotonic()
    while (held := _lock_first(paths)) is None:
        if on_wait is not None:
            on_wait(time.monotonic() - started)
        time.sleep(interval)
    descriptor, device = held
    try:
        yield device
    finally:
        try:
            if device.startswith("cuda"):
                with torch.cuda.device(device):
                    torch.cuda.empty_cache()
        finally:
            os.close(descriptor)


def _lock_first(paths: dict[Path, str]) -> tuple[int, str] | None:
    """Lock the first file that no other process has locked."""
    for path, device in paths.items():
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, device
    return None


def _open(path: Path) -> int:
    try:
        # Without O_CREAT: in a directory with the sticky bit, Linux refuses
        # that for files of other users.
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise OSError(
            error.errno, f"A lock file cannot be made ({error.strerror}); choose another directory", str(path)
        ) from error
    # Whatever the umask: other users' processes wait for it, too.
    os.fchmod(descriptor, 0o644)
    return descriptor
