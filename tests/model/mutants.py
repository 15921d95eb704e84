"""mutants.py: proves that the models can fail: puts one bug at a time into a copy of the core and expects that a model finds it.

A mutant is (name, file, what stands there, what shall stand there, models that must fail).  The text must stand there exactly
once, so that this list cannot fall behind the core unnoticed.  Each model is run within its full bounds, and stops at the first
failure.
"""

import os
import shutil
import subprocess
import sys
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
        "runq",
    ),
    (
        "empty: the tail is not looked at again",
        "runq.c",
        "if (t == atomic_load(&pp->runqtail)) /*",
        "if (true) /*",
        "runq",
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
    ("unlock: nobody is woken", "lock.c", "if (was == 2)\n        futexwakeup(&mu->key);", "if (was == 2)\n        ;", "lock"),
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
    # ---- going idle: threads.c, proc.c ----
    (
        "idle: no second look at the queues after the P was given up",
        "threads.c",
        "if (work_left(sched))\n            continue; /*",
        "if (false)\n            continue; /*",
        "idle",
    ),
    (
        "idle: the second look comes before the P is given up",
        "threads.c",
        """        mp->p = NULL;
        pidleput(sched, pp);
        mutex_unlock(&sched->lock);
        stop_spinning(mp);
        if (work_left(sched))
            continue; /*""",
        """        mutex_unlock(&sched->lock);
        bool left = work_left(sched);
        mutex_lock(&sched->lock);
        mp->p = NULL;
        pidleput(sched, pp);
        mutex_unlock(&sched->lock);
        stop_spinning(mp);
        if (left)
            continue; /*""",
        "idle",
    ),
    (
        "idle: an M stops spinning after its second look",
        "threads.c",
        """        stop_spinning(mp);
        if (work_left(sched))
            continue; /*""",
        """        bool left = work_left(sched);
        stop_spinning(mp);
        if (left)
            continue; /*""",
        "idle",
    ),
    (
        "ready: no fence between the queue and the look at npidle",
        "proc.c",
        "    atomic_fence(); /* pairs with an M that goes idle",
        "    /* pairs with an M that goes idle",
        "idle",
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
]


def run(mutant: tuple[str, str, str, str, str], number: int) -> tuple[bool, str]:
    name, file, old, new, model = mutant
    csrc, out = BUILD / f"{number}" / "csrc", BUILD / f"{number}" / "build"
    shutil.rmtree(BUILD / f"{number}", ignore_errors=True)
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("build"))
    text = (csrc / file).read_text()
    if text.count(old) != 1:
        return False, f"stands {text.count(old)} times in {file}"
    (csrc / file).write_text(text.replace(old, new))
    make = ["make", "-s", "-C", str(HERE), f"CSRC={csrc}", f"B={out}"]
    built = subprocess.run([*make, f"{out}/{model}"], capture_output=True, text=True)
    if built.returncode != 0:
        return False, "does not compile:\n" + built.stderr
    try:
        ran = subprocess.run([out / model, "-x"], capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return False, f"not found in {LIMIT} s"
    failed = [line for line in ran.stdout.splitlines() if "FAILED" in line]
    shutil.rmtree(BUILD / f"{number}", ignore_errors=True)
    if ran.returncode != 1 or not failed:
        return False, "not found\n" + ran.stdout + ran.stderr
    return True, f"found by {', '.join(line.split()[0] for line in failed)}"


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
