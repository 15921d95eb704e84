/* threads.c: Ms and Ps: starting, idling and waking OS threads, finding work for them; threads of other origin.
 *
 * Idling (the delicate dance, as in Go): an M that finds nothing gives up its P under Sched.lock having checked the global
 * queue under that lock; stops spinning; then checks all queues once more.  Whoever makes a goroutine runnable puts it on
 * a queue first and looks at npidle and nmspinning second.  One of the two sees the other.
 *
 * Timers: the M that goes idle last while a P is idle sleeps only until the next timer (Sched.sleeper).  Who adds an
 * earlier timer without holding a P wakes it.
 *
 * Retiring: a pool thread that goes to the idle list while IDLE_MS_KEPT others are on it sleeps for IDLE_M_NS at most, and then
 * ends.  The list is last in, first out, so those that are needed now and then never get that far; the others sleep without a
 * time limit, so an idle process has no wake-ups once they are gone.  Who sleeps for a timer or in the poller stays.  The M is
 * marked dead and used by the next thread, under another `life`; it is never freed, so allm can be read without a lock.
 *
 * Rejected: parking an adopted thread outright, its goroutines left to pool threads: a hop between threads (5 to 30 us) for
 * each channel operation of the main program.  Taking a P under the GIL instead of by CAS: the same price on Python's side,
 * and of no use to native goroutines.
 */
#include "netpoll.h"
#include "proc.h"
#include "trace.h"

#include <stdio.h>

Sched scheds[SETS];
M *allm;

static uint32_t next_mid, next_life;
static uint32_t max_threads = MAX_THREADS; /* atomic */
uint32_t idle_ms_kept = IDLE_MS_KEPT;      /* tests change these two */
int64_t idle_m_ns = IDLE_M_NS;
G gnobody;

#ifndef SPIN_ROUNDS    /* tests/model makes it short */
#define SPIN_ROUNDS 60 /* idle spinning before an M gives up its P */
#endif

/* ---- thread-local M ---- */

#if defined(__linux__) && !defined(GMP_TLS_DYNAMIC)
static __thread M *tls_m __attribute__((tls_model("initial-exec")));
#else
static __thread M *tls_m;
#endif

/* Not inlined: a goroutine may come back on another thread, so the address of tls_m must not be kept across a call. */
GMP_NOINLINE M *
getm(void)
{
    __asm__ volatile("" ::: "memory");
    return tls_m;
}

GMP_NOINLINE void
setm(M *mp)
{
    tls_m = mp;
    __asm__ volatile("" ::: "memory");
}

/* ---- idle Ps and Ms (Sched.lock) ---- */

/* Wakes an M that was taken off the idle list. */
void
wakem(M *mp)
{
    note_wakeup(&mp->park);
    /* stopm sets polling before it looks at the note for the last time. */
    if (atomic_load(&mp->polling))
        netpoll_break(mp->set);
}

void
pidleput(Sched *sched, P *pp)
{
    pp->link = sched->pidle;
    pp->idle = true;
    sched->pidle = pp;
    atomic_store_release(&pp->owner, (uintptr_t)0); /* pairs with the store in pidleget's caller, ordered by the lock */
    atomic_store(&sched->npidle, sched->npidle + 1);
}

P *
pidleget(Sched *sched, M *owner)
{
    return sched->pidle != NULL ? pidletake(sched, sched->pidle, owner) : NULL;
}

P *
pidletake(Sched *sched, P *pp, M *owner)
{
    P **link = &sched->pidle;
    while (*link != pp)
        link = &(*link)->link;
    *link = pp->link;
    pp->idle = false;
    atomic_store(&sched->npidle, sched->npidle - 1);
    atomic_store_release(&pp->owner, (uintptr_t)owner); /* as above */
    sysmon_wake();
    return pp;
}

static void
midleput(Sched *sched, M *mp)
{
    mp->link = sched->midle;
    sched->midle = mp;
    mp->idle = true;
    sched->npoolidle += mp->ispool;
    atomic_store(&sched->nmidle, sched->nmidle + 1);
}

void
midleremove(Sched *sched, M *mp)
{
    M **link = &sched->midle;
    while (*link != mp)
        link = &(*link)->link;
    *link = mp->link;
    mp->idle = false;
    sched->npoolidle -= mp->ispool;
    atomic_store(&sched->nmidle, sched->nmidle - 1);
    if (sched->sleeper == mp)
        sched->sleeper = NULL;
}

/* An idle pool M, else an idle adopted one: a thread that comes back from its wait should not find a lodger on it.  Not one
 * that takes no lodgers at all. */
static M *
midleget(Sched *sched)
{
    M *mp = sched->midle;
    while (mp != NULL && (!mp->ispool || mp->picky))
        mp = mp->link;
    for (M *other = sched->midle; mp == NULL && other != NULL; other = other->link)
        if (!other->picky)
            mp = other;
    if (mp != NULL)
        midleremove(sched, mp);
    return mp;
}

/* ---- Ms ---- */

static void sched_loop(M *mp);

static void
mretire(M *mp)
{
    mp->local = NULL;
    mp->tls[0] = mp->tls[1] = NULL;
    atomic_store(&mp->dead, true); /* the last access: another thread may take it now */
}

static void
mstart(void *arg)
{
    M *mp = arg;
    setm(mp);
    mp->tid = sys_thread_id();
    mp->sigstack = sys_sigstack_install();
    gobuf_init_thread(&mp->g0);
    if (mp->set->thread_begin != NULL)
        mp->set->thread_begin();
    sched_loop(mp);
    /* It has been idle for long, or its goroutine ended locked to it; it is off all counts. */
    sys_sigstack_free(mp->sigstack);
    mp->sigstack = NULL;
    gobuf_destroy(&mp->g0);
    mp->ispool = false;
    setm(NULL);
    mretire(mp);
}

static M *
mnew(Sched *sched)
{
    uint32_t life = atomic_xadd_relaxed(&next_life, 1u) + 1;
    /* Reuse the M of a thread that has ended; Ms are never freed, so that the list can be read without a lock. */
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
        if (atomic_load_relaxed(&mp->dead) && mp->set == sched && atomic_cas(&mp->dead, true, false)) {
            mp->life = life;
            return mp;
        }
    M *mp = sys_calloc(1, sizeof *mp);
    if (mp == NULL)
        return NULL;
    mp->life = life;
    mp->set = sched;
    mp->id = atomic_xadd_relaxed(&next_mid, 1u);
    M *head;
    do {
        head = atomic_load(&allm);
        mp->alllink = head;
    } while (!atomic_cas(&allm, head, mp));
    return mp;
}

uint32_t
set_max_threads(uint32_t n)
{
    return atomic_xchg(&max_threads, n);
}

/* Goroutines are runnable, and there is no thread to run them on. */
static GMP_COLD void
warn_no_thread(uint32_t limit, int err)
{
    static uint32_t warned;
    if (!atomic_cas(&warned, 0u, 1u))
        return;
    char msg[400];
    int n = limit != 0
                ? snprintf(msg, sizeof msg,
                           "gmp: the limit of %u threads is reached, as many goroutines are blocked in calls", limit)
                : snprintf(msg, sizeof msg, "gmp: no thread could be started: %s", gmp_strerror(err));
    n += snprintf(msg + n, sizeof msg - (size_t)n,
                  "; the others wait until one of these calls returns.  Let fewer block at a time, or raise %s\n",
                  limit != 0 ? "the limit: gmp.runtime.set_max_threads(n)"
                             : "the system's limits (RLIMIT_NPROC, pids.max of the cgroup, kernel.threads-max)");
    fwrite(msg, 1, (size_t)n, stderr);
}

typedef struct Newm {
    Sched *sched;
    P *pp;      /* owner 0; may be NULL */
    G *lockedg; /* for this goroutine alone; may be NULL */
    bool spinning;
    M *mp;   /* the result, NULL: no thread could be had */
    int err; /* why; GMP_OK: the limit */
} Newm;

/* A new M.  On a stack with room.  Go: runtime.newm */
static void
newm(void *arg)
{
    Newm *nm = arg;
    Sched *sched = nm->sched;
    M *mp;
    mutex_lock(&sched->lock);
    uint32_t limit = atomic_load_relaxed(&max_threads);
    bool room = sched->npool < limit;
    if (room) {
        sched->nm++;
        sched->npool++;
    }
    mutex_unlock(&sched->lock);
    nm->err = GMP_OK;
    if (!room)
        return;
    nm->err = GMP_EAGAIN;
    if ((mp = mnew(sched)) != NULL) {
        mp->ispool = true;
        mp->lockedg = nm->lockedg;
        mp->picky = nm->lockedg != NULL;
        mp->oldp = NULL;
        if (nm->pp != NULL)
            atomic_store_release(&nm->pp->owner, (uintptr_t)mp); /* handed over by thread creation */
        mp->nextp = nm->pp;
        mp->wakespinning = nm->spinning;
        char name[16];
        snprintf(name, sizeof name, "gmp-m%u", mp->id);
        nm->err = sys_thread_start(mstart, mp, name, !sched->cls->mask_signals);
        if (nm->err == GMP_OK) {
            nm->mp = mp;
            return;
        }
        mp->nextp = NULL;
        mp->lockedg = NULL;
        mp->ispool = false;
        mretire(mp);
    }
    mutex_lock(&sched->lock);
    sched->nm--;
    sched->npool--;
    mutex_unlock(&sched->lock);
}

static void
no_thread(void *arg)
{
    Newm *nm = arg;
    warn_no_thread(nm->err != GMP_OK ? 0 : atomic_load_relaxed(&max_threads), nm->err);
}

/* Runs pp (owner 0, not on the idle list), or an idle P if NULL, on an idle or a new M.  With spinning, the caller has
 * counted a spinning M in.  False when no thread could be had.  Go: runtime.startm */
static bool
startm(Sched *sched, P *pp, bool spinning)
{
    mutex_lock(&sched->lock);
    if (sched->stopping) {
        mutex_unlock(&sched->lock);
        return true;
    }
    if (pp == NULL) {
        pp = sched->pidle;
        if (pp == NULL) {
            if (spinning) /* under the lock: who finds a P idle after it must not take us for one that still looks for work */
                atomic_xadd(&sched->nmspinning, (uint32_t)-1);
            mutex_unlock(&sched->lock);
            return true;
        }
        pidleget(sched, NULL);
    }
    M *mp = midleget(sched);
    if (mp != NULL) {
        atomic_store_release(&pp->owner, (uintptr_t)mp); /* handed over by the note */
        mp->nextp = pp;
        mp->wakespinning = spinning;
        mutex_unlock(&sched->lock);
        wakem(mp);
        return true;
    }
    mutex_unlock(&sched->lock);
    Newm nm = {.sched = sched, .pp = pp, .spinning = spinning};
    systemstack(newm, &nm);
    if (nm.mp != NULL)
        return true;
    /* The P goes back; the next M that reaches a scheduling point runs what is queued. */
    mutex_lock(&sched->lock);
    pidleput(sched, pp);
    atomic_store(&sched->starved, true);
    if (spinning)
        atomic_xadd(&sched->nmspinning, (uint32_t)-1);
    mutex_unlock(&sched->lock);
    sysmon_wake(); /* to try again */
    systemstack(no_thread, &nm);
    return false;
}

static bool work_left(Sched *sched);

bool
feed(Sched *sched)
{
    if (atomic_load(&sched->npidle) == 0)
        return false; /* whoever has the P looks for work */
    atomic_store(&sched->starved, false);
    bool work = !runqempty(sched->allp[0]) || work_left(sched);
    return work && startm(sched, NULL, false);
}

/* Tries to add one more M for a goroutine that became runnable.  Go: runtime.wakep */
void
wakep(Sched *sched)
{
    if (atomic_load(&sched->npidle) == 0)
        return;
    /* Be conservative about spinning threads: at most one is on its way. */
    if (atomic_load(&sched->nmspinning) != 0 || !atomic_cas(&sched->nmspinning, 0u, 1u))
        return;
    startm(sched, NULL, true);
}

int64_t
earliest_timer(Sched *sched)
{
    int64_t least = 0;
    for (uint32_t i = 0, all = nallp(sched); i < all; i++) {
        int64_t next = atomic_load(&sched->allp[i]->timers.next);
        if (next != 0 && (least == 0 || next < least))
            least = next;
    }
    return least;
}

/* A timer for `when` was added, or a P with timers was given up: whoever sleeps must not oversleep it.
 * Go: runtime.wakeNetPoller */
void
wake_sleeper(Sched *sched, int64_t when)
{
    mutex_lock(&sched->lock);
    M *mp = sched->sleeper;
    if (mp != NULL && sched->sleepuntil > when) {
        midleremove(sched, mp);
        mutex_unlock(&sched->lock);
        wakem(mp);
        return;
    }
    bool start = mp == NULL && sched->npidle != 0;
    mutex_unlock(&sched->lock);
    if (start)
        startm(sched, NULL, false);
}

/* Makes the goroutines of a list runnable at once: as many as there are idle Ps on the global queue, with a thread for
 * each, the others on the caller's P.  taking: the caller is about to look for work itself, so one thread less.  Those of
 * another set or of a thread of their own go one by one. */
static void
inject(G *list, bool taking)
{
    M *mp = getm();
    Sched *sched = mp != NULL ? mp->set : list != NULL ? list->set : NULL;
    P *pp = mp != NULL ? mp->p : NULL;
    bool inside = pp != NULL && atomic_load_relaxed(&pp->owner) == (uintptr_t)mp; /* in the scheduler */
    G *global = NULL, **tail = &global;
    uint32_t n = 0, local = 0;
    if (!inside && pp != NULL)
        pp = p_enter(mp);
    uint32_t idle = pp != NULL ? atomic_load(&sched->npidle) : UINT32_MAX;
    while (list != NULL) {
        G *gp = list;
        list = gp->link;
        if (gp->set != sched || gp->lockedm != NULL) {
            goready(gp);
            continue;
        }
        set_status(gp, G_WAITING, G_RUNNABLE);
        if (n < idle) {
            *tail = gp;
            tail = &gp->link;
            n++;
        }
        else {
            runqput(pp, gp, false);
            local++;
        }
    }
    *tail = NULL;
    if (n != 0) {
        mutex_lock(&sched->lock);
        for (G *gp = global; gp != NULL;) {
            G *next = gp->link;
            globrunqput(sched, gp);
            gp = next;
        }
        mutex_unlock(&sched->lock);
        for (n -= taking; n != 0 && atomic_load(&sched->npidle) != 0; n--)
            startm(sched, NULL, false);
    }
    if (local != 0) {
        atomic_fence(); /* as in ready_local */
        wakep(sched);
    }
    if (!inside && pp != NULL)
        p_exit(mp, pp);
}

/* goready for a list through link.  Go: runtime.injectglist */
void
injectglist(G *list)
{
    inject(list, false);
}

/* pp was taken from its M (owner is 0): give it to another, or to the idle list.  Go: runtime.handoffp */
void
handoffp(P *pp)
{
    Sched *sched = pp->set;
    bool (*before_idle)(void) = atomic_load_relaxed(&sched->before_idle);
    if (before_idle != NULL && runqempty(pp))
        before_idle();
    if (!runqempty(pp) || atomic_load(&sched->runq.n) != 0) {
        startm(sched, pp, false);
        return;
    }
    /* Nobody is idle and nobody looks for work: there may be some to steal. */
    if (atomic_load_relaxed(&sched->np) > 1 && atomic_load(&sched->nmspinning) + atomic_load(&sched->npidle) == 0 &&
        atomic_cas(&sched->nmspinning, 0u, 1u)) {
        startm(sched, pp, true);
        return;
    }
    mutex_lock(&sched->lock);
    if (sched->runq.n != 0) {
        mutex_unlock(&sched->lock);
        startm(sched, pp, false);
        return;
    }
    pidleput(sched, pp);
    bool all_idle = sched->nmidle == sched->nm && sched->nm != 0 && sched->cls->idle != NULL;
    mutex_unlock(&sched->lock);
    int64_t next = earliest_timer(sched);
    if (next != 0)
        wake_sleeper(sched, next);
    else if (all_idle)
        startm(sched, NULL, false); /* they went to sleep while pp was on its way: one has to ask again in stopm */
    else if (netpoll_waiters(sched) != 0 && !atomic_load(&sched->polled))
        startm(sched, NULL, false); /* somebody has to poll */
}

/* ---- g0: finding work ---- */

static void
stop_spinning(M *mp)
{
    if (mp->spinning) {
        mp->spinning = false;
        uint32_t n = atomic_xadd(&mp->set->nmspinning, (uint32_t)-1);
        GMP_CHECK(n != 0);
    }
}

/* The last spinner that finds work lets another one look: there may be more.  Go: runtime.resetspinning */
static void
resetspinning(M *mp)
{
    if (mp->spinning) {
        stop_spinning(mp);
        wakep(mp->set);
    }
}

/* gp may run on its own thread only, which is not this one: hand it over, with the P if that thread is idle.
 * Go: runtime.startlockedm */
static void
startlockedm(M *mp, G *gp)
{
    Sched *sched = mp->set;
    resetspinning(mp); /* it may be left without a P, and go to sleep */
    mutex_lock(&sched->lock);
    M *lm = gp->lockedm;
    if (GMP_UNLIKELY(lm == NULL)) { /* not any more: the main goroutine, see evict */
        globrunqput(sched, gp);
        mutex_unlock(&sched->lock);
        return;
    }
    if (lm->idle) {
        P *pp = mp->p;
        midleremove(sched, lm);
        lm->nextg = gp;
        if (pp != NULL) {
            mp->p = NULL;
            atomic_store_release(&pp->owner, (uintptr_t)lm); /* handed over by the note */
            lm->nextp = pp;
        }
        else {
            lm->nextp = pidleget(sched, lm);
        }
        lm->wakespinning = false;
        mutex_unlock(&sched->lock);
        wakem(lm);
        return;
    }
    atomic_store(&lm->readylocked, gp);
    mutex_unlock(&sched->lock);
    sysmon_wake();
}

bool
rescue(Sched *sched)
{
    M *mp = sched->mainm;
    G *gp = atomic_load(&mp->readylocked);
    if (gp == NULL || !gp->interruptible || gp->lockedint + gp->lockedext != 0)
        return false;
    mutex_lock(&sched->lock);
    gp = atomic_xchg(&mp->readylocked, (G *)NULL);
    if (gp != NULL) {
        gp->lockedm = NULL;
        mp->thread_g = NULL;
        globrunqput(sched, gp);
    }
    mutex_unlock(&sched->lock);
    if (gp != NULL)
        wakep(sched);
    return gp != NULL;
}

/* The main goroutine parks on another thread than its own, after a rescue: if its own is free again, it goes on there. */
void
go_home(Sched *sched, M *mp, G *gp)
{
    M *home = sched->mainm;
    mutex_lock(&sched->lock);
    if (home != NULL && gp->interruptible && (home->idle || home == mp) && home->lockedg == NULL) {
        gp->lockedm = home;
        home->thread_g = gp;
    }
    mutex_unlock(&sched->lock);
}

/* Looks through the other Ps four times, in a random order each; the last time also for timers that are due and for runnext.
 * Go: runtime.stealWork */
static G *
stealwork(M *mp, P *pp)
{
    Sched *sched = mp->set;
    uint32_t np = sched->np;
    if (np == 1)
        return NULL;
    if (!mp->spinning) {
        /* At most half of the busy Ps are looked through by spinners. */
        if (2 * atomic_load(&sched->nmspinning) >= np - atomic_load(&sched->npidle))
            return NULL;
        mp->spinning = true;
        atomic_xadd(&sched->nmspinning, 1u);
    }
    for (int pass = 0; pass < 4; pass++) {
        uint32_t r = cheaprand(), at = r % np, step = sched->coprimes[r / np % sched->ncoprimes];
        for (uint32_t i = 0; i < np; i++, at = (at + step) % np) {
            P *victim = sched->allp[at];
            G *gp;
            if (victim == pp)
                continue;
            if (pass == 3 && atomic_load(&victim->timers.next) != 0) {
                timers_run(&victim->timers, nanotime());
                if ((gp = runqget(pp)) != NULL) /* whom they woke */
                    return gp;
            }
            gp = runqsteal(pp, victim, pass == 3);
            if (gp != NULL)
                return gp;
        }
    }
    return NULL;
}

/* Is there something for an M that has just given up its P?  The second half of the dance. */
static bool
work_left(Sched *sched)
{
    if (atomic_load(&sched->runq.n) != 0)
        return true;
    uint32_t np = atomic_load(&sched->np);
    for (uint32_t i = 0; np > 1 && i < np; i++)
        if (!runqempty(sched->allp[i]))
            return true;
    return false;
}

/* There is: takes an idle P again, if there is one, spinning.  Those who put it there may have relied on this M, so when it finds some
 * it must wake the next.  Without an idle P there is nothing to do: who gives one up looks at all queues afterwards. */
static void
look_again(M *mp)
{
    Sched *sched = mp->set;
    mutex_lock(&sched->lock);
    mp->p = pidleget(sched, mp);
    mp->spinning = mp->p != NULL;
    if (mp->spinning)
        atomic_xadd(&sched->nmspinning, 1u);
    mutex_unlock(&sched->lock);
}

/* Sleeps in the net poller instead of on the note.  True when someone woke this M.  When descriptors are ready it takes itself
 * off the idle list, with a P if one is idle, to run their goroutines itself.  Go: the end of runtime.findrunnable */
static bool
poll_sleep(M *mp, int64_t timeout, bool *left)
{
    Sched *sched = mp->set;
    int64_t deadline = timeout < 0 ? 0 : nanotime() + timeout;
    G *list = NULL;
    bool signals = sched->cls->poll_signals != NULL && !sched->stopping;
    if (signals && mp == sched->mainm) {
        sys_signals_hold();
        sched->cls->poll_signals(); /* one came while this thread ran a goroutine */
    }
    atomic_store(&mp->polling, 1u); /* pairs with wakem: the note first, polling second */
    while (!note_sleep(&mp->park, 0)) {
        bool signalled = false;
        list = netpoll(sched, timeout, &signalled);
        if (list != NULL)
            break;
        if (signalled && signals)
            sched->cls->poll_signals(); /* the handler ran inside the poll; now they are held again */
        if (timeout >= 0 && (timeout = deadline - nanotime()) <= 0)
            break;
    }
    atomic_store(&mp->polling, 0u);
    sys_signals_release();
    if (list != NULL) {
        mutex_lock(&sched->lock);
        if (mp->idle) {
            midleremove(sched, mp);
            *left = true;
            mp->p = pidleget(sched, mp);
        }
        mutex_unlock(&sched->lock);
        inject(list, mp->p != NULL);
    }
    return note_sleep(&mp->park, 0);
}

static void
look_for_signals(void *sched)
{
    ((Sched *)sched)->cls->poll_signals();
}

/* Sleeps until someone hands over a P or a goroutine, or the next timer is due.  The M has no P.  False: it has been idle for
 * long and was taken off all counts; its thread should end.  Go: runtime.stopm */
static bool
stopm(M *mp)
{
    Sched *sched = mp->set;
    int64_t timeout = -1;
    mutex_lock(&sched->lock);
    if (mp->readylocked != NULL || (sched->npidle != 0 && sched->runq.n != 0 && !sched->stopping)) {
        mutex_unlock(&sched->lock);
        return true;
    }
    bool spare =
        mp->ispool && mp->lockedg == NULL && sched->npoolidle >= atomic_load_relaxed(&idle_ms_kept) && !sched->stopping;
    midleput(sched, mp);
    bool all_idle =
        sched->nmidle == sched->nm && sched->sleeper == NULL && netpoll_waiters_any() == 0 && !sched->stopping;
    if (sched->npidle != sched->np)
        all_idle = false; /* a P is on its way from one M to another, perhaps with goroutines in its queue */
    if (sched->npidle != 0 && !sched->stopping) {
        int64_t when = earliest_timer(sched);
        if (when != 0 && (sched->sleeper == NULL || sched->sleepuntil > when)) {
            int64_t now = nanotime();
            timeout = when > now ? when - now : 0;
            sched->sleeper = mp;
            sched->sleepuntil = when;
            all_idle = spare = false;
        }
    }
    mutex_unlock(&sched->lock);
    if (all_idle && sched->cls->idle != NULL) {
        int64_t again = sched->cls->idle(sched);
        if (again > 0) {
            timeout = again;
            spare = false;
        }
    }
    bool woken, left = false;
    if (netpoll_waiters(sched) != 0 && atomic_cas(&sched->polled, 0u, 1u)) {
        spare = false;
        woken = poll_sleep(mp, timeout, &left);
        atomic_store(&sched->polled, 0u);
    }
    else if (mp == sched->mainm && sched->cls->poll_signals != NULL && !sched->stopping) {
        woken = note_sleep_intr(&mp->park, timeout, sched->cls->signal_word(), look_for_signals, sched);
    }
    else {
        woken = note_sleep(&mp->park, spare ? atomic_load_relaxed(&idle_m_ns) : timeout);
    }
    mutex_lock(&sched->lock);
    if (!woken && spare && mp->idle && mp->lockedg == NULL && !sched->stopping) { /* see move_to_own_thread */
        midleremove(sched, mp);
        sched->nm--;
        sched->npool--;
        mutex_unlock(&sched->lock);
        return false;
    }
    if (!woken && !left && !mp->idle) {
        /* Someone took this M off the list as the time ran out; the wake-up is on its way. */
        mutex_unlock(&sched->lock);
        note_sleep(&mp->park, -1);
        mutex_lock(&sched->lock);
    }
    if (mp->idle)
        midleremove(sched, mp);
    note_clear(&mp->park);
    mutex_unlock(&sched->lock);
    if (mp->nextp != NULL) {
        mp->p = mp->nextp;
        mp->nextp = NULL;
        mp->spinning = mp->wakespinning;
        mp->wakespinning = false;
    }
    return true;
}

/* Someone without a P may be about to hand something over: sleeping and being woken costs more than a short look.  As long as looks are in
 * vain they become shorter, but for each 16th.  Where there are thieves, stealwork was such a look. */
static bool
short_look(M *mp)
{
    Sched *sched = mp->set;
    if (atomic_load_relaxed(&sched->np) != 1)
        return false;
    int rounds = mp->vain % 16 == 0 ? SPIN_ROUNDS : SPIN_ROUNDS >> (mp->vain < 4 ? mp->vain : 4) | 1;
    for (int i = 0; i < rounds; i++) {
        for (int j = 0; j < 10; j++)
            cpu_relax();
        if (atomic_load_relaxed(&sched->runq.n) != 0 || atomic_load_relaxed(&mp->readylocked) != NULL) {
            mp->vain = 0;
            return true;
        }
    }
    mp->vain++;
    return false;
}

/* Finds a goroutine to run, sleeping if need be.  On g0, with a P held in the scheduler, or none.  The result may be this
 * thread's own goroutine without a P; NULL: a pool thread should end.  Go: runtime.findrunnable */
static G *
findrunnable(M *mp)
{
    Sched *sched = mp->set;
    for (;;) {
        if (mp->nextp != NULL) { /* a new thread's first P */
            mp->p = mp->nextp;
            mp->nextp = NULL;
            mp->spinning = mp->wakespinning;
            mp->wakespinning = false;
        }
        G *gp = mp->nextg;
        if (gp != NULL) {
            mp->nextg = NULL;
            return gp;
        }
        if (atomic_load(&sched->stopping)) {
            stop_spinning(mp);
            mp->p = NULL;
            (void)stopm(mp); /* for good */
            continue;
        }
        if (atomic_load_relaxed(&mp->readylocked) != NULL && (gp = atomic_xchg(&mp->readylocked, (G *)NULL)) != NULL) {
            int64_t when = mp->p == NULL ? earliest_timer(sched) : 0;
            if (when != 0) /* whoever parked here with a timeout counted on this M */
                wake_sleeper(sched, when);
            return gp;
        }
        P *pp = mp->p;
        if (pp == NULL) {
            mutex_lock(&sched->lock);
            pp = pidleget(sched, mp);
            mutex_unlock(&sched->lock);
            if (pp == NULL) {
                if (!stopm(mp))
                    return NULL;
                continue;
            }
            mp->p = pp;
        }
        if (atomic_load(&pp->timers.next) != 0)
            timers_run(&pp->timers, nanotime());
        if ((gp = fair_turn(sched, pp)) != NULL)
            return gp;
        if ((gp = runqget(pp)) != NULL)
            return gp;
        if (atomic_load(&sched->runq.n) != 0) {
            mutex_lock(&sched->lock);
            gp = globrunqget(sched, pp, 0);
            mutex_unlock(&sched->lock);
            if (gp != NULL)
                return gp;
        }
        bool (*before_idle)(void) = atomic_load_relaxed(&sched->before_idle);
        if (before_idle != NULL && before_idle())
            continue;
        if (netpoll_waiters(sched) != 0) {
            G *list = netpoll(sched, 0, NULL);
            if (list != NULL) {
                inject(list, true);
                continue;
            }
        }
        if ((gp = stealwork(mp, pp)) != NULL)
            return gp;
        if (short_look(mp))
            continue;
        mutex_lock(&sched->lock);
        if (sched->runq.n != 0 || mp->readylocked != NULL || sched->stopping) {
            mutex_unlock(&sched->lock);
            continue;
        }
        mp->p = NULL;
        pidleput(sched, pp);
        mutex_unlock(&sched->lock);
        stop_spinning(mp);
        if (work_left(sched)) {
            cpu_relax(); /* someone may be about to start an M for it, and be counted as spinning until then */
            look_again(mp);
            continue;
        }
        if (!stopm(mp))
            return NULL;
    }
}

/* Runs gp on this thread, with or without a P.  On g0; returns when something switches back to g0.  Go: runtime.execute */
static void
execute(M *mp, G *gp)
{
    P *pp = mp->p;
    resetspinning(mp);
    atomic_store_release(&mp->curg, gp); /* as in switch_away */
    gp->m = mp;
    set_status(gp, G_RUNNABLE, G_RUNNING);
    if (pp != NULL)
        stat_add(&pp->schedtick, 1);
    if (gp->cls->resume != NULL)
        gp->cls->resume(gp);
    gp->lastm = mp->life;
    if (pp != NULL)
        p_exit(mp, pp);
    gobuf_switch(&mp->g0, &gp->sched, false);
}

/* This thread runs no goroutine but its own: another one, that blocks on it, might wait for just this thread (join it).
 * Found work goes to another M, with the P. */
static void
pass_on(M *mp, G *gp)
{
    Sched *sched = mp->set;
    P *pp = mp->p;
    stop_spinning(mp);
    if (pp == NULL) {
        mutex_lock(&sched->lock);
        globrunqput(sched, gp);
        mutex_unlock(&sched->lock);
        wakep(sched);
        return;
    }
    runqput(pp, gp, true);
    mp->p = NULL;
    atomic_store_release(&pp->owner, (uintptr_t)0); /* pairs with the next owner's acquire */
    if (startm(sched, pp, false))
        return;
    G *own = mp->thread_g;
    if (mp->lockedg == NULL && own != NULL && own->lockedint + own->lockedext == 0)
        mp->picky = false; /* better so than not at all */
    else
        sys_usleep(1000);
}

/* A pool thread is to end, in the scheduler, on g0; mstart does the rest.  Go: runtime.mexit */
static void
mexit(M *mp)
{
    Sched *sched = mp->set;
    stop_spinning(mp);
    if (mp->nextg != NULL)
        pass_on(mp, mp->nextg); /* takes the P along */
    mp->nextg = NULL;
    P *pp = mp->p;
    mp->p = NULL;
    if (pp != NULL) {
        atomic_store_release(&pp->owner, (uintptr_t)0); /* pairs with the next owner's acquire */
        handoffp(pp);
    }
    mutex_lock(&sched->lock);
    sched->nm--;
    sched->npool--;
    mp->lockedg = NULL;
    mp->exiting = mp->ispool = mp->picky = false;
    bool all_idle = sched->nmidle == sched->nm && sched->nm != 0 && sched->sleeper == NULL && sched->cls->idle != NULL;
    mutex_unlock(&sched->lock);
    if (all_idle)
        startm(sched, NULL, false); /* to ask Class.idle */
}

/* g0's loop; returns when a pool thread should end.  On a pool thread it is the thread's own stack, on an adopted one a slab stack. */
static void
sched_loop(M *mp)
{
    for (;;) {
        G *prev = mp->prev;
        if (prev != NULL) {
            const Class *cls = prev->cls;
            commit(mp);
            if (cls->suspend != NULL)
                cls->suspend(prev);
            if (GMP_UNLIKELY(mp->exiting)) {
                mexit(mp);
                return;
            }
        }
        G *gp = findrunnable(mp);
        if (gp == NULL)
            return;
        gp = unqueued(mp->set, mp->p, gp);
        if (GMP_UNLIKELY(gp == NULL))
            continue;
        if (gp->lockedm != NULL && gp->lockedm != mp)
            startlockedm(mp, gp);
        else if (gp->lockedm != mp && mp->picky)
            pass_on(mp, gp);
        else
            execute(mp, gp);
    }
}

static void
g0_entry(void *arg)
{
    gobuf_entered();
    sched_loop(arg);
    gmp_throw("the scheduler of an adopted thread has ended");
}

/* ---- goroutines with a thread of their own ----
 *
 * gp->lockedm == mp says that gp runs on mp only, mp->picky that mp runs nothing else.  A goroutine that parks so leaves its
 * thread asleep: stopm; who finds it runnable hands it over with a P: startlockedm; what its thread finds runnable goes to
 * another: pass_on. */

static void
set_picky(M *mp)
{
    Sched *sched = mp->set;
    G *own = mp->thread_g;
    bool picky = mp->lockedg != NULL || (own != NULL && own->lockedint + own->lockedext != 0);
    if (!mp->ispool)
        picky |= mp == sched->mainm ? sched->mainpicky : sched->cls->own_threads;
    atomic_store_relaxed(&mp->picky, picky);
}

/* The main goroutine, parked or runnable, gives up its thread to the goroutine that runs there, and goes on elsewhere, as after a
 * rescue.  Sched.lock.  False on the threads of other goroutines, which cannot leave them. */
static bool
evict(M *mp)
{
    Sched *sched = mp->set;
    G *own = mp->thread_g;
    if (own == NULL)
        return true;
    if (!own->interruptible)
        return false;
    own->lockedm = NULL;
    mp->thread_g = NULL;
    own = atomic_xchg(&mp->readylocked, (G *)NULL);
    if (own != NULL)
        globrunqput(sched, own);
    return true;
}

/* Reserves a pool thread for gp, which runs on another one, and takes it there. */
static int
move_to_own_thread(M *mp, G *gp)
{
    Sched *sched = mp->set;
    mutex_lock(&sched->lock);
    M *lm = sched->midle;
    while (lm != NULL && (!lm->ispool || lm->picky))
        lm = lm->link;
    if (lm != NULL) { /* it sleeps, and sees this when it is woken */
        lm->lockedg = gp;
        set_picky(lm);
    }
    mutex_unlock(&sched->lock);
    if (lm == NULL) {
        Newm nm = {.sched = sched, .lockedg = gp};
        systemstack(newm, &nm);
        if ((lm = nm.mp) == NULL)
            return GMP_EAGAIN;
    }
    mutex_lock(&sched->lock);
    gp->lockedm = lm;
    mutex_unlock(&sched->lock);
    yield_to_sched();
    return GMP_OK;
}

int
lockosthread(bool internal)
{
    M *mp = getm();
    G *gp = mp->curg;
    Sched *sched = mp->set;
    if (gp->lockedint + gp->lockedext == 0 && gp != mp->thread_g) {
        if (!mp->ispool && !internal && gp->stack_lo != NULL) {
            int err = move_to_own_thread(mp, gp);
            if (err < 0)
                return err;
        }
        else {
            mutex_lock(&sched->lock);
            bool mine = mp->ispool || evict(mp);
            if (mine) {
                gp->lockedm = mp;
                mp->lockedg = gp;
            }
            mutex_unlock(&sched->lock);
            if (!mine)
                return GMP_EAGAIN;
        }
    }
    if (internal ? gp->lockedint == UINT8_MAX : gp->lockedext == UINT16_MAX)
        return GMP_EINVAL;
    if (internal)
        gp->lockedint++;
    else
        gp->lockedext++;
    set_picky(getm());
    return GMP_OK;
}

void
unlockosthread(bool internal)
{
    M *mp = getm();
    G *gp = mp->curg;
    if (internal ? gp->lockedint == 0 : gp->lockedext == 0)
        return;
    if (internal)
        gp->lockedint--;
    else
        gp->lockedext--;
    if (gp->lockedint + gp->lockedext != 0)
        return;
    mutex_lock(&mp->set->lock);
    if (gp != mp->thread_g) {
        gp->lockedm = NULL;
        mp->lockedg = NULL;
    }
    set_picky(mp);
    mutex_unlock(&mp->set->lock);
}

void
locked_goexit(M *mp, G *gp)
{
    mutex_lock(&mp->set->lock);
    gp->lockedm = NULL;
    mp->lockedg = mp->ispool || gp->lockedint != 0 ? &gnobody : NULL;
    set_picky(mp);
    mp->exiting = mp->ispool;
    mutex_unlock(&mp->set->lock);
}

void
main_keeps_thread(Sched *sched)
{
    mutex_lock(&sched->lock);
    sched->mainpicky = true;
    if (sched->mainm != NULL)
        set_picky(sched->mainm);
    mutex_unlock(&sched->lock);
}

/* ---- threads of other origin ---- */

M *
adopt_thread(Sched *sched, G *thread_g)
{
    if (gcount(sched, NULL) < 0)
        return NULL;
    M *mp = mnew(sched);
    if (mp != NULL && mp->g0stack == NULL && (mp->g0stack = stack_alloc(STACK_64K)) == NULL) {
        mretire(mp);
        mp = NULL;
    }
    if (mp == NULL) {
        guncount(sched, NULL);
        return NULL;
    }
    size_t size = stack_class_size(STACK_64K);
    gobuf_set_stack(&mp->g0, mp->g0stack, size);
    gobuf_init(&mp->g0, (char *)mp->g0stack + size, g0_entry, mp);
    mp->sigstack = sys_sigstack_install();
    mp->ispool = false;
    mp->lockedg = NULL;
    mp->picky = sched->cls->own_threads;
    mp->tid = sys_thread_id();
    mp->thread_g = thread_g;
    thread_g->set = sched;
    thread_g->m = mp;
    thread_g->lastm = mp->life;
    thread_g->lockedm = mp;
    thread_g->lockedint = 0;
    thread_g->lockedext = 0;
    thread_g->parkseq |= 1; /* it goes on where it was: a late timer may still hold an old one */
    thread_g->status = G_RUNNING;
    thread_g->goid = goid_next(NULL);
    gobuf_init_thread(&thread_g->sched);
    atomic_store_release(&mp->curg, thread_g);
    mutex_lock(&sched->lock);
    sched->nm++;
    mutex_unlock(&sched->lock);
    setm(mp);
    return mp;
}

void
disown_thread(M *mp)
{
    Sched *sched = mp->set;
    GMP_CHECK(mp == getm() && mp->curg == mp->thread_g);
    P *pp = p_enter(mp);
    mp->p = NULL;
    if (pp != NULL) {
        atomic_store_release(&pp->owner, (uintptr_t)0); /* pairs with the next owner's acquire in p_enter */
        handoffp(pp);
    }
    mutex_lock(&sched->lock);
    sched->nm--;
    sched->ngs--;
    bool all_idle = sched->nmidle == sched->nm && sched->nm != 0 && sched->sleeper == NULL && sched->cls->idle != NULL;
    mutex_unlock(&sched->lock);
    sys_sigstack_free(mp->sigstack);
    mp->sigstack = NULL;
    mp->thread_g = NULL;
    atomic_store_relaxed(&mp->curg, (G *)NULL);
    setm(NULL);
    gobuf_destroy(&mp->g0);
    mretire(mp);
    if (all_idle)
        startm(sched, NULL, false); /* to ask Class.idle */
}

/* ---- start and end ---- */

void
sched_stop(Sched *sched)
{
    mutex_lock(&sched->lock);
    atomic_store(&sched->stopping, true);
    mutex_unlock(&sched->lock);
}

void
sched_afterfork_child(Sched *sched)
{
    M *self = getm();
    if (sched->np == 0)
        return;
    for (M *mp = allm; mp != NULL; mp = mp->alllink)
        if (mp->set == sched && mp != self) {
            M *link = mp->alllink;
            uint32_t id = mp->id;
            memset(mp, 0, sizeof *mp);
            mp->alllink = link;
            mp->id = id;
            mp->set = sched;
            mp->dead = true;
        }
    sched->lock = (Mutex){0};
    sched->polled = 0;
    sched->qstarts = NULL;
    sched->runq.n = 0;
    sched->runq.head = 0;
    sched->midle = NULL;
    sched->nmidle = sched->nmspinning = 0;
    sched->sleeper = NULL;
    sched->pidle = NULL;
    sched->npidle = 0;
    sched->npoolidle = 0;
    sched->starved = false;
    sched->nm = self != NULL && self->set == sched ? 1 : 0;
    sched->npool = sched->nm && self->ispool ? 1 : 0;
    sched->mainm = NULL;
    sched->nslots = sched->npending = sched->nsystem = 0;
    for (int c = 0; c < SET_CLASSES; c++)
        sched->gfree[c].n = 0; /* their interpreter state went with the fork */
    sched->gdelta = 0;
    bool goroutine = sched->nm && self->curg != NULL && self->curg->stack_lo != NULL;
    sched->resizing = (Mutex){0};
    for (uint32_t i = sched->nallp; i-- > 0;) {
        P *pp = sched->allp[i];
        timers_afterfork_child(&pp->timers);
        pp->runqhead = pp->runqtail = 0;
        pp->runnext = NULL;
        for (int c = 0; c < SET_CLASSES; c++)
            pp->gfree[c].n = 0;
        pp->qstarts = NULL;
        pp->nqstarts = 0;
        pp->gdelta = pp->npending = 0;
        pp->idle = false;
        if (i < sched->np)
            pidleput(sched, pp);
    }
    if (goroutine)
        sched->gdelta = 1;
    if (sched->nm) {
        self->p = NULL;
        self->spinning = false;
        self->readylocked = NULL;
        self->nextp = NULL;
        self->nextg = NULL;
        self->idle = false;
        self->tid = sys_thread_id();
        if (goroutine) { /* the forking goroutine goes on; whose thread it is does not matter any more */
            self->thread_g = NULL;
        }
    }
}
