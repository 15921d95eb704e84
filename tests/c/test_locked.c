/* test_locked.c: goroutines with a thread of their own (lockosthread); with 1, 2 and 4 Ps. */
#include "native.h"
#include "proc.h"

#include <stdio.h>

static Hchan chans[8];
static long rounds;
static long at_work; /* atomic */

static uint32_t
threads(void)
{
    mutex_lock(&NATIVE->lock);
    uint32_t n = NATIVE->nm;
    mutex_unlock(&NATIVE->lock);
    return n;
}

static void
some_wait(Rng *r)
{
    uint64_t x = 1;

    switch (rng(r, 6)) {
    case 0:
        gosleep(rng(r, 300) * US);
        break;
    case 1:
    case 2:
        gosched();
        break;
    case 3:
        chansend(&chans[0], &x, rng(r, 200) * US);
        break;
    case 4:
        chanrecv(&chans[0], &x, rng(r, 200) * US);
        break;
    case 5:
        blocking(true);
        sys_usleep(rng(r, 100));
        blocking(false);
        break;
    }
}

/* Always on the same thread, and alone there. */
static void
keeps_its_thread(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(intptr_t)arg);

    CHECK_EQ(lockosthread(false), 0);
    uint64_t tid = sys_thread_id();
    M *mp = getm();
    for (long i = 0; i < rounds; i++) {
        some_wait(&r);
        CHECK_EQ(sys_thread_id(), tid);
        CHECK(getm() == mp && mp->lockedg == getg() && mp->ispool);
    }
    if (rng(&r, 2) == 0)
        unlockosthread(false);
    done();
}

static void
bystander(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(intptr_t)arg);

    for (long i = 0; i < rounds; i++) {
        CHECK(getm()->lockedg == NULL);
        some_wait(&r);
    }
    done();
}

TEST_P_LIMIT(locked_goroutines_keep_their_threads, 60)
{
    rounds = test_slow() ? 30 : 300;
    CHECK_EQ(chan_init(&chans[0], sizeof(uint64_t), 1), 0);
    for (int i = 0; i < 10; i++) {
        go(keeps_its_thread, (void *)(intptr_t)i);
        go(bystander, (void *)(intptr_t)(100 + i));
    }
    wait_done(20);
    quiet();
}

static void
moves(void *arg)
{
    (void)arg;
    CHECK_EQ(lockosthread(false), 0);
    CHECK(getm()->ispool && getm()->lockedg == getg());
    unlockosthread(false);
    done();
}

static void
computes(void *ns)
{
    for (int64_t end = nanotime() + (intptr_t)ns; nanotime() < end;)
        ;
    done();
}

/* A thread that is reserved for a goroutine as its time is up stays: others run before the goroutine gets there. */
TEST(locked_to_a_thread_that_was_about_to_end)
{
    native_start(1);
    idle_ms_kept = 0;
    for (int i = 0; i < (test_slow() ? 50 : 300); i++) {
        atomic_store(&idle_m_ns, (50 + i % 10 * 30) * US);
        go(computes, (void *)(intptr_t)(300 * US));
        go(moves, NULL); /* first, on the thread of the test */
        wait_done(2);
    }
    quiet();
}

static void
ends_locked(void *arg)
{
    CHECK_EQ(lockosthread(false), 0);
    if (arg != NULL)
        gosched();
    done();
}

/* A thread whose goroutine ends locked ends; its M serves the next one. */
TEST_P(locked_threads_end)
{
    uint32_t before;
    long ms = 0;

    go(ends_locked, NULL);
    wait_done(1);
    quiet();
    gosleep(10 * MS);
    before = threads();
    for (int i = 0; i < (test_slow() ? 20 : 200); i++) {
        go(ends_locked, (void *)(intptr_t)(i % 2));
        go(ends_locked, NULL);
        wait_done(2);
    }
    for (int i = 0; i < 10000 && threads() > before + 8; i++)
        gosleep(1 * MS); /* some that were started beside them stay */
    CHECK(threads() <= before + 8);
    for (M *mp = allm; mp != NULL; mp = mp->alllink)
        ms++;
    CHECK(ms < 30);
    quiet();
}

static void
counts(void *arg)
{
    (void)arg;
    unlockosthread(false); /* Go: does nothing */
    for (int i = 0; i < 3; i++)
        CHECK_EQ(lockosthread(false), 0);
    CHECK_EQ(lockosthread(true), 0);
    M *mp = getm();
    for (int i = 0; i < 4; i++) {
        CHECK(getg()->lockedm == mp && mp->lockedg == getg() && mp->picky);
        if (i < 3)
            unlockosthread(false);
        else
            unlockosthread(true);
    }
    CHECK(getg()->lockedm == NULL && mp->lockedg == NULL && !mp->picky);
    unlockosthread(false);
    unlockosthread(true);
    CHECK_EQ(getg()->lockedext, 0);
    CHECK_EQ(getg()->lockedint, 0);
    gosched();
    done();
}

TEST_P(locked_is_counted)
{
    for (int i = 0; i < 20; i++)
        go(counts, NULL);
    wait_done(20);
    CHECK_EQ(lockosthread(false), 0); /* a thread's own goroutine */
    CHECK(getm()->picky && getg()->lockedm == getm());
    gosleep(1 * MS);
    unlockosthread(false);
    CHECK(!getm()->picky && getg()->lockedm == getm());
    quiet();
}

static void
ring(void *arg)
{
    intptr_t i = (intptr_t)arg;
    uint64_t x;

    CHECK_EQ(lockosthread(false), 0);
    while (chanrecv(&chans[i], &x, -1) == GMP_OK) {
        x++;
        CHECK_EQ(chansend(&chans[(i + 1) % 8], &x, -1), GMP_OK);
    }
    done();
}

TEST_P_LIMIT(locked_goroutines_talk, 60)
{
    uint64_t x = 0;

    for (int i = 0; i < 8; i++)
        CHECK_EQ(chan_init(&chans[i], sizeof(uint64_t), 0), 0);
    for (intptr_t i = 1; i < 8; i++)
        go(ring, (void *)i);
    for (int i = 0; i < (test_slow() ? 20 : 200); i++) {
        CHECK_EQ(chansend(&chans[1], &x, -1), GMP_OK);
        CHECK_EQ(chanrecv(&chans[0], &x, -1), GMP_OK);
    }
    CHECK_EQ(x, (uint64_t)(test_slow() ? 20 : 200) * 7);
    for (int i = 1; i < 8; i++)
        CHECK_EQ(chanclose(&chans[i]), GMP_OK);
    wait_done(7);
    quiet();
}

/* ---- deadlock ---- */

static G *main_g;
static long asked; /* atomic */

static int64_t
all_asleep(Sched *sched)
{
    (void)sched;
    atomic_xadd(&asked, 1);
    goready_interrupt(main_g, GMP_EDEADLK);
    return 0;
}

static void
waits_locked(void *arg)
{
    uint64_t x;

    CHECK_EQ(lockosthread(false), 0);
    atomic_xadd(&at_work, 1);
    CHECK_EQ(chanrecv(arg, &x, -1), GMP_ECLOSED);
    done();
}

static int
park_for_ever(void)
{
    G *gp = getg();

    gp->wakecode = 0;
    uint32_t seq = park_begin(gp);
    return gopark_timeout(NULL, NULL, WAIT_JOIN, seq, -1);
}

TEST_P(locked_deadlock_is_noticed)
{
    CHECK_EQ(chan_init(&chans[0], sizeof(uint64_t), 0), 0);
    main_g = getg();
    main_g->interruptible = true;
    for (int i = 0; i < 3; i++)
        go(waits_locked, &chans[0]);
    while (atomic_load(&at_work) < 3)
        gosleep(100 * US);
    native_class.idle = all_asleep;
    for (int i = 0; i < 20; i++)
        CHECK_EQ(park_for_ever(), GMP_EDEADLK);
    CHECK(asked >= 20);
    native_class.idle = NULL;
    main_g->interruptible = false;
    CHECK_EQ(chanclose(&chans[0]), GMP_OK);
    wait_done(3);
    quiet();
}

/* The last goroutine that was not asleep ends, locked, and its thread with it. */
TEST_P(locked_deadlock_as_a_thread_ends)
{
    main_g = getg();
    main_g->interruptible = true;
    native_class.idle = all_asleep;
    for (int i = 0; i < 50; i++) {
        go(ends_locked, NULL);
        CHECK_EQ(park_for_ever(), GMP_EDEADLK);
    }
    native_class.idle = NULL;
    main_g->interruptible = false;
    wait_done(50);
    quiet();
}

/* ---- on the main thread ---- */

static Hchan home, away;
static uint64_t main_tid;

/* Bound to the thread it is on, wherever that is: parks and comes back there. */
static void
takes_any_thread(void *arg)
{
    uint64_t x, tid = sys_thread_id();

    CHECK_EQ(lockosthread(true), 0);
    for (int i = 0; i < 20; i++) {
        gosched();
        CHECK_EQ(sys_thread_id(), tid);
        if (i == 10) {
            CHECK_EQ(chansend(&home, &tid, -1), GMP_OK);
            CHECK_EQ(chanrecv(&away, &x, -1), GMP_OK);
        }
        gosleep(50 * US);
        CHECK_EQ(sys_thread_id(), tid);
    }
    if (arg != NULL)
        unlockosthread(true);
    done();
}

/* The main goroutine waits and lends its thread; who locks itself to that thread gets it, and main goes on elsewhere. */
static void
main_gives_way(bool unlock)
{
    long away_from_home = 0;

    CHECK_EQ(chan_init(&home, sizeof(uint64_t), 0), 0);
    CHECK_EQ(chan_init(&away, sizeof(uint64_t), 0), 0);
    main_tid = sys_thread_id();
    getg()->interruptible = true;
    atomic_store(&NATIVE->mainm, getm());
    for (int i = 0; i < 200; i++) {
        uint64_t x;
        go(takes_any_thread, unlock ? &home : NULL);
        CHECK_EQ(chanrecv(&home, &x, -1), GMP_OK);
        if (x == main_tid) {
            away_from_home++;
            CHECK(sys_thread_id() != main_tid);
        }
        CHECK_EQ(chansend(&away, &x, -1), GMP_OK);
        wait_done(1);
        if (away_from_home != 0 && !unlock)
            break;
        gosleep(100 * US); /* home again, if nobody is there */
    }
    CHECK(away_from_home != 0);
    if (!unlock) { /* the thread cannot end: it is left alone */
        for (int i = 0; i < 20; i++) {
            gosleep(100 * US);
            CHECK(sys_thread_id() != main_tid);
        }
        CHECK(NATIVE->mainm->lockedg == &gnobody);
        return;
    }
    for (int i = 0; i < 1000 && sys_thread_id() != main_tid; i++)
        gosleep(1 * MS);
    CHECK_EQ(sys_thread_id(), main_tid);
    getg()->interruptible = false;
    quiet();
}

TEST_P(locked_main_gives_way_for_a_while)
{
    main_gives_way(true);
}

TEST_P(locked_main_gives_way_for_ever)
{
    main_gives_way(false);
}

static void
not_on_main(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++) {
        CHECK(sys_thread_id() != main_tid);
        gosched();
    }
    done();
}

TEST_P(locked_main_keeps_its_thread)
{
    main_tid = sys_thread_id();
    atomic_store(&NATIVE->mainm, getm());
    gosched();
    main_keeps_thread(NATIVE);
    for (int i = 0; i < 50; i++)
        go(not_on_main, NULL);
    wait_done(50);
    CHECK_EQ(sys_thread_id(), main_tid);
    quiet();
}
