"""Mount, process and (if asked) network namespaces that a node's programs share and that end with this process.

Whatever they mount or start is gone when their first process is, which the kernel sees to if this process dies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.processes import ManagedProcess, ProcessGroup

START_SECONDS = 20.0
# What the programs in it write to fixed places stays in them …
FRESH = ("/run", "/var/lib", "/var/log")
# … and so do the kernel's settings that a kubelet insists on, which are the machine's: it gets plain files instead.
KERNEL_SETTINGS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
FIRST_PROCESS = """
set -eu
mount --make-rshared /
for folder in $FRESH; do mount -t tmpfs -o mode=755 tmpfs $folder; done
for setting in $KERNEL_SETTINGS; do
    copy=/run/kernel/$(echo $setting | tr / .)
    mkdir -p /run/kernel
    cat /proc/sys/$setting > $copy
    mount --bind $copy /proc/sys/$setting
done
ip link set lo up
[ -z "$NETWORK" ] || echo 1 > /proc/sys/net/ipv4/ip_forward
touch "$READY"
sleep infinity &
wait
"""


class NodeNamespaces:
    """Make them, then run programs in them: `processes.start(name, argv, prefix=namespaces.prefix)`."""

    def __init__(self, processes: ProcessGroup, *, name: str, ready: Path, network: bool) -> None:
        namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        if network:
            namespaces.append("--net")
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "FRESH": " ".join(FRESH),
            "KERNEL_SETTINGS": " ".join(KERNEL_SETTINGS),
            "NETWORK": "yes" if network else "",
            "READY": str(ready),
        }
        self._holder = processes.start(
            f"{name}-namespaces", ["unshare", *namespaces, "bash", "-c", FIRST_PROCESS], environment=environment
        )
        processes.wait_until(
            ready.exists, what=f"the namespaces of {name}", timeout_seconds=START_SECONDS, blame=self._holder
        )
        ready.unlink()
        self.process_id = child(self._holder)
        target = ["nsenter", f"--target={self.process_id}", "--mount", "--pid"]
        self.prefix: Sequence[str] = (*target, "--net", "--") if network else (*target, "--")


def child(process: ManagedProcess) -> int:
    """The process that unshare or nsenter forked into the other process namespace, as seen from here."""
    pid = process.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
