"""The list of kernels as the commands print it."""

from __future__ import annotations

from datetime import datetime

from .gateway_api import GatewayApi, Kernel

HEADINGS = ("KERNEL", "ID", "STATE", "SINCE")


def kernel_table(api: GatewayApi, kernels: list[Kernel]) -> str:
    """A table with headings and one line for each kernel."""
    rows = [HEADINGS, *((kernel.name, kernel.id, kernel.state, since(api, kernel)) for kernel in kernels)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in rows)


def since(api: GatewayApi, kernel: Kernel) -> str:
    """When the kernel's state began, in local time: the start of the running code, or the last activity."""
    time = (api.busy_since(kernel.id) if kernel.state == "busy" else None) or kernel.last_activity
    # Python before 3.11 does not parse `Z`.
    return f"{datetime.fromisoformat(time.replace('Z', '+00:00')).astimezone():%Y-%m-%d %H:%M:%S}"
