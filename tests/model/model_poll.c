/* model_poll.c: the whole scheduler with a net poller: some M always polls while a goroutine waits for a descriptor, and one that
 * polls comes when it is needed for other work, or when time is up. */
#include "sched.h"

static PollDesc *pd;
static int data;

static void
reads(void *arg)
{
    (void)arg;
    while (data == 0) {
        int code = netpoll_wait(pd, POLL_READ);
        MC_CHECK(code == GMP_OK || code == GMP_ETIMEDOUT);
        if (code == GMP_ETIMEDOUT)
            return;
    }
}

static void
arrives(void *arg)
{
    (void)arg;
    data = 1;
    events[nevents++] = last_cookie;
}

static void
all_done_and_none_waits(void)
{
    all_done();
    MC_CHECK(netpoll_waiters(sched) == 0);
    uint32_t polling = 0; /* one may still be at it, for nobody */
    for (M *mp = allm; mp != NULL; mp = mp->alllink)
        polling += mp->polling;
    MC_CHECK(sched->polled == polling && polling <= 1);
}

static void
with_descriptor(uint32_t np)
{
    start_sched(np);
    mc_at_end(all_done_and_none_waits);
    MC_CHECK(netpoll_open(sched, 3, &pd) == 0);
}

static void
one_more(void *arg)
{
    (void)arg;
    go(nothing, NULL);
}

MODEL(poll_event_wakes, "3/0 2/1", "2/0")
{
    with_descriptor(1);
    go(reads, NULL);
    mc_thread("kernel", arrives, NULL);
}

MODEL(poll_event_and_other_work_p1, "3/0 2/1", "1/0")
{
    with_descriptor(1);
    go(reads, NULL);
    mc_thread("kernel", arrives, NULL);
    mc_thread("outside", one_more, NULL);
}

MODEL(poll_event_and_other_work_p2, "1/0", "0/0")
{
    with_descriptor(2);
    go(reads, NULL);
    mc_thread("kernel", arrives, NULL);
    mc_thread("outside", one_more, NULL);
}

/* Another goroutine sleeps meanwhile: who polls watches the clock, too. */
static void
sleeps(void *arg)
{
    (void)arg;
    gosleep(1000);
    arrives(NULL);
}

MODEL(poll_and_a_timer, "3/0 2/1", "2/0")
{
    with_descriptor(1);
    go(reads, NULL);
    go(sleeps, NULL);
}

MODEL(poll_and_a_timer_p2, "2/0", "1/0")
{
    with_descriptor(2);
    go(reads, NULL);
    go(sleeps, NULL);
}

static void
sets_deadline(void *arg)
{
    (void)arg;
    MC_CHECK(netpoll_set_deadline(pd, POLL_READ, nanotime() + 1000) == GMP_OK);
}

/* Set from a thread outside of the scheduler, as the only M polls without a limit. */
MODEL(poll_deadline_from_outside, "3/0 2/1", "2/0")
{
    with_descriptor(1);
    go(reads, NULL);
    mc_thread("outside", sets_deadline, NULL);
}

/* The M that would have polled is kept by a goroutine that blocks; sysmon takes its P, and someone has to poll. */
static uint32_t flag;

static void
reads_and_sets(void *arg)
{
    reads(arg);
    flag = 1;
}

static void
blocks(void *arg)
{
    block(is_set, arg);
}

MODEL(poll_while_another_blocks, "2/0", "1/0")
{
    with_descriptor(1);
    mc_may_sleep(mc_thread("sysmon", sysmon, NULL));
    go(reads_and_sets, NULL);
    go(blocks, &flag);
    mc_thread("kernel", arrives, NULL);
}
