/* netpoll.c: who waits for which descriptor.
 *
 * Protocol of a side's state, as in Go (netpoll.go):
 *   0        nobody waits, no edge was seen        PD_READY  an edge was seen and not yet consumed
 *   PD_WAIT  a goroutine is about to park          a G       it is parked; 16 bits of its park's number are above the pointer
 * netpoll_wait: READY -> 0 and go; 0 -> WAIT, then park; the commit of the park changes WAIT -> G, and cancels the park when
 * an edge came in between (WAIT -> READY).  A waker changes WAIT or G to READY (an edge) or to 0 (deadline, close).
 * A waker of a G also has to win its park (park_claim), as signals may end the main goroutine's.
 * Edges are never lost: one registration for both directions, edge-triggered, for the life of the PollDesc.
 * Stale events: a PollDesc is reused, so the kernel's cookie holds its address and its tag (16 bits of a count of lives).
 */
#include "netpoll.h"

#include <errno.h>

/* One of each set of Ps. */
static struct Poller {
    uint32_t inited;   /* 0 no, 1 yes; init_lock */
    uint32_t waiters;  /* atomic */
    int64_t lastpoll;  /* atomic, nanotime */
    uint32_t breaking; /* atomic: a break is on its way */
} pollers[SETS];
static Mutex init_lock;
uint32_t netpoll_generation;

#define WAITERS(pd) (&pollers[(pd)->set->set].waiters)

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
        PollDesc *chunk = sys_aligned_alloc(GMP_CACHELINE, PD_CHUNK * ((sizeof(PollDesc) + 63) / 64 * 64));
        if (chunk == NULL) {
            mutex_unlock(&free_lock);
            return NULL;
        }
        memset(chunk, 0, PD_CHUNK * sizeof *chunk);
        for (int i = 0; i < PD_CHUNK; i++) {
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

static uint64_t
cookie_of(PollDesc *pd)
{
    return (uint64_t)(uintptr_t)pd | (uint64_t)(pd->tag & 0xffff) << 48;
}

static int
netpoll_init(int set)
{
    struct Poller *po = &pollers[set];
    if (atomic_load(&po->inited))
        return GMP_OK;
    mutex_lock(&init_lock);
    int code = GMP_OK;
    if (!po->inited) {
        code = netpoll_backend_init(set);
        if (code == GMP_OK)
            atomic_store(&po->inited, 1u);
    }
    mutex_unlock(&init_lock);
    return code;
}

int
netpoll_open(Sched *set, int fd, PollDesc **out)
{
    if (fd < 0)
        return EBADF;
    if (netpoll_init(set->set) < 0)
        return EMFILE;
    PollDesc *pd = pdalloc();
    if (pd == NULL)
        return ENOMEM;
    mutex_lock(&pd->lock);
    pd->fd = fd;
    pd->set = set;
    pd->closing = false;
    pd->hup = false;
    for (int m = 0; m < 2; m++) {
        PollSide *s = &pd->side[m];
        GMP_CHECK(!s->timing);
        atomic_store(&s->state, (uintptr_t)0);
        s->deadline = 0;
        s->timerseq++;
    }
    atomic_store(&pd->tag, pd->tag + 1);
    mutex_unlock(&pd->lock);
    int err = netpoll_backend_open(set->set, fd, cookie_of(pd));
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

/* The state of a side with a parked goroutine.  One that was interrupted and waits again is not mistaken for itself. */
static uintptr_t
parked(G *gp, uint32_t seq)
{
    return (uintptr_t)gp | (uintptr_t)(seq >> 1 & 0xffff) << 48;
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
        G *gp = old > PD_WAIT ? (G *)(old & UINT64_C(0xffffffffffff)) : NULL;
        uint32_t seq = atomic_load_relaxed(&s->parkseq);
        if (!atomic_cas(&s->state, old, ready ? PD_READY : (uintptr_t)0))
            continue;
        if (gp == NULL)
            return NULL;
        atomic_xadd(WAITERS(pd), (uint32_t)-1);
        if (!park_claim(gp, seq))
            return NULL; /* a signal was first; the goroutine looks at the state itself */
        gp->wakecode = GMP_OK;
        return gp;
    }
}

/* Go: netpollblockcommit */
static bool
poll_commit(G *gp, void *arg)
{
    PollSide *s = arg;
    uint32_t *waiters = &pollers[gp->set->set].waiters; /* only goroutines of the descriptor's set wait for it */
    uint32_t seq = atomic_load_relaxed(&s->parkseq);
    atomic_xadd(waiters, 1u); /* before it can be found, so that the count is never below zero */
    if (atomic_cas(&s->state, PD_WAIT, parked(gp, seq)))
        return true;
    atomic_xadd(waiters, (uint32_t)-1);
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
        G *gp = getg();
        gp->wakecode = GMP_OK;
        atomic_store_relaxed(&s->parkseq, park_begin(gp)); /* nobody reads it while the state is WAIT */
        wake = gopark(poll_commit, s, mode == POLL_READ ? WAIT_IO_READ : WAIT_IO_WRITE);
    }
    uintptr_t old = atomic_xchg(&s->state, (uintptr_t)0);
    if (old > PD_WAIT)
        atomic_xadd(WAITERS(pd), (uint32_t)-1); /* interrupted: nobody took this goroutine off */
    if (old == PD_READY)
        return GMP_OK;
    if (wake != GMP_OK)
        return wake;
    code = check(pd, mode);
    return code; /* GMP_OK: a wake-up for a deadline that was moved meanwhile; the caller tries and waits again */
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

void
netpoll_forget(PollDesc *pd)
{
    GMP_CHECK(pd->closing);
    if (pd->fd >= 0)
        netpoll_backend_close(pd->set->set, pd->fd);
    pd->fd = -1;
}

void
netpoll_close(PollDesc *pd)
{
    netpoll_forget(pd);
    pdfree(pd);
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
    PollDesc *pd = (PollDesc *)(uintptr_t)(cookie & UINT64_C(0xffffffffffff));
    if ((atomic_load(&pd->tag) & 0xffff) != cookie >> 48)
        return; /* of the last life */
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
    if (delay != 0)
        atomic_store(&po->breaking, 0u);
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
    init_lock = free_lock = (Mutex){0};
    free_list = NULL; /* the parent's may be anywhere */
    for (int s = 0; s < SETS; s++) {
        if (pollers[s].inited)
            netpoll_backend_afterfork_child(s);
        pollers[s] = (struct Poller){0};
    }
}
