# SPDX-License-Identifier: Apache-2.0
"""The C library by ctypes: the system calls that Python has no function for."""

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """The C library of this process, with errno kept."""
    return ctypes.CDLL(None, use_errno=True)
