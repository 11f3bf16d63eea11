"""A network namespace in which every link loses packets: TCP sends them again, later and later. Needs root and nft."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess

_CLONE_NEWNET = 0x40000000
_RULES = """
table inet loss {{
  chain input {{
    type filter hook input priority 0;
    meta l4proto tcp numgen random mod 10000 < {per_ten_thousand} counter drop
  }}
}}
"""


def enter_lossy_network(percent: float) -> None:
    """Move this thread, and all that it starts from now on, into a namespace whose only device is a loopback that loses
    so many of its TCP packets. Raises OSError without the right to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespace could be made: {os.strerror(number)}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    rules = _RULES.format(per_ten_thousand=round(100 * percent))
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def lost_packets() -> int:
    """So far, in the namespace that was entered."""
    listed = subprocess.run(["nft", "--json", "list", "table", "inet", "loss"], check=True, capture_output=True)
    rules = (item["rule"] for item in json.loads(listed.stdout)["nftables"] if "rule" in item)
    return sum(part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part)
