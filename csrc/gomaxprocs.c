/* gomaxprocs.c: how many Ps a set has, changed while it runs.
 *
 * gomaxprocs
 *   1. Makes the Ps that are missing; they are never freed, so that allp can be read without a lock (Sched.nallp of them).
 *   2. Stops the set: takes every P.  One that runs a goroutine is taken as sysmon does it, by CAS on its owner: the
 *      goroutine goes on on its thread until its next scheduling point, and finds no P there.  One that is idle is taken off
 *      the list.  One that is in the scheduler, or on its way from thread to thread, soon becomes one of the two.
 *   3. Empties the Ps that go: goroutines to the global queue, timers to P 0, dead ones and counts to the set.  A timer that
 *      is armed later by someone who still held such a P follows them (Timers.heir).
 *   4. Sets np.  From here on runq.c knows whether there are thieves (sole_consumer): nobody was in a queue meanwhile.
 *   5. Hands every P off: to a thread if there is work, to the idle list if not.
 *
 * Go: runtime.stopTheWorld, procresize, startTheWorld; differs: goroutines are not stopped, only their Ps taken; so for a
 * moment more than n of them run, those of the Ps that went.
 */
#include "proc.h"
#include "trace.h"

static uint32_t
gcd(uint32_t a, uint32_t b)
{
    while (b != 0) {
        uint32_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* The step widths with which a walk round n Ps visits each once.  Go: randomOrder.reset */
static void
coprimes_reset(Sched *sched, uint32_t n)
{
    sched->ncoprimes = 0;
    for (uint32_t i = 1; i <= n; i++)
        if (gcd(i, n) == 1)
            sched->coprimes[sched->ncoprimes++] = (uint16_t)i;
}

/* Ps up to number n - 1 exist.  Sched.resizing, or nobody knows the set yet.  GMP_ENOMEM */
static int
make_ps(Sched *sched, uint32_t n)
{
    for (uint32_t i = sched->nallp; i < n; i++) {
        P *pp = sys_aligned_alloc(GMP_CACHELINE, (sizeof(P) + GMP_CACHELINE - 1) / GMP_CACHELINE * GMP_CACHELINE);
        if (pp == NULL)
            return GMP_ENOMEM;
        memset(pp, 0, sizeof *pp);
        pp->id = i;
        pp->set = sched;
        sched->allp[i] = pp;
        atomic_store_release(&sched->nallp, i + 1); /* pairs with the acquire in nallp() */
    }
    return GMP_OK;
}

int
schedinit(int set, const Class *cls, uint32_t nprocs)
{
    Sched *sched = &scheds[set];
    if (atomic_load(&sched->np) != 0)
        return GMP_OK;
    debug_init();
    if (nprocs == 0 || nprocs > MAX_PROCS)
        return GMP_EINVAL;
    if (make_ps(sched, nprocs) < 0)
        return GMP_ENOMEM; /* those that were made wait for the next try */
    sched->cls = cls;
    sched->set = set;
    coprimes_reset(sched, nprocs);
    mutex_lock(&sched->lock);
    for (uint32_t i = nprocs; i-- > 0;)
        pidleput(sched, sched->allp[i]);
    atomic_store(&sched->np, nprocs);
    mutex_unlock(&sched->lock);
    sysmon_start();
    return GMP_OK;
}

/* Takes the P, whoever has it; its owner is 0 then. */
static void
stop(Sched *sched, P *pp)
{
    for (int spins = 0;; spins++) {
        uintptr_t owner = atomic_load(&pp->owner);
        if ((owner & P_RUNNING) != 0 && atomic_cas(&pp->owner, owner, (uintptr_t)0))
            return;
        if (owner == 0) {
            mutex_lock(&sched->lock);
            bool idle = pp->idle;
            if (idle)
                pidletake(sched, pp, NULL);
            mutex_unlock(&sched->lock);
            if (idle)
                return;
        }
        if (spins < 100)
            cpu_relax();
        else
            sys_thread_yield();
    }
}

/* All timers of the Ps from n on go to P 0's; or none, when memory is refused. */
static int
move_timers(Sched *sched, uint32_t n, uint32_t old)
{
    for (uint32_t i = n; i < old; i++) {
        if (timers_move(&sched->allp[i]->timers, &sched->allp[0]->timers) < 0) {
            while (i-- > n)
                timers_reopen(&sched->allp[i]->timers); /* those that have moved are as well off where they are */
            return GMP_ENOMEM;
        }
    }
    return GMP_OK;
}

/* Nobody has pp, and it goes.  Go: p.destroy */
static void
empty(Sched *sched, P *pp)
{
    G *gp;
    while ((gp = runqget(pp)) != NULL) {
        mutex_lock(&sched->lock);
        globrunqput(sched, gp);
        mutex_unlock(&sched->lock);
    }
    mutex_lock(&sched->lock);
    for (uint32_t c = 0; c < SET_CLASSES; c++) {
        gfree_push(sched, c, pp->gfree[c].g, pp->gfree[c].n);
        pp->gfree[c].n = 0;
    }
    stat_add(&sched->gdelta, pp->gdelta);
    atomic_store_relaxed(&pp->gdelta, (int64_t)0);
    atomic_xadd_relaxed(&sched->npending, pp->npending);
    atomic_store_relaxed(&pp->npending, (int64_t)0);
    mutex_unlock(&sched->lock);
}

typedef struct Resize {
    Sched *sched;
    uint32_t n;
    int result;
} Resize;

static void
resize(void *arg)
{
    Resize *r = arg;
    Sched *sched = r->sched;
    mutex_lock(&sched->resizing);
    uint32_t old = sched->np;
    r->result = make_ps(sched, r->n);
    if (r->result < 0 || r->n == old) {
        r->result = r->result < 0 ? r->result : (int)old;
        mutex_unlock(&sched->resizing);
        return;
    }
    M *mp = getm();
    P *mine = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    for (uint32_t i = 0; i < old; i++)
        if (sched->allp[i] != mine)
            stop(sched, sched->allp[i]);
    r->result = move_timers(sched, r->n, old);
    uint32_t n = r->result == GMP_OK ? r->n : old;
    for (uint32_t i = n; i < old; i++)
        empty(sched, sched->allp[i]);
    for (uint32_t i = old; i < n; i++)
        timers_reopen(&sched->allp[i]->timers);
    coprimes_reset(sched, n);
    mutex_lock(&sched->lock);
    atomic_store(&sched->np, n);
    mutex_unlock(&sched->lock);
    if (mine != NULL && mine->id >= n) { /* the caller's went: P 0 instead */
        atomic_store_release(&mine->owner, (uintptr_t)0);
        mine = sched->allp[0];
        atomic_store_release(&mine->owner, (uintptr_t)mp); /* pairs with the next owner's acquire, as above */
        mp->p = mine;
    }
    mutex_unlock(&sched->resizing);
    for (uint32_t i = 0; i < n; i++)
        if (sched->allp[i] != mine)
            handoffp(sched->allp[i]);
    if (mine != NULL)
        p_exit(mp, mine);
    if (r->result == GMP_OK)
        r->result = (int)old;
}

int
gomaxprocs(Sched *sched, uint32_t n)
{
    if (n == 0)
        return (int)atomic_load(&sched->np);
    if (n > MAX_PROCS)
        return GMP_EINVAL;
    Resize r = {sched, n, 0};
    systemstack(resize, &r);
    return r.result;
}
