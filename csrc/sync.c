/* sync.c: Gmutex and Gwaitgroup on wait queues.
 *
 * Gmutex
 *   1. key holds LOCKED and WAITERS.  LOCKED is set by CAS from 0 (the fast path), or under `lock`.
 *   2. WAITERS is set and cleared under `lock` only; it is set whenever `waiters` is not empty, so an unlock by CAS from
 *      LOCKED to 0 leaves nobody asleep.
 *   3. unlock with waiters: either LOCKED stays and the first waiter owns it (handed over: it waited longer than
 *      STARVING_NS), or LOCKED is cleared and the first waiter is woken to compete.  A woken waiter that loses queues at the
 *      front again with its old arrival time, so that the starvation clock goes on.
 */
#include "sync.h"

#define GMUTEX_LOCKED 1u
#define GMUTEX_WAITERS 2u
#define STARVING_NS (1000 * 1000)

typedef struct MutexWaiter {
    Sudog sg; /* first: the queue knows only this */
    int64_t since;
    bool handed;
} MutexWaiter;

static bool
unlock_commit(G *gp, void *lock)
{
    (void)gp;
    mutex_unlock(lock);
    return true;
}

static GMP_NOINLINE int
gmutex_lock_slow(Gmutex *m, int64_t timeout)
{
    G *gp = getg();
    MutexWaiter w = {.sg = {.g = gp, .claimed = timeout >= 0 || gp->interruptible}};
    int64_t left = timeout;
    for (;;) {
        mutex_lock(&m->lock);
        uint32_t key = atomic_load_relaxed(&m->key);
        if ((key & GMUTEX_LOCKED) == 0) {
            if (atomic_cas_acquire(&m->key, key, key | GMUTEX_LOCKED)) { /* pairs with the release in unlock */
                mutex_unlock(&m->lock);
                return GMP_OK;
            }
            mutex_unlock(&m->lock);
            continue;
        }
        if ((key & GMUTEX_WAITERS) == 0 && !atomic_cas(&m->key, key, key | GMUTEX_WAITERS)) {
            mutex_unlock(&m->lock);
            continue;
        }
        int64_t now = nanotime();
        bool again = w.since != 0;
        if (!again) {
            w.since = now;
        }
        else if (timeout >= 0) {
            left = timeout - (now - w.since);
            if (left < 0)
                left = 0;
        }
        gp->wakecode = GMP_OK;
        if (w.sg.claimed)
            w.sg.seq = park_begin(gp);
        if (again)
            waitq_pushfront(&m->waiters, &w.sg);
        else
            waitq_push(&m->waiters, &w.sg);
        int code = gopark_timeout(unlock_commit, &m->lock, WAIT_MUTEX, w.sg.seq, left);
        if (code != GMP_OK) {
            mutex_lock(&m->lock);
            waitq_remove(&m->waiters, &w.sg);
            if (m->waiters.first == NULL) {
                do
                    key = atomic_load_relaxed(&m->key);
                while (!atomic_cas(&m->key, key, key & ~GMUTEX_WAITERS));
            }
            mutex_unlock(&m->lock);
            return code;
        }
        if (w.handed)
            return GMP_OK;
    }
}

int
gmutex_lock(Gmutex *m, int64_t timeout)
{
    if (GMP_LIKELY(gmutex_lock_fast(m)))
        return GMP_OK;
    if (timeout == 0) {
        uint32_t key = atomic_load_relaxed(&m->key);
        return (key & GMUTEX_LOCKED) == 0 && atomic_cas_acquire(&m->key, key, key | GMUTEX_LOCKED) ? GMP_OK
                                                                                                   : GMP_ETIMEDOUT;
    }
    return gmutex_lock_slow(m, timeout);
}

int
gmutex_unlock(Gmutex *m)
{
    if (GMP_LIKELY(gmutex_unlock_fast(m)))
        return GMP_OK;
    mutex_lock(&m->lock);
    if ((atomic_load_relaxed(&m->key) & GMUTEX_LOCKED) == 0) {
        mutex_unlock(&m->lock);
        return GMP_ESTATE;
    }
    Sudog *sg = waitq_pop(&m->waiters);
    G *gp = NULL;
    uint32_t key = m->waiters.first != NULL ? GMUTEX_WAITERS : 0;
    if (sg != NULL) {
        MutexWaiter *w = CONTAINER_OF(sg, MutexWaiter, sg);
        w->handed = nanotime() - w->since > STARVING_NS;
        if (w->handed)
            key |= GMUTEX_LOCKED;
        gp = sg->g;
    }
    atomic_store_release(&m->key, key); /* pairs with the acquire in lock; nobody else writes while LOCKED is set and
                                           `lock` is held */
    mutex_unlock(&m->lock);
    if (gp != NULL)
        goready(gp);
    return GMP_OK;
}

/* Go: WaitGroup.Add */
int
gwaitgroup_add(Gwaitgroup *wg, int64_t delta)
{
    mutex_lock(&wg->lock);
    int64_t n;
    if (__builtin_add_overflow(wg->n, delta, &n) || n < 0) {
        mutex_unlock(&wg->lock);
        return GMP_ESTATE;
    }
    wg->n = n;
    G *head = NULL, **tail = &head;
    if (wg->n == 0) {
        Sudog *sg;
        while ((sg = waitq_pop(&wg->waiters)) != NULL) {
            *tail = sg->g;
            tail = &sg->g->link;
        }
    }
    *tail = NULL;
    mutex_unlock(&wg->lock);
    while (head != NULL) {
        G *gp = head;
        head = gp->link;
        goready(gp);
    }
    return GMP_OK;
}

int
gwaitgroup_wait(Gwaitgroup *wg, int64_t timeout)
{
    mutex_lock(&wg->lock);
    if (wg->n == 0 || timeout == 0) {
        int code = wg->n == 0 ? GMP_OK : GMP_ETIMEDOUT;
        mutex_unlock(&wg->lock);
        return code;
    }
    return waitq_park(&wg->waiters, &wg->lock, false, WAIT_WAITGROUP, timeout);
}
