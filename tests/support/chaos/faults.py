"""What is broken, for how long and when: chosen from a seed, then done to a replica's members and links.

Nothing here touches the End Model's process: see the package. A member that runs out of memory ends by the kernel's
SIGKILL, so `kill` is that fault too.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import dataclass
from typing import Literal

from support.chaos.members import Members

Kind = Literal["kill", "terminate", "freeze", "cut", "silence", "loss", "slow"]
When = Literal["alone", "with the one before", "while the ring recovers from the one before"]

# How often each is chosen. kill: SIGKILL to a stage. terminate: SIGTERM, as an eviction sends it. freeze: SIGSTOP, then
# SIGCONT. cut: a link's connections are reset, and new ones too for a while. silence: a link carries nothing, and
# neither end sees it closed. loss: a link stops for moments, as TCP does while lost packets are sent again. slow: 16 to
# 64 KiB/s.
_WEIGHTS: dict[Kind, int] = {"kill": 5, "terminate": 1, "freeze": 4, "cut": 3, "silence": 3, "loss": 2, "slow": 1}
_ON_STAGES = ("kill", "terminate", "freeze")
_ALONE = 0.7
# What certainly takes the ring down, so that there is a recovery to break into.
_CERTAIN: tuple[Kind, ...] = ("kill", "cut")
_RECOVERING_SECONDS = 4.0


@dataclass(frozen=True)
class Fault:
    """place: a stage's number for faults of processes; for faults of links 0 is the link to stage 1.

    seconds: how long it lasts. after_seconds: how long after the moment that `when` names it begins.
    """

    kind: Kind
    place: int
    seconds: float
    when: When
    after_seconds: float

    def __str__(self) -> str:
        where = f"stage {self.place}" if self.kind in _ON_STAGES else f"link {self.place}"
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind} {where}{lasting}" + ("" if self.when == "alone" else f", {self.when}")


def schedule(seed: int, count: int, *, stages: int) -> list[list[Fault]]:
    """`count` faults in groups: the first of a group comes alone, while answers run; a second one joins it."""
    draw = random.Random(seed)
    groups: list[list[Fault]] = []
    left = count
    while left:
        second: When = draw.choice(["with the one before", "while the ring recovers from the one before"])
        group = [_fault(draw, stages, "alone", certain=second.startswith("while"))]
        if left > 1 and draw.random() > _ALONE:
            group.append(_fault(draw, stages, second))
        groups.append(group)
        left -= len(group)
    return groups


def _fault(draw: random.Random, stages: int, when: When, *, certain: bool = False) -> Fault:
    kinds = list(_WEIGHTS)
    kind = draw.choice(_CERTAIN) if certain else draw.choices(kinds, [_WEIGHTS[each] for each in kinds])[0]
    place = draw.randint(1 if kind in _ON_STAGES else 0, stages)
    seconds = {
        "freeze": draw.choice([draw.uniform(0.2, 1.0), draw.uniform(1.0, 4.0)]),
        "cut": draw.choice([0.0, draw.uniform(0.0, 2.0)]),
        "silence": draw.choice([draw.uniform(0.2, 1.0), draw.uniform(1.0, 4.0)]),
        "loss": draw.uniform(1.0, 3.0),
        "slow": draw.uniform(1.0, 3.0),
    }.get(kind, 0.0)
    after = {"alone": draw.uniform(0.0, 1.0), "with the one before": draw.uniform(0.0, 0.05)}.get(
        when, draw.uniform(0.0, 1.0)
    )
    return Fault(kind, place, seconds, when, after)


def inject(members: Members, group: list[Fault], *, seed: int) -> None:
    """Break what the group says and mend it again; back when all is mended."""
    threads = [
        threading.Thread(target=_one, args=(members, fault, random.Random(seed + place)), daemon=True)
        for place, fault in enumerate(group)
    ]
    for fault, thread in zip(group, threads, strict=True):
        if fault.when.startswith("while"):
            _wait_until_down(members)
        time.sleep(fault.after_seconds)
        thread.start()
    for thread in threads:
        thread.join()


def _wait_until_down(members: Members) -> None:
    """Until the End Model reports that the ring is down. A recovery that was quicker than this look is over already."""
    deadline = time.monotonic() + _RECOVERING_SECONDS
    while members.ring_ready() and time.monotonic() < deadline:
        time.sleep(0.01)


def _one(members: Members, fault: Fault, draw: random.Random) -> None:
    if fault.kind in _ON_STAGES:
        name = members.stages[fault.place - 1]
        if fault.kind == "freeze":
            members.signal(name, signal.SIGSTOP)
            time.sleep(fault.seconds)
            members.signal(name, signal.SIGCONT)  # to its next process, if it was killed meanwhile: no harm
        else:
            members.signal(name, signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)
        return
    link = members.links[fault.place]
    if fault.kind == "cut":
        link.cut()
        time.sleep(fault.seconds)
        link.mend()
    elif fault.kind == "silence":
        link.freeze()
        time.sleep(fault.seconds)
        link.thaw()
    elif fault.kind == "slow":
        link.bytes_per_second = draw.uniform(16, 64) * 1024
        time.sleep(fault.seconds)
        link.bytes_per_second = None
    else:
        end = time.monotonic() + fault.seconds
        while time.monotonic() < end:
            link.freeze()
            time.sleep(draw.uniform(0.02, 0.3))
            link.thaw()
            time.sleep(draw.uniform(0.02, 0.2))
