/* gmp.c: the public C interface: the runtime, goroutines, park, blocking sections, figures.  gmp_chan.c has channels, locks
 * and timers, gmp_fd.c descriptors.  Arguments are checked here; the core below trusts them. */
#include "native.h"
#include "netpoll.h"
#include "proc.h"
#include "sync.h"

/* ---- the runtime ---- */

static Mutex init_lock;
static uint32_t stopped; /* atomic: after gmp_shutdown */

const char *
gmp_version(void)
{
    return GMP_VERSION;
}

int
gmp_num_cpu(void)
{
    return sys_ncpu();
}

int64_t
gmp_nanotime(void)
{
    return nanotime();
}

int64_t
gmp_num_goroutine(void)
{
    int64_t n = 0;

    for (int set = 0; set < SETS; set++)
        n += num_goroutine(&scheds[set]) - scheds[set].nsystem;
    return n;
}

/* What fill needs. */
typedef struct Spawn {
    gmp_func fn;
    void *arg;
    gmp_waitgroup *wg;
} Spawn;

_Static_assert(sizeof(Spawn) <= FILL_MAX, "has to fit into a QStart");

/* So that sysmon takes the P of one that runs long. */
static bool
native_detached(G *gp)
{
    (void)gp;
    return false;
}

static void *
native_function(G *gp)
{
    return (void *)(uintptr_t)((NativeG *)gp)->fn;
}

static void entry(G *gp);
static void fill(G *gp, void *arg);

#define NATIVE_CLASS(stack_, index_)                                                                                   \
    {                                                                                                                  \
        .name = "native",                                                                                              \
        .g_size = sizeof(NativeG),                                                                                     \
        .stack = (stack_),                                                                                             \
        .index = (index_),                                                                                             \
        .mask_signals = true,                                                                                          \
        .own_threads = true,                                                                                           \
        .fill_size = sizeof(Spawn),                                                                                    \
        .start_entry = entry,                                                                                          \
        .late_fill = fill,                                                                                             \
        .detached = native_detached,                                                                                   \
        .function = native_function,                                                                                   \
    }
const Class native_classes[] = {NATIVE_CLASS(STACK_2K, 0), NATIVE_CLASS(STACK_64K, 1), NATIVE_CLASS(STACK_256K, 2)};

/* Go: the GOMAXPROCS variable. */
static uint32_t
default_procs(void)
{
    const char *env = getenv("GMPMAXPROCS");
    char *end;
    long n = env != NULL ? strtol(env, &end, 10) : 0;
    if (env != NULL && n > 0 && *end == '\0')
        return n < MAX_PROCS ? (uint32_t)n : MAX_PROCS;
    n = sys_procs();
    return n < MAX_PROCS ? (uint32_t)n : MAX_PROCS;
}

static int
init_with(uint32_t procs)
{
    return schedinit(SET_NATIVE, &native_classes[GMP_STACK_64K - 1], procs != 0 ? procs : default_procs());
}

int
native_init(void)
{
    if (GMP_UNLIKELY(atomic_load(&stopped)))
        return GMP_ESHUTDOWN;
    if (GMP_LIKELY(atomic_load_acquire(&NATIVE_SET->np) != 0)) /* pairs with the store at the end of schedinit */
        return GMP_OK;
    mutex_lock(&init_lock);
    int code = init_with(0);
    mutex_unlock(&init_lock);
    return code;
}

int
gmp_init(int procs)
{
    if (procs < 0 || procs > MAX_PROCS)
        return GMP_EINVAL;
    mutex_lock(&init_lock);
    int code = GMP_OK;
    if (atomic_load(&NATIVE_SET->np) == 0)
        code = init_with((uint32_t)procs);
    else if (procs != 0 && (uint32_t)procs != NATIVE_SET->np)
        code = GMP_ESTATE;
    if (code == GMP_OK)
        atomic_store(&stopped, 0u);
    mutex_unlock(&init_lock);
    return code;
}

static int
wait_until_none(int64_t timeout)
{
    NativeG *self = native_self();
    int64_t others = self->g.stack_lo != NULL, now = nanotime();
    int64_t deadline = timeout < 0 || timeout > INT64_MAX - now ? INT64_MAX : now + timeout;
    /* Counting the last one out would cost every goroutine something; looking costs only this. */
    for (int64_t pause = 20 * 1000; num_goroutine(NATIVE_SET) > others; pause += pause / 2) {
        if ((now = nanotime()) >= deadline)
            return GMP_ETIMEDOUT;
        if (pause > 5 * 1000 * 1000)
            pause = 5 * 1000 * 1000;
        gosleep(pause < deadline - now ? pause : deadline - now);
    }
    return GMP_OK;
}

int
gmp_shutdown(int64_t timeout)
{
    int code;

    if (atomic_load_acquire(&NATIVE_SET->np) != 0) { /* as in native_init */
        VISITING(code, wait_until_none(timeout));
        if (code != GMP_OK)
            return code;
    }
    atomic_store(&stopped, 1u);
    return GMP_OK;
}

/* ---- threads of other origin ---- */

static Mutex stand_ins_lock;
static NativeG *stand_ins;

static NativeG *
stand_in_new(void)
{
    mutex_lock(&stand_ins_lock);
    NativeG *ng = stand_ins;
    if (ng != NULL)
        stand_ins = ng->next;
    mutex_unlock(&stand_ins_lock);
    if (ng == NULL && (ng = g_calloc(sizeof *ng)) != NULL)
        ng->g.cls = NATIVE_SET->cls;
    return ng;
}

static void
stand_in_free(NativeG *ng)
{
    ng->local = NULL;
    ng->blocking = 0;
    ng->parked = ng->token = false;
    mutex_lock(&stand_ins_lock);
    ng->next = stand_ins;
    stand_ins = ng;
    mutex_unlock(&stand_ins_lock);
}

static void
thread_ended(void *arg)
{
    M *mp = arg;
    NativeG *ng = (NativeG *)mp->thread_g;
    if (getm() != mp || mp->curg != &ng->g)
        return;
    disown_thread(mp);
    stand_in_free(ng);
}

int
visit_begin(Visit *v)
{
    int code = native_init();
    if (code != GMP_OK && code != GMP_ESHUTDOWN)
        return code;
    NativeG *ng = stand_in_new();
    if (ng == NULL)
        return GMP_ENOMEM;
    v->home = getm();
    v->ending = v->home != NULL || scheds[SET_PYTHON].np != 0;
    M *mp = adopt_thread(NATIVE_SET, &ng->g);
    if (mp == NULL) {
        stand_in_free(ng);
        return GMP_ENOMEM;
    }
    if (v->home != NULL && v->home->curg != NULL && v->home->curg->stack_lo != NULL)
        gobuf_set_stack(&ng->g.sched, v->home->curg->stack_lo,
                        (size_t)((char *)v->home->curg - (char *)v->home->curg->stack_lo));
    /* Not watched: the thread is let go when the call ends, and adopted again. */
    v->ending = v->ending || sys_at_thread_exit(thread_ended, mp) != GMP_OK;
    return GMP_OK;
}

void
visit_end(Visit *v)
{
    if (!v->ending)
        return;
    NativeG *ng = (NativeG *)getm()->thread_g;
    disown_thread(getm());
    stand_in_free(ng);
    setm(v->home);
}

/* ---- goroutines ---- */

static GMP_NORETURN void
end(NativeG *ng)
{
    gmp_waitgroup *wg = ng->wg;
    while (ng->blocking > 0)
        gmp_block_exit();
    if (wg != NULL)
        (void)gmp_waitgroup_done(wg); /* refused only when somebody else has counted this one out */
    goexit();
}

static void
entry(G *gp)
{
    NativeG *ng = (NativeG *)gp;
    ng->fn(ng->arg);
    end(ng);
}

static void
fill(G *gp, void *arg)
{
    NativeG *ng = (NativeG *)gp;
    Spawn *sp = arg;
    ng->fn = sp->fn;
    ng->arg = sp->arg;
    ng->wg = sp->wg;
    ng->local = NULL;
    ng->parked = ng->token = false;
}

int
native_go(gmp_func fn, void *arg, int stack, gmp_waitgroup *wg)
{
    Spawn sp = {fn, arg, wg};
    if (fn == NULL || stack < GMP_STACK_2K || stack > GMP_STACK_256K)
        return GMP_EINVAL;
    int code = native_init();
    if (GMP_UNLIKELY(code != GMP_OK))
        return code;
    return newproc_class(NATIVE_SET, &native_classes[stack - 1], entry, fill, &sp) != 0 ? GMP_OK : GMP_ENOMEM;
}

int
gmp_go(gmp_func fn, void *arg, int stack)
{
    return native_go(fn, arg, stack, NULL);
}

uint64_t
gmp_goid(void)
{
    G *gp = getg();
    return gp != NULL ? gp->goid : 0;
}

int
gmp_yield(void)
{
    if (GMP_LIKELY(native_self() != NULL))
        gosched();
    else
        sys_thread_yield();
    return GMP_OK;
}

int
gmp_sleep(int64_t ns)
{
    int code;

    if (ns < 0)
        return GMP_EINVAL;
    VISITING(code, gosleep(ns));
    return code;
}

int
gmp_exit(void)
{
    NativeG *ng = native_self();
    if (ng == NULL || ng->g.stack_lo == NULL)
        return GMP_ESTATE;
    end(ng);
}

gmp_g *
gmp_self(void)
{
    Visit v;
    if (native_self() == NULL && scheds[SET_PYTHON].np == 0 && visit_begin(&v) == GMP_OK)
        visit_end(&v); /* adopted for good, as it is no goroutine of Python's */
    return (gmp_g *)native_self();
}

static bool
unlock_commit(G *gp, void *lock)
{
    (void)gp;
    mutex_unlock(lock);
    return true;
}

int
gmp_park(int64_t timeout)
{
    NativeG *ng = (NativeG *)gmp_self();
    if (ng == NULL)
        return GMP_ESTATE;
    mutex_lock(&ng->lock);
    if (ng->token || timeout == 0) {
        int code = ng->token ? GMP_OK : GMP_ETIMEDOUT;
        ng->token = false;
        mutex_unlock(&ng->lock);
        return code;
    }
    ng->g.wakecode = GMP_OK;
    ng->seq = park_begin(&ng->g);
    ng->parked = true;
    int code = gopark_timeout(unlock_commit, &ng->lock, WAIT_PARK, ng->seq, timeout);
    if (code != GMP_OK) {
        mutex_lock(&ng->lock);
        ng->parked = false;
        mutex_unlock(&ng->lock);
    }
    return code;
}

int
gmp_ready(gmp_g *g)
{
    NativeG *ng = (NativeG *)g;
    if (ng == NULL)
        return GMP_EINVAL;
    mutex_lock(&ng->lock);
    bool mine = ng->parked && park_claim(&ng->g, ng->seq);
    if (mine) {
        ng->parked = false;
        ng->g.wakecode = GMP_OK;
    }
    else {
        ng->token = true;
    }
    mutex_unlock(&ng->lock);
    if (mine)
        goready(&ng->g);
    return GMP_OK;
}

int
gmp_block_enter(void)
{
    NativeG *ng = native_self();
    if (ng != NULL && ng->blocking++ == 0)
        entersyscallblock();
    return GMP_OK;
}

int
gmp_block_exit(void)
{
    NativeG *ng = native_self();
    if (ng == NULL)
        return GMP_OK; /* a thread that is no M has no P to give away */
    if (ng->blocking == 0)
        return GMP_ESTATE;
    if (--ng->blocking == 0)
        exitsyscall();
    return GMP_OK;
}

int
gmp_lock_os_thread(void)
{
    NativeG *ng = native_self();
    return ng != NULL ? lockosthread(false) : GMP_OK;
}

int
gmp_unlock_os_thread(void)
{
    NativeG *ng = native_self();
    if (ng == NULL)
        return GMP_OK; /* a thread is locked to itself anyway */
    if (ng->g.lockedext == 0)
        return GMP_ESTATE;
    unlockosthread(false);
    return GMP_OK;
}

int
gmp_local_set(void *value)
{
    NativeG *ng = (NativeG *)gmp_self();
    if (ng == NULL)
        return GMP_ESTATE;
    ng->local = value;
    return GMP_OK;
}

void *
gmp_local_get(void)
{
    NativeG *ng = native_self();
    return ng != NULL ? ng->local : NULL;
}

/* ---- Ps and figures ---- */

int
gmp_gomaxprocs(int n)
{
    if (n < 0 || n > MAX_PROCS)
        return GMP_EINVAL;
    int code = native_init();
    return code == GMP_OK || code == GMP_ESHUTDOWN ? gomaxprocs(NATIVE_SET, (uint32_t)n) : code;
}

int
gmp_get_stats(gmp_stats *out, size_t size)
{
    Sched *sched = NATIVE_SET;
    gmp_stats st = {0};

    if (out == NULL || size != sizeof st)
        return GMP_EINVAL;
    if (atomic_load_acquire(&sched->np) != 0) { /* as in native_init */
        st.goroutines = num_goroutine(sched);
        mutex_lock(&sched->lock);
        st.procs = sched->np;
        st.idle_procs = sched->npidle;
        st.threads = sched->nm;
        st.idle_threads = sched->nmidle;
        st.spinning_threads = atomic_load(&sched->nmspinning);
        st.queued = sched->runq.n;
        st.handoffs = (int64_t)atomic_load_relaxed(&sched->nhandoff);
        st.stacks_2k = sched->gfree[0].ever;
        st.stacks_64k = sched->gfree[1].ever;
        st.stacks_256k = sched->gfree[2].ever;
        mutex_unlock(&sched->lock);
        st.fd_waiters = netpoll_waiters_any();
    }
    *out = st;
    return GMP_OK;
}
