"""What a goroutine costs, beside Go and beside its peers.

    bench_spawn.py   spawn and finish: one at a time, in bursts
    bench_switch.py  yield among 2 and among 1,000 tasks
    bench_chan.py    unbuffered round trip, buffered item
    bench_select.py  select of 2 and of 4
    bench_sync.py    mutex: alone and contended
    bench_memory.py  bytes a parked task, a million parked
    bench_timers.py  100,000 sleepers
    bench_freeze.py  timers beside blocking and computing tasks
    go/              the Go twin of every shape

    harness.py       what a shape is: contenders, figures, targets
    race.py          rounds of all contenders in turn, medians of figures and of ratios
    worker.py        the child process that runs one contender
    gotwin.py        finds Go and builds the twin
    report.py        `python -m benchmarks.report`: one table
    conftest.py      the same shapes under pytest-benchmark

A figure is only worth its ratio to another one measured a moment before or after, in the same conditions. So each
contender is a process of its own, and the rounds go A B C A B C …: machine drift falls on all of them alike. Speed is
reported, never asserted.
"""
