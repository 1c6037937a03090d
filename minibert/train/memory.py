"""What a training step frees is kept for the next one."""

import ctypes
import platform

# of mallopt(3): no memory is given back, none mapped apart, one heap for all threads
KEEP = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep_memory() -> bool:
    """Lets this process keep the memory that it frees, for what it allocates next.

    A step on a CPU frees gigabytes of temporary arrays. glibc gives them back to the system, which
    then clears page after page for the next step: a tenth of the time of a BERT-base step, and in
    a virtual machine up to a third. Kept, a process's memory stays at the most it ever needed.

    It is for the process's beginning, before JAX's first computation: threads that run already
    keep heaps of their own. `minibert train` does it by itself.

    Returns:
        Whether glibc took the settings; another allocator, such as a preloaded jemalloc, has its
        own.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in KEEP.values())
