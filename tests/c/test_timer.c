/* test_timer.c: the heap of timers alone, on a clock of the test's own. */
#include "native.h"

static Timers heap;
static long fired;
static int64_t clock_now, last_when;

static void
check_heap(Timers *ts)
{
    for (uint32_t i = 0; i < ts->len; i++) {
        CHECK_EQ(ts->heap[i].t->index, i + 1);
        CHECK_EQ(ts->heap[i].when, ts->heap[i].t->when);
        CHECK(i == 0 || ts->heap[(i - 1) / 4].when <= ts->heap[i].when);
    }
    CHECK_EQ(ts->next, ts->len != 0 ? ts->heap[0].when : 0);
}

static void
in_order(void *arg, uint32_t seq)
{
    Timer *t = arg;

    CHECK_EQ(t->index, 0);
    CHECK_EQ(t->seq, seq);
    CHECK(t->when >= last_when && t->when <= clock_now);
    last_when = t->when;
    fired++;
}

TEST(timer_fires_in_order)
{
    enum { N = 1000 };
    static Timer t[N];

    for (int i = 0; i < N; i++) {
        CHECK_EQ(timer_add(&heap, &t[i], 1 + (int64_t)(i * 7919) % N, in_order, &t[i], (uint32_t)i), 0);
        check_heap(&heap);
    }
    for (clock_now = 0; clock_now <= N; clock_now += 10) {
        int64_t next = timers_run(&heap, clock_now);
        CHECK_EQ(fired, clock_now);
        CHECK_EQ(next, clock_now == N ? 0 : clock_now + 1);
        CHECK_EQ(next, heap.next);
        check_heap(&heap);
    }
    CHECK_EQ(heap.len, 0);
}

TEST(timer_of_equal_times_and_of_the_past)
{
    static Timer t[100];

    for (int i = 0; i < 100; i++)
        CHECK_EQ(timer_add(&heap, &t[i], i < 50 ? 77 : i - 60, in_order, &t[i], 5), 0);
    check_heap(&heap);
    CHECK_EQ(heap.next, 1); /* 0 would mean "none" */
    clock_now = 76;
    CHECK_EQ(timers_run(&heap, 76), 77);
    CHECK_EQ(fired, 50);
    clock_now = 77;
    CHECK_EQ(timers_run(&heap, 77), 0);
    CHECK_EQ(fired, 100);
    CHECK_EQ(timers_run(&heap, INT64_MAX), 0);
}

TEST(timer_delete_any)
{
    enum { N = 64 };
    static Timer t[N], never;

    CHECK(!timer_del(&never));
    for (int victim = 0; victim < N; victim++) {
        for (int i = 0; i < N; i++)
            CHECK_EQ(timer_add(&heap, &t[i], 1 + (i * 37) % N, in_order, &t[i], 0), 0);
        CHECK(timer_del(&t[victim]));
        CHECK(!timer_del(&t[victim]));
        CHECK_EQ(t[victim].index, 0);
        check_heap(&heap);
        fired = last_when = 0;
        clock_now = N;
        CHECK_EQ(timers_run(&heap, N), 0);
        CHECK_EQ(fired, N - 1);
    }
}

static void
add_twice(void *arg)
{
    timer_add(&heap, arg, 1, in_order, arg, 0);
    timer_add(&heap, arg, 2, in_order, arg, 0);
}

TEST(timer_added_twice_throws)
{
    static Timer t;

    CHECK_DIES(SIGABRT, add_twice, &t);
}

static Timer ticker, victim;

static void
again(void *arg, uint32_t seq)
{
    (void)arg;
    fired++;
    CHECK(timer_del(&victim) == (seq == 0));
    CHECK_EQ(timer_add(&heap, &ticker, ticker.when + 10, again, NULL, seq + 1), 0);
}

/* A timer's function runs without the lock: it may arm itself again, and delete others that are due. */
TEST(timer_function_may_use_the_heap)
{
    CHECK_EQ(timer_add(&heap, &ticker, 10, again, NULL, 0), 0);
    CHECK_EQ(timer_add(&heap, &victim, 15, in_order, &victim, 0), 0);
    CHECK_EQ(timers_run(&heap, 100), 110);
    CHECK_EQ(fired, 10);
    check_heap(&heap);
    timers_clear(&heap);
    CHECK_EQ(ticker.index, 0);
    CHECK_EQ(heap.len + (uint32_t)heap.next, 0);
}

/* Against a reference that looks at all of them. */
TEST(timer_random_against_a_reference)
{
    enum { N = 60 };
    static Timer t[N];
    int64_t due[N] = {0};
    Rng r = rng_new(test_seed(), 0);
    long n = test_slow() ? 20000 : 200000, expected = 0;

    for (long op = 0; op < n; op++) {
        uint32_t k = rng(&r, N);
        if (rng(&r, 10) == 0) {
            clock_now += rng(&r, 40);
            last_when = 0;
            timers_run(&heap, clock_now);
            for (int i = 0; i < N; i++) {
                if (due[i] != 0 && due[i] <= clock_now) {
                    expected++;
                    due[i] = 0;
                    CHECK_EQ(t[i].index, 0);
                }
            }
            CHECK_EQ(fired, expected);
        }
        else if (due[k] != 0) {
            CHECK(timer_del(&t[k]));
            due[k] = 0;
        }
        else {
            CHECK(!timer_del(&t[k]));
            due[k] = 1 + clock_now + rng(&r, 100);
            CHECK_EQ(timer_add(&heap, &t[k], due[k], in_order, &t[k], (uint32_t)op), 0);
        }
        check_heap(&heap);
    }
    CHECK(expected > n / 20);
}

TEST(timer_a_hundred_thousand)
{
    enum { N = 100000 };
    Timer *t = calloc(N, sizeof(*t));
    Rng r = rng_new(test_seed(), 0);
    long left = N;

    for (int i = 0; i < N; i++)
        CHECK_EQ(timer_add(&heap, &t[i], 1 + rng(&r, 1000000), in_order, &t[i], 0), 0);
    check_heap(&heap);
    for (int i = 0; i < N; i += 3, left--)
        CHECK(timer_del(&t[i]));
    check_heap(&heap);
    while (heap.len != 0) {
        clock_now += 1000;
        timers_run(&heap, clock_now);
    }
    CHECK_EQ(fired, left);
}

/* ---- several threads ---- */

static uint32_t armed_or_fired, stop; /* atomic */

static void
count(void *arg, uint32_t seq)
{
    (void)seq;
    atomic_xadd((uint32_t *)arg, 1u);
}

static void
run_them(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        timers_run(&heap, nanotime()), sys_thread_yield();
        sys_thread_yield();
    }
}

static void
add_and_delete(void *arg)
{
    enum { N = 50 };
    Timer t[N];
    uint32_t count_fired = 0, deleted = 0, added = 0;
    int rounds = test_slow() ? 200 : 2000;

    (void)arg;
    memset(t, 0, sizeof(t));
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < N; i++, added++)
            CHECK_EQ(timer_add(&heap, &t[i], nanotime() + cheaprand() % 50000, count, &count_fired, 0), 0);
        for (int i = 0; i < N; i++)
            deleted += timer_del(&t[i]);
        while (atomic_load(&count_fired) + deleted < added) /* those that fire still */
            sys_thread_yield();
        CHECK_EQ(atomic_load(&count_fired) + deleted, added);
    }
    atomic_xadd(&armed_or_fired, added);
}

TEST(timer_each_fires_or_is_deleted)
{
    TestThread *runner[2], *user[3];

    for (int i = 0; i < 2; i++)
        runner[i] = test_thread(run_them, NULL);
    for (int i = 0; i < 3; i++)
        user[i] = test_thread(add_and_delete, NULL);
    for (int i = 0; i < 3; i++)
        test_join(user[i]);
    atomic_store(&stop, 1u);
    for (int i = 0; i < 2; i++)
        test_join(runner[i]);
    check_heap(&heap);
    CHECK_EQ(heap.len, 0);
}

/* ---- timer_stop: afterwards the timer's memory may be freed ---- */

typedef struct Ticking {
    Timer t;
    uint32_t alive; /* atomic; nothing but this word is looked at in memory that was freed */
} Ticking;

static uint32_t ticks; /* atomic */

static void
tick(void *arg, uint32_t seq)
{
    Ticking *k = arg;
    (void)seq;
    CHECK_EQ(atomic_load(&k->alive), 1);
    sys_thread_yield();
    CHECK_EQ(atomic_load(&k->alive), 1);
    atomic_xadd(&ticks, 1u);
    int code = timer_add(k->t.heap, &k->t, nanotime() + 1, tick, k, 0);
    CHECK(code == GMP_OK || code == GMP_ESTATE); /* the latter: it is being stopped */
}

static uint32_t stop_running; /* atomic */

static void
run_heap(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop_running))
        timers_run(&heap, nanotime()), sys_thread_yield();
}

TEST(timer_stop_waits_for_the_function)
{
    TestThread *runners[3];
    for (int i = 0; i < 3; i++)
        runners[i] = test_thread(run_heap, NULL);
    for (int round = 0; round < 300; round++) {
        Ticking *k = calloc(1, sizeof *k);
        atomic_store(&k->alive, 1u);
        k->t.stoppable = true;
        CHECK_EQ(timer_add(&heap, &k->t, 1, tick, k, 0), 0);
        uint32_t seen = atomic_load(&ticks);
        while (round % 2 == 0 && atomic_load(&ticks) < seen + 3)
            sys_thread_yield();
        timer_stop(&k->t); /* it arms itself again, so it is always armed, or about to be */
        CHECK(!timer_stop(&k->t));
        atomic_store(&k->alive, 0u);
        free(k);
    }
    atomic_store(&stop_running, 1u);
    for (int i = 0; i < 3; i++)
        test_join(runners[i]);
    CHECK_EQ(heap.len, 0);
}

TEST(timer_stop_of_one_that_was_never_armed)
{
    static Timer t;
    CHECK(!timer_stop(&t));
    CHECK(!timer_del(&t));
}

/* In the child of a fork the heap is empty, whatever the timers believe. */
TEST(timer_after_a_fork)
{
    static Timer t[10], u;
    for (int i = 0; i < 10; i++)
        CHECK_EQ(timer_add(&heap, &t[i], 100 + i, in_order, &t[i], 0), 0);
    t[3].firing = 1; /* as it was forked */
    timers_afterfork_child(&heap);
    CHECK_EQ(heap.len, 0);
    CHECK(!timer_del(&t[5]));
    CHECK(!timer_stop(&t[3]));
    CHECK_EQ(timer_add(&heap, &u, 50, in_order, &u, 0), 0);
    CHECK_EQ(timer_add(&heap, &t[3], 60, in_order, &t[3], 0), 0);
    CHECK(!timer_stop(&t[0]));
    check_heap(&heap);
    CHECK_EQ(heap.len, 2);
    CHECK(timer_stop(&t[3]));
    CHECK(timer_del(&u));
    CHECK_EQ(heap.len, 0);
}
