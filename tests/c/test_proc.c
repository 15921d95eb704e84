/* test_proc.c: goroutines, threads and Ps: start, park, wake, yield, sleep, block, preempt, lock to a thread; with 1, 2 and
 * 4 Ps.  Each test ends with quiet(): no goroutine, queue entry, spinning count, P or M may be left over. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "native.h"
#include "proc.h"

#include <stdio.h>

static long counter; /* atomic */

static long
scaled(long n)
{
    return test_slow() ? n / 20 : n;
}

static void
count(void *arg)
{
    (void)arg;
    atomic_xadd(&counter, 1);
    done();
}

TEST_P(proc_every_goroutine_runs_once)
{
    long n = scaled(20000);

    for (int round = 0; round < 3; round++) {
        for (long i = 0; i < n / 3; i++)
            go(count, NULL);
        wait_done(n / 3);
    }
    CHECK_EQ(counter, n / 3 * 3);
    quiet();
}

TEST_LIMIT(proc_a_hundred_thousand_at_once, 60)
{
    long n = scaled(100000);

    native_class.detached = NULL; /* no preemption, one P: none runs before all are made */
    native_start(1);
    gosleep(0); /* a thread gets its P when it parks */
    for (long i = 0; i < n; i++)
        go(count, NULL);
    CHECK_EQ(num_goroutine(NATIVE), n);
    wait_done(n);
    quiet();
}

TEST_P_LIMIT(proc_a_burst, 60)
{
    long n = scaled(100000);

    for (long i = 0; i < n; i++) {
        go(count, NULL);
        if (i % 1000 == 999)
            gosched();
    }
    wait_done(n);
    quiet();
}

static void
check_ids(void *arg)
{
    G *gp = getg();

    CHECK_EQ(gp->parentid, *(uint64_t *)arg);
    CHECK(gp->goid > gp->parentid);
    CHECK_EQ(gp->status, G_RUNNING);
    CHECK(gp->m == getm() && gp->lockedm == NULL && gp->stack_lo != NULL);
    done();
}

TEST_P(proc_ids_and_parents)
{
    uint64_t me = getg()->goid, ids[100];

    for (int i = 0; i < 100; i++) {
        ids[i] = go(check_ids, &me);
        for (int j = 0; j < i; j++)
            CHECK(ids[i] != ids[j]);
    }
    wait_done(100);
    quiet();
}

/* ---- goroutines that get their G late ---- */

typedef struct Late {
    Start start; /* first */
    int x;
} Late;

static uint64_t late_sum; /* atomic */

static void
late_fn(void *arg)
{
    Late *l = arg;

    CHECK_EQ(getg()->goid, l->start.goid);
    CHECK(l->start.gp == getg());
    gosched();
    atomic_xadd(&late_sum, (uint64_t)l->x);
    done();
}

static void
late_fill(G *gp, Start *st)
{
    ((TestG *)gp)->fn = late_fn;
    ((TestG *)gp)->arg = st;
    atomic_store(&((TestG *)gp)->detached, 0u);
}

static void
start_late(Late *l, int x)
{
    *l = (Late){.x = x};
    CHECK_EQ(newproc_later(NATIVE, &l->start), 0);
}

/* A G each is promised, not given. */
TEST(proc_late_starts)
{
    enum { N = 1000 };
    static Late l[N];

    native_class.start_fill = late_fill;
    native_start(1);
    for (int round = 0; round < 10; round++) {
        late_sum = 0;
        for (int i = 0; i < N; i++) {
            start_late(&l[i], i);
            if (i % 10 == 0)
                go(count, NULL);
            if (i % 100 == 0)
                CHECK(bindstart(NATIVE, &l[i].start) == l[i].start.gp);
        }
        wait_done(N + N / 10);
        CHECK_EQ(late_sum, (uint64_t)N * (N - 1) / 2);
    }
    CHECK_EQ(num_pending(NATIVE), 0);
    CHECK(NATIVE->nslots <= N + N / 10 + 20);
    quiet();
}

static Late bound[64];
static uint32_t nbound; /* atomic */

static void
bind_them(void *arg)
{
    (void)arg;
    for (uint32_t i = 0; i < 64; i++) {
        while (atomic_load(&nbound) <= i)
            sys_thread_yield();
        CHECK(bindstart(NATIVE, &bound[i].start) != NULL);
    }
}

TEST(proc_late_starts_are_bound_once)
{
    native_class.start_fill = late_fill;
    native_start(1);
    for (int round = 0; round < (test_slow() ? 10 : 100); round++) {
        TestThread *t;
        atomic_store(&nbound, 0u);
        t = test_thread(bind_them, NULL);
        for (int i = 0; i < 64; i++) {
            start_late(&bound[i], 1);
            atomic_store(&nbound, (uint32_t)i + 1);
            if (i % 3 == 0)
                gosched();
        }
        wait_done(64);
        test_join(t);
        CHECK_EQ(num_pending(NATIVE), 0);
    }
    CHECK_EQ(late_sum, 64 * (test_slow() ? 10 : 100));
    quiet();
}

/* ---- gosched ---- */

static char turns[64];
static int nturns;

static void
take_turns(void *arg)
{
    for (int i = 0; i < 10; i++) {
        turns[nturns++] = *(char *)arg;
        gosched();
    }
    done();
}

TEST(proc_gosched_takes_turns)
{
    native_class.detached = NULL; /* nobody is preempted */
    native_start(1);
    gosleep(0);
    go(take_turns, "a");
    go(take_turns, "b");
    go(take_turns, "c");
    wait_done(3);
    CHECK_EQ(nturns, 30);
    for (int i = 3; i < 30; i++)
        CHECK_EQ(turns[i], turns[i - 3]);
    quiet();
}

TEST(proc_gosched_alone)
{
    native_start(1);
    gosched();
    CHECK(!gosched());
    CHECK(!gosched());
}

static uint32_t stop; /* atomic */

static void
yield_for_ever(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        atomic_xadd(&counter, 1);
        gosched();
    }
    done();
}

/* Every goroutine gets its turn, those of the global queue and of the local one. */
TEST_P(proc_yielders_do_not_shut_out_others)
{
    for (int i = 0; i < 8; i++)
        go(yield_for_ever, NULL);
    for (int i = 0; i < 100; i++) {
        go(count, NULL);
        gosched();
    }
    gosleep(10 * MS);
    atomic_store(&stop, 1u);
    wait_done(108);
    quiet();
}

/* ---- park and ready ---- */

typedef struct Slot {
    G *gp; /* atomic: who is parked here */
    int code;
    uint32_t calls;
} Slot;

static bool
publish(G *gp, void *arg)
{
    Slot *s = arg;

    CHECK_EQ(atomic_load(&gp->status), G_WAITING);
    s->calls++;
    atomic_store(&s->gp, gp);
    return true;
}

static G *
take_slot(Slot *s)
{
    G *gp;

    while ((gp = atomic_xchg(&s->gp, (G *)NULL)) == NULL)
        if (getm() == NULL || !gosched())
            sys_thread_yield();
    return gp;
}

static void
park_in(void *arg)
{
    Slot *s = arg;

    getg()->wakecode = 0;
    s->code = gopark(publish, s, WAIT_JOIN);
    CHECK_EQ(getg()->waitreason, WAIT_NONE);
    done();
}

TEST_P(proc_park_and_ready)
{
    static Slot s[100];

    for (int i = 0; i < 100; i++)
        go(park_in, &s[i]);
    for (int i = 0; i < 100; i++) {
        G *gp = take_slot(&s[i]);
        CHECK_EQ(gp->waitreason, WAIT_JOIN);
        gp->wakecode = -i;
        goready(gp);
    }
    wait_done(100);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(s[i].code, -i);
        CHECK_EQ(s[i].calls, 1);
    }
    quiet();
}

static bool
refuse(G *gp, void *arg)
{
    (void)gp;
    ++*(long *)arg;
    return false;
}

static void
try_to_park(void *arg)
{
    long calls = 0;

    (void)arg;
    for (int i = 0; i < 100; i++)
        gopark(refuse, &calls, WAIT_JOIN);
    CHECK_EQ(calls, 100);
    done();
}

TEST_P(proc_unlockf_may_refuse_the_park)
{
    for (int i = 0; i < 10; i++)
        go(try_to_park, NULL);
    try_to_park(NULL); /* a thread's own goroutine, too */
    wait_done(11);
    quiet();
}

static void
ready_twice(void *arg)
{
    static Slot s;

    (void)arg;
    native_start(1);
    go(park_in, &s);
    G *gp = take_slot(&s);
    goready(gp);
    goready(gp);
}

TEST(proc_ready_of_a_running_goroutine_throws)
{
    CHECK_DIES(SIGABRT, ready_twice, NULL);
}

/* Two goroutines that keep waking each other, as over an unbuffered channel, and a third one that waits its turn. */
typedef struct Pair {
    Slot slot[2];
    int me;
    uint32_t started;
} Pair;

static void
set_stop(void *arg)
{
    (void)arg;
    atomic_store(&stop, 1u);
    done();
}

static void
wake_each_other(void *arg)
{
    Pair *p = arg;
    int me = (int)atomic_xadd(&p->started, 1u);

    for (int i = 0; !atomic_load(&stop); i++) {
        G *gp = atomic_xchg(&p->slot[1 - me].gp, (G *)NULL);
        if (me == 0 && i == 10)
            go(set_stop, NULL);
        if (gp != NULL)
            goready(gp); /* kicks the third one to the tail of the queue */
        gopark(publish, &p->slot[me], WAIT_JOIN);
        atomic_xadd(&counter, 1);
    }
    G *gp = atomic_xchg(&p->slot[1 - me].gp, (G *)NULL);
    if (gp != NULL)
        goready(gp);
    done();
}

static void
give_up(void *arg)
{
    (void)arg;
    for (int i = 0; i < 50 && !atomic_load(&stop); i++)
        sys_usleep(100000);
    if (!atomic_load(&stop))
        test_fail(__FILE__, __LINE__, "after %ld switches of a pair nobody else had a turn", atomic_load(&counter));
}

static void
start_pair(void *arg)
{
    go(wake_each_other, arg);
    go(wake_each_other, arg);
    done();
}

TEST(proc_a_pair_does_not_shut_out_others)
{
    static Pair p;
    TestThread *t = test_thread(give_up, NULL);

    native_start(1);
    go(start_pair, &p);
    wait_done(4);
    test_join(t);
    quiet();
}

/* ---- sleep ---- */

static int64_t due[32];
static int order[32], norder;

static void
sleep_a_while(void *arg)
{
    intptr_t i = (intptr_t)arg;
    int64_t start = nanotime();

    CHECK_EQ(gosleep((20 - i) * 3 * MS), 0);
    CHECK(nanotime() - start >= (20 - i) * 3 * MS);
    due[i] = getg()->timer.when;
    order[atomic_xadd(&norder, 1)] = (int)i;
    done();
}

TEST(proc_sleepers_wake_in_order)
{
    native_class.detached = NULL; /* nobody is preempted */
    native_start(1);
    for (intptr_t i = 0; i < 20; i++)
        go(sleep_a_while, (void *)i);
    wait_done(20);
    for (int i = 1; i < 20; i++)
        CHECK(due[order[i]] >= due[order[i - 1]]);
    quiet();
}

static void
sleep_at_random(void *arg)
{
    for (int i = 0; i < 20; i++) {
        int64_t ns = cheaprand() % 3000000, start = nanotime();
        gosleep(ns);
        CHECK(nanotime() - start >= ns);
    }
    (void)arg;
    done();
}

TEST_P(proc_many_sleepers)
{
    long n = scaled(2000);
    int64_t start = nanotime();

    for (long i = 0; i < n; i++)
        go(sleep_at_random, NULL);
    wait_done(n);
    CHECK(nanotime() - start < 20 * SEC);
    quiet();
}

TEST_P(proc_sleep_of_zero_or_less_returns)
{
    int64_t start = nanotime();

    CHECK_EQ(gosleep(0), 0);
    CHECK_EQ(gosleep(-1), 0);
    CHECK_EQ(gosleep(INT64_MIN), 0);
    CHECK(nanotime() - start < 5 * SEC);
}

/* ---- threads ---- */

static void
spawn_from_outside(void *arg)
{
    CHECK(getm() == NULL);
    for (long i = 0; i < scaled(2000); i++) {
        go(count, arg);
        if (i % 100 == 0)
            sys_usleep(100); /* lets the Ms go idle */
    }
    CHECK(getm() == NULL);
}

TEST_P(proc_go_from_a_foreign_thread)
{
    TestThread *t[3];

    for (int i = 0; i < 3; i++)
        t[i] = test_thread(spawn_from_outside, NULL);
    wait_done(3 * scaled(2000));
    for (int i = 0; i < 3; i++)
        test_join(t[i]);
    quiet();
}

static Slot slots[8];
static long rounds;

static void
park_often(void *arg)
{
    for (long i = 0; i < rounds; i++)
        gopark(publish, arg, WAIT_JOIN);
    done();
}

static void
wake_often(void *arg)
{
    for (long i = 0; i < rounds; i++)
        goready(take_slot(arg));
}

/* Each wake-up comes from a thread the core does not know; nobody else is awake. */
TEST_P(proc_ready_from_a_foreign_thread)
{
    TestThread *t[4];

    rounds = scaled(4000);
    for (int i = 0; i < 4; i++) {
        go(park_often, &slots[i]);
        t[i] = test_thread(wake_often, &slots[i]);
    }
    wait_done(4);
    for (int i = 0; i < 4; i++)
        test_join(t[i]);
    quiet();
}

static void
thread_parks(void *arg)
{
    uint64_t self = sys_thread_id();

    native_adopt();
    for (long i = 0; i < rounds; i++) {
        gopark(publish, arg, WAIT_JOIN);
        CHECK_EQ(self, sys_thread_id());
        CHECK(getg()->lockedm == getm());
    }
    native_disown();
    done();
}

static void
wakes_thread(void *arg)
{
    wake_often(arg);
    done();
}

/* Threads whose own goroutines are parked run the goroutines that wake them, and each other. */
TEST_P(proc_threads_park_while_goroutines_run)
{
    TestThread *t[4];

    rounds = scaled(2000);
    for (int i = 0; i < 4; i++) {
        t[i] = test_thread(thread_parks, &slots[i]);
        go(wakes_thread, &slots[i]);
    }
    wait_done(8);
    for (int i = 0; i < 4; i++)
        test_join(t[i]);
    quiet();
}

TEST_P(proc_own_threads_take_no_lodgers)
{
    TestThread *t[4];

    native_class.own_threads = true;
    rounds = scaled(2000);
    for (int i = 0; i < 4; i++) {
        t[i] = test_thread(thread_parks, &slots[i]);
        go(wakes_thread, &slots[i]);
    }
    wait_done(8);
    for (int i = 0; i < 4; i++)
        test_join(t[i]);
    quiet();
}

static void
thread_sleeps(void *arg)
{
    (void)arg;
    native_adopt();
    for (int i = 0; i < 20; i++) {
        int64_t start = nanotime();
        gosleep(200 * US);
        CHECK(nanotime() - start >= 200 * US);
        go(count, NULL);
    }
    native_disown();
    done();
}

TEST_P(proc_threads_come_and_go)
{
    int n = test_slow() ? 10 : 40;
    uint32_t before = NATIVE->nm, ms = 0, dead;

    for (int i = 0; i < n; i++) {
        TestThread *t[3];
        for (int k = 0; k < 3; k++)
            t[k] = test_thread(thread_sleeps, NULL);
        wait_done(3 * 21);
        for (int k = 0; k < 3; k++)
            test_join(t[k]);
    }
    quiet();
    for (M *mp = allm; mp != NULL; mp = mp->alllink)
        ms++;
    dead = NATIVE->gfree[0].n;
    CHECK(ms <= before + 3 + 2 * NATIVE->np + 4); /* reused, not piled up: there were 3 n threads */
    for (uint32_t i = 0; i < NATIVE->np; i++)
        dead += NATIVE->allp[i]->gfree[0].n;
    CHECK_EQ(NATIVE->ngs, dead + 1); /* this thread's, and those that wait for reuse */
}

/* A goroutine on a pool thread wakes a sleeping thread's goroutine and parks: the thread gets the P (startlockedm). */
static void
keep_a_pool_thread(void *arg)
{
    (void)arg;
    blocking(true);
    sys_usleep(3000);
    blocking(false);
    gosched(); /* comes back without a P, finds one, and stays on this thread */
    wake_often(&slots[0]);
    done();
}

TEST_P(proc_thread_is_handed_the_p)
{
    for (int round = 0; round < 20; round++) {
        uint64_t self = sys_thread_id();
        rounds = 50;
        go(keep_a_pool_thread, NULL);
        for (long i = 0; i < rounds; i++) {
            gopark(publish, &slots[0], WAIT_JOIN);
            CHECK_EQ(self, sys_thread_id());
        }
        wait_done(1);
    }
    quiet();
}

/* ---- blocking calls and preemption ---- */

static void
block(void *arg)
{
    blocking(true);
    sys_usleep((int64_t)(intptr_t)arg);
    blocking(false);
    done();
}

TEST_P(proc_blocking_calls_hand_the_p_off)
{
    int64_t start = nanotime(), took;

    for (int i = 0; i < 20; i++)
        go(block, (void *)(intptr_t)200000);
    wait_done(20);
    took = nanotime() - start;
    LOG("20 calls of 200 ms took %lld ms\n", (long long)(took / MS));
    CHECK(took >= 200 * MS && took < (test_slow() ? 3000 : 1000) * MS);
    CHECK(NATIVE->nhandoff > 0);
    quiet();
}

static int64_t when_done;

static void
note_time(void *arg)
{
    (void)arg;
    when_done = nanotime();
    done();
}

TEST_P(proc_others_run_beside_a_blocking_call)
{
    for (int round = 0; round < 3; round++) {
        int64_t start = nanotime();
        go(note_time, NULL);
        go(block, (void *)(intptr_t)300000); /* runs first */
        for (uint32_t i = 1; i < NATIVE->np; i++)
            go(block, (void *)(intptr_t)300000);
        wait_done(1 + (long)NATIVE->np);
        CHECK(when_done - start < 250 * MS);
    }
    quiet();
}

static void
busy(void *arg)
{
    int64_t start = nanotime();

    while (nanotime() - start < (intptr_t)arg * MS)
        cpu_relax();
    gosleep(MS);
    gosched();
    done();
}

static uint32_t others; /* atomic */

static void
early(void *arg)
{
    atomic_xadd(&others, 1u);
    (void)arg;
    done();
}

static void
busy_until_others(void *arg)
{
    int64_t start = nanotime();

    while (atomic_load(&others) < 10 && nanotime() - start < 10 * SEC)
        cpu_relax();
    *(int64_t *)arg = nanotime() - start;
    gosleep(MS); /* it has no P: parks all the same, and comes back */
    gosched();
    done();
}

TEST_P(proc_busy_goroutines_are_preempted)
{
    static int64_t took[8];
    uint32_t np = NATIVE->np;

    for (int i = 0; i < 10; i++)
        go(early, NULL);
    for (uint32_t i = 0; i < np; i++)
        go(busy_until_others, &took[i]);
    for (int i = 0; i < 10; i++)
        gosched();
    wait_done(10 + (long)np);
    for (uint32_t i = 0; i < np; i++)
        CHECK(took[i] < 5 * SEC);
    quiet();
}

static void
due_while_busy(void *arg)
{
    int64_t start = nanotime();

    (void)arg;
    gosleep(5 * MS);
    when_done = nanotime() - start;
    done();
}

TEST_P(proc_timers_run_beside_busy_goroutines)
{
    go(due_while_busy, NULL);
    for (uint32_t i = 0; i < NATIVE->np; i++)
        go(busy, (void *)(intptr_t)400);
    for (int i = 0; i < 3; i++)
        gosched();
    wait_done(1 + (long)NATIVE->np);
    CHECK(when_done < 300 * MS); /* not after them */
    quiet();
}

static void
block_at_random(void *arg)
{
    for (int i = 0; i < 10; i++) {
        blocking(true);
        sys_usleep(cheaprand() % 2000);
        blocking(false);
        if (cheaprand() % 2 == 0)
            gosched();
        else
            gosleep(cheaprand() % 100000);
    }
    (void)arg;
    done();
}

TEST_P(proc_threads_are_reused)
{
    int most = 0;

    for (int round = 0; round < (test_slow() ? 5 : 20); round++) {
        for (int i = 0; i < 8; i++)
            go(block_at_random, NULL);
        wait_done(8);
        int n = sys_thread_count();
        most = n > most ? n : most;
    }
    LOG("%d threads\n", most);
    CHECK(most <= 8 + 4 + 6); /* blocked, Ps, main, sysmon, one on its way, those of the tools */
    quiet();
}

/* ---- the end of memory ---- */

static void
no_emulator(void)
{
    if (test_slow())
        SKIP("needs RLIMIT_AS");
}

static bool
park_silent(G *gp, void *arg)
{
    atomic_store((G **)arg, gp);
    return true;
}

static void
park_once(void *arg)
{
    gopark(park_silent, arg, WAIT_JOIN);
    done();
}

static void
no_entry(G *gp)
{
    (void)gp;
    CHECK(!"an entry of nobody");
}

static void
no_fill(G *gp, void *arg)
{
    (void)gp, (void)arg;
    CHECK(!"filled in though refused");
}

static void
entry_park(G *gp)
{
    park_once(((TestG *)gp)->arg);
    goexit();
}

static void
fill_arg(G *gp, void *arg)
{
    ((TestG *)gp)->arg = arg;
    atomic_store(&((TestG *)gp)->detached, 0u);
}

TEST_P(proc_refused_memory_loses_nothing)
{
    enum { MOST = 20000 };
    static G *parked[MOST];
    long n = 0;

    no_emulator();
    go(count, NULL);
    wait_done(1);
    test_limit_memory((size_t)100 << 20);
    while (n < MOST && newproc(NATIVE, entry_park, fill_arg, &parked[n]) != 0)
        n++;
    LOG("%ld goroutines\n", n);
    CHECK(n > 100 && n < MOST);
    CHECK_EQ(newproc(NATIVE, no_entry, no_fill, NULL), 0);
    CHECK_EQ(num_goroutine(NATIVE), n);
    for (long i = 0; i < n; i++) {
        while (atomic_load(&parked[i]) == NULL)
            gosched();
        goready(parked[i]);
    }
    wait_done(n);
    for (long i = 0; i < n / 2; i++) /* from the dead */
        go(count, NULL);
    wait_done(n / 2);
    test_limit_memory(0);
    for (long i = 0; i < n + 100; i++)
        go(count, NULL);
    wait_done(n + 100);
    quiet();
}

/* No thread can be had: the goroutines run on those there are. */
TEST_P(proc_refused_threads_lose_nothing)
{
    no_emulator();
    go(count, NULL);
    wait_done(1);
    test_limit_memory((size_t)1 << 20); /* less than a thread's stack */
    for (int i = 0; i < 500; i++)
        go(count, NULL);
    wait_done(500);
    for (int i = 0; i < 4; i++)
        go(block, (void *)(intptr_t)5000);
    wait_done(4);
    test_limit_memory(0);
    for (int i = 0; i < 500; i++)
        go(count, NULL);
    wait_done(500);
    quiet();
}

/* ---- the limit of threads, and idle ones ---- */

/* Until no thread is left for those that could run. */
static void
block_till_starved(void *arg)
{
    static uint32_t seen;

    (void)arg;
    blocking(true);
    while (!atomic_load(&seen) && !atomic_load(&NATIVE->starved))
        sys_usleep(500);
    atomic_store(&seen, 1u);
    blocking(false);
    done();
}

static void
limited(void *arg)
{
    uint32_t nprocs = (uint32_t)(intptr_t)arg;

    native_start(nprocs);
    CHECK_EQ(set_max_threads(3), MAX_THREADS);
    CHECK_EQ(set_max_threads(3), 3);
    for (int i = 0; i < 12; i++)
        go(block_till_starved, NULL);
    for (int i = 0; i < 300; i++)
        go(count, NULL);
    wait_done(12 + 300);
    CHECK(NATIVE->npool <= 3);
    CHECK_EQ(counter, 300);
    set_max_threads(MAX_THREADS);
    for (int i = 0; i < 12; i++)
        go(block, (void *)(intptr_t)3000);
    wait_done(12);
    quiet();
}

/* Past the limit goroutines wait for a call to return; one line says so. */
TEST(proc_thread_limit_loses_nothing)
{
    static char text[4096];

    for (int nprocs = 1; nprocs <= 2; nprocs++) {
        CHECK_EQ(test_child(limited, (void *)(intptr_t)nprocs, text, sizeof text), 0);
        const char *line = strstr(text, "gmp: the limit of 3 threads is reached");
        CHECK(line != NULL && strstr(line, "set_max_threads") != NULL);
        CHECK(strstr(line + 1, "gmp: the limit") == NULL);
    }
}

static void
block_till_told(void *arg)
{
    (void)arg;
    blocking(true);
    while (!atomic_load(&stop))
        sys_usleep(1000);
    blocking(false);
    done();
}

/* All threads there may be are blocked when the limit rises: nothing but sysmon could notice. */
TEST(proc_a_raised_limit_is_noticed)
{
    native_start(1);
    set_max_threads(1);
    go(block_till_told, NULL);
    gosleep(5 * MS); /* the thread of the test is adopted, and may become the second one */
    go(block_till_told, NULL);
    go(count, NULL);
    sys_usleep(20 * 1000);
    set_max_threads(10);
    int64_t deadline = nanotime() + 10 * SEC;
    while (atomic_load(&counter) == 0 && nanotime() < deadline)
        sys_usleep(1000);
    CHECK_EQ(atomic_load(&counter), 1);
    atomic_store(&stop, 1);
    wait_done(3);
    quiet();
}

static uint32_t
pool_threads(void)
{
    mutex_lock(&NATIVE->lock);
    uint32_t n = NATIVE->npool;
    mutex_unlock(&NATIVE->lock);
    return n;
}

static void
many_block(int n)
{
    atomic_store(&stop, 0);
    for (int i = 0; i < n; i++)
        go(block_till_told, NULL);
    while (pool_threads() < (uint32_t)n)
        gosleep(1 * MS);
    atomic_store(&stop, 1);
    wait_done(n);
}

static void
wait_for_threads(uint32_t n)
{
    int64_t deadline = nanotime() + 20 * SEC;

    while (pool_threads() > n && nanotime() < deadline)
        gosleep(2 * MS);
    CHECK(pool_threads() <= n);
}

/* Idle pool threads end, but for a few; their Ms are used again. */
TEST_P(proc_idle_threads_retire)
{
    size_t ms = 0;

    getm()->picky = true; /* else one of those that block may do so on this thread, and keep the test from going on */
    idle_m_ns = 20 * MS;
    idle_ms_kept = 2;
    for (int round = 0; round < 10; round++) {
        many_block(12);
        wait_for_threads(3); /* two, and one that may sleep for the timer */
        size_t n = 0;
        for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
            n++;
        if (round == 4)
            ms = n;
        if (round > 4)
            CHECK(n <= ms + 3);
    }
    int64_t deadline = nanotime() + 10 * SEC; /* the threads themselves are gone a little later */
    while (sys_thread_count() > 8 && nanotime() < deadline)
        gosleep(1 * MS);
    LOG("%d threads\n", sys_thread_count());
    CHECK(sys_thread_count() <= 8);
    quiet();
}

static void
locked_and_parked(void *arg)
{
    M *mp = getm();

    CHECK_EQ(lockosthread(false), 0);
    for (int i = 0; i < 5; i++) {
        atomic_store((G **)arg, getg());
        gopark(NULL, NULL, WAIT_CHAN_RECEIVE);
        CHECK(getm() == mp);
    }
    unlockosthread(false);
    done();
}

/* A thread that a goroutine is locked to waits for it, however long. */
TEST_P(proc_locked_threads_do_not_retire)
{
    static G *parked; /* atomic */

    getm()->picky = true;
    idle_m_ns = 1 * MS;
    idle_ms_kept = 0;
    go(locked_and_parked, &parked);
    for (int i = 0; i < 5; i++) {
        G *gp;
        while ((gp = atomic_load(&parked)) == NULL || atomic_load(&gp->status) != G_WAITING)
            gosleep(1 * MS);
        gosleep(20 * MS);
        atomic_store(&parked, (G *)NULL);
        goready(gp);
    }
    wait_done(1);
    wait_for_threads(2);
    quiet();
}

/* Threads end while others are about to wake them. */
TEST_P_LIMIT(proc_threads_retire_under_load, 60)
{
    idle_m_ns = 50 * US;
    idle_ms_kept = 0;
    for (int round = 0; round < (test_slow() ? 20 : 60); round++) {
        for (int i = 0; i < 8; i++)
            go(block_at_random, NULL);
        for (int i = 0; i < 20; i++)
            go(count, NULL);
        wait_done(28);
        if (round % 4 == 0)
            gosleep(200 * US);
    }
    quiet();
}

/* ---- interrupts and the idle hook ---- */

static G *main_g;
static long interrupts; /* atomic */

static void
interrupt_often(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        if (goready_interrupt(main_g, GMP_EINTR))
            atomic_xadd(&interrupts, 1);
        if (cheaprand() % 4 == 0)
            sys_thread_yield();
    }
}

/* Each interrupt ends exactly one wait, and each wait that nobody else ended says so. */
TEST_P(proc_interrupts_are_not_lost)
{
    static Hchan c;
    TestThread *t;
    long seen = 0, n = scaled(20000);
    uint64_t x;
    bool ok;

    CHECK_EQ(chan_init(&c, sizeof(x), 0), 0);
    main_g = getg();
    main_g->interruptible = true;
    t = test_thread(interrupt_often, NULL);
    for (long i = 0; i < n; i++) {
        Scase cases[2] = {{.c = &c, .elem = &x}, {.c = &c, .elem = &x, .send = true}};
        int code = 0;
        switch (i % 4) {
        case 0:
            code = chanrecv(&c, &x, -1);
            break;
        case 1:
            code = selectgo(cases, 2, -1, &ok);
            break;
        case 2:
            code = gosleep(60 * SEC);
            break;
        case 3:
            code = chansend(&c, &x, 60 * SEC);
            break;
        }
        CHECK_EQ(code, GMP_EINTR);
        seen++;
        CHECK(c.recvq.first == NULL && c.sendq.first == NULL && main_g->timer.index == 0);
    }
    atomic_store(&stop, 1u);
    test_join(t);
    CHECK_EQ(interrupts, seen);
    main_g->interruptible = false;
    quiet();
}

static void
interrupted_goroutine(void *arg)
{
    getg()->interruptible = true; /* and not locked to a thread, as after a rescue or a fork */
    atomic_store(&main_g, getg());
    go(*(void (**)(void *))arg, NULL);
    for (long i = 0; i < rounds; i++) {
        CHECK_EQ(gosleep(60 * SEC), GMP_EINTR);
        CHECK_EQ(main_g->timer.index, 0);
    }
    main_g->interruptible = false;
    atomic_store(&stop, 1u);
    done();
}

TEST_P(proc_interrupts_wait_for_the_park)
{
    TestThread *t;
    void (*fn)(void *) = yield_for_ever;

    rounds = scaled(20000);
    go(interrupted_goroutine, &fn);
    while (atomic_load(&main_g) == NULL)
        gosched();
    t = test_thread(interrupt_often, NULL);
    wait_done(2);
    test_join(t);
    quiet();
}

static long asked; /* atomic */
static uint32_t expect_work;

static int64_t
all_asleep(Sched *sched)
{
    (void)sched;
    if (atomic_load(&expect_work))
        test_fail(__FILE__, __LINE__, "the idle hook was called though there was work");
    atomic_xadd(&asked, 1);
    goready_interrupt(main_g, GMP_EDEADLK);
    return 0;
}

TEST_P(proc_deadlock_is_noticed)
{
    for (int i = 0; i < 20; i++) {
        main_g = getg();
        main_g->interruptible = true;
        native_class.idle = all_asleep;
        go(block, (void *)(intptr_t)(cheaprand() % 1000));
        getg()->wakecode = 0;
        uint32_t seq = park_begin(getg());
        CHECK_EQ(gopark_timeout(NULL, NULL, WAIT_JOIN, seq, -1), GMP_EDEADLK);
        CHECK(asked >= i + 1);
        native_class.idle = NULL;
        main_g->interruptible = false;
        wait_done(1);
    }
    quiet();
}

static void
block_and_ready(void *arg)
{
    for (long i = 0; i < rounds; i++) {
        go(count, NULL);
        blocking(true);
        sys_usleep(30 + cheaprand() % 100);
        blocking(false);
        gosleep(cheaprand() % 20000);
        while (atomic_load(&counter) <= i)
            gosched();
    }
    atomic_store(&expect_work, 0u);
    goready(take_slot(arg));
    done();
}

/* A P on its way from one M to another is neither idle nor lost. */
TEST_P(proc_no_deadlock_while_a_p_changes_hands)
{
    rounds = scaled(2000);
    main_g = getg();
    atomic_store(&expect_work, 1u);
    native_class.idle = all_asleep;
    go(block_and_ready, &slots[0]);
    gopark(publish, &slots[0], WAIT_JOIN);
    native_class.idle = NULL;
    wait_done(rounds + 1);
    quiet();
}

/* ---- deep stacks ---- */

GMP_NORETURN static void
go_deep(int depth)
{
    volatile char frame[1024];

    memset((char *)frame, depth + 1, sizeof(frame));
    if (depth == 0) {
        done();
        goexit();
    }
    go_deep(depth - 1);
}

static void
end_deep(void *arg)
{
    go_deep((int)(intptr_t)arg);
}

TEST_P(proc_deep_stacks_are_trimmed)
{
    size_t before = 0;

    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 50; i++)
            go(end_deep, (void *)(intptr_t)(test_slow() ? 15 : 40));
        wait_done(50);
        quiet();
        if (round == 0)
            before = test_rss();
    }
    if (before != 0 && !test_slow())
        CHECK(test_rss() < before + ((size_t)8 << 20));
}
