/* proc.c: the scheduler: starting, parking, waking and switching goroutines; finding work; Ms and Ps.
 *
 * A switch, step by step
 *   1. The goroutine that leaves enters the scheduler (p_enter) and picks its successor from the local queue.  There is
 *      one and this thread may run it: the switch goes straight to it.  Otherwise it goes to g0, the scheduler's own
 *      stack, which may look further and sleep.
 *   2. gobuf_switch.  Now the old goroutine is saved, and not before.
 *   3. On the new stack, commit(): the old goroutine's state changes and its unlockf runs, which is what allows others to
 *      wake it.  It follows that nobody can resume a goroutine that is not saved, with no lock held across a wait.
 *   4. Only then Class.swap (or suspend/resume by way of g0) lets go of the old goroutine's interpreter state and takes
 *      the new one's.  Should another M wake the old one between 3 and 4, it waits for the GIL, which is still ours.
 *   5. p_exit.
 *
 * Idling (the delicate dance, as in Go): an M that finds nothing gives up its P under Sched.lock having checked the global
 * queue under that lock; stops spinning; then checks all queues once more.  Whoever makes a goroutine runnable puts it on
 * a queue first and looks at npidle and nmspinning second.  One of the two sees the other.
 *
 * Timers: the M that goes idle last while a P is idle sleeps only until the next timer (Sched.sleeper).  Who adds an
 * earlier timer without holding a P wakes it.
 *
 * Rejected: switching by way of g0 always (Go's mcall): twice the price of a yield.  Parking an adopted thread outright,
 * its goroutines left to pool threads: a hop between threads (5 to 30 us) for each channel operation of the main program.
 * Taking a P under the GIL instead of by CAS: the same price on Python's side, and of no use to native goroutines.
 */
#include "netpoll.h"

#include <stdio.h>

typedef enum SwitchKind { SWITCH_PARK, SWITCH_YIELD, SWITCH_DEAD } SwitchKind;

Sched scheds[SETS];
M *allm;

static uint32_t next_mid;
static uint64_t next_goid = 1;

#define GOID_BATCH 16
#define GLOBAL_TICK 61 /* decisions between two turns of those whom two busy goroutines could shut out: see fair_turn */
#define TIMER_TICK 8   /* decisions between two looks at the clock, while there is something to run */
#define SPIN_ROUNDS 60 /* idle spinning before an M gives up its P */

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

static GMP_NOINLINE void
setm(M *mp)
{
    tls_m = mp;
    __asm__ volatile("" ::: "memory");
}

/* ---- names ---- */

const char *
wait_reason_name(WaitReason r)
{
    static const char *const names[WAIT_REASONS] = {
        [WAIT_NONE] = "",
        [WAIT_CHAN_RECEIVE] = "chan receive",
        [WAIT_CHAN_SEND] = "chan send",
        [WAIT_CHAN_RECEIVE_NIL] = "chan receive (nil chan)",
        [WAIT_CHAN_SEND_NIL] = "chan send (nil chan)",
        [WAIT_SELECT] = "select",
        [WAIT_SELECT_NONE] = "select (no cases)",
        [WAIT_SLEEP] = "sleep",
        [WAIT_MUTEX] = "sync.Mutex.Lock",
        [WAIT_WAITGROUP] = "sync.WaitGroup.Wait",
        [WAIT_JOIN] = "join",
        [WAIT_FUTURE] = "future",
        [WAIT_IO_READ] = "IO wait (read)",
        [WAIT_IO_WRITE] = "IO wait (write)",
    };
    return (unsigned)r < WAIT_REASONS ? names[r] : "?";
}

/* ---- idle Ps and Ms (Sched.lock) ---- */

static uint32_t polled; /* atomic: some M waits in the net poller, or is about to */

/* Wakes an M that was taken off the idle list. */
static void
wakem(M *mp)
{
    note_wakeup(&mp->park);
    /* stopm sets polling before it looks at the note for the last time. */
    if (atomic_load(&mp->polling))
        netpoll_break();
}

static void
pidleput(Sched *sched, P *pp)
{
    pp->link = sched->pidle;
    sched->pidle = pp;
    atomic_store_release(&pp->owner, (uintptr_t)0); /* pairs with the store in pidleget's caller, ordered by the lock */
    atomic_store(&sched->npidle, sched->npidle + 1);
}

static P *
pidleget(Sched *sched, M *owner)
{
    P *pp = sched->pidle;
    if (pp == NULL)
        return NULL;
    sched->pidle = pp->link;
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
    atomic_store(&sched->nmidle, sched->nmidle + 1);
}

static void
midleremove(Sched *sched, M *mp)
{
    M **link = &sched->midle;
    while (*link != mp)
        link = &(*link)->link;
    *link = mp->link;
    mp->idle = false;
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
    while (mp != NULL && !mp->ispool)
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
mstart(void *arg)
{
    M *mp = arg;
    setm(mp);
    mp->tid = sys_thread_id();
    mp->sigstack = sys_sigstack_install();
    gobuf_init_thread(&mp->g0);
    sched_loop(mp);
}

static M *
mnew(Sched *sched)
{
    /* Reuse the M of an adopted thread that has ended; Ms are never freed, so that the list can be read without a lock. */
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
        if (atomic_load_relaxed(&mp->dead) && mp->set == sched && atomic_cas(&mp->dead, true, false))
            return mp;
    M *mp = calloc(1, sizeof *mp);
    if (mp == NULL)
        return NULL;
    mp->set = sched;
    mp->id = atomic_xadd_relaxed(&next_mid, 1u);
    M *head;
    do {
        head = atomic_load(&allm);
        mp->alllink = head;
    } while (!atomic_cas(&allm, head, mp));
    return mp;
}

static void
mretire(M *mp)
{
    atomic_store(&mp->dead, true);
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
            mutex_unlock(&sched->lock);
            if (spinning)
                atomic_xadd(&sched->nmspinning, (uint32_t)-1);
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
    bool room = sched->npool < MAX_THREADS;
    if (room) {
        sched->nm++;
        sched->npool++;
    }
    mutex_unlock(&sched->lock);
    int err = GMP_EAGAIN;
    if (room && (mp = mnew(sched)) != NULL) {
        mp->ispool = true;
        mp->picky = false;
        atomic_store_release(&pp->owner, (uintptr_t)mp); /* handed over by thread creation */
        mp->nextp = pp;
        mp->wakespinning = spinning;
        char name[16];
        snprintf(name, sizeof name, "gmp-m%u", mp->id);
        err = sys_thread_start(mstart, mp, name, true);
        if (err == GMP_OK)
            return true;
        mp->nextp = NULL;
        mp->ispool = false;
        mretire(mp);
    }
    /* No thread to be had.  The P goes back; the next M that reaches a scheduling point runs what is queued. */
    mutex_lock(&sched->lock);
    if (room) {
        sched->nm--;
        sched->npool--;
    }
    pidleput(sched, pp);
    bool nobody = sched->nm == 0;
    mutex_unlock(&sched->lock);
    if (spinning)
        atomic_xadd(&sched->nmspinning, (uint32_t)-1);
    static uint32_t warned;
    if (atomic_cas(&warned, 0u, 1u)) {
        char msg[160];
        int n = snprintf(msg, sizeof msg,
                         "gmp: cannot start another thread (%s): goroutines wait until a running one parks%s\n",
                         room ? gmp_strerror(err) : "limit of 10,000 reached", nobody ? "; none runs" : "");
        fwrite(msg, 1, (size_t)n, stderr);
    }
    return false;
}

/* Tries to add one more M for a goroutine that became runnable.  Go: runtime.wakep */
void
wakep(Sched *sched)
{
    if (atomic_load(&sched->npidle) == 0)
        return;
    /* Be conservative about spinning threads: at most one is on its way. */
    if (atomic_load_relaxed(&sched->nmspinning) != 0 || !atomic_cas(&sched->nmspinning, 0u, 1u))
        return;
    startm(sched, NULL, true);
}

int64_t
earliest_timer(Sched *sched)
{
    int64_t least = 0;
    for (uint32_t i = 0; i < sched->np; i++) {
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

/* pp was taken from its M (owner is 0): give it to another, or to the idle list.  Go: runtime.handoffp */
void
handoffp(P *pp)
{
    Sched *sched = pp->set;
    if (!runqempty(pp) || atomic_load(&sched->runq.n) != 0) {
        startm(sched, pp, false);
        return;
    }
    /* Nobody is idle and nobody looks for work: there may be some to steal. */
    if (sched->np > 1 && atomic_load(&sched->nmspinning) + atomic_load(&sched->npidle) == 0 &&
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
    else if (netpoll_waiters() != 0 && !atomic_load(&polled))
        startm(sched, NULL, false); /* somebody has to poll */
}

/* ---- making goroutines runnable ---- */

static void
set_status(G *gp, GStatus from, GStatus to)
{
    /* Release: pairs with the acquire of the queue or lock through which the next owner gets gp. */
    if (GMP_UNLIKELY(atomic_load_relaxed(&gp->status) != (uint32_t)from))
        gmp_throw("goroutine %llu: status %u, expected %d before %d (waiting for %s)", (unsigned long long)gp->goid,
                  gp->status, from, to, wait_reason_name((WaitReason)gp->waitreason));
    atomic_store_release(&gp->status, (uint32_t)to);
}

/* In the scheduler, with a P of gp's set. */
static void
ready_local(Sched *sched, P *pp, G *gp, bool next)
{
    runqput(pp, gp, next);
    if (sched->np == 1)
        return;     /* it is not idle: we have it */
    atomic_fence(); /* pairs with an M that goes idle: it changes npidle and nmspinning, then looks at all queues */
    if (atomic_load(&sched->npidle) != 0)
        wakep(sched);
}

/* Without a P.  A thread's own goroutine is handed to its thread, with a P if one is idle. */
static void
ready_global(Sched *sched, G *gp)
{
    mutex_lock(&sched->lock);
    M *lm = gp->lockedm;
    if (lm != NULL) {
        if (lm->idle) {
            midleremove(sched, lm);
            lm->nextg = gp;
            lm->nextp = pidleget(sched, lm);
            lm->wakespinning = false;
            mutex_unlock(&sched->lock);
            wakem(lm);
        }
        else {
            /* Found by lm when it reaches a scheduling point: all check this before they sleep, under the lock. */
            atomic_store(&lm->readylocked, gp);
            mutex_unlock(&sched->lock);
            sysmon_wake(); /* it may not reach one for long */
        }
        return;
    }
    globrunqput(sched, gp);
    mutex_unlock(&sched->lock);
    wakep(sched);
}

static void
make_runnable(G *gp)
{
    Sched *sched = gp->set;
    M *mp = getm();
    if (mp != NULL && mp->set == sched) {
        P *pp = mp->p;
        /* A timer's function runs inside the scheduler already. */
        if (pp != NULL && atomic_load_relaxed(&pp->owner) == (uintptr_t)mp) {
            ready_local(sched, pp, gp, false);
            return;
        }
        pp = p_enter(mp);
        if (GMP_LIKELY(pp != NULL)) {
            ready_local(sched, pp, gp, true);
            p_exit(mp, pp);
            return;
        }
    }
    ready_global(sched, gp);
}

/* Makes a parked goroutine runnable: next on this P, or on the global queue from a thread without one.  Any thread.
 * Go: runtime.goready; differs: callable without a P. */
void
goready(G *gp)
{
    set_status(gp, G_WAITING, G_RUNNABLE);
    make_runnable(gp);
}

void
injectglist(G *list)
{
    while (list != NULL) {
        G *gp = list;
        list = gp->link;
        goready(gp);
    }
}

bool
goready_interrupt(G *gp, int code)
{
    uint32_t seq = atomic_load(&gp->parkseq);
    if ((seq & 1) != 0 || !park_claim(gp, seq))
        return false;
    gp->wakecode = code;
    /* The claim may come between park_begin and the end of the commit of the switch: wait for the latter.  Other wakers are
     * kept out by the lock that unlockf gives back, or by the timer that it arms. */
    while (atomic_load_acquire(&gp->status) != G_WAITING) /* pairs with set_status in commit */
        sys_thread_yield();
    while (atomic_load_acquire(&gp->lastm->committing) == gp) /* pairs with the store in commit */
        sys_thread_yield();
    goready(gp);
    return true;
}

/* ---- dead goroutines ---- */

/* Go: runtime.gfput; differs: stacks are kept, only deep ones are trimmed. */
static void
gfput(Sched *sched, P *pp, G *gp)
{
    if (gp->stack_lo != NULL) {
        /* A stack that went deep without parking leaves a trace in one line below what is kept.  Not looked at in the first
         * life: the look itself costs a page fault, and in a great many goroutines most live only once. */
        size_t size = stack_class_size((StackClass)gp->stackclass);
        if (!gp->deep && gp->reused && size > 2 * STACK_KEEP) {
            const volatile uint64_t *mark = (const volatile uint64_t *)((char *)gp - STACK_KEEP - GMP_CACHELINE);
            gp->deep = (mark[0] | mark[1] | mark[2] | mark[3] | mark[4] | mark[5] | mark[6] | mark[7]) != 0;
        }
        if (gp->deep) {
            stack_trim((StackClass)gp->stackclass, gp->stack_lo,
                       (size_t)((char *)gp->stack_lo + size - (char *)gp) + STACK_KEEP);
            gp->deep = false;
        }
        gp->reused = true;
    }
    if (pp == NULL) {
        mutex_lock(&sched->lock);
        stat_add(&sched->gdelta, -1);
        sched->gfree[sched->ngfree] = gp;
        stat_add(&sched->ngfree, 1);
        mutex_unlock(&sched->lock);
        return;
    }
    stat_add(&pp->gdelta, -1);
    pp->gfree[pp->ngfree++] = gp;
    if (pp->ngfree < GFREE_MAX)
        return;
    pp->ngfree -= GFREE_MAX / 2;
    mutex_lock(&sched->lock);
    memcpy(sched->gfree + sched->ngfree, pp->gfree + pp->ngfree, GFREE_MAX / 2 * sizeof(G *));
    stat_add(&sched->ngfree, GFREE_MAX / 2);
    mutex_unlock(&sched->lock);
}

/* In the scheduler if pp is not NULL.  NULL when there is none.  Go: runtime.gfget */
static G *
gfget(Sched *sched, P *pp)
{
    if (pp == NULL || pp->ngfree == 0) {
        if (atomic_load_relaxed(&sched->ngfree) == 0)
            return NULL;
        mutex_lock(&sched->lock);
        uint32_t n = pp != NULL ? GFREE_MAX / 2 : 1;
        if (n > sched->ngfree)
            n = sched->ngfree;
        stat_add(&sched->ngfree, -n);
        G **from = sched->gfree + sched->ngfree;
        G *gp = n != 0 ? from[0] : NULL;
        if (pp != NULL) {
            memcpy(pp->gfree, from, n * sizeof(G *));
            pp->ngfree = n;
        }
        mutex_unlock(&sched->lock);
        if (pp == NULL || n == 0)
            return gp;
    }
    uint32_t n = --pp->ngfree;
    if (n >= 2)
        prefetch_g(sched->cls, pp->gfree[n - 2]); /* a burst of spawns waits for memory more than for anything else */
    return pp->gfree[n];
}

/* Counts a new goroutine: the queues must have room for all of them. */
static int
gcount(Sched *sched)
{
    mutex_lock(&sched->lock);
    int code = globrunqreserve(sched, sched->ngs + 1);
    if (code == GMP_OK)
        sched->ngs++;
    mutex_unlock(&sched->lock);
    return code;
}

/* A new slot with its G at the top.  Not in the scheduler: create may run foreign code.  Go: runtime.malg */
static G *
malg(Sched *sched)
{
    const Class *cls = sched->cls;
    char *lo = stack_alloc(cls->stack);
    if (lo == NULL)
        return NULL;
    G *gp = slot_g(cls, lo);
    memset(gp, 0, cls->g_size);
    gp->cls = cls;
    gp->set = sched;
    gp->stackclass = (uint8_t)cls->stack;
    gp->parkseq = 1;
    gobuf_set_stack(&gp->sched, lo, (size_t)((char *)gp - lo));
    if (gcount(sched) < 0 || (cls->create != NULL && cls->create(gp) < 0)) {
        stack_free(cls->stack, lo);
        return NULL;
    }
    gp->stack_lo = lo;
    gp->status = G_DEAD;
    atomic_xadd_relaxed(&sched->nslots, 1u);
    return gp;
}

static void finish_switch(void);

/* First function on a goroutine's stack. */
static void
gentry(void *arg)
{
    G *gp = arg;
    gobuf_entered();
    finish_switch();
    gp->entry(gp);
    gmp_throw("goroutine %llu returned from its entry", (unsigned long long)gp->goid);
}

static uint64_t
goid_next(P *pp)
{
    if (pp == NULL)
        return atomic_xadd_relaxed(&next_goid, 1u) + 1;
    if (GMP_UNLIKELY(pp->goidcache == pp->goidcacheend)) {
        pp->goidcache = atomic_xadd_relaxed(&next_goid, (uint64_t)GOID_BATCH) + 1;
        pp->goidcacheend = pp->goidcache + GOID_BATCH;
    }
    return pp->goidcache++;
}

static void
ginit(Sched *sched, G *gp, uint64_t goid, uint64_t parentid, void (*entry)(G *gp))
{
    gp->goid = goid;
    gp->parentid = parentid;
    gp->entry = entry;
    gp->lockedm = NULL;
    gp->lastm = NULL;
    gp->waitreason = WAIT_NONE;
    gp->interruptible = false;
    gobuf_init(&gp->sched, gp, gentry, gp);
    (void)sched;
}

/* Counts the goroutine in and queues it; in the scheduler if pp is not NULL. */
static void
enqueue_new(Sched *sched, M *mp, P *pp, G *gp)
{
    if (GMP_LIKELY(pp != NULL)) {
        stat_add(&pp->gdelta, 1);
        ready_local(sched, pp, gp, true);
        p_exit(mp, pp);
    }
    else {
        mutex_lock(&sched->lock);
        stat_add(&sched->gdelta, 1);
        globrunqput(sched, gp);
        mutex_unlock(&sched->lock);
        wakep(sched);
    }
}

/* Must a new goroutine bring a G of its own?  The dead ones are promised to those that have none yet. */
static bool
slots_promised(Sched *sched)
{
    return num_goroutine(sched) + 1 > (int64_t)atomic_load_relaxed(&sched->nslots);
}

/* Go: runtime.newproc + newproc1; differs: the G is filled in by a callback, because it is class-specific. */
uint64_t
newproc(Sched *sched, void (*entry)(G *gp), void (*fill)(G *gp, void *arg), void *arg)
{
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    G *gp = NULL;
    if (GMP_LIKELY(atomic_load_relaxed(&sched->npending) == 0) || !slots_promised(sched))
        gp = gfget(sched, pp);
    if (GMP_UNLIKELY(gp == NULL)) {
        if (pp != NULL)
            p_exit(mp, pp);
        gp = malg(sched);
        if (gp == NULL)
            return 0;
        mp = getm();
        pp = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    }
    uint64_t goid = goid_next(pp);
    ginit(sched, gp, goid, mp != NULL && mp->curg != NULL ? mp->curg->goid : 0, entry);
    fill(gp, arg);
    set_status(gp, G_DEAD, G_RUNNABLE);
    enqueue_new(sched, mp, pp, gp);
    return goid;
}

#define LONG_QUEUE 16

bool
runq_long(Sched *sched)
{
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? mp->p : NULL;
    if (atomic_load_relaxed(&sched->runq.n) >= LONG_QUEUE)
        return true;
    return pp != NULL && pp->runqtail - atomic_load_relaxed(&pp->runqhead) >= LONG_QUEUE;
}

int
newproc_later(Sched *sched, Start *st)
{
    if (slots_promised(sched)) {
        G *gp = malg(sched);
        if (gp == NULL)
            return GMP_ENOMEM;
        mutex_lock(&sched->lock);
        sched->gfree[sched->ngfree] = gp;
        stat_add(&sched->ngfree, 1);
        mutex_unlock(&sched->lock);
    }
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    st->state = START_PENDING;
    st->gp = NULL;
    st->goid = goid_next(pp);
    st->parentid = mp != NULL && mp->curg != NULL ? mp->curg->goid : 0;
    atomic_xadd(&sched->npending, 1u);
    enqueue_new(sched, mp, pp, (G *)((uintptr_t)st | 1));
    return GMP_OK;
}

/* Gives st its G, unless somebody has; in the scheduler if pp is not NULL.  NULL when there is none to give. */
static G *
bind(Sched *sched, P *pp, Start *st)
{
    while (!atomic_cas(&st->state, (uint32_t)START_PENDING, (uint32_t)START_BINDING)) {
        if (atomic_load_acquire(&st->state) == START_BOUND) /* pairs with the release below */
            return st->gp;
        cpu_relax(); /* somebody is at it, and may yet find no G */
    }
    G *gp = gfget(sched, pp);
    if (gp == NULL) {
        atomic_store_release(&st->state, (uint32_t)START_PENDING); /* nothing to publish */
        return NULL;
    }
    ginit(sched, gp, st->goid, st->parentid, st->entry);
    st->fill(gp, st);
    set_status(gp, G_DEAD, G_RUNNABLE);
    st->gp = gp;
    atomic_xadd(&sched->npending, (uint32_t)-1);
    atomic_store_release(&st->state, (uint32_t)START_BOUND); /* pairs with the acquire above: publishes gp */
    return gp;
}

/* What came from a queue, as a G.  In the scheduler with a P, so that all dead Gs but other Ps' are at hand. */
static inline G *
unqueued(Sched *sched, P *pp, G *gp)
{
    if (GMP_LIKELY(!is_start(gp)))
        return gp;
    gp = bind(sched, pp, (Start *)((uintptr_t)gp & ~(uintptr_t)1));
    if (gp == NULL)
        gmp_throw("no G is left for a goroutine that was promised one");
    return gp;
}

G *
bindstart(Sched *sched, Start *st)
{
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    G *gp = bind(sched, pp, st);
    if (pp != NULL)
        p_exit(mp, pp);
    if (gp != NULL)
        return gp;
    /* The dead ones are on a P that is not ours: make another. */
    gp = malg(sched);
    if (gp == NULL)
        return NULL;
    mutex_lock(&sched->lock);
    sched->gfree[sched->ngfree] = gp;
    stat_add(&sched->ngfree, 1);
    mutex_unlock(&sched->lock);
    return bind(sched, NULL, st);
}

int64_t
num_goroutine(Sched *sched)
{
    int64_t n = atomic_load_relaxed(&sched->gdelta);
    for (uint32_t i = 0; i < sched->np; i++)
        n += atomic_load_relaxed(&sched->allp[i]->gdelta);
    return n;
}

/* ---- switching ---- */

static void go_home(Sched *sched, M *mp, G *gp);

/* On the stack switched to, in the scheduler: the goroutine that was left is saved; let others have it. */
static void
commit(M *mp)
{
    G *prev = mp->prev;
    P *pp = mp->p;
    mp->prev = NULL;
    switch ((SwitchKind)mp->prevkind) {
    case SWITCH_PARK: {
        bool (*unlockf)(G *, void *) = mp->unlockf;
        void *lock = mp->waitlock;
        prev->m = NULL;
        if (GMP_UNLIKELY(prev->lockedm == NULL && prev->stack_lo == NULL))
            go_home(prev->set, mp, prev);
        bool guarded = prev->interruptible;
        if (GMP_UNLIKELY(guarded))
            atomic_store(&mp->committing, prev);
        set_status(prev, G_RUNNING, G_WAITING);
        /* From here on prev may run elsewhere, unless unlockf says that it stays. */
        if (unlockf != NULL && !unlockf(prev, lock)) {
            set_status(prev, G_WAITING, G_RUNNABLE);
            make_runnable(prev);
        }
        if (GMP_UNLIKELY(guarded))
            atomic_store_release(&mp->committing, (G *)NULL); /* pairs with the wait in goready_interrupt */
        break;
    }
    case SWITCH_YIELD:
        prev->m = NULL;
        set_status(prev, G_RUNNING, G_RUNNABLE);
        if (pp != NULL) {
            ready_local(prev->set, pp, prev, false);
        }
        else {
            /* Not by ready_global: a thread's own goroutine, too, comes back after those that are runnable. */
            mutex_lock(&prev->set->lock);
            globrunqput(prev->set, prev);
            mutex_unlock(&prev->set->lock);
            wakep(prev->set);
        }
        break;
    case SWITCH_DEAD:
        prev->m = NULL;
        set_status(prev, G_RUNNING, G_DEAD);
        gobuf_destroy(&prev->sched);
        gfput(prev->set, pp, prev);
        break;
    }
}

/* After gobuf_switch, on the stack of the goroutine that goes on. */
static GMP_NOINLINE void
finish_switch(void)
{
    M *mp = getm();
    G *prev = mp->prev;
    if (prev == NULL)
        return; /* came from g0: execute has done it all */
    G *gp = mp->curg;
    const Class *cls = gp->cls;
    commit(mp);
    if (cls->swap != NULL)
        cls->swap(prev, gp);
    gp->lastm = mp;
    p_exit(mp, mp->p);
}

/* With many goroutines in the queue each one's memory has left the caches: fetch that of the next ones in good time. */
static inline void
prefetch_queue(P *pp)
{
    uint32_t h = atomic_load_relaxed(&pp->runqhead);
    if (pp->runqtail - h < 8)
        return;
    const Class *cls = pp->set->cls;
    prefetch_g(cls, pp->runq[(h + 3) % RUNQ_SIZE]);
    if (pp->set->np > 1)
        return;                              /* a thief may run it meanwhile: its address is all that can be used */
    G *soon = pp->runq[(h + 1) % RUNQ_SIZE]; /* its own lines were fetched two switches ago */
    if (is_start(soon))
        return;
    __builtin_prefetch(soon->sched.sp, 1);
    if (cls->prefetch != NULL)
        cls->prefetch(soon);
}

/* Every GLOBAL_TICK decisions: one from the global queue, if there is one; and runnext gives way. */
static G *
fair_turn(Sched *sched, P *pp)
{
    G *gp = NULL;
    runqkick(pp);
    if (atomic_load(&sched->runq.n) != 0) {
        mutex_lock(&sched->lock);
        gp = globrunqget(sched, pp, 1);
        mutex_unlock(&sched->lock);
    }
    return gp;
}

/* A goroutine that the switch can go to directly, or NULL: then g0 looks further. */
static G *
schedule_fast(M *mp, P *pp)
{
    Sched *sched = mp->set;
    if (GMP_UNLIKELY(atomic_load_relaxed(&sched->stopping)))
        return NULL;
    if (GMP_UNLIKELY(atomic_load_relaxed(&mp->readylocked) != NULL)) {
        G *gp = atomic_xchg(&mp->readylocked, (G *)NULL);
        if (gp != NULL)
            return gp;
    }
    if (GMP_UNLIKELY(atomic_load_relaxed(&pp->timers.next) != 0) && ++pp->timertick % TIMER_TICK == 0)
        timers_run(&pp->timers, nanotime());
    G *gp = NULL;
    if (GMP_UNLIKELY(pp->schedtick % GLOBAL_TICK == 0))
        gp = fair_turn(sched, pp);
    if (gp == NULL) {
        gp = runqget(pp);
        prefetch_queue(pp);
    }
    if (gp == NULL && atomic_load_relaxed(&sched->runq.n) != 0) {
        mutex_lock(&sched->lock);
        gp = globrunqget(sched, pp, 0);
        mutex_unlock(&sched->lock);
    }
    if (gp == NULL)
        return NULL;
    gp = unqueued(sched, pp, gp);
    if (GMP_UNLIKELY(gp->lockedm != mp && (gp->lockedm != NULL || mp->picky))) {
        mp->nextg = gp; /* for g0 */
        return NULL;
    }
    return gp;
}

/* sysmon has taken this M's P: an idle one will do as well, and saves the detour by way of g0.  Go: exitsyscallfast */
static GMP_NOINLINE P *
p_regain(M *mp)
{
    Sched *sched = mp->set;
    if (atomic_load(&sched->npidle) == 0 || atomic_load(&sched->stopping))
        return NULL;
    mutex_lock(&sched->lock);
    mp->p = pidleget(sched, mp);
    mutex_unlock(&sched->lock);
    return mp->p;
}

static void
switch_away(M *mp, G *gp, SwitchKind kind)
{
    P *pp = p_enter(mp);
    if (GMP_UNLIKELY(pp == NULL))
        pp = p_regain(mp);
    G *next = pp != NULL ? schedule_fast(mp, pp) : NULL;
    mp->prev = gp;
    mp->prevkind = kind;
    if (GMP_LIKELY(next != NULL)) {
        stat_add(&pp->schedtick, 1);
        atomic_store_relaxed(&mp->curg, next);
        next->m = mp;
        set_status(next, G_RUNNABLE, G_RUNNING);
        gobuf_switch(&gp->sched, &next->sched, kind == SWITCH_DEAD);
    }
    else {
        atomic_store_relaxed(&mp->curg, (G *)NULL);
        gobuf_switch(&gp->sched, &mp->g0, kind == SWITCH_DEAD);
    }
    finish_switch();
}

int
gopark(bool (*unlockf)(G *, void *), void *lock, WaitReason reason)
{
    M *mp = getm();
    G *gp = mp->curg;
    gp->waitreason = (uint8_t)reason;
    if (gp->stack_lo != NULL && (size_t)((char *)gp - (char *)&mp) > STACK_KEEP)
        gp->deep = true;
    mp->unlockf = unlockf;
    mp->waitlock = lock;
    switch_away(mp, gp, SWITCH_PARK);
    gp->waitreason = WAIT_NONE;
    return gp->wakecode;
}

/* Go: runtime.Gosched; differs: the caller goes to the tail of the local queue, not of the global one. */
bool
gosched(void)
{
    M *mp = getm();
    G *gp = mp->curg;
    Sched *sched = mp->set;
    P *pp = mp->p;
    if (pp != NULL && atomic_load_relaxed(&pp->owner) == ((uintptr_t)mp | P_RUNNING) && runqempty(pp) &&
        atomic_load_relaxed(&sched->runq.n) == 0 && atomic_load_relaxed(&mp->readylocked) == NULL) {
        int64_t next = atomic_load_relaxed(&pp->timers.next);
        if (next == 0 || next > nanotime())
            return false;
    }
    switch_away(mp, gp, SWITCH_YIELD);
    return true;
}

void
goexit(void)
{
    M *mp = getm();
    switch_away(mp, mp->curg, SWITCH_DEAD);
    gmp_throw("a dead goroutine was resumed");
}

/* ---- timed parks ---- */

int
timer_arm(Sched *sched, Timer *t, int64_t when, TimerFn fn, void *arg, uint32_t seq)
{
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? mp->p : NULL;
    bool mine = pp != NULL && (atomic_load_relaxed(&pp->owner) & ~P_RUNNING) == (uintptr_t)mp;
    Timers *ts = mine ? &pp->timers : &sched->allp[0]->timers;
    int err = timer_add(ts, t, when, fn, arg, seq);
    if (err == GMP_OK && atomic_load(&ts->next) == when)
        wake_sleeper(sched, when);
    return err;
}

static void
timeout_fire(void *arg, uint32_t seq)
{
    G *gp = arg;
    if (!park_claim(gp, seq))
        return;
    gp->wakecode = GMP_ETIMEDOUT;
    /* Armed inside commit, after the status change: gp is parked. */
    goready(gp);
}

/* The timers of the P in use, else of the set's first. */
static int
arm_timeout(G *gp, int64_t when, uint32_t seq)
{
    Sched *sched = gp->set;
    M *mp = getm();
    P *pp = mp->p != NULL && atomic_load_relaxed(&mp->p->owner) == (uintptr_t)mp ? mp->p : NULL;
    Timers *ts = pp != NULL ? &pp->timers : &sched->allp[0]->timers;
    /* No sleeper is woken: this M looks for work next, and becomes the sleeper if it finds none. */
    return timer_add(ts, &gp->timer, when, timeout_fire, gp, seq);
}

typedef struct TimedPark {
    bool (*unlockf)(G *, void *);
    void *lock;
    int64_t when;
    uint32_t seq;
} TimedPark;

static bool
timed_commit(G *gp, void *arg)
{
    TimedPark tp = *(TimedPark *)arg; /* it lies on gp's stack, which may run again as soon as the timer is armed */
    int err = arm_timeout(gp, tp.when, tp.seq);
    if (tp.unlockf != NULL && !tp.unlockf(gp, tp.lock))
        gmp_throw("a timed park cannot be cancelled");
    if (err != GMP_OK && park_claim(gp, tp.seq)) {
        gp->wakecode = err;
        return false;
    }
    return true;
}

int
gopark_timeout(bool (*unlockf)(G *, void *), void *lock, WaitReason reason, uint32_t seq, int64_t timeout)
{
    if (timeout < 0)
        return gopark(unlockf, lock, reason);
    int64_t now = nanotime();
    TimedPark tp = {unlockf, lock, timeout > INT64_MAX - now ? INT64_MAX : now + timeout, seq};
    G *gp = getm()->curg;
    int code = gopark(timed_commit, &tp, reason);
    if (code != GMP_ETIMEDOUT)
        timer_del(&gp->timer);
    return code;
}

/* Go: time.Sleep; differs: with no time to sleep it still lets others run.  GMP_OK, or what an interrupt left. */
int
gosleep(int64_t ns)
{
    G *gp = getm()->curg;
    gp->wakecode = GMP_OK;
    uint32_t seq = park_begin(gp);
    int code = gopark_timeout(NULL, NULL, WAIT_SLEEP, seq, ns > 0 ? ns : 0);
    return code == GMP_ETIMEDOUT ? GMP_OK : code;
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
    M *lm = gp->lockedm;
    resetspinning(mp); /* it may be left without a P, and go to sleep */
    mutex_lock(&sched->lock);
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
    if (gp == NULL || !gp->interruptible)
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
static void
go_home(Sched *sched, M *mp, G *gp)
{
    M *home = sched->mainm;
    mutex_lock(&sched->lock);
    if (home != NULL && gp->interruptible && (home->idle || home == mp)) {
        gp->lockedm = home;
        home->thread_g = gp;
    }
    mutex_unlock(&sched->lock);
}

/* Go: runtime.stealWork; differs: no timers are stolen, the sleeper sees them all. */
static G *
stealwork(M *mp, P *pp)
{
    Sched *sched = mp->set;
    if (sched->np == 1)
        return NULL;
    if (!mp->spinning) {
        /* At most half of the busy Ps are looked through by spinners. */
        if (2 * atomic_load(&sched->nmspinning) >= sched->np - atomic_load(&sched->npidle))
            return NULL;
        mp->spinning = true;
        atomic_xadd(&sched->nmspinning, 1u);
    }
    for (int pass = 0; pass < 4; pass++) {
        uint32_t start = cheaprand();
        for (uint32_t i = 0; i < sched->np; i++) {
            P *victim = sched->allp[(start + i) % sched->np];
            if (victim == pp)
                continue;
            G *gp = runqsteal(pp, victim, pass == 3);
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
    for (uint32_t i = 0; sched->np > 1 && i < sched->np; i++)
        if (!runqempty(sched->allp[i]))
            return true;
    return false;
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
    if (signals && mp == sched->mainm)
        sched->cls->poll_signals(); /* one came while this thread ran a goroutine */
    atomic_store(&mp->polling, 1u); /* pairs with wakem: the note first, polling second */
    while (!note_sleep(&mp->park, 0)) {
        bool signalled = false;
        list = netpoll(timeout, &signalled);
        if (list != NULL)
            break;
        if (signalled && signals)
            sched->cls->poll_signals();
        if (timeout >= 0 && (timeout = deadline - nanotime()) <= 0)
            break;
    }
    atomic_store(&mp->polling, 0u);
    if (list != NULL) {
        mutex_lock(&sched->lock);
        if (mp->idle) {
            midleremove(sched, mp);
            *left = true;
            mp->p = pidleget(sched, mp);
        }
        mutex_unlock(&sched->lock);
        injectglist(list);
    }
    return note_sleep(&mp->park, 0);
}

static void
disturbed(void *sched)
{
    ((Sched *)sched)->cls->poll_signals();
}

/* Sleeps until someone hands over a P or a goroutine, or the next timer is due.  The M has no P.  Go: runtime.stopm */
static void
stopm(M *mp)
{
    Sched *sched = mp->set;
    int64_t timeout = -1;
    mutex_lock(&sched->lock);
    if (mp->readylocked != NULL || (sched->npidle != 0 && sched->runq.n != 0 && !sched->stopping)) {
        mutex_unlock(&sched->lock);
        return;
    }
    midleput(sched, mp);
    bool all_idle = sched->nmidle == sched->nm && sched->sleeper == NULL && netpoll_waiters() == 0 && !sched->stopping;
    if (sched->npidle != sched->np)
        all_idle = false; /* a P is on its way from one M to another, perhaps with goroutines in its queue */
    if (sched->npidle != 0 && !sched->stopping) {
        int64_t when = earliest_timer(sched);
        if (when != 0 && (sched->sleeper == NULL || sched->sleepuntil > when)) {
            int64_t now = nanotime();
            timeout = when > now ? when - now : 0;
            sched->sleeper = mp;
            sched->sleepuntil = when;
            all_idle = false;
        }
    }
    mutex_unlock(&sched->lock);
    if (all_idle && sched->cls->idle != NULL) {
        int64_t again = sched->cls->idle(sched);
        if (again > 0)
            timeout = again;
    }
    bool woken, left = false;
    if (netpoll_waiters() != 0 && atomic_cas(&polled, 0u, 1u)) {
        woken = poll_sleep(mp, timeout, &left);
        atomic_store(&polled, 0u);
    }
    else if (mp == sched->mainm && sched->cls->poll_signals != NULL && !sched->stopping) {
        sched->cls->poll_signals();
        woken = note_sleep_intr(&mp->park, timeout, disturbed, sched);
    }
    else {
        woken = note_sleep(&mp->park, timeout);
    }
    mutex_lock(&sched->lock);
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
}

/* Finds a goroutine to run, sleeping if need be.  On g0, with a P held in the scheduler, or none.  The result may be this
 * thread's own goroutine without a P.  Go: runtime.findrunnable */
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
            stopm(mp);
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
                stopm(mp);
                continue;
            }
            mp->p = pp;
        }
        for (uint32_t i = 0; i < sched->np; i++) /* an idle P's timers are everybody's */
            if (atomic_load(&sched->allp[i]->timers.next) != 0)
                timers_run(&sched->allp[i]->timers, nanotime());
        if (pp->schedtick % GLOBAL_TICK == 0 && (gp = fair_turn(sched, pp)) != NULL)
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
        if (netpoll_waiters() != 0) {
            G *list = netpoll(0, NULL);
            if (list != NULL) {
                injectglist(list);
                continue;
            }
        }
        if ((gp = stealwork(mp, pp)) != NULL)
            return gp;
        /* Someone without a P may be about to hand something over: sleeping and being woken costs more than a short look. */
        bool again = false;
        for (int i = 0; i < SPIN_ROUNDS && !again; i++) {
            for (int j = 0; j < 10; j++)
                cpu_relax();
            again = atomic_load_relaxed(&sched->runq.n) != 0 || atomic_load_relaxed(&mp->readylocked) != NULL;
        }
        if (again)
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
        if (work_left(sched))
            continue; /* takes an idle P again, if there is one */
        stopm(mp);
    }
}

/* Runs gp on this thread, with or without a P.  On g0; returns when something switches back to g0.  Go: runtime.execute */
static void
execute(M *mp, G *gp)
{
    P *pp = mp->p;
    resetspinning(mp);
    atomic_store_relaxed(&mp->curg, gp);
    gp->m = mp;
    set_status(gp, G_RUNNABLE, G_RUNNING);
    if (pp != NULL)
        stat_add(&pp->schedtick, 1);
    if (gp->cls->resume != NULL)
        gp->cls->resume(gp);
    gp->lastm = mp;
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
    if (!startm(sched, pp, false))
        mp->picky = false; /* better so than not at all */
}

/* g0's loop; never returns.  On a pool thread it is the thread's own stack, on an adopted one a slab stack. */
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
        }
        G *gp = findrunnable(mp);
        if (is_start(gp))
            gp = unqueued(mp->set, mp->p, gp);
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
}

/* ---- threads of other origin ---- */

M *
adopt_thread(Sched *sched, G *thread_g)
{
    if (gcount(sched) < 0)
        return NULL;
    M *mp = mnew(sched);
    if (mp == NULL)
        return NULL;
    if (mp->g0stack == NULL) {
        mp->g0stack = stack_alloc(STACK_64K);
        if (mp->g0stack == NULL) {
            mretire(mp);
            return NULL;
        }
    }
    size_t size = stack_class_size(STACK_64K);
    gobuf_set_stack(&mp->g0, mp->g0stack, size);
    gobuf_init(&mp->g0, (char *)mp->g0stack + size, g0_entry, mp);
    mp->sigstack = sys_sigstack_install();
    mp->ispool = false;
    mp->picky = sched->cls->own_threads;
    mp->tid = sys_thread_id();
    mp->thread_g = thread_g;
    thread_g->set = sched;
    thread_g->m = mp;
    thread_g->lastm = mp;
    thread_g->lockedm = mp;
    thread_g->parkseq |= 1; /* it goes on where it was: a late timer may still hold an old one */
    thread_g->status = G_RUNNING;
    thread_g->goid = goid_next(NULL);
    gobuf_init_thread(&thread_g->sched);
    atomic_store_relaxed(&mp->curg, thread_g);
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

int
schedinit(int set, const Class *cls, uint32_t nprocs)
{
    Sched *sched = &scheds[set];
    if (sched->np != 0)
        return GMP_OK;
    if (nprocs == 0 || nprocs > MAX_PROCS)
        return GMP_EINVAL;
    for (uint32_t i = 0; i < nprocs; i++) {
        P *pp = aligned_alloc(GMP_CACHELINE, sizeof(P));
        if (pp == NULL) {
            while (i-- > 0)
                free(sched->allp[i]);
            return GMP_ENOMEM;
        }
        memset(pp, 0, sizeof *pp);
        pp->id = i;
        pp->set = sched;
        sched->allp[i] = pp;
    }
    sched->cls = cls;
    sched->set = set;
    mutex_lock(&sched->lock);
    for (uint32_t i = nprocs; i-- > 0;)
        pidleput(sched, sched->allp[i]);
    atomic_store(&sched->np, nprocs);
    mutex_unlock(&sched->lock);
    sysmon_start();
    return GMP_OK;
}

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
    polled = 0;
    sched->runq.n = 0;
    sched->runq.head = 0;
    sched->midle = NULL;
    sched->nmidle = sched->nmspinning = 0;
    sched->sleeper = NULL;
    sched->pidle = NULL;
    sched->npidle = 0;
    sched->npool = 0;
    sched->nm = self != NULL && self->set == sched ? 1 : 0;
    sched->mainm = NULL;
    sched->nslots = sched->npending = 0;
    sched->ngfree = 0; /* their interpreter state went with the fork */
    sched->gdelta = 0;
    bool goroutine = sched->nm && self->curg != NULL && self->curg->stack_lo != NULL;
    for (uint32_t i = sched->np; i-- > 0;) {
        P *pp = sched->allp[i];
        pp->timers = (Timers){0}; /* not freed: another thread may have been growing it */
        pp->runqhead = pp->runqtail = 0;
        pp->runnext = NULL;
        pp->ngfree = 0;
        pp->gdelta = 0;
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
