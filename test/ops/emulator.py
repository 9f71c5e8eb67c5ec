"""Control of the emulated CUDA runtime in the module `_core` (test/simt/control.h)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from slicellm import _core


@dataclass(frozen=True)
class Held:
    """What has not been freed."""

    device_bytes: int
    pinned_bytes: int
    handles: int


class Emulator:
    """Raises AttributeError where `_core` was built without the emulator."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_core.__file__)
        self._fail = library.simt_fail
        self._fail.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
        self._fail.restype = None
        self._calls = library.simt_calls
        self._calls.argtypes = [ctypes.c_char_p]
        self._calls.restype = ctypes.c_uint64
        self._pending = library.simt_pending
        self._pending.restype = ctypes.c_size_t
        self._peak = library.simt_device_peak
        self._peak.restype = ctypes.c_size_t
        self._held = [library.simt_device_bytes, library.simt_pinned_bytes, library.simt_handles]
        for function in self._held:
            function.restype = ctypes.c_size_t

    def fail(self, function: str, nth: int) -> None:
        """Lets the nth call of a runtime function from here on fail (0: none)."""
        self._fail(function.encode(), nth)

    def calls(self, function: str) -> int:
        """Calls since `fail`."""
        return int(self._calls(function.encode()))

    def pending(self) -> int:
        """Pieces of work that were started and that nothing has needed so far."""
        return int(self._pending())

    def peak(self) -> int:
        """Most bytes on the device at any time since `fail`."""
        return int(self._peak())

    def held(self) -> Held:
        return Held(*(int(function()) for function in self._held))
