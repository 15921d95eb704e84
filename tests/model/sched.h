/* sched.h: the whole scheduler as a model: the core's sources, unchanged, with goroutines on stacks of their own and Ms
 * that startm starts.  sysmon runs only where the model starts it. */
#ifndef GMP_MODEL_SCHED_H
#define GMP_MODEL_SCHED_H

#define SPIN_ROUNDS 1
#define PD_CHUNK 1
#define GFREE_MAX 4
#define MAX_PROCS 4
#define OWNERS_CHUNK 8
#define OWNERS_CHUNKS 1
#define LAST_LOOKS 0
#define NAP_US 0
#include "mc.h"

#include "gomaxprocs.c"
#include "netpoll.c"
#include "proc.c"
#include "qstart.c"
#include "runq.c"
#include "sysmon.c"
#include "threads.c"
#include "timer.c"

typedef struct ModelG {
    G g;
    void (*fn)(void *);
    void *arg;
    bool detached; /* what Class.detached says */
} ModelG;

static Sched *const sched = &scheds[SET_NATIVE];
static int ngo, ndone; /* goroutines started, ended */

static bool
is_detached(G *gp)
{
    return ((ModelG *)gp)->detached;
}

static Class model_class = {
    .name = "model",
    .g_size = sizeof(ModelG),
    .stack = STACK_64K,
    .detached = is_detached,
};

static void
entry(G *gp)
{
    ModelG *mg = (ModelG *)gp;
    mc_note("goroutine %d runs", (int)gp->goid);
    mg->fn(mg->arg);
    mc_note("goroutine %d ends", (int)gp->goid);
    ndone++;
    goexit();
}

static void
fill(G *gp, void *from)
{
    ((ModelG *)gp)->fn = ((ModelG *)from)->fn;
    ((ModelG *)gp)->arg = ((ModelG *)from)->arg;
    ((ModelG *)gp)->detached = false;
}

static GMP_UNUSED void
go(void (*fn)(void *), void *arg)
{
    ModelG from = {.fn = fn, .arg = arg};
    ngo++;
    MC_CHECK(newproc(sched, entry, fill, &from) != 0);
}

static GMP_UNUSED void
nothing(void *arg)
{
    (void)arg;
}

/* The goroutine makes its thread wait for something outside of the scheduler, as a blocking call does. */
static GMP_UNUSED void
block(bool (*cond)(void *), void *arg)
{
    ((ModelG *)getg())->detached = true;
    mc_wait(cond, arg);
    ((ModelG *)getg())->detached = false;
}

static GMP_UNUSED bool
is_set(void *flag)
{
    return *(uint32_t *)flag != 0;
}

static GMP_UNUSED void
set_flag(void *flag)
{
    *(uint32_t *)flag = 1;
}

/* Everything has ended and everyone sleeps. */
static GMP_UNUSED void
all_done(void)
{
    MC_CHECK(ndone == ngo);
    MC_CHECK(sched->runq.n == 0);
    MC_CHECK(sched->nmspinning == 0);
    MC_CHECK(sched->npidle == sched->np);
    MC_CHECK(sched->nmidle == sched->nm);
    for (uint32_t i = 0; i < sched->np; i++) {
        MC_CHECK(sched->allp[i]->owner == 0);
        MC_CHECK(runqempty(sched->allp[i]));
        MC_CHECK(sched->allp[i]->timers.len == 0);
    }
    MC_CHECK(num_goroutine(sched) == 0);
    MC_CHECK(sched->lock.key == 0);
}

static GMP_UNUSED void
start_sched(uint32_t np)
{
    mc_tls(&tls_m);
    mc_tls(&found);
    mc_tls(&found_tail);
    started = 1; /* no sysmon */
    sched->runq.cap = 16;
    sched->runq.ring = mc_alloc(16 * sizeof(G *));
    MC_CHECK(schedinit(SET_NATIVE, &model_class, np) == GMP_OK);
    mc_at_end(all_done);
}

/* ---- a net poller whose events a model delivers ---- */

/* What has no part in the protocols. */
void
debug_init(void)
{
}

int64_t
schedtrace(int64_t now)
{
    (void)now;
    return -1;
}

void
sys_exact_sleeps(void)
{
}

void
sys_signals_hold(void)
{
}

void
sys_signals_release(void)
{
}

static uint64_t events[4]; /* cookies of descriptors that have become readable */
static uint32_t nevents;
static bool break_pending;

int
netpoll_backend_init(int set)
{
    (void)set;
    return 0;
}

void
netpoll_backend_afterfork_child(int set)
{
    (void)set;
}

static uint64_t last_cookie;

int
netpoll_backend_open(PollDesc *opening, PollDesc *last)
{
    (void)last;
    last_cookie = opening->cookie;
    return 0;
}

void
netpoll_backend_close(PollDesc *closing, bool ours)
{
    (void)closing, (void)ours;
}

void
netpoll_backend_arm(PollDesc *waited, PollMode mode)
{
    (void)waited, (void)mode;
}

void
netpoll_backend_break(int set)
{
    (void)set;
    break_pending = true;
}

static bool
something_to_poll(void *arg)
{
    (void)arg;
    return nevents != 0 || break_pending;
}

bool
netpoll_backend_poll(int set, int64_t delay)
{
    (void)set;
    if (delay != 0)
        mc_timedwait(something_to_poll, NULL, delay);
    else
        cpu_relax();
    if (delay != 0)
        break_pending = false;
    while (nevents > 0)
        netpoll_ready(events[--nevents], true, false, false);
    return true;
}

#endif
