"""Memory of weights in huge pages, where Linux has them for programs that ask.

A pass reads all weights of a model, many more pages of 4 KiB than a CPU remembers the places of.
"""

from __future__ import annotations

import ctypes
import sys

_PAGE = 2 << 20  # of a huge page on x86-64 and, with usual settings, on ARM
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1 and later


def use_huge_pages(address: int, size: int) -> int:
    """Move memory to huge pages, and return how many there are now; contents and addresses stay.

    What lies in a page with other memory moves with it.

    Args:
        size: bytes from ``address`` on.
    """
    if sys.platform != "linux":
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    pages = range(address // _PAGE * _PAGE, address + size, _PAGE)
    return sum(advise(page, _PAGE, _COLLAPSE) == 0 for page in pages)
