"""Faults under load: a real replica as processes, streams of its API, and what breaks members and links meanwhile.

    model.py        random models of a few kilobytes whose text shows every token
    fork_server.py  a program that starts members in milliseconds and reports which ended
    processes.py    the members' processes by way of it; what ended is started again at once
    members.py      one replica: store, stages, End Model, a relay in each link
    requests.py     what is asked, and the answer as an API client sees it, to the byte
    comparison.py   whether an answer is that of the undisturbed run, in float32 and in bfloat16
    faults.py       what is broken and when, from a seed
    leaks.py        what must be as before when all is over
    run.py          one run: answers without faults, answers with faults, the report

`python -m support.chaos` (from tests/) is the long run of `make chaos`. Faults of the End Model are left out: the
connections of its clients end with its process, so its loss costs the requests that run.
"""
