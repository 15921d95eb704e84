/* sysmon.c: the monitor: a thread without a P that takes the P of an M that does not schedule.
 *
 * Once a round, for each P that runs a goroutine:
 *   - the goroutine is in the same scheduler tick as a round ago and detached from the interpreter (a call that let go of
 *     the GIL): the P is taken; handed to another M if there is work, else left idle;
 *   - it is in the same tick for FORCE_PREEMPT_NS and there is work: the P is taken too, and the interpreter's own switch
 *     interval shares the GIL between the two threads.
 *   - it is in the same tick, others wait in its queue and a P is idle: a thread is woken for them;
 *   - the main goroutine is ready, but the main thread is kept by another goroutine, one that waited there and now blocks or
 *     runs on: the main goroutine goes on on another thread (rescue), and returns to its own when that is free again.
 * The rounds start 20 us apart and back off to 10 ms when nothing happens, as in Go.  When no P is in use sysmon sleeps
 * until pidleget wakes it, so an idle process has no wake-ups; but while another goroutine blocks on the main thread it looks
 * for signals every SIGNAL_POLL_NS, and LAST_LOOKS times before it sleeps for long: one that comes while the main thread has
 * another one pending is given to another thread.  Those that the main thread takes it does not sleep through: see
 * note_sleep_intr and sys_signals_hold.  With schedtrace it wakes for each line.
 * A process that is idle for moments only, between the messages of a stream, would wake it for each: if its last sleep was short, and
 * goroutines have run since, it naps for NAP_US instead.
 *
 * coarse_now is the clock that parked goroutines are stamped with.  Each round advances it.  Whoever wakes sysmon does so first:
 * it is about to hand out the first P in use, and nobody parks before that (commit stamps with a P, or while others have them).
 */
#include "netpoll.h"
#include "proc.h"
#include "trace.h"

#ifndef FORCE_PREEMPT_NS
#define FORCE_PREEMPT_NS (10 * 1000 * 1000)
#endif
#define RESCUE_DETACHED_NS (500 * 1000)
#define POLL_NS (10 * 1000 * 1000)
#define SIGNAL_POLL_NS (50 * 1000 * 1000)
#ifndef LAST_LOOKS /* tests/model has none */
#define LAST_LOOKS 2
#endif
#define MIN_DELAY_US 20
#define MAX_DELAY_US 10000
#define MAX_DELAY_BUSY_US 500 /* while some goroutine is detached, but has nobody to yield to; and in fights */
#define FIGHT_NS (100 * 1000 * 1000)
#ifndef NAP_US /* tests/model has none */
#define NAP_US 500
#endif

static uint32_t started;
static uint32_t asleep; /* atomic: sysmon waits on note */
static Note note;
static void (*asked)(void); /* atomic: sysmon_call */
uint32_t coarse_now;

static void
advance_clock(int64_t now)
{
    uint32_t seconds = (uint32_t)(now / 1000000000);
    if (atomic_load_relaxed(&coarse_now) != seconds)
        atomic_store_relaxed(&coarse_now, seconds);
}

static bool
someone_waits(P *pp, int64_t now)
{
    int64_t next = atomic_load(&pp->timers.next);
    return !runqempty(pp) || atomic_load(&pp->set->runq.n) != 0 || (next != 0 && next <= now);
}

/* One look at one P.  Returns true when something was done.  Go: runtime.retake */
static bool
retake(P *pp, int64_t now, bool *detached_seen)
{
    uintptr_t owner = atomic_load(&pp->owner);
    if ((owner & P_RUNNING) == 0)
        return false; /* idle, or in the scheduler */
    uint32_t tick = atomic_load_relaxed(&pp->schedtick);
    if (tick != pp->sysmontick) {
        pp->sysmontick = tick;
        pp->sysmonwhen = now;
        return false;
    }
    bool did = false;
    if (atomic_load(&pp->set->npidle) != 0 && !runqempty(pp)) { /* left out by ready_local */
        atomic_store_relaxed(&pp->handovers, 0u);
        wakep(pp->set);
        did = true;
    }
    M *mp = (M *)(owner & ~P_RUNNING);
    G *gp = atomic_load_acquire(&mp->curg);
    if (gp == NULL || gp->cls->detached == NULL)
        return did;
    bool detached = gp->cls->detached(gp);
    if (detached)
        *detached_seen = true;
    else if (now - pp->sysmonwhen < FORCE_PREEMPT_NS || !someone_waits(pp, now))
        return did;
    /* Acquire pairs with p_exit: what the owner did to the P is seen here and, through the note, by its next owner. */
    if (!atomic_cas(&pp->owner, owner, (uintptr_t)0))
        return did;
    atomic_xadd_relaxed(&pp->set->nhandoff, (uint64_t)1);
    handoffp(pp);
    return true;
}

/* A timer of an idle P is overdue and nobody sleeps for it: the sleeper was woken for other work. */
static bool
start_for_timers(Sched *sched, int64_t now)
{
    int64_t next = earliest_timer(sched);
    if (next == 0 || next > now)
        return false;
    wake_sleeper(sched, next);
    return true;
}

static bool
main_waits(Sched *sched)
{
    M *mp = atomic_load(&sched->mainm);
    return mp != NULL && atomic_load(&mp->readylocked) != NULL;
}

/* The main goroutine is ready and its thread is not free: wait a little, then move it. */
static bool
rescue_main(Sched *sched, int64_t now)
{
    static int64_t since[SETS];
    if (!main_waits(sched)) {
        since[sched->set] = 0;
        return false;
    }
    if (since[sched->set] == 0) {
        since[sched->set] = now;
        return true;
    }
    G *gp = atomic_load_acquire(&sched->mainm->curg);
    bool detached = gp != NULL && gp->cls->detached != NULL && gp->cls->detached(gp);
    if (now - since[sched->set] < (detached ? RESCUE_DETACHED_NS : FORCE_PREEMPT_NS))
        return true;
    since[sched->set] = 0;
    return rescue(sched);
}

/* Another goroutine keeps the main thread, blocked, and a signal interrupts it there, which tells us nothing; or a signal has
 * come, but the main goroutine is in a system call elsewhere. */
static bool
main_kept(void)
{
    for (int s = 0; s < SETS; s++) {
        M *mp = atomic_load(&scheds[s].mainm);
        G *gp = mp != NULL ? atomic_load_acquire(&mp->curg) : NULL;
        if (mp == NULL || scheds[s].cls->poll_signals == NULL)
            continue;
        if ((gp != NULL && gp->stack_lo != NULL) || scheds[s].cls->signal_waits())
            return true;
    }
    return false;
}

static bool
all_idle(void)
{
    for (int s = 0; s < SETS; s++) {
        uint32_t np = atomic_load(&scheds[s].np);
        if (np != 0 &&
            (atomic_load(&scheds[s].npidle) != np || main_waits(&scheds[s]) || atomic_load(&scheds[s].starved)))
            return false;
    }
    return atomic_load(&asked) == NULL;
}

/* How long sysmon may sleep when all are idle; ns, negative for ever. */
static int64_t
idle_sleep(uint32_t looks)
{
    int64_t trace = schedtrace(nanotime());
    int64_t signals = (int)looks < LAST_LOOKS || main_kept() ? SIGNAL_POLL_NS : -1;
    return trace < 0 || (signals >= 0 && signals < trace) ? signals : trace;
}

/* Decisions of all sets: the same number twice, and nothing ran in between. */
static uint32_t
decisions(void)
{
    uint32_t n = 0;
    for (int s = 0; s < SETS; s++)
        for (uint32_t i = 0; i < atomic_load(&scheds[s].np); i++)
            n += atomic_load_relaxed(&scheds[s].allp[i]->schedtick);
    return n;
}

static void
poll_signals(void)
{
    for (int s = 0; s < SETS; s++)
        if (atomic_load(&scheds[s].np) != 0 && scheds[s].cls->poll_signals != NULL)
            scheds[s].cls->poll_signals();
}

/* Go: runtime.sysmon */
static void
sysmon(void *arg)
{
    (void)arg;
    int64_t delay = MIN_DELAY_US, fight_until = 0;
    uint32_t quiet = 0, looks = 0, ticks = 0;
    bool restless = false, napped = false; /* restless: the last sleep was a short one */
    sys_exact_sleeps();
    for (;;) {
        sys_usleep(delay);
        if (all_idle()) {
            uint32_t before = ticks;
            ticks = decisions();
            napped = NAP_US != 0 && restless && ticks != before;
            if (napped) {
                int64_t now = nanotime();
                advance_clock(now);
                (void)schedtrace(now);
                poll_signals();
                delay = NAP_US;
                continue;
            }
            note_clear(&note);
            atomic_store(&asleep, 1u); /* pairs with sysmon_wake: it changes npidle first and looks here second */
            /* Whoever has reset the flag will wake the note, even if late: wait for that, or it would come in the next sleep. */
            poll_signals(); /* one that came as the main thread was about to sleep */
            if (all_idle() || !atomic_cas(&asleep, 1u, 0u)) {
                int64_t began = nanotime();
                bool woken = note_sleep(&note, idle_sleep(looks));
                restless = woken && nanotime() - began < NAP_US * 1000;
                looks = woken ? 0 : looks + 1;
                if (!woken && !atomic_cas(&asleep, 1u, 0u))
                    note_sleep(&note, -1);
            }
            quiet = 0;
            delay = MIN_DELAY_US;
            continue;
        }
        if (napped) {
            napped = false;
            quiet = 0;
            delay = MIN_DELAY_US;
        }
        looks = 0;
        int64_t now = nanotime();
        bool did = false, detached = false;
        advance_clock(now);
        (void)schedtrace(now);
        void (*fn)(void) = atomic_load(&asked) != NULL ? atomic_xchg(&asked, (void (*)(void))NULL) : NULL;
        if (fn != NULL)
            fn();
        for (int s = 0; s < SETS; s++)
            for (uint32_t i = 0; i < atomic_load(&scheds[s].np); i++)
                did |= retake(scheds[s].allp[i], now, &detached);
        for (int s = 0; s < SETS; s++) {
            if (atomic_load(&scheds[s].np) == 0)
                continue;
            if (atomic_load(&scheds[s].npidle) != 0)
                did |= start_for_timers(&scheds[s], now);
            did |= rescue_main(&scheds[s], now);
            void (*overdue)(void) = atomic_load_relaxed(&scheds[s].overdue);
            if (overdue != NULL)
                overdue();
            if (atomic_load(&scheds[s].starved))
                did |= feed(&scheds[s]);
            if (scheds[s].cls->hurry != NULL && scheds[s].cls->hurry(now))
                fight_until = now + FIGHT_NS;
        }
        poll_signals();
        /* All Ps are busy and nobody looked at the descriptors for long: their goroutines go to the global queue. */
        for (int s = 0; s < SETS; s++) {
            Sched *sched = &scheds[s];
            if (atomic_load(&sched->np) != 0 && netpoll_waiters(sched) != 0 &&
                now - netpoll_lastpoll(sched) > POLL_NS) {
                G *list = netpoll(sched, 0, NULL);
                did |= list != NULL;
                injectglist(list);
            }
        }
        if (did) {
            quiet = 0;
            delay = MIN_DELAY_US;
        }
        else if (++quiet > 50) {
            int64_t most = detached || now < fight_until ? MAX_DELAY_BUSY_US : MAX_DELAY_US;
            delay = delay * 2 < most ? delay * 2 : most;
        }
    }
}

static void
start(void *arg)
{
    (void)arg;
    if (sys_thread_start(sysmon, NULL, "gmp-sysmon", false) != GMP_OK)
        atomic_store(&started, 0u); /* tried again by the next P that is put to use */
}

void
sysmon_start(void)
{
    if (!atomic_cas(&started, 0u, 1u))
        return;
    advance_clock(nanotime());
    systemstack(start, NULL);
}

void
sysmon_wake(void)
{
    if (GMP_UNLIKELY(atomic_load_relaxed(&started) == 0))
        sysmon_start();
    if (atomic_load(&asleep) && atomic_cas(&asleep, 1u, 0u)) {
        advance_clock(nanotime());
        note_wakeup(&note);
    }
}

bool
sysmon_call(void (*fn)(void))
{
    if (atomic_load(&started) == 0)
        return false;
    atomic_store(&asked,
                 fn); /* pairs with sysmon as it goes to sleep: asleep is set first, all_idle looks here second */
    if (atomic_load(&asleep) && atomic_cas(&asleep, 1u, 0u))
        note_wakeup(&note);
    return true;
}

void
sysmon_afterfork_child(void)
{
    note = (Note){0};
    asleep = 0;
    started = 0;
    asked = NULL;
}
