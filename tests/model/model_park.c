/* model_park.c: each park ends exactly once, however many want to end it, and none is forgotten. */
#include "sched.h"

static Mutex mu;
static G *waiting; /* mu, and its park */
static uint32_t waitseq;
static bool signalled;
static G *parker;
static int codes[2]; /* how the parks of the goroutine ended */

static bool
unlock_commit(G *gp, void *lock)
{
    (void)gp;
    mutex_unlock(lock);
    return true;
}

static bool
has_parker(void *arg)
{
    (void)arg;
    return parker != NULL;
}

/* ---- one waker: the park's commit against goready ---- */

static void
parks(void *arg)
{
    (void)arg;
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

MODEL(park_and_outside_waker_p1, "4/0 2/1", "2/0")
{
    start_sched(1);
    go(parks, NULL);
    mc_thread("waker", wakes, NULL);
}

MODEL(park_and_outside_waker_p2, "2/0 1/1", "1/0")
{
    start_sched(2);
    go(parks, NULL);
    mc_thread("waker", wakes, NULL);
}

static void
both(void)
{
    go(parks, NULL);
    go(wakes, NULL);
}

MODEL(park_and_waking_goroutine_p1, "4/0 2/1", "2/0")
{
    start_sched(1);
    both();
}

MODEL(park_and_waking_goroutine_p2, "3/0 2/1", "1/0")
{
    start_sched(2);
    both();
}

/* A park that unlockf cancels: what it waited for came in between. */
static bool
cancel_if_signalled(G *gp, void *arg)
{
    (void)arg;
    mutex_lock(&mu);
    bool stay = !signalled;
    if (stay)
        waiting = gp;
    mutex_unlock(&mu);
    return stay;
}

static void
parks_unless(void *arg)
{
    (void)arg;
    gopark(cancel_if_signalled, NULL, WAIT_MUTEX);
    MC_CHECK(signalled);
}

MODEL(park_cancelled, "2/0 1/1", "1/0")
{
    start_sched(2);
    go(parks_unless, NULL);
    mc_thread("waker", wakes, NULL);
}

/* ---- three wakers: another goroutine or thread, the timer, an interrupt ---- */

/* Two waits, each with a time limit: who is late for the first must not end the second with its code. */
static void
parks_twice(void *arg)
{
    (void)arg;
    G *gp = getg();
    gp->interruptible = true;
    parker = gp;
    mutex_lock(&mu);
    gp->wakecode = GMP_OK;
    uint32_t seq = park_begin(gp);
    waiting = gp;
    waitseq = seq;
    codes[0] = gopark_timeout(unlock_commit, &mu, WAIT_MUTEX, seq, 1000);
    mutex_lock(&mu);
    bool served = waiting == NULL && signalled;
    waiting = NULL;
    mutex_unlock(&mu);
    MC_CHECK(gp->timer.index == 0);
    MC_CHECK(codes[0] == GMP_OK || codes[0] == GMP_ETIMEDOUT || codes[0] == GMP_EINTR);
    if (codes[0] == GMP_OK)
        MC_CHECK(served);
    codes[1] = gosleep(5000);
    MC_CHECK(codes[1] == GMP_OK || codes[1] == GMP_EINTR);
    MC_CHECK(!(codes[0] == GMP_EINTR && codes[1] == GMP_EINTR));
    gp->interruptible = false;
}

/* As a channel does: the waiter is in a list under the lock, its park is claimed first and ended second. */
static void
wakes_by_claim(void *arg)
{
    (void)arg;
    mutex_lock(&mu);
    G *gp = waiting;
    bool won = gp != NULL && park_claim(gp, waitseq);
    waiting = NULL;
    signalled = true;
    mutex_unlock(&mu);
    if (won) {
        gp->wakecode = GMP_OK;
        goready(gp);
    }
}

static void
interrupts(void *arg)
{
    (void)arg;
    mc_wait(has_parker, NULL);
    if (!((ModelG *)parker)->g.interruptible)
        return;
    goready_interrupt(parker, GMP_EINTR);
}

MODEL(park_timeout_or_waker, "3/0 2/1", "2/0")
{
    start_sched(1);
    go(parks_twice, NULL);
    mc_thread("waker", wakes_by_claim, NULL);
}

MODEL(park_timeout_or_interrupt, "3/0 2/1", "2/0")
{
    start_sched(1);
    go(parks_twice, NULL);
    mc_thread("signal", interrupts, NULL);
}

/* The interrupt comes from where another M stands ready to go on with the goroutine. */
static void
parks_and_sleeps(void *arg)
{
    (void)arg;
    G *gp = getg();
    gp->interruptible = true;
    parker = gp;
    gp->wakecode = GMP_OK;
    codes[0] = gopark_timeout(NULL, NULL, WAIT_MUTEX, park_begin(gp), 1000);
    MC_CHECK(codes[0] == GMP_ETIMEDOUT || codes[0] == GMP_EINTR);
    codes[1] = gosleep(1000); /* arms the same timer once more */
    MC_CHECK(codes[1] == GMP_OK || codes[1] == GMP_EINTR);
    gp->interruptible = false;
}

MODEL(park_interrupted_with_two_ms, "1/0", "1/0")
{
    start_sched(2);
    go(parks_and_sleeps, NULL);
    mc_thread("signal", interrupts, NULL);
}

MODEL(park_timeout_waker_interrupt, "3/0 2/1", "1/0")
{
    start_sched(1);
    go(parks_twice, NULL);
    mc_thread("waker", wakes_by_claim, NULL);
    mc_thread("signal", interrupts, NULL);
}

/* ---- a thread of other origin: its own goroutine parks, and runs others meanwhile or not ---- */

static G main_g;

static void
readies_main(void *arg)
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

static void
adopted(void *arg)
{
    main_g.cls = &model_class;
    MC_CHECK(adopt_thread(sched, &main_g) != NULL);
    go(arg != NULL ? (void (*)(void *))arg : readies_main, NULL);
    parks(NULL);
    MC_CHECK(getg() == &main_g);
    disown_thread(getm());
}

MODEL(park_adopted_p1, "4/0 2/1", "2/0")
{
    start_sched(1);
    mc_thread("main", adopted, NULL);
}

MODEL(park_adopted_p2, "3/0 2/1", "2/0")
{
    start_sched(2);
    mc_thread("main", adopted, NULL);
}

MODEL(park_adopted_outside_waker, "3/0 2/1", "2/0")
{
    start_sched(1);
    mc_thread("main", adopted, nothing);
    mc_thread("waker", readies_main, NULL);
}

/* It runs no goroutine but its own. */
MODEL(park_adopted_picky, "3/0 2/1", "2/0")
{
    start_sched(1);
    model_class.own_threads = true;
    mc_thread("main", adopted, NULL);
}

MODEL(park_adopted_picky_outside_waker, "3/0 2/1", "2/0")
{
    start_sched(1);
    model_class.own_threads = true;
    mc_thread("main", adopted, nothing);
    mc_thread("waker", readies_main, NULL);
}

/* With a time limit, on an adopted thread. */
static void
adopted_with_limit(void *arg)
{
    (void)arg;
    main_g.cls = &model_class;
    MC_CHECK(adopt_thread(sched, &main_g) != NULL);
    go(nothing, NULL);
    parks_twice(NULL);
    disown_thread(getm());
}

MODEL(park_adopted_timeout, "3/0", "2/0")
{
    start_sched(1);
    mc_thread("main", adopted_with_limit, NULL);
    mc_thread("waker", wakes_by_claim, NULL);
}
