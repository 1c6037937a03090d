"""Resident memory of a process, as reported by Linux."""

import math


def forget_peak() -> None:
    """Sets VmHWM to VmRSS; see proc_pid_clear_refs(5)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident(field: str) -> float:
    """Returns the resident bytes (VmRSS) or their peak (VmHWM); NaN on systems other than Linux."""
    try:
        with open("/proc/self/status") as file:
            found = [line.split()[1] for line in file if line.startswith(f"{field}:")]
    except FileNotFoundError:
        return math.nan
    return 1024.0 * int(found[0])
