/* model_sysmon.c: the monitor: it sleeps only while every P is idle, takes Ps from Ms that block, and moves the main goroutine
 * off a thread that is kept. */
#include "sched.h"

static uint32_t flag;
static int sysmon_thread;

/* Everybody sleeps, the monitor too. */
static void
all_done_and_asleep(void)
{
    all_done();
    MC_CHECK(mc_asleep(sysmon_thread) && asleep == 1 && all_idle());
}

static void
with_sysmon(uint32_t np)
{
    start_sched(np);
    mc_at_end(all_done_and_asleep);
    sysmon_thread = mc_thread("sysmon", sysmon, NULL);
    mc_may_sleep(sysmon_thread);
}

/* ---- asleep and awake ---- */

static void
short_work(void *arg)
{
    for (int i = 0; i < (int)(intptr_t)arg; i++)
        go(nothing, NULL);
}

MODEL(sysmon_sleeps_when_all_is_idle, "3/0 2/1", "2/0")
{
    with_sysmon(1);
    mc_thread("outside", short_work, (void *)1);
}

/* ---- blocked goroutines ---- */

/* The goroutine that would end the wait is behind the one that waits, on the same P. */
static void
starts_and_blocks(void *arg)
{
    (void)arg;
    go(set_flag, &flag);
    block(is_set, &flag);
}

MODEL(sysmon_takes_the_p_of_one_that_blocks, "3/0", "2/0")
{
    with_sysmon(1);
    go(starts_and_blocks, NULL);
}

MODEL(sysmon_takes_the_p_memory_order, "2/1", "1/1")
{
    with_sysmon(1);
    go(starts_and_blocks, NULL);
}

/* The P is put to use as sysmon falls asleep. */
static void
outside(void *arg)
{
    (void)arg;
    go(starts_and_blocks, NULL);
}

MODEL(sysmon_wakes_in_time, "3/0 2/1", "2/0")
{
    with_sysmon(1);
    mc_thread("outside", outside, NULL);
}

/* Two wake it at once, from under the locks of two sets. */
static void
wakes_sysmon(void *arg)
{
    (void)arg;
    sysmon_wake();
}

MODEL(sysmon_is_woken_once, "4/0 2/1", "3/0")
{
    with_sysmon(1);
    mc_thread("outside1", wakes_sysmon, NULL);
    mc_thread("outside2", wakes_sysmon, NULL);
}

static void
blocks(void *arg)
{
    block(is_set, arg);
}

static void
raise(void *arg)
{
    (void)arg;
    flag = 1;
    go(nothing, NULL);
}

/* It comes back as its P is being taken, or was taken for someone else. */
MODEL(sysmon_and_one_that_comes_back, "3/0", "1/0")
{
    with_sysmon(1);
    go(blocks, &flag);
    mc_thread("outside", raise, NULL);
}

static void
yields(void *arg)
{
    (void)arg;
    gosched();
}

MODEL(sysmon_retakes_from_one_that_yields, "3/0", "2/0")
{
    with_sysmon(1);
    go(starts_and_blocks, NULL);
    go(yields, NULL);
}

/* ---- the main goroutine, whose thread a lodger keeps ---- */

static G main_g;
static Mutex mu;
static G *waiting; /* mu */
static bool signalled;
static M *home;

static bool
unlock_commit(G *gp, void *lock)
{
    (void)gp;
    mutex_unlock(lock);
    return true;
}

static void
wait_for_signal(void)
{
    mutex_lock(&mu);
    if (signalled) {
        mutex_unlock(&mu);
        return;
    }
    waiting = getg();
    gopark(unlock_commit, &mu, WAIT_MUTEX);
    MC_CHECK(signalled);
}

static void
wakes(void *arg)
{
    (void)arg;
    mutex_lock(&mu);
    G *gp = waiting;
    waiting = NULL;
    signalled = true;
    mutex_unlock(&mu);
    if (gp != NULL)
        goready(gp);
}

/* Waits for a wake-up; a goroutine that needs the main goroutine to go on has taken its thread meanwhile. */
static void
main_with_a_lodger(void *arg)
{
    (void)arg;
    main_g.cls = &model_class;
    main_g.interruptible = true;
    home = adopt_thread(sched, &main_g);
    MC_CHECK(home != NULL);
    atomic_store(&sched->mainm, home);
    gosleep(1000);     /* comes back with the P, so the lodger is queued there and begins when the main goroutine parks */
    go(blocks, &flag);
    wait_for_signal();
    MC_CHECK(getg() == &main_g);
    flag = 1;
    /* It may come by as any goroutine does, picked from a queue: that is not home yet. */
    for (int i = 0; getm() != home || main_g.lockedm != home; i++) {
        MC_CHECK(i < 50);
        gosleep(1000000);
    }
    MC_CHECK(getg() == &main_g && home->thread_g == &main_g);
    sched->mainm = NULL;
    disown_thread(home);
}

MODEL(sysmon_rescues_main, "2/0", "1/0")
{
    with_sysmon(1);
    mc_thread("main", main_with_a_lodger, NULL);
    mc_thread("waker", wakes, NULL);
}
