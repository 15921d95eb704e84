/* model_lock.c: Mutex and Note over a model futex: exclusion, what the lock publishes, no lost wake-up. */
#define MC_REAL_LOCKS
#define ACTIVE_SPIN 1
#define SPIN_YIELDS 3
#include "mc.h"

#include "lock.c"

static Mutex mu;
static Note note;
static uint32_t inside, value; /* atomic, relaxed: only the lock orders them */
static uint32_t refs;
static bool alive;

/* ---- Mutex ---- */

static void
critical(void)
{
    MC_CHECK(atomic_load_relaxed(&inside) == 0);
    atomic_store_relaxed(&inside, 1u);
    atomic_store_relaxed(&value, atomic_load_relaxed(&value) + 1);
    atomic_store_relaxed(&inside, 0u);
}

static void
locker(void *arg)
{
    for (int i = 0; i < (int)(intptr_t)arg; i++) {
        mutex_lock(&mu);
        critical();
        mutex_unlock(&mu);
    }
}

static void
trier(void *arg)
{
    (void)arg;
    if (mutex_trylock(&mu)) {
        critical();
        mutex_unlock(&mu);
    }
}

MODEL(lock_two_threads_twice, "4/2", "3/1")
{
    mc_thread("A", locker, (void *)2);
    mc_thread("B", locker, (void *)2);
}

MODEL(lock_three_threads, "3/0", "2/0")
{
    for (int i = 0; i < 3; i++)
        mc_thread(i == 0 ? "A" : i == 1 ? "B" : "C", locker, (void *)1);
}

MODEL(lock_and_trylock, "3/1", "2/1")
{
    mc_thread("A", locker, (void *)1);
    mc_thread("B", trier, NULL);
    mc_thread("C", locker, (void *)1);
}

/* The last to leave frees the memory that the mutex is in. */
static void
leave(void *arg)
{
    (void)arg;
    mutex_lock(&mu);
    bool last = --refs == 0;
    mutex_unlock(&mu);
    if (last)
        mc_forbid(&mu.key);
}

MODEL(lock_is_freed_by_the_last, "4/0", "3/0")
{
    refs = 3;
    for (int i = 0; i < 3; i++)
        mc_thread(i == 0 ? "A" : i == 1 ? "B" : "C", leave, NULL);
}

/* ---- Spin ---- */

static Spin spin;

static void
spinner(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2; i++) {
        spin_lock(&spin);
        critical();
        spin_unlock(&spin);
    }
}

MODEL(spin_two_threads, "3/0 2/2", "2/1")
{
    mc_thread("A", spinner, NULL);
    mc_thread("B", spinner, NULL);
}

/* ---- Note ---- */

static void
sleeper(void *arg)
{
    bool woken = note_sleep(&note, (intptr_t)arg);
    if ((intptr_t)arg < 0)
        MC_CHECK(woken);
    if (!woken) /* it may come yet, as in stopm */
        MC_CHECK(note_sleep(&note, -1));
    MC_CHECK(atomic_load_relaxed(&value) == 1);
}

static void
waker(void *arg)
{
    (void)arg;
    atomic_store_relaxed(&value, 1u);
    note_wakeup(&note);
}

MODEL(note_wakes, "4/2", "4/2")
{
    mc_thread("sleeper", sleeper, (void *)-1);
    mc_thread("waker", waker, NULL);
}

MODEL(note_wakes_or_times_out, "4/2", "4/2")
{
    mc_thread("sleeper", sleeper, (void *)100);
    mc_thread("waker", waker, NULL);
}

/* A note for each round: cleared by the sleeper, woken only while `alive` says so, as sysmon's is. */
static void
rounds(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2; i++) {
        note_clear(&note);
        atomic_store(&alive, true);
        if (!note_sleep(&note, i == 0 ? 100 : -1) && !atomic_cas(&alive, true, false))
            note_sleep(&note, -1);
    }
}

static void
wake_rounds(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3; i++) {
        if (atomic_load(&alive) && atomic_cas(&alive, true, false))
            note_wakeup(&note);
        cpu_relax();
    }
}

static void
sleeps_only_when_nobody_wakes(void)
{
    if (mc_asleep(0))
        MC_CHECK(alive && note.key == 2);
}

MODEL(note_in_rounds, "4/1", "3/1")
{
    mc_may_sleep(mc_thread("sleeper", rounds, NULL));
    mc_thread("waker", wake_rounds, NULL);
    mc_at_end(sleeps_only_when_nobody_wakes);
}

/* A sleep that is disturbed by signals, whose handler wakes the sleeper itself (the main thread's). */
static void
handler(void *arg)
{
    (void)arg;
    if (atomic_xchg(&alive, false))
        note_wakeup(&note);
}

static void
disturbed_sleeper(void *arg)
{
    (void)arg;
    MC_CHECK(note_sleep_intr(&note, -1, NULL, handler, NULL));
}

static void
maybe_waker(void *arg)
{
    handler(arg);
}

MODEL(note_woken_by_its_own_handler, "4/0", "3/0")
{
    alive = true;
    mc_thread("sleeper", disturbed_sleeper, NULL);
    mc_thread("waker", maybe_waker, NULL);
}
