"""mutants.py: proves that the models can fail: puts one bug at a time into a copy of the core and expects that a model finds it.

A mutant is (name, file, what stands there, what shall stand there, the program and words of the models' names one of which must
fail).  The text must stand there exactly once, so that this list cannot fall behind the core unnoticed.  Each model is run
within its full bounds, until the first fails.
"""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
BUILD = HERE / "build" / "mutants"
LIMIT = 600  # seconds for one mutant

MUTANTS = [
    # ---- runq.c ----
    (
        "put: the tail is published before the slot is written",
        "runq.c",
        """            atomic_store_relaxed(&pp->runq[t % RUNQ_SIZE], gp);
            atomic_store_release(&pp->runqtail, t + 1);""",
        """            atomic_store_release(&pp->runqtail, t + 1);
            atomic_store_relaxed(&pp->runq[t % RUNQ_SIZE], gp);""",
        "runq",
    ),
    (
        "put: the tail is published without release",
        "runq.c",
        "atomic_store_release(&pp->runqtail, t + 1);",
        "atomic_store_relaxed(&pp->runqtail, t + 1);",
        "runq",
    ),
    (
        "grab: the tail is read without acquire",
        "runq.c",
        "uint32_t t = atomic_load_acquire(&victim->runqtail);",
        "uint32_t t = atomic_load_relaxed(&victim->runqtail);",
        "runq",
    ),
    (
        "get: the head is moved by a store although thieves move it too",
        "runq.c",
        "if (atomic_cas_release(&pp->runqhead, h, h + 1)) /* commits the read of the slot */\n            return gp;",
        "atomic_store_release(&pp->runqhead, h + 1);\n        return gp;",
        "runq",
    ),
    (
        "grab: the slots are copied after they were given up",
        "runq.c",
        """        for (uint32_t i = 0; i < n; i++)
            atomic_store_relaxed(&batch[(batchhead + i) % RUNQ_SIZE], /* a late thief may be reading that slot */
                                 atomic_load_relaxed(&victim->runq[(h + i) % RUNQ_SIZE]));
        if (atomic_cas_release(&victim->runqhead, h, h + n))
            return n;""",
        """        if (!atomic_cas_release(&victim->runqhead, h, h + n))
            continue;
        for (uint32_t i = 0; i < n; i++)
            atomic_store_relaxed(&batch[(batchhead + i) % RUNQ_SIZE], /* a late thief may be reading that slot */
                                 atomic_load_relaxed(&victim->runq[(h + i) % RUNQ_SIZE]));
        return n;""",
        "runq",
    ),
    (
        "overflow: a lost race for the head goes unnoticed",
        "runq.c",
        "if (!atomic_cas_release(&pp->runqhead, h, h + n)) /* pairs with the acquire loads of head in runqput and runqgrab */\n"
        "        return false;",
        "atomic_store_release(&pp->runqhead, h + n);",
        "runq",
    ),
    (
        "put: runnext is replaced by a store although thieves take it",
        "runq.c",
        "        if (sole_consumer(pp))\n            atomic_store_relaxed(&pp->runnext, gp);",
        "        if (true)\n            atomic_store_relaxed(&pp->runnext, gp);",
        "runq",
    ),
    (
        "get: runnext is taken by a store although thieves take it",
        "runq.c",
        "    if (sole_consumer(pp)) {\n        if (next != NULL) {",
        "    if (next != NULL) {\n        atomic_store_relaxed(&pp->runnext, (G *)NULL);\n        return next;\n    }\n"
        "    if (sole_consumer(pp)) {\n        if (next != NULL) {",
        "runq",
    ),
    (
        "kick: a stolen runnext is queued all the same",
        "runq.c",
        "    else if (!atomic_cas(&pp->runnext, next, (G *)NULL))\n        return; /* stolen */",
        "    else\n        atomic_cas(&pp->runnext, next, (G *)NULL);",
        "runq",
    ),
    (
        "steal: the tail of the own queue counts the goroutine that is run",
        "runq.c",
        "atomic_store_release(&pp->runqtail, t + n); /* publishes",
        "atomic_store_release(&pp->runqtail, t + n + 1); /* publishes",
        "runq",
    ),
    (
        "steal: the batch is published without release",
        "runq.c",
        "atomic_store_release(&pp->runqtail, t + n); /* publishes",
        "atomic_store_relaxed(&pp->runqtail, t + n); /* publishes",
        "runq",
    ),
    (
        "global: the share is published without release",
        "runq.c",
        "atomic_store_release(&pp->runqtail, t);  ",
        "atomic_store_relaxed(&pp->runqtail, t);  ",
        "runq global",
    ),
    (
        "empty: the tail is not looked at again",
        "runq.c",
        "if (t == atomic_load(&pp->runqtail)) /*",
        "if (true) /*",
        "runq never_looks",
    ),
    (
        "get: a sole consumer takes runnext without release",
        "runq.c",
        "            atomic_store_release(&pp->runnext, (G *)NULL); /* pairs with runqempty: see",
        "            atomic_store_relaxed(&pp->runnext, (G *)NULL); /* pairs with runqempty: see",
        "runq alone",
    ),
    (
        "get: a sole consumer moves the head without release",
        "runq.c",
        "atomic_store_release(&pp->runqhead, h + 1); /* pairs with runqempty */",
        "atomic_store_relaxed(&pp->runqhead, h + 1); /* pairs with runqempty */",
        "runq alone",
    ),
    # ---- lock.c ----
    (
        "lock: a waiter does not mark the mutex",
        "lock.c",
        "while (atomic_xchg(&mu->key, 2u) != 0)\n        futexsleep(&mu->key, 2, -1);",
        "while (atomic_xchg(&mu->key, 1u) != 0)\n        futexsleep(&mu->key, 1, -1);",
        "lock",
    ),
    (
        "unlock: the mutex is looked at after it was given back",
        "lock.c",
        "    if (was == 2)\n        futexwakeup(&mu->key);",
        "    if (was == 2 && atomic_load(&mu->key) < 3)\n        futexwakeup(&mu->key);",
        "lock",
    ),
    (
        "unlock: nobody is woken",
        "lock.c",
        "if (was == 2)\n        futexwakeup(&mu->key);",
        "if (was == 2)\n        ;",
        "lock",
    ),
    (
        "lock: without acquire",
        "sys.h",
        "if (GMP_UNLIKELY(!atomic_cas_acquire(&mu->key, 0u, 1u)))",
        "if (GMP_UNLIKELY(!atomic_cas_release(&mu->key, 0u, 1u)))",
        "lock",
    ),
    (
        "unlock: without release",
        "sys.h",
        "if (GMP_UNLIKELY(!atomic_cas_release(&mu->key, 1u, 0u)))",
        "if (GMP_UNLIKELY(!atomic_cas_acquire(&mu->key, 1u, 0u)))",
        "lock",
    ),
    (
        "note: the waker looks first and stores second",
        "lock.c",
        "    uint32_t was = atomic_xchg(&n->key, 1u);\n",
        "    uint32_t was = atomic_load(&n->key);\n    atomic_store(&n->key, 1u);\n",
        "lock",
    ),
    (
        "note: the sleeper overwrites a wake-up",
        "lock.c",
        "    if (!atomic_cas(&n->key, 0u, 2u)) {",
        "    atomic_store(&n->key, 2u);\n    if (false) {",
        "lock",
    ),
    (
        "note: a sleeper whose time is up leaves its mark",
        "lock.c",
        "return !atomic_cas(&n->key, 2u, 0u);",
        "return atomic_load(&n->key) == 1;",
        "lock",
    ),
    (
        "note: a wake-up is seen without acquire",
        "lock.c",
        "    if (atomic_load_acquire(&n->key) == 1) /*",
        "    if (atomic_load_relaxed(&n->key) == 1) /*",
        "lock",
    ),
    (
        "spin: without acquire",
        "sys.h",
        "if (GMP_UNLIKELY(!atomic_cas_acquire(&s->key, 0u, 1u)))",
        "if (GMP_UNLIKELY(!atomic_cas_release(&s->key, 0u, 1u)))",
        "lock spin",
    ),
    (
        "spin: who waits takes it without looking",
        "lock.c",
        "        if (atomic_load_relaxed(&s->key) == 0 && atomic_cas_acquire(&s->key, 0u, 1u)) /* pairs with spin_unlock */",
        "        if (atomic_load_relaxed(&s->key) == 0 && atomic_xchg(&s->key, 1u) < 2)",
        "lock spin",
    ),
    # ---- going idle: threads.c, proc.c ----
    (
        "idle: no second look at the queues after the P was given up",
        "threads.c",
        "        if (work_left(sched)) {",
        "        if (false) {",
        "idle",
    ),
    (
        "idle: the second look comes before the P is given up",
        "threads.c",
        """        mp->p = NULL;
        pidleput(sched, pp);
        mutex_unlock(&sched->lock);
        stop_spinning(mp);
        if (work_left(sched)) {""",
        """        mutex_unlock(&sched->lock);
        bool left = work_left(sched);
        mutex_lock(&sched->lock);
        mp->p = NULL;
        pidleput(sched, pp);
        mutex_unlock(&sched->lock);
        stop_spinning(mp);
        if (left) {""",
        "idle",
    ),
    (
        "idle: an M stops spinning after its second look",
        "threads.c",
        """        stop_spinning(mp);
        if (work_left(sched)) {""",
        """        bool left = work_left(sched);
        stop_spinning(mp);
        if (left) {""",
        "idle",
    ),
    (
        "idle: who finds work at its second look does not count as looking",
        "threads.c",
        "    mp->spinning = mp->p != NULL;\n    if (mp->spinning)",
        "    if (false)",
        "idle second_look",
    ),
    (
        "ready: no fence between the queue and the look at npidle",
        "proc.c",
        "        atomic_fence();\n    if (atomic_load(&sched->npidle) != 0)",
        "        ;\n    if (atomic_load(&sched->npidle) != 0)",
        "idle woken_by_timers",
    ),
    (
        "ready: nobody is woken",
        "proc.c",
        "    if (atomic_load(&sched->npidle) != 0)\n        wakep(sched);",
        "    if (false)\n        wakep(sched);",
        "idle",
    ),
    (
        "the last spinner that finds work wakes no other",
        "threads.c",
        "        stop_spinning(mp);\n        wakep(mp->set);",
        "        stop_spinning(mp);",
        "idle",
    ),
    (
        "startm: who finds no P uncounts its spinning M after the lock",
        "threads.c",
        """                atomic_xadd(&sched->nmspinning, (uint32_t)-1);
            mutex_unlock(&sched->lock);
            return true;""",
        """                mutex_unlock(&sched->lock);
            atomic_xadd(&sched->nmspinning, (uint32_t)-1);
            return true;""",
        "park park_timeout_waker_interrupt",
    ),
    # ---- parking and waking: runtime.h, proc.c, threads.c ----
    (
        "claim: looks first and stores second",
        "runtime.h",
        "    return atomic_cas(&gp->parkseq, seq, seq + 1);",
        "    if (atomic_load(&gp->parkseq) != seq)\n        return false;\n    atomic_store(&gp->parkseq, seq + 1);\n"
        "    return true;",
        "park",
    ),
    (
        "claim: all parks have the same number",
        "runtime.h",
        "(atomic_load_relaxed(&gp->parkseq) | 1) + 1;",
        "2;",
        "park park_adopted_timeout",
    ),
    (
        "commit: unlockf runs before the goroutine counts as parked",
        "proc.c",
        """        set_status(prev, G_RUNNING, G_WAITING);
        /* From here on prev may run elsewhere, unless unlockf says that it stays. */
        if (unlockf != NULL && !unlockf(prev, lock)) {
            set_status(prev, G_WAITING, G_RUNNABLE);
            make_runnable(prev);
        }""",
        """        bool stays = unlockf != NULL && !unlockf(prev, lock);
        set_status(prev, G_RUNNING, G_WAITING);
        if (stays) {
            set_status(prev, G_WAITING, G_RUNNABLE);
            make_runnable(prev);
        }""",
        "park",
    ),
    (
        "interrupt: does not wait until the park is committed",
        "proc.c",
        "    while (atomic_load_acquire(&gp->status) != G_WAITING) /*",
        "    while (false) /*",
        "park",
    ),
    (
        "interrupt: does not wait until unlockf has returned",
        "proc.c",
        "    while (atomic_load_acquire(&mp->committing) == gp) /*",
        "    while (false) /*",
        "park interrupted_with",
    ),
    (
        "ready: a thread's own goroutine is left for a thread that sleeps",
        "proc.c",
        "        if (lm->idle) {\n            midleremove(sched, lm);\n            lm->nextg = gp;",
        "        if (lm->idle && lm->ispool) {\n            midleremove(sched, lm);\n            lm->nextg = gp;",
        "park park_adopted_outside_waker",
    ),
    (
        "idle: a thread's own goroutine that is ready is not looked for under the lock",
        "threads.c",
        "if (mp->readylocked != NULL || (sched->npidle != 0",
        "if ((sched->npidle != 0",
        "park park_adopted_p1",
    ),
    (
        "idle: the next timer is not looked at",
        "threads.c",
        "if (when != 0 && (sched->sleeper == NULL || sched->sleepuntil > when)) {",
        "if (false) {",
        "park",
    ),
    (
        "timer: the clock's next alarm is not told",
        "timer.c",
        "    if (t->index == 1)\n        update_next(ts);",
        "    if (false)\n        update_next(ts);",
        "park",
    ),
    (
        "switch: the P is entered by a store although sysmon takes it",
        "proc.h",
        "if (GMP_LIKELY(atomic_cas_acquire(&pp->owner, (uintptr_t)mp | P_RUNNING, (uintptr_t)mp)))",
        "atomic_store_release(&pp->owner, (uintptr_t)mp);\n        if (true)",
        "sysmon",
    ),
    # ---- sysmon.c ----
    (
        "sysmon: sleeps without a second look at the Ps",
        "sysmon.c",
        "if (all_idle() || !atomic_cas(&asleep, 1u, 0u))",
        "if (true)",
        "sysmon",
    ),
    (
        "sysmon: nobody wakes it",
        "sysmon.c",
        "if (atomic_load(&asleep) && atomic_cas(&asleep, 1u, 0u)) {\n        advance_clock",
        "if (false) {\n        advance_clock",
        "sysmon",
    ),
    (
        "sysmon: two wake it",
        "sysmon.c",
        "if (atomic_load(&asleep) && atomic_cas(&asleep, 1u, 0u)) {\n        advance_clock",
        "if (atomic_load(&asleep)) {\n        atomic_store(&asleep, 0u);\n        advance_clock",
        "sysmon woken_once",
    ),
    (
        "retake: the P is taken by a store although its M enters the scheduler",
        "sysmon.c",
        "    if (!atomic_cas(&pp->owner, owner, (uintptr_t)0))\n        return did;",
        "    atomic_store(&pp->owner, (uintptr_t)0);",
        "sysmon comes_back",
    ),
    (
        "handoff: a P with goroutines goes to the idle list",
        "threads.c",
        "if (!runqempty(pp) || atomic_load(&sched->runq.n) != 0) {\n        startm",
        "if (atomic_load(&sched->runq.n) != 0) {\n        startm",
        "sysmon",
    ),
    (
        "sysmon: sleeps while the main goroutine waits for its thread",
        "sysmon.c",
        "(atomic_load(&scheds[s].npidle) != np || main_waits(&scheds[s]) ||",
        "(atomic_load(&scheds[s].npidle) != np ||",
        "sysmon rescues",
    ),
    (
        "rescue: the main goroutine stays locked to its thread",
        "threads.c",
        "        gp->lockedm = NULL;\n        mp->thread_g = NULL;",
        "        mp->thread_g = NULL;",
        "sysmon rescues",
    ),
    (
        "rescue: the main goroutine never goes home",
        "threads.c",
        "if (home != NULL && gp->interruptible && (home->idle || home == mp) && home->lockedg == NULL) {",
        "if (false) {",
        "sysmon rescues",
    ),
    # ---- netpoll.c, and polling Ms ----
    (
        "poll: a goroutine that was interrupted and waits again is not known by the number of its park",
        "netpoll.c",
        "return (uintptr_t)gp | (uintptr_t)(atomic_load_relaxed(&gp->parkseq) >> 1) << 48;",
        "return (uintptr_t)gp;",
        "netpoll",
    ),
    (
        "poll: the number of a park that a signal has claimed is published",
        "netpoll.c",
        "    uint32_t seq = atomic_load_relaxed(&gp->parkseq) & ~1u;",
        "    uint32_t seq = gp->parkseq;",
        "netpoll",
    ),
    (
        "poll: closing and deadline are not looked at again",
        "netpoll.c",
        "    code = check(pd, mode);\n    int wake = GMP_OK;",
        "    int wake = GMP_OK;",
        "netpoll",
    ),
    (
        "poll: an edge before the commit does not cancel the park",
        "netpoll.c",
        "    return !park_claim(gp, seq);",
        "    return true;",
        "netpoll",
    ),
    (
        "poll: an edge that comes with an interruption is thrown away",
        "netpoll.c",
        "    if (old == PD_READY)\n        return GMP_OK;\n    if (wake",
        "    if (wake",
        "netpoll",
    ),
    (
        "poll: a park is ended without being claimed",
        "netpoll.c",
        "(seq & 1) != 0 || !park_claim(gp, seq))",
        "false)",
        "netpoll",
    ),
    (
        "close: says so after it has woken",
        "netpoll.c",
        """    atomic_store(&pd->closing, true);
    for (int m = 0; m < 2; m++) {
        PollSide *s = &pd->side[m];
        s->timerseq++;
        if (s->timing) {
            timer_del(&s->timer);
            s->timing = false;
        }
        wake[m] = unblock(pd, (PollMode)m, false);
    }
""",
        """    for (int m = 0; m < 2; m++) {
        PollSide *s = &pd->side[m];
        s->timerseq++;
        if (s->timing) {
            timer_del(&s->timer);
            s->timing = false;
        }
        wake[m] = unblock(pd, (PollMode)m, false);
    }
    atomic_store(&pd->closing, true);
""",
        "netpoll",
    ),
    (
        "deadline: a late timer ends a later wait",
        "netpoll.c",
        "if (s->timerseq == seq) { /*",
        "if (true) { /*",
        "netpoll",
    ),
    (
        "deadline: is stored after it has woken",
        "netpoll.c",
        """        atomic_store(&s->deadline, (int64_t)-1);
        gp = unblock(pd, mode, false);
    }
    mutex_unlock(&pd->lock);""",
        """        gp = unblock(pd, mode, false);
        atomic_store(&s->deadline, (int64_t)-1);
    }
    mutex_unlock(&pd->lock);""",
        "netpoll",
    ),
    (
        "wake: whether an M polls is looked at before its note is woken",
        "threads.c",
        """    note_wakeup(&mp->park);
    /* stopm sets polling before it looks at the note for the last time. */
    if (atomic_load(&mp->polling))
        netpoll_break(mp->set);""",
        """    bool polls = atomic_load(&mp->polling);
    note_wakeup(&mp->park);
    if (polls)
        netpoll_break(mp->set);""",
        "poll poll_and_a_timer_p2",
    ),
    (
        "poll: an M looks at its note before it says that it polls",
        "threads.c",
        """    atomic_store(&mp->polling, 1u); /* pairs with wakem: the note first, polling second */
    while (!note_sleep(&mp->park, 0)) {""",
        """    while (!note_sleep(&mp->park, 0)) {
        atomic_store(&mp->polling, 1u); /* pairs with wakem: the note first, polling second */""",
        "poll poll_event_and_other_work_p2",
    ),
    (
        "handoff: nobody polls for an idle P",
        "threads.c",
        "    else if (netpoll_waiters(sched) != 0 && !atomic_load(&sched->polled))",
        "    else if (false)",
        "poll poll_while_another_blocks",
    ),
    (
        "timer: whoever sleeps is not told of an earlier one",
        "proc.c",
        "    if (err == GMP_OK && atomic_load(&atomic_load_relaxed(&t->heap)->next) == when)",
        "    if (false)",
        "poll poll_deadline_from_outside",
    ),
]


def run(mutant: tuple[str, str, str, str, str], number: int) -> tuple[bool, str]:
    _name, file, old, new, models = mutant
    model, *names = models.split()
    csrc, out = BUILD / f"{number}" / "csrc", BUILD / f"{number}" / "build"
    shutil.rmtree(BUILD / f"{number}", ignore_errors=True)
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("build"))
    text = (csrc / file).read_text()
    if text.count(old) != 1:
        return False, f"stands {text.count(old)} times in {file}"
    (csrc / file).write_text(text.replace(old, new))
    start = time.monotonic()
    make = ["make", "-s", "-C", str(HERE), f"CSRC={csrc}", f"B={out}", f"O={HERE / 'build'}", "OPT=-O1"]
    built = subprocess.run([*make, f"{out}/{model}"], capture_output=True, text=True)
    if built.returncode != 0:
        return False, "does not compile:\n" + built.stderr
    try:
        ran = subprocess.run([out / model, "-x", *names], capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return False, f"not found in {LIMIT} s"
    failed = [line for line in ran.stdout.splitlines() if "FAILED" in line]
    shutil.rmtree(BUILD / f"{number}", ignore_errors=True)
    if ran.returncode != 1 or not failed:
        return False, "not found\n" + ran.stdout + ran.stderr
    return True, f"found by {failed[0].split()[0]}, {time.monotonic() - start:.1f} s"


def main() -> int:
    chosen = [m for m in MUTANTS if not sys.argv[1:] or any(word in m[0] or word in m[4] for word in sys.argv[1:])]
    bad = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for mutant, (ok, what) in zip(chosen, pool.map(run, chosen, range(len(chosen))), strict=True):
            print(f"{'ok     ' if ok else 'FAILED '} {mutant[4]}: {mutant[0]}: {what}", flush=True)
            bad += not ok
    print(f"{len(chosen) - bad} of {len(chosen)} mutants found")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main())
