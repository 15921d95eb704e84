/* model_netpoll.c: the two sides of a descriptor: no edge is lost, no goroutine is woken twice.
 *
 * netpoll.c alone, over a stand-in for the scheduler: a thread is its goroutine, gopark sleeps until goready. */
#define PD_CHUNK 1
#define OWNERS_CHUNK 8
#define OWNERS_CHUNKS 1
#include "mc.h"

#include "netpoll.h"
#include "proc.h"

static G *getg_of_thread(void);
#define getg getg_of_thread
#include "netpoll.c"
#undef getg

Sched scheds[SETS];
static G gs[4];
static bool ready[4];
static PollDesc *pd;
static uint64_t cookie;
static uint64_t event_cookie[4]; /* of the event that a thread's poll finds */
static int data; /* readable bytes: whoever writes reports an edge */
static int evicted;

static G *
getg_of_thread(void)
{
    return &gs[mc_self()];
}

static bool
is_ready(void *arg)
{
    return *(bool *)arg;
}

int
gopark(bool (*unlockf)(G *, void *), void *lock, WaitReason reason)
{
    int self = mc_self();
    G *gp = &gs[self];

    (void)reason;
    atomic_store_release(&gp->status, (uint32_t)G_WAITING);
    if (unlockf == NULL || unlockf(gp, lock))
        mc_wait(is_ready, &ready[self]);
    else
        MC_CHECK(!ready[self]);
    ready[self] = false;
    gp->status = G_RUNNING;
    return gp->wakecode;
}

void
goready(G *gp)
{
    MC_CHECK(gp->status == G_WAITING);
    MC_CHECK(!ready[gp - gs]);
    ready[gp - gs] = true;
}

/* A timer that fires when its thread runs. */
static Timer *armed;

int
timer_arm(Sched *sched, Timer *t, int64_t when, TimerFn fn, void *arg, uint32_t seq)
{
    (void)sched;
    t->when = when;
    t->fn = fn;
    t->arg = arg;
    t->seq = seq;
    t->index = 1;
    armed = t;
    return GMP_OK;
}

/* Like timer.c's: a timer that has left the heap may still fire. */
bool
timer_del(Timer *t)
{
    bool was = t->index != 0;
    t->index = 0;
    return was;
}

static bool
is_armed(void *arg)
{
    (void)arg;
    return armed != NULL;
}

static void
fires(void *arg)
{
    (void)arg;
    mc_wait(is_armed, NULL);
    Timer *t = armed;
    if (t->index == 0)
        return;
    t->index = 0;
    TimerFn fn = t->fn;
    void *to = t->arg;
    uint32_t seq = t->seq;
    cpu_relax(); /* it has left the heap and not run yet */
    fn(to, seq);
}

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

int
netpoll_backend_open(PollDesc *opening, PollDesc *last)
{
    (void)last;
    cookie = opening->cookie;
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
}

static bool both_ways;

bool
netpoll_backend_poll(int set, int64_t delay)
{
    (void)set, (void)delay;
    netpoll_ready(event_cookie[mc_self()], true, both_ways, false);
    return true;
}

/* ---- threads ---- */

/* Reads what is there, and waits when nothing is: with a lost edge it waits for ever. */
static void
reads(void *arg)
{
    int want = (int)(intptr_t)arg, got = 0;

    while (got < want) {
        if (data > 0) {
            got += data;
            data = 0;
            continue;
        }
        int code = netpoll_wait(pd, POLL_READ);
        MC_CHECK(code == GMP_OK);
    }
}

/* The kernel: data arrives, then some thread's poll reports it. */
static void
writes(void *arg)
{
    (void)arg;
    data++;
    event_cookie[mc_self()] = cookie;
    for (G *list = netpoll(&scheds[0], 0, NULL), *gp; (gp = list) != NULL;) {
        list = gp->link;
        goready(gp);
    }
}

static void
open_one(void)
{
    for (int i = 0; i < 4; i++) {
        gs[i].set = &scheds[0];
        gs[i].parkseq = 1;
        gs[i].status = G_RUNNING;
    }
    mc_tls(&found);
    mc_tls(&found_tail);
    MC_CHECK(netpoll_open(&scheds[0], 3, &pd) == 0);
}

static void
all_ended(void)
{
    MC_CHECK(pollers[0].waiters == 0);
    MC_CHECK(pd->lock.key == 0);
    MC_CHECK(pd->side[0].state <= PD_READY);
}

MODEL(netpoll_no_edge_is_lost, "6/0 4/2", "4/1")
{
    open_one();
    mc_thread("reader", reads, (void *)2);
    mc_thread("kernel1", writes, NULL);
    mc_thread("kernel2", writes, NULL);
    mc_at_end(all_ended);
}

/* A read that may end early: by a deadline, a close, a signal.  What it says must have happened. */
static bool interrupted;

static void
waits_once(void *arg)
{
    int allowed = (int)(intptr_t)arg, code;

    do
        code = netpoll_wait(pd, POLL_READ);
    while (code == GMP_OK && data == 0);
    MC_CHECK(code == GMP_OK || (allowed & 1 << -code) != 0);
    if (code == GMP_ECLOSED)
        MC_CHECK(evicted);
    if (code == GMP_ETIMEDOUT)
        MC_CHECK(pd->side[POLL_READ].deadline == -1);
}

static void
evicts(void *arg)
{
    (void)arg;
    evicted = 1;
    netpoll_evict(pd);
    MC_CHECK(netpoll_wait(pd, POLL_READ) != GMP_OK);
}

MODEL(netpoll_closed, "6/0 4/2", "4/1")
{
    open_one();
    mc_thread("reader", waits_once, (void *)(intptr_t)(1 << -GMP_ECLOSED));
    mc_thread("closer", evicts, NULL);
    mc_at_end(all_ended);
}

MODEL(netpoll_closed_or_ready, "5/0 3/2", "3/1")
{
    open_one();
    mc_thread("reader", waits_once, (void *)(intptr_t)(1 << -GMP_ECLOSED));
    mc_thread("closer", evicts, NULL);
    mc_thread("kernel", writes, NULL);
    mc_at_end(all_ended);
}

static void
sets_deadline(void *arg)
{
    MC_CHECK(netpoll_set_deadline(pd, POLL_READ, (int64_t)(intptr_t)arg) == GMP_OK);
}

MODEL(netpoll_deadline_in_the_past, "6/0 4/2", "4/1")
{
    open_one();
    mc_thread("reader", waits_once, (void *)(intptr_t)(1 << -GMP_ETIMEDOUT));
    mc_thread("setter", sets_deadline, (void *)1);
    mc_at_end(all_ended);
}

/* Nothing else ends the wait. */
MODEL(netpoll_deadline_passes, "6/0 4/2", "4/1")
{
    open_one();
    sets_deadline((void *)5000000);
    mc_thread("reader", waits_once, (void *)(intptr_t)(1 << -GMP_ETIMEDOUT));
    mc_thread("timer", fires, NULL);
    mc_at_end(all_ended);
}

MODEL(netpoll_deadline_or_ready, "5/0 3/2", "3/1")
{
    open_one();
    sets_deadline((void *)5000000);
    mc_thread("reader", waits_once, (void *)(intptr_t)(1 << -GMP_ETIMEDOUT));
    mc_thread("timer", fires, NULL);
    mc_thread("kernel", writes, NULL);
    mc_at_end(all_ended);
}

/* The deadline is taken back as its timer fires: a late one changes nothing, and the next wait waits for data. */
static void
moves_deadline(void *arg)
{
    (void)arg;
    MC_CHECK(netpoll_set_deadline(pd, POLL_READ, 0) == GMP_OK);
    int code = netpoll_wait(pd, POLL_READ);
    MC_CHECK(code == GMP_OK && data > 0);
}

MODEL(netpoll_deadline_taken_back, "5/0 3/2", "3/1")
{
    open_one();
    sets_deadline((void *)5000000);
    mc_thread("reader", moves_deadline, NULL);
    mc_thread("timer", fires, NULL);
    mc_thread("kernel", writes, NULL);
    mc_at_end(all_ended);
}

/* Signals end the main goroutine's wait, as goready_interrupt does. */
static void
interrupts(void *arg)
{
    G *gp = &gs[0];

    (void)arg;
    uint32_t seq = atomic_load(&gp->parkseq);
    if ((seq & 1) != 0 || !park_claim(gp, seq))
        return;
    interrupted = true;
    gp->wakecode = GMP_EINTR;
    while (atomic_load_acquire(&gp->status) != G_WAITING)
        sys_thread_yield();
    goready(gp);
}

static void
waits_interruptibly(void *arg)
{
    (void)arg;
    int code = netpoll_wait(pd, POLL_READ);
    if (code == GMP_EINTR) {
        MC_CHECK(interrupted);
        code = netpoll_wait(pd, POLL_READ); /* handlers have run */
    }
    MC_CHECK(code == GMP_OK && data > 0);
}

MODEL(netpoll_interrupted_or_ready, "5/0 3/2", "3/1")
{
    open_one();
    mc_thread("reader", waits_interruptibly, NULL);
    mc_thread("signal", interrupts, NULL);
    mc_thread("kernel", writes, NULL);
    mc_at_end(all_ended);
}

/* Both directions at once: one event wakes both goroutines. */
static void
writes_out(void *arg)
{
    (void)arg;
    MC_CHECK(netpoll_wait(pd, POLL_WRITE) == GMP_OK);
}

static void
reports_both(void *arg)
{
    (void)arg;
    data++;
    both_ways = true;
    writes(NULL);
}

MODEL(netpoll_both_directions, "5/0 3/2", "3/1")
{
    open_one();
    mc_thread("reader", reads, (void *)2);
    mc_thread("writer", writes_out, NULL);
    mc_thread("kernel", reports_both, NULL);
    mc_at_end(all_ended);
}

/* The descriptor is closed and its PollDesc used again: an event of the last life finds nobody. */
static uint64_t old_cookie;

static void
late_event(void *arg)
{
    (void)arg;
    event_cookie[mc_self()] = old_cookie;
    for (G *list = netpoll(&scheds[0], 0, NULL), *gp; (gp = list) != NULL;) {
        list = gp->link;
        goready(gp);
    }
}

static bool opened;

static void
reopens(void *arg)
{
    PollDesc *again;

    (void)arg;
    MC_CHECK(netpoll_open(&scheds[0], 4, &again) == 0 && again == pd);
    opened = true;
    reads((void *)1);
}

static void
writes_when_opened(void *arg)
{
    mc_wait(is_ready, &opened);
    writes(arg);
}

MODEL(netpoll_reused, "5/0 3/2", "3/1")
{
    open_one();
    old_cookie = cookie;
    netpoll_evict(pd);
    netpoll_close(pd);
    mc_thread("reader", reopens, NULL);
    mc_thread("late", late_event, NULL);
    mc_thread("kernel", writes_when_opened, NULL);
    mc_at_end(all_ended);
}
