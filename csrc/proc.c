/* proc.c: goroutines: starting, parking, waking and switching them.  threads.c has the Ms that run them.
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
 * Rejected: switching by way of g0 always (Go's mcall): twice the price of a yield.
 */
#include "proc.h"

static uint64_t next_goid;

#define GOID_BATCH 16
#define LONG_QUEUE 16  /* so many are queued that a new goroutine will not run for a while */
#define GLOBAL_TICK 61 /* decisions between two turns of those whom two busy goroutines could shut out: see fair_turn */
#define TIMER_TICK 8   /* decisions between two looks at the clock, while there is something to run */

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
        [WAIT_PARK] = "park",
        [WAIT_COND] = "sync.Cond.Wait",
    };
    return (unsigned)r < WAIT_REASONS ? names[r] : "?";
}

/* ---- small stacks ---- */

void
systemstack(void (*fn)(void *), void *arg)
{
#if !defined(GMP_ASAN) && !defined(GMP_TSAN) /* there the smallest stack has 64 KiB */
    M *mp = getm();
    G *gp = mp != NULL ? mp->curg : NULL;
    /* While gp runs, g0 is saved, and what lies below its stack pointer is free. */
    if (gp != NULL && gp->stackclass == STACK_2K && gp->stack_lo != NULL && mp->g0.sp != NULL &&
        (uintptr_t)&mp - (uintptr_t)gp->stack_lo < stack_class_size(STACK_2K)) {
        gmp_call_on(mp->g0.sp, fn, arg);
        return;
    }
#endif
    fn(arg);
}

void
g0stack(void (*fn)(void *), void *arg)
{
#if !defined(GMP_ASAN) && !defined(GMP_TSAN)
    M *mp = getm();
    G *gp = mp != NULL ? mp->curg : NULL;
    if (gp != NULL && gp->stack_lo != NULL && mp->g0.sp != NULL &&
        (uintptr_t)&mp - (uintptr_t)gp->stack_lo < stack_class_size((StackClass)gp->stackclass)) {
        gmp_call_on(mp->g0.sp, fn, arg);
        return;
    }
#endif
    fn(arg);
}

typedef struct Heap {
    void *p;
    size_t n;
} Heap;

static void
heap_malloc(void *arg)
{
    ((Heap *)arg)->p = sys_malloc(((Heap *)arg)->n);
}

static void
heap_calloc(void *arg)
{
    ((Heap *)arg)->p = sys_calloc(1, ((Heap *)arg)->n);
}

static void
heap_realloc(void *arg)
{
    ((Heap *)arg)->p = sys_realloc(((Heap *)arg)->p, ((Heap *)arg)->n);
}

static void
heap_free(void *p)
{
    sys_free(p);
}

void *
g_malloc(size_t n)
{
    Heap h = {NULL, n};
    systemstack(heap_malloc, &h);
    return h.p;
}

void *
g_calloc(size_t n)
{
    Heap h = {NULL, n};
    systemstack(heap_calloc, &h);
    return h.p;
}

void *
g_realloc(void *p, size_t n)
{
    Heap h = {p, n};
    systemstack(heap_realloc, &h);
    return h.p;
}

void
g_free(void *p)
{
    systemstack(heap_free, p);
}

static GMP_NORETURN GMP_COLD void
overflowed(void *arg)
{
    G *gp = arg;
    gmp_throw("stack overflow: goroutine %llu has overrun its 2 KiB stack; its class is %s, its function's address %p",
              (unsigned long long)gp->goid, gp->cls->name, gp->cls->function != NULL ? gp->cls->function(gp) : NULL);
}

/* A goroutine on a 2 KiB stack leaves it: was it enough?  The canary tells when it went too deep before, the address when it
 * is too deep now. */
static inline void
check_stack(G *gp)
{
    if (GMP_UNLIKELY(gp->stackclass == STACK_2K) && gp->stack_lo != NULL &&
        GMP_UNLIKELY(!stack_canary_ok(gp->stack_lo) || (char *)__builtin_frame_address(0) < (char *)gp->stack_lo))
        systemstack(overflowed, gp);
}

/* ---- making goroutines runnable ---- */

/* In the scheduler, with a P of gp's set.  No thread is woken for a goroutine that is alone in the queue of a P whose last
 * HANDOVERS runnexts all were run by its own thread: the caller is about to wait, and a thread that is woken to find nothing
 * costs more than the switch.  Should it not wait this time, sysmon sees to it. */
static void
ready_local(Sched *sched, P *pp, G *gp, bool next)
{
    runqput(pp, gp, next);
    if (atomic_load_relaxed(&sched->np) == 1)
        return; /* it is not idle: we have it */
    if (next && atomic_load_relaxed(&pp->handovers) == HANDOVERS && pp->runqtail == atomic_load_relaxed(&pp->runqhead))
        return;
    /* Pairs with an M that goes idle: it changes npidle and nmspinning, then looks at all queues. */
    if (!next) /* else runqput has exchanged runnext */
        atomic_fence();
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
    M *mp = atomic_load(&gp->set->committer);
    while (atomic_load_acquire(&mp->committing) == gp) /* pairs with the store in commit */
        sys_thread_yield();
    goready(gp);
    return true;
}

/* ---- dead goroutines ---- */

/* Sched.lock. */
void
gfree_push(Sched *sched, uint32_t ci, G *const *g, uint32_t n)
{
    GStack *st = &sched->gfree[ci];
    if (n == 0)
        return;
    memcpy(st->g + st->n, g, n * sizeof(G *));
    stat_add(&st->n, n);
}

/* Counts one more goroutine of the class in. */
static int
gfree_reserve(GStack *st)
{
    if (st->ever == st->cap) {
        uint32_t cap = st->cap != 0 ? st->cap * 2 : GFREE_MAX;
        G **g = sys_realloc(st->g, cap * sizeof(G *));
        if (g == NULL)
            return GMP_ENOMEM;
        st->g = g;
        st->cap = cap;
    }
    st->ever++;
    return GMP_OK;
}

static void
gfree_push1(Sched *sched, G *gp)
{
    mutex_lock(&sched->lock);
    gfree_push(sched, gp->cls->index, &gp, 1);
    mutex_unlock(&sched->lock);
}

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
    uint32_t ci = gp->cls->index;
    if (pp == NULL) {
        mutex_lock(&sched->lock);
        atomic_store_release(&sched->gdelta, sched->gdelta - 1); /* as below */
        gfree_push(sched, ci, &gp, 1);
        mutex_unlock(&sched->lock);
        return;
    }
    atomic_store_release(&pp->gdelta, pp->gdelta - 1); /* pairs with num_goroutine: who sees it gone sees what it did */
    GFree *f = &pp->gfree[ci];
    f->g[f->n++] = gp;
    if (f->n < GFREE_MAX)
        return;
    f->n -= GFREE_MAX / 2;
    mutex_lock(&sched->lock);
    gfree_push(sched, ci, f->g + f->n, GFREE_MAX / 2);
    mutex_unlock(&sched->lock);
}

/* In the scheduler if pp is not NULL.  NULL when there is none.  Go: runtime.gfget */
static G *
gfget(Sched *sched, P *pp, const Class *cls)
{
    GFree *f = pp != NULL ? &pp->gfree[cls->index] : NULL;
    if (f == NULL || f->n == 0) {
        GStack *st = &sched->gfree[cls->index];
        if (atomic_load_relaxed(&st->n) == 0)
            return NULL;
        mutex_lock(&sched->lock);
        uint32_t n = f != NULL ? GFREE_MAX / 2 : 1;
        if (n > st->n)
            n = st->n;
        stat_add(&st->n, -n);
        G **from = st->g + st->n;
        G *gp = n != 0 ? from[0] : NULL;
        if (f != NULL) {
            memcpy(f->g, from, n * sizeof(G *));
            f->n = n;
        }
        mutex_unlock(&sched->lock);
        if (f == NULL || n == 0)
            return gp;
    }
    uint32_t n = --f->n;
    if (n >= 2)
        prefetch_g(cls, f->g[n - 2]); /* a burst of spawns waits for memory more than for anything else */
    return f->g[n];
}

int
gcount(Sched *sched, const Class *cls)
{
    mutex_lock(&sched->lock);
    int code = globrunqreserve(sched, sched->ngs + 1);
    if (code == GMP_OK && cls != NULL)
        code = gfree_reserve(&sched->gfree[cls->index]);
    if (code == GMP_OK)
        sched->ngs++;
    mutex_unlock(&sched->lock);
    return code;
}

void
guncount(Sched *sched, const Class *cls)
{
    mutex_lock(&sched->lock);
    sched->ngs--;
    if (cls != NULL)
        sched->gfree[cls->index].ever--;
    mutex_unlock(&sched->lock);
}

static G *
malg_here(Sched *sched, const Class *cls)
{
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
    if (gcount(sched, cls) < 0) {
        stack_free(cls->stack, lo);
        return NULL;
    }
    if (cls->create != NULL && cls->create(gp) < 0) {
        guncount(sched, cls);
        stack_free(cls->stack, lo);
        return NULL;
    }
    atomic_store_release(&sched->classes[cls->index], cls); /* pairs with the acquire in trace_details */
    gp->stack_lo = lo;
    gp->status = G_DEAD;
    if (cls == sched->cls)
        atomic_xadd_relaxed(&sched->nslots, 1u);
    return gp;
}

typedef struct Malg {
    Sched *sched;
    const Class *cls;
    G *gp;
} Malg;

static void
malg_call(void *arg)
{
    Malg *m = arg;
    m->gp = malg_here(m->sched, m->cls);
}

/* A new slot with its G at the top.  Not in the scheduler: create may run foreign code.  Go: runtime.malg */
static G *
malg(Sched *sched, const Class *cls)
{
    Malg m = {sched, cls, NULL};
    systemstack(malg_call, &m);
    return m.gp;
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

uint64_t
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
    gp->lockedint = 0;
    gp->lockedext = 0;
    gp->lastm = 0;
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

static void
count_pending(Sched *sched, P *pp, int64_t n)
{
    if (pp != NULL)
        stat_add(&pp->npending, n);
    else
        atomic_xadd_relaxed(&sched->npending, n);
}

/* Must a new goroutine bring a G of its own?  The dead ones are promised to those that have none yet. */
static bool
slots_promised(Sched *sched)
{
    return num_goroutine(sched) + 1 > (int64_t)atomic_load_relaxed(&sched->nslots);
}

/* Go: runtime.newproc + newproc1; differs: the G is filled in by a callback, because it is class-specific. */
uint64_t
newproc_class(Sched *sched, const Class *cls, void (*entry)(G *gp), void (*fill)(G *gp, void *arg), void *arg)
{
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    G *gp = NULL;
    if (cls->late_fill != NULL && pp != NULL &&
        pp->runqtail - atomic_load_relaxed(&pp->runqhead) >= LONG_QUEUE) { /* see qstart.c */
        QStart *qs = qstart_get(sched, pp);
        if (qs != NULL) {
            uint64_t id = goid_next(pp);
            qs->start = (Start){.state = START_ALONE, .goid = id, .parentid = mp->curg->goid};
            qs->cls = cls;
            memcpy(qs->arg, arg, cls->fill_size);
            enqueue_new(sched, mp, pp, (G *)((uintptr_t)qs | 1));
            return id;
        }
    }
    if (GMP_LIKELY(sched->cls->start_fill == NULL || num_pending(sched) == 0) || !slots_promised(sched))
        gp = gfget(sched, pp, cls);
    if (GMP_UNLIKELY(gp == NULL)) {
        if (pp != NULL)
            p_exit(mp, pp);
        gp = malg(sched, cls);
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

uint64_t
newproc(Sched *sched, void (*entry)(G *gp), void (*fill)(G *gp, void *arg), void *arg)
{
    return newproc_class(sched, sched->cls, entry, fill, arg);
}

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
        G *gp = malg(sched, sched->cls);
        if (gp == NULL)
            return GMP_ENOMEM;
        gfree_push1(sched, gp);
    }
    M *mp = getm();
    P *pp = mp != NULL && mp->set == sched ? p_enter(mp) : NULL;
    st->state = START_PENDING;
    st->gp = NULL;
    st->goid = goid_next(pp);
    st->parentid = mp != NULL && mp->curg != NULL ? mp->curg->goid : 0;
    count_pending(sched, pp, 1);
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
    G *gp = gfget(sched, pp, sched->cls);
    if (gp == NULL) {
        atomic_store_release(&st->state, (uint32_t)START_PENDING); /* nothing to publish */
        return NULL;
    }
    ginit(sched, gp, st->goid, st->parentid, sched->cls->start_entry);
    sched->cls->start_fill(gp, st);
    set_status(gp, G_DEAD, G_RUNNABLE);
    st->gp = gp;
    count_pending(sched, pp, -1);
    atomic_store_release(&st->state, (uint32_t)START_BOUND); /* pairs with the acquire above: publishes gp */
    return gp;
}

static G *
bind_alone(Sched *sched, P *pp, QStart *qs)
{
    G *gp = gfget(sched, pp, qs->cls);
    if (GMP_UNLIKELY(gp == NULL) && (gp = malg(sched, qs->cls)) == NULL) {
        mutex_lock(&sched->lock);
        globrunqput(sched, (G *)((uintptr_t)qs | 1));
        mutex_unlock(&sched->lock);
        sys_usleep(100); /* until others have ended, or memory comes back */
        return NULL;
    }
    ginit(sched, gp, qs->start.goid, qs->start.parentid, qs->cls->start_entry);
    qs->cls->late_fill(gp, qs->arg);
    set_status(gp, G_DEAD, G_RUNNABLE);
    qstart_put(sched, pp, qs);
    return gp;
}

/* In the scheduler with a P, so that all dead Gs but other Ps' are at hand. */
G *
bind_queued(Sched *sched, P *pp, G *gp)
{
    Start *st = (Start *)((uintptr_t)gp & ~(uintptr_t)1);
    if (atomic_load_relaxed(&st->state) == START_ALONE)
        return bind_alone(sched, pp, (QStart *)st);
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
    gp = malg(sched, sched->cls);
    if (gp == NULL)
        return NULL;
    gfree_push1(sched, gp);
    return bind(sched, NULL, st);
}

int64_t
num_goroutine(Sched *sched)
{
    int64_t n = atomic_load_acquire(&sched->gdelta); /* pairs with gfput */
    for (uint32_t i = 0, all = nallp(sched); i < all; i++)
        n += atomic_load_acquire(&sched->allp[i]->gdelta);
    return n;
}

int64_t
num_pending(Sched *sched)
{
    int64_t n = atomic_load_relaxed(&sched->npending);
    for (uint32_t i = 0, all = nallp(sched); i < all; i++)
        n += atomic_load_relaxed(&sched->allp[i]->npending);
    return n;
}

/* ---- switching ---- */

void
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
        if (GMP_UNLIKELY(guarded)) {
            atomic_store_relaxed(&prev->set->committer, mp); /* ordered by the next line */
            atomic_store(&mp->committing, prev);
        }
        prev->waitsince = atomic_load_relaxed(&coarse_now);
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
            runqput(pp, prev, false); /* no thread is woken: this one has found another goroutine, or looks on */
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
        if (GMP_UNLIKELY(prev->lockedm != NULL))
            locked_goexit(mp, prev);
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
    /* Not before: a timer's function may take the lock with which the goroutine that was left has parked. */
    P *pp = mp->p;
    if (GMP_UNLIKELY(atomic_load_relaxed(&pp->timers.next) != 0) && ++pp->timertick % TIMER_TICK == 0)
        timers_run(&pp->timers, nanotime());
    if (cls->swap != NULL)
        cls->swap(prev, gp);
    gp->lastm = mp->life;
    p_exit(mp, pp);
}

/* With many goroutines in the queue each one's memory has left the caches: fetch that of the next ones in good time. */
static inline void
prefetch_queue(P *pp)
{
    uint32_t h = atomic_load_relaxed(&pp->runqhead);
    if (pp->runqtail - h < 8)
        return;
    const Class *cls = pp->set->cls;
    G *third = pp->runq[(h + 3) % RUNQ_SIZE];
    if (is_start(third))
        __builtin_prefetch(third, 1);
    else
        prefetch_g(cls, third);
    if (atomic_load_relaxed(&pp->set->np) > 1)
        return;                              /* a thief may run it meanwhile: its address is all that can be used */
    G *soon = pp->runq[(h + 1) % RUNQ_SIZE]; /* its own lines were fetched two switches ago */
    if (is_start(soon))
        return;
    __builtin_prefetch(soon->sched.sp, 1);
    if (cls->prefetch != NULL)
        cls->prefetch(soon);
}

G *
fair_turn(Sched *sched, P *pp)
{
    if (GMP_LIKELY(pp->schedtick % GLOBAL_TICK != 0))
        return NULL;
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
    G *gp = fair_turn(sched, pp);
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
    if (GMP_UNLIKELY(gp == NULL))
        return NULL;
    if (GMP_UNLIKELY(gp->lockedm != mp && (gp->lockedm != NULL || atomic_load_relaxed(&mp->picky)))) {
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
    mp->p = mp->oldp != NULL && mp->oldp->idle ? pidletake(sched, mp->oldp, mp) : pidleget(sched, mp);
    mutex_unlock(&sched->lock);
    mp->oldp = NULL;
    return mp->p;
}

static void
switch_away(M *mp, G *gp, SwitchKind kind)
{
    P *pp = p_enter(mp);
    if (GMP_UNLIKELY(pp == NULL))
        pp = p_regain(mp);
    G *next = pp != NULL ? schedule_fast(mp, pp) : NULL;
    check_stack(gp);
    mp->prev = gp;
    mp->prevkind = kind;
    if (GMP_LIKELY(next != NULL)) {
        stat_add(&pp->schedtick, 1);
        atomic_store_release(&mp->curg, next); /* for sysmon, which looks into it */
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
yield_to_sched(void)
{
    M *mp = getm();
    switch_away(mp, mp->curg, SWITCH_YIELD);
}

void
goexit(void)
{
    M *mp = getm();
    switch_away(mp, mp->curg, SWITCH_DEAD);
    gmp_throw("a dead goroutine was resumed");
}

/* ---- threads that block, threads of one goroutine ---- */

void
entersyscallblock(void)
{
    M *mp = getm();
    P *pp = p_enter(mp);
    mp->oldp = pp;
    if (pp == NULL)
        return;
    mp->p = NULL;
    atomic_store_release(&pp->owner, (uintptr_t)0); /* pairs with the next owner's acquire */
    handoffp(pp);
}

void
exitsyscall(void)
{
    M *mp = getm();
    if (p_regain(mp) != NULL)
        p_exit(mp, mp->p);
    else
        switch_away(mp, mp->curg, SWITCH_YIELD); /* to the global queue */
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
    if (err == GMP_OK && atomic_load(&atomic_load_relaxed(&t->heap)->next) == when)
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
