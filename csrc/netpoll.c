/* netpoll.c: who waits for which descriptor.
 *
 * Protocol of a side's state, as in Go (netpoll.go):
 *   0        nobody waits, no edge was seen        PD_READY  an edge was seen and not yet consumed
 *   PD_WAIT  a goroutine is about to park          a G       it is parked
 * netpoll_wait: READY -> 0 and go; 0 -> WAIT, then park; the commit of the park changes WAIT -> G, and cancels the park when
 * an edge came in between (WAIT -> READY).  A waker changes WAIT or G to READY (an edge) or to 0 (deadline, close).
 * A waker of a G also has to win its park (park_claim), as signals may end the main goroutine's.  A main goroutine that was
 * woken so may wait here again before a slow waker has done its CAS: so the G in the state carries the number of its park.
 * Edges are never lost: one registration for both directions, edge-triggered, for the life of the PollDesc.
 * Stale events: a PollDesc is reused, so the kernel's cookie holds its address and 16 bits of a count of its lives.  An event
 * that slips through all the same (a poll that was held up between the comparison and the wake-up, or for 65,536 lives) is an
 * edge for nothing: the new owner tries once more than it had to.
 * Reused numbers: `owners` tells whose a descriptor number is in each set.  One that was closed without netpoll_close and is opened again
 * belongs to the new PollDesc from then on; the old one is evicted, and its netpoll_close leaves the number alone.
 * Lock order: owners_lock < PollDesc.lock < Timers.lock; free_lock is a leaf.
 *
 * Rejected: counting a goroutine out of `waiters` when it is woken.  Between that and the moment when it is queued it is seen
 * nowhere, and an M that goes idle just then reports a deadlock.
 */
#include "netpoll.h"

#include <errno.h>

/* One of each set of Ps. */
static struct Poller {
    uint32_t inited;   /* atomic: 0 no, 1 yes; written under init_lock */
    uint32_t waiters;  /* atomic */
    int64_t lastpoll;  /* atomic, nanotime */
    uint32_t breaking; /* atomic: a break is on its way */
} pollers[SETS];
static Mutex init_lock;
uint32_t netpoll_generation;

/* ---- PollDescs ---- */

static Mutex free_lock;
static PollDesc *free_list;

#ifndef PD_CHUNK /* tests/model makes it small */
#define PD_CHUNK 64
#endif

static PollDesc *
pdalloc(void)
{
    mutex_lock(&free_lock);
    if (free_list == NULL) {
        PollDesc *chunk = sys_aligned_alloc(GMP_CACHELINE, PD_CHUNK * sizeof *chunk);
        if (chunk == NULL) {
            mutex_unlock(&free_lock);
            return NULL;
        }
        memset(chunk, 0, PD_CHUNK * sizeof *chunk);
        for (int i = PD_CHUNK; i-- > 0;) {
            chunk[i].cookie = (uintptr_t)&chunk[i];
            chunk[i].link = free_list;
            free_list = &chunk[i];
        }
    }
    PollDesc *pd = free_list;
    free_list = pd->link;
    mutex_unlock(&free_lock);
    return pd;
}

static void
pdfree(PollDesc *pd)
{
    mutex_lock(&free_lock);
    pd->link = free_list;
    free_list = pd;
    mutex_unlock(&free_lock);
}

#define ADDRESS UINT64_C(0xffffffffffff)
#define LIFE (ADDRESS + 1)

/* The number of the park that gp is about to begin, above its address. */
static uintptr_t
parked(G *gp)
{
    return (uintptr_t)gp | (uintptr_t)(atomic_load_relaxed(&gp->parkseq) >> 1) << 48;
}

/* ---- whose a descriptor number is ---- */

#ifndef OWNERS_CHUNK /* tests/model makes the table small, and its numbers with it */
#define OWNERS_CHUNK 4096
#define OWNERS_CHUNKS (((uint32_t)INT32_MAX + 1) / OWNERS_CHUNK)
#endif

static Mutex owners_lock;
static PollDesc **owners[SETS][OWNERS_CHUNKS]; /* owners_lock */
static uint32_t owners_used;                   /* chunks below this one may exist */

static PollDesc **
owner_of(int set, int fd)
{
    PollDesc ***chunk = &owners[set][(uint32_t)fd / OWNERS_CHUNK];
    if (*chunk == NULL) {
        *chunk = sys_calloc(OWNERS_CHUNK, sizeof **chunk);
        if (*chunk == NULL)
            return NULL;
        if ((uint32_t)fd / OWNERS_CHUNK >= owners_used)
            owners_used = (uint32_t)fd / OWNERS_CHUNK + 1;
    }
    return *chunk + (uint32_t)fd % OWNERS_CHUNK;
}

/* 0 or an errno. */
static int
netpoll_init(int set)
{
    struct Poller *po = &pollers[set];
    if (atomic_load(&po->inited))
        return 0;
    mutex_lock(&init_lock);
    int err = 0;
    if (!po->inited) {
        err = netpoll_backend_init(set);
        if (err == 0)
            atomic_store(&po->inited, 1u);
    }
    mutex_unlock(&init_lock);
    return err;
}

int
netpoll_open(Sched *set, int fd, PollDesc **out)
{
    if (fd < 0)
        return EBADF;
    int err = netpoll_init(set->set);
    if (err != 0)
        return err;
    PollDesc *pd = pdalloc();
    if (pd == NULL)
        return ENOMEM;
    mutex_lock(&pd->lock);
    pd->fd = fd;
    pd->set = set;
    atomic_store(&pd->closing, false);
    atomic_store(&pd->hup, false);
    for (int m = 0; m < 2; m++) {
        PollSide *s = &pd->side[m];
        GMP_CHECK(!s->timing);
        atomic_store(&s->state, (uintptr_t)0);
        atomic_store(&s->deadline, (int64_t)0);
        s->timerseq++;
    }
    mutex_unlock(&pd->lock);
    mutex_lock(&owners_lock);
    PollDesc **owner = owner_of(set->set, fd);
    err = owner != NULL ? netpoll_backend_open(pd, *owner) : ENOMEM;
    if (err == 0) {
        if (*owner != NULL)
            netpoll_evict(*owner); /* under the lock: its owner may be about to close it */
        *owner = pd;
    }
    mutex_unlock(&owners_lock);
    if (err != 0) {
        pdfree(pd);
        return err;
    }
    *out = pd;
    return 0;
}

/* Go: netpollcheckerr */
static int
check(PollDesc *pd, PollMode mode)
{
    if (atomic_load(&pd->closing))
        return GMP_ECLOSED;
    if (atomic_load(&pd->side[mode].deadline) < 0)
        return GMP_ETIMEDOUT;
    return GMP_OK;
}

/* Go: netpollunblock.  Returns the goroutine to make ready, if any. */
static G *
unblock(PollDesc *pd, PollMode mode, bool ready)
{
    PollSide *s = &pd->side[mode];
    for (;;) {
        uintptr_t old = atomic_load(&s->state);
        if (old == PD_READY || (old == 0 && !ready))
            return NULL;
        if (!atomic_cas(&s->state, old, ready ? PD_READY : (uintptr_t)0))
            continue;
        if (old <= PD_WAIT)
            return NULL;
        /* Taken from the state in this very park.  Unless a signal was first: then the goroutine looks at the state itself,
         * and may be in another park by now. */
        G *gp = (G *)(old & ADDRESS);
        uint32_t seq = atomic_load(&gp->parkseq);
        if ((seq >> 1 & 0xffff) != old >> 48 || (seq & 1) != 0 || !park_claim(gp, seq))
            return NULL;
        gp->wakecode = GMP_OK;
        return gp;
    }
}

/* Go: netpollblockcommit */
static bool
poll_commit(G *gp, void *arg)
{
    PollSide *s = arg;
    uint32_t seq = atomic_load_relaxed(&gp->parkseq) & ~1u; /* as park_begin left it; a signal may have claimed it */
    if (atomic_cas(&s->state, PD_WAIT, parked(gp)))
        return true;
    /* An edge, a deadline or a close came in between: do not park, unless a signal has claimed the wake-up already. */
    return !park_claim(gp, seq);
}

int
netpoll_wait(PollDesc *pd, PollMode mode)
{
    PollSide *s = &pd->side[mode];
    int code = check(pd, mode);
    if (code != GMP_OK)
        return code;
    for (;;) {
        uintptr_t old = atomic_load(&s->state);
        if (old == PD_READY) {
            if (atomic_cas(&s->state, PD_READY, (uintptr_t)0))
                return GMP_OK;
        }
        else if (old == 0) {
            if (atomic_cas(&s->state, (uintptr_t)0, PD_WAIT))
                break;
        }
        else {
            return GMP_ESTATE;
        }
    }
    /* The state is WAIT before closing and deadline are looked at again, and both are stored before unblock looks at the
     * state: one of the two sees the other. */
    code = check(pd, mode);
    int wake = GMP_OK;
    if (code == GMP_OK) {
        uint32_t *waiters = &pollers[pd->set->set].waiters;
        netpoll_backend_arm(pd, mode);
        atomic_xadd(waiters, 1u);
        G *gp = getg();
        gp->wakecode = GMP_OK;
        park_begin(gp);
        wake = gopark(poll_commit, s, mode == POLL_READ ? WAIT_IO_READ : WAIT_IO_WRITE);
        atomic_xadd(waiters, (uint32_t)-1);
    }
    uintptr_t old = atomic_xchg(&s->state, (uintptr_t)0);
    if (old == PD_READY)
        return GMP_OK;
    if (wake != GMP_OK)
        return wake;
    return check(pd, mode); /* GMP_OK: a wake-up for a deadline that was moved meanwhile, say */
}

void
netpoll_evict(PollDesc *pd)
{
    G *wake[2];
    mutex_lock(&pd->lock);
    atomic_store(&pd->closing, true);
    for (int m = 0; m < 2; m++) {
        PollSide *s = &pd->side[m];
        s->timerseq++;
        if (s->timing) {
            timer_del(&s->timer);
            s->timing = false;
        }
        wake[m] = unblock(pd, (PollMode)m, false);
    }
    mutex_unlock(&pd->lock);
    for (int m = 0; m < 2; m++)
        if (wake[m] != NULL)
            goready(wake[m]);
}

static bool
unregister(PollDesc *pd)
{
    GMP_CHECK(atomic_load(&pd->closing));
    if (pd->fd < 0)
        return false;
    mutex_lock(&owners_lock);
    PollDesc **owner = owner_of(pd->set->set, pd->fd);
    bool ours = *owner == pd;
    if (ours)
        *owner = NULL;
    atomic_store(&pd->cookie, pd->cookie + LIFE);
    netpoll_backend_close(pd, ours);
    pd->fd = -1;
    mutex_unlock(&owners_lock);
    return ours;
}

void
netpoll_forget(PollDesc *pd)
{
    (void)unregister(pd);
}

bool
netpoll_close(PollDesc *pd)
{
    bool ours = unregister(pd);
    pdfree(pd);
    return ours;
}

void
netpoll_kick(PollDesc *pd, PollMode mode)
{
    G *gp = unblock(pd, mode, true);
    if (gp != NULL)
        goready(gp);
}

/* ---- deadlines ---- */

static void
deadline_passed(PollDesc *pd, PollMode mode, uint32_t seq)
{
    G *gp = NULL;
    mutex_lock(&pd->lock);
    PollSide *s = &pd->side[mode];
    if (s->timerseq == seq) { /* else it was moved, or the PollDesc has another life, as the timer fired */
        s->timing = false;
        atomic_store(&s->deadline, (int64_t)-1);
        gp = unblock(pd, mode, false);
    }
    mutex_unlock(&pd->lock);
    if (gp != NULL)
        goready(gp);
}

static void
read_deadline_passed(void *arg, uint32_t seq)
{
    deadline_passed(arg, POLL_READ, seq);
}

static void
write_deadline_passed(void *arg, uint32_t seq)
{
    deadline_passed(arg, POLL_WRITE, seq);
}

int
netpoll_set_deadline(PollDesc *pd, PollMode mode, int64_t when)
{
    G *gp = NULL;
    int code = GMP_OK;
    mutex_lock(&pd->lock);
    PollSide *s = &pd->side[mode];
    if (pd->closing) {
        mutex_unlock(&pd->lock);
        return GMP_ECLOSED;
    }
    s->timerseq++;
    if (s->timing) {
        timer_del(&s->timer);
        s->timing = false;
    }
    if (when == 0) {
        atomic_store(&s->deadline, (int64_t)0);
    }
    else if (when <= nanotime()) {
        atomic_store(&s->deadline, (int64_t)-1);
        gp = unblock(pd, mode, false);
    }
    else {
        atomic_store(&s->deadline, when);
        code = timer_arm(pd->set, &s->timer, when, mode == POLL_READ ? read_deadline_passed : write_deadline_passed, pd,
                         s->timerseq);
        s->timing = code == GMP_OK;
        if (code != GMP_OK)
            atomic_store(&s->deadline, (int64_t)0);
    }
    mutex_unlock(&pd->lock);
    if (gp != NULL)
        goready(gp);
    return code;
}

/* ---- polling ---- */

uint32_t
netpoll_waiters(Sched *set)
{
    return atomic_load(&pollers[set->set].waiters);
}

uint32_t
netpoll_waiters_any(void)
{
    uint32_t n = 0;
    for (int s = 0; s < SETS; s++)
        n += atomic_load(&pollers[s].waiters);
    return n;
}

int64_t
netpoll_lastpoll(Sched *set)
{
    return atomic_load_relaxed(&pollers[set->set].lastpoll);
}

/* What this poll has found; the back-end adds to it. */
static __thread G *found, **found_tail;

void
netpoll_ready(uint64_t cookie, bool readable, bool writable, bool hup)
{
    PollDesc *pd = (PollDesc *)(uintptr_t)(cookie & ADDRESS);
    if (atomic_load(&pd->cookie) != cookie)
        return; /* of an earlier life */
    if (hup)
        atomic_store(&pd->hup, true);
    bool ready[2] = {readable, writable};
    for (int m = 0; m < 2; m++) {
        G *gp = ready[m] ? unblock(pd, (PollMode)m, true) : NULL;
        if (gp != NULL) {
            gp->link = NULL;
            *found_tail = gp;
            found_tail = &gp->link;
        }
    }
}

G *
netpoll(Sched *set, int64_t delay, bool *disturbed)
{
    struct Poller *po = &pollers[set->set];
    if (!atomic_load(&po->inited))
        return NULL;
    found = NULL;
    found_tail = &found;
    bool calm = netpoll_backend_poll(set->set, delay);
    if (disturbed != NULL)
        *disturbed = !calm;
    if (delay != 0) {
        atomic_store(&po->breaking, 0u);
        atomic_fence(); /* pairs with netpoll_break: who found it set has changed before what the caller looks at now */
    }
    atomic_store_relaxed(&po->lastpoll, nanotime());
    return found;
}

void
netpoll_break(Sched *set)
{
    struct Poller *po = &pollers[set->set];
    if (atomic_load(&po->inited) && atomic_cas(&po->breaking, 0u, 1u))
        netpoll_backend_break(set->set);
}

void
netpoll_afterfork_child(void)
{
    netpoll_generation++;
    init_lock = free_lock = owners_lock = (Mutex){0};
    free_list = NULL; /* the parent's may be anywhere */
    for (int s = 0; s < SETS; s++) {
        for (uint32_t i = 0; i < owners_used; i++)
            if (owners[s][i] != NULL)
                memset(owners[s][i], 0, OWNERS_CHUNK * sizeof *owners[s][i]);
        if (pollers[s].inited)
            netpoll_backend_afterfork_child(s);
        pollers[s] = (struct Poller){0};
    }
}
