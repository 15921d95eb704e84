/* runq.c: the queues alone.
 *
 * Local queue of a P: a ring of RUNQ_SIZE slots and runnext.
 *   1. Only the owner writes runqtail and the slots; tail is stored with release after the slot.
 *   2. Anyone may take from the head by CAS; the CAS (release) publishes that the slots were read.
 *   3. tail - head <= RUNQ_SIZE at all times, in wrapping 32-bit arithmetic.
 *   4. runnext is set by the owner and taken by CAS from anyone: a stealer takes it last of all.
 * Global queue: a ring under Sched.lock that is made large enough for all goroutines when they are made; n may be read
 * without the lock, as a hint.
 */
#include "runtime.h"

/* Moves half of the local queue and gp to the global queue.  Owner only.  Go: runtime.runqputslow */
static bool
runqputslow(P *pp, G *gp, uint32_t h, uint32_t t)
{
    uint32_t n = (t - h) / 2;
    GMP_CHECK(n == RUNQ_SIZE / 2);
    if (!atomic_cas_release(&pp->runqhead, h, h + n)) /* pairs with the acquire loads of head in runqput and runqgrab */
        return false;
    /* The slots taken out are this P's alone, and only its owner writes slots: no copy, which a 2 KiB stack would not hold. */
    mutex_lock(&pp->set->lock);
    uint32_t first = h % RUNQ_SIZE, run = n < RUNQ_SIZE - first ? n : RUNQ_SIZE - first;
    globrunqputbatch(pp->set, pp->runq + first, run);
    globrunqputbatch(pp->set, pp->runq, n - run);
    globrunqput(pp->set, gp);
    mutex_unlock(&pp->set->lock);
    return true;
}

/* A set of one P has nobody who steals: its owner alone takes from the queue, and needs no CAS. */
static inline bool
sole_consumer(P *pp)
{
    return atomic_load_relaxed(&pp->set->np) == 1;
}

/* Puts gp on the local queue; with next, in runnext, whose goroutine moves to the tail.  Owner only.
 * Go: runtime.runqput; differs: no random order in race builds. */
void
runqput(P *pp, G *gp, bool next)
{
    if (next) {
        G *old = atomic_load_relaxed(&pp->runnext);
        if (sole_consumer(pp))
            atomic_store_relaxed(&pp->runnext, gp);
        else
            while (!atomic_cas(&pp->runnext, old, gp))
                old = atomic_load_relaxed(&pp->runnext);
        if (old == NULL)
            return;
        gp = old;
    }
    for (;;) {
        uint32_t h = atomic_load_acquire(&pp->runqhead); /* pairs with the CAS of whoever consumed */
        uint32_t t = pp->runqtail;
        if (GMP_LIKELY(t - h < RUNQ_SIZE)) {
            atomic_store_relaxed(&pp->runq[t % RUNQ_SIZE], gp);
            atomic_store_release(&pp->runqtail, t + 1); /* pairs with the acquire of tail in runqgrab */
            return;
        }
        if (runqputslow(pp, gp, h, t))
            return;
    }
}

/* Takes the next goroutine of the local queue, runnext first.  Owner only.  Go: runtime.runqget */
G *
runqget(P *pp)
{
    G *next = atomic_load_relaxed(&pp->runnext);
    if (sole_consumer(pp)) {
        if (next != NULL) {
            atomic_store_release(&pp->runnext, (G *)NULL); /* pairs with runqempty: see the ring as it was before */
            return next;
        }
        uint32_t h = pp->runqhead;
        if (h == pp->runqtail)
            return NULL;
        G *gp = pp->runq[h % RUNQ_SIZE];
        atomic_store_release(&pp->runqhead, h + 1); /* pairs with runqempty */
        return gp;
    }
    /* Only the owner sets runnext, so a failed CAS means that it was stolen: no need to try again. */
    if (next != NULL && atomic_cas(&pp->runnext, next, (G *)NULL)) {
        uint32_t n = atomic_load_relaxed(&pp->handovers);
        if (n < HANDOVERS)
            atomic_store_relaxed(&pp->handovers, n + 1);
        return next;
    }
    for (;;) {
        uint32_t h = atomic_load_acquire(&pp->runqhead); /* pairs with the CAS of other consumers */
        uint32_t t = pp->runqtail;
        if (t == h)
            return NULL;
        G *gp = atomic_load_relaxed(&pp->runq[h % RUNQ_SIZE]);
        if (atomic_cas_release(&pp->runqhead, h, h + 1)) /* commits the read of the slot */
            return gp;
    }
}

/* Sends runnext to the tail when others wait, so that two goroutines that keep waking each other do not shut them out.
 * Owner only.  Go: there the pair shares a time slice, at whose end it is preempted. */
void
runqkick(P *pp)
{
    G *next = atomic_load_relaxed(&pp->runnext);
    if (next == NULL || pp->runqtail == atomic_load_relaxed(&pp->runqhead))
        return;
    if (sole_consumer(pp))
        atomic_store_release(&pp->runnext, (G *)NULL); /* pairs with runqempty */
    else if (!atomic_cas(&pp->runnext, next, (G *)NULL))
        return; /* stolen */
    runqput(pp, next, false);
}

/* True when the queue was empty at one instant, runnext included.  Go: runtime.runqempty */
bool
runqempty(P *pp)
{
    for (;;) {
        uint32_t h = atomic_load(&pp->runqhead);
        uint32_t t = atomic_load(&pp->runqtail);
        G *next = atomic_load(&pp->runnext);
        if (t == atomic_load(&pp->runqtail)) /* head or runnext may have been seen on either side of a kick */
            return h == t && next == NULL;
    }
}

uint32_t
runqlen(P *pp)
{
    uint32_t h = atomic_load_acquire(&pp->runqhead); /* a hint: no partner needed beyond the values themselves */
    uint32_t t = atomic_load_acquire(&pp->runqtail);
    return t - h + (atomic_load_relaxed(&pp->runnext) != NULL);
}

#define STEAL_NEXT_US 3 /* asked for; Linux makes some 55 of it */

/* Copies half of victim's queue to batch (a ring that starts at batchhead) and takes it out.  Any M.
 * runnext of a P that runs a goroutine is left alone for a moment, and for good if the P has scheduled meanwhile: the one
 * that put it there is often about to wait for it.  Go: runtime.runqgrab; differs: Go steals it even so. */
static uint32_t
runqgrab(P *victim, G **batch, uint32_t batchhead, bool stealnext)
{
    for (;;) {
        uint32_t h = atomic_load_acquire(&victim->runqhead); /* pairs with other consumers */
        uint32_t t = atomic_load_acquire(&victim->runqtail); /* pairs with the owner's store in runqput */
        uint32_t n = t - h;
        n -= n / 2;
        if (n == 0) {
            if (!stealnext)
                return 0;
            G *next = atomic_load_relaxed(&victim->runnext);
            if (next == NULL)
                return 0;
            if ((atomic_load_relaxed(&victim->owner) & P_RUNNING) != 0) {
                uint32_t tick = atomic_load_relaxed(&victim->schedtick);
                sys_usleep(STEAL_NEXT_US);
                if (atomic_load_relaxed(&victim->schedtick) != tick)
                    return 0;
            }
            if (!atomic_cas(&victim->runnext, next, (G *)NULL))
                continue;
            atomic_store_relaxed(&victim->handovers, 0u);
            atomic_store_relaxed(&batch[batchhead % RUNQ_SIZE], next);
            return 1;
        }
        if (n > RUNQ_SIZE / 2) /* head and tail were read at different times */
            continue;
        for (uint32_t i = 0; i < n; i++)
            atomic_store_relaxed(&batch[(batchhead + i) % RUNQ_SIZE], /* a late thief may be reading that slot */
                                 atomic_load_relaxed(&victim->runq[(h + i) % RUNQ_SIZE]));
        if (atomic_cas_release(&victim->runqhead, h, h + n))
            return n;
    }
}

/* Steals half of victim's queue into pp's own, and returns one of them.  Owner of pp only.  Go: runtime.runqsteal */
G *
runqsteal(P *pp, P *victim, bool stealnext)
{
    uint32_t t = pp->runqtail;
    uint32_t n = runqgrab(victim, pp->runq, t, stealnext);
    if (n == 0)
        return NULL;
    n--;
    G *gp = pp->runq[(t + n) % RUNQ_SIZE];
    if (n == 0)
        return gp;
    uint32_t h = atomic_load_acquire(&pp->runqhead); /* pairs with consumers of pp's queue */
    GMP_CHECK(t - h + n < RUNQ_SIZE);
    atomic_store_release(&pp->runqtail, t + n); /* publishes the batch to other stealers */
    return gp;
}

/* Makes room for n goroutines in the global queue. */
int
globrunqreserve(Sched *sched, uint32_t n)
{
    GQueue *q = &sched->runq;
    if (n <= q->cap)
        return GMP_OK;
    uint32_t cap = q->cap != 0 ? q->cap : 256;
    while (cap < n)
        cap *= 2;
    G **ring = sys_malloc(cap * sizeof *ring);
    if (ring == NULL)
        return GMP_ENOMEM;
    for (uint32_t i = 0; i < q->n; i++)
        ring[i] = q->ring[(q->head + i) & (q->cap - 1)];
    sys_free(q->ring);
    q->ring = ring;
    q->cap = cap;
    q->head = 0;
    return GMP_OK;
}

/* Go: runtime.globrunqput */
void
globrunqput(Sched *sched, G *gp)
{
    globrunqputbatch(sched, &gp, 1);
}

/* Go: runtime.globrunqputbatch */
void
globrunqputbatch(Sched *sched, G *const *batch, uint32_t n)
{
    GQueue *q = &sched->runq;
    if (GMP_UNLIKELY(q->n + n > q->cap) && globrunqreserve(sched, q->n + n) < 0)
        gmp_throw("more goroutines are runnable than were ever made");
    for (uint32_t i = 0; i < n; i++)
        q->ring[(q->head + q->n + i) & (q->cap - 1)] = atomic_load_relaxed(&batch[i]);
    atomic_store(&q->n, q->n + n); /* seq_cst: pairs with the re-check of an M that goes idle */
}

/* Takes a share of the global queue: returns one, puts the others on pp's local queue.  max 0: a fair share.
 * Go: runtime.globrunqget */
G *
globrunqget(Sched *sched, P *pp, uint32_t max)
{
    GQueue *q = &sched->runq;
    if (q->n == 0)
        return NULL;
    uint32_t n = q->n / atomic_load_relaxed(&sched->np) + 1;
    if (n > q->n)
        n = q->n;
    if (max > 0 && n > max)
        n = max;
    if (n > RUNQ_SIZE / 2)
        n = RUNQ_SIZE / 2;
    G *first = q->ring[q->head & (q->cap - 1)];
    /* The ring has room: the caller asks for more than one only when its local queue is empty. */
    uint32_t t = pp->runqtail;
    for (uint32_t i = 1; i < n; i++)
        atomic_store_relaxed(&pp->runq[t++ % RUNQ_SIZE], q->ring[(q->head + i) & (q->cap - 1)]);
    GMP_CHECK(t - atomic_load_acquire(&pp->runqhead) <= RUNQ_SIZE); /* pairs with consumers */
    atomic_store_release(&pp->runqtail, t);                         /* publishes the slots to stealers */
    q->head = (q->head + n) & (q->cap - 1);
    atomic_store(&q->n, q->n - n);
    return first;
}

static void
visit_start(G *gp, void (*fn)(Start *st, void *arg), void *arg)
{
    Start *st = (Start *)((uintptr_t)gp & ~(uintptr_t)1);
    if (is_start(gp) && atomic_load_acquire(&st->state) != START_BOUND) /* pairs with bind */
        fn(st, arg);
}

void
each_start(Sched *sched, void (*fn)(Start *st, void *arg), void *arg)
{
    bool locked = false;
    for (int i = 0; i < 1000 && !(locked = mutex_trylock(&sched->lock)); i++)
        sys_thread_yield(); /* not for ever: this may be a signal handler on the thread that has the lock */
    GQueue *q = &sched->runq;
    for (uint32_t i = 0; locked && i < q->n; i++)
        visit_start(q->ring[(q->head + i) & (q->cap - 1)], fn, arg);
    if (locked)
        mutex_unlock(&sched->lock);
    for (uint32_t i = 0; i < sched->np; i++) {
        P *pp = sched->allp[i];
        uint32_t h = atomic_load_acquire(&pp->runqhead); /* pairs with the consumers */
        uint32_t t = atomic_load_acquire(&pp->runqtail); /* pairs with runqput */
        for (; h != t && t - h <= RUNQ_SIZE; h++)
            visit_start(atomic_load_relaxed(&pp->runq[h % RUNQ_SIZE]), fn, arg);
        visit_start(atomic_load_relaxed(&pp->runnext), fn, arg);
    }
}
