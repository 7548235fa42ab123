# SPDX-License-Identifier: Apache-2.0
"""The C library by ctypes, for system calls without a Python function."""

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """Return the C library of this process; it keeps errno."""
    return ctypes.CDLL(None, use_errno=True)
