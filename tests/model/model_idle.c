/* model_idle.c: from spinning to idle and back: no goroutine stays runnable while every M sleeps and a P is idle. */
#include "sched.h"

/* ---- started from outside, as Ms come and go ---- */

static void
outsider(void *arg)
{
    for (int i = 0; i < (int)(intptr_t)arg; i++)
        go(nothing, NULL);
}

MODEL(idle_injected_p1, "3/0", "2/0")
{
    start_sched(1);
    mc_thread("outside", outsider, (void *)2);
}

MODEL(idle_injected_p2, "2/0 2/1", "1/0")
{
    start_sched(2);
    mc_thread("outside", outsider, (void *)2);
}

/* One that is on its way to look for work is enough only if it wakes the next when it finds some. */
static uint32_t flag;

static void
waits_for_flag(void *arg)
{
    (void)arg;
    block(is_set, &flag);
}

static void
two_at_once(void *arg)
{
    (void)arg;
    go(waits_for_flag, NULL);
    go(set_flag, &flag);
}

MODEL(idle_second_of_two_injected, "3/0 2/1", "1/0")
{
    start_sched(2);
    mc_thread("outside", two_at_once, NULL);
}

/* They are put there as the one that looks for work gives up: it sees them at its second look, and the one that it takes blocks. */
static void
one_then_two(void *arg)
{
    go(nothing, NULL);
    two_at_once(arg);
}

MODEL(idle_second_of_two_at_the_second_look, "2/0", "2/0")
{
    start_sched(2);
    mc_thread("outside", one_then_two, NULL);
}

/* ---- readied by a goroutine whose thread then blocks: another M has to come ---- */

static void
starts_and_blocks(void *arg)
{
    (void)arg;
    go(set_flag, &flag);
    block(is_set, &flag);
}

static void
start_one(void *fn)
{
    go((void (*)(void *))fn, NULL);
}

MODEL(idle_local_wake_p2, "3/0 2/1", "1/1")
{
    start_sched(2);
    mc_thread("outside", start_one, starts_and_blocks);
}

static void
start_two(void *fn)
{
    go(nothing, NULL);
    go((void (*)(void *))fn, NULL);
}

MODEL(idle_local_wake_as_the_other_goes_idle, "2/0 2/1", "1/0")
{
    start_sched(2);
    mc_thread("outside", start_two, starts_and_blocks);
}

/* ---- readied by timers: not next, but at the tail of the queue, which is a store and a fence instead of an exchange ---- */

static void
sleeps_then_blocks(void *arg)
{
    (void)arg;
    gosleep(1000);
    block(is_set, &flag);
}

static void
sleeps_then_sets(void *arg)
{
    (void)arg;
    gosleep(1000);
    flag = 1;
}

MODEL(idle_woken_by_timers, "2/0 2/2", "1/0")
{
    start_sched(2);
    go(sleeps_then_blocks, NULL);
    go(sleeps_then_sets, NULL);
}

/* ---- the number of Ps changes ---- */

static void
resizes(void *n)
{
    MC_CHECK(gomaxprocs(sched, (uint32_t)(uintptr_t)n) > 0);
}

static void
spawns_and_yields(void *arg)
{
    (void)arg;
    go(nothing, NULL);
    gosched();
    gosleep(1000);
}

static void
all_done_with_all_ps(void)
{
    all_done();
    for (uint32_t i = 0; i < nallp(sched); i++) {
        P *pp = sched->allp[i];
        MC_CHECK(runqempty(pp) && pp->timers.len == 0 && pp->owner == 0 && pp->idle == (i < sched->np));
    }
}

MODEL(idle_fewer_ps, "2/0 1/1", "1/0")
{
    start_sched(2);
    mc_at_end(all_done_with_all_ps);
    go(spawns_and_yields, NULL);
    mc_thread("resizer", resizes, (void *)1);
}

MODEL(idle_more_ps, "2/0 1/1", "1/0")
{
    start_sched(1);
    mc_at_end(all_done_with_all_ps);
    go(spawns_and_yields, NULL);
    mc_thread("resizer", resizes, (void *)2);
}
