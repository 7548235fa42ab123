# SPDX-License-Identifier: Apache-2.0
"""Memory between the steps of sealing."""

import ctypes


def give_back() -> None:
    """Return to the kernel what the C library keeps of freed memory, as far as it can.

    glibc keeps what lies below something that is still in use; between two steps of sealing
    that is as much as the next step needs. Nothing happens with another C library.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return
