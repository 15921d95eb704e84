/* test_gmp.c: the public C interface, by a program that includes nothing else of the core: goroutines, channels, select,
 * locks, timers, descriptors, threads, bad arguments; on all stack classes.  Each test ends in all_ended(). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#include "gmp.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS INT64_C(1000000)
#define SEC INT64_C(1000000000)
#define OK(call) CHECK_EQ(call, GMP_OK)

static long counter; /* atomic */

/* Runs the test with 1, 2 and 4 Ps. */
#define TEST_PROCS(name_)                                                                                              \
    static void name_(void);                                                                                           \
    TEST_LIMIT(name_##_p1, 60)                                                                                         \
    {                                                                                                                  \
        OK(gmp_init(1));                                                                                               \
        name_();                                                                                                       \
    }                                                                                                                  \
    TEST_LIMIT(name_##_p2, 60)                                                                                         \
    {                                                                                                                  \
        OK(gmp_init(2));                                                                                               \
        name_();                                                                                                       \
    }                                                                                                                  \
    TEST_LIMIT(name_##_p4, 60)                                                                                         \
    {                                                                                                                  \
        OK(gmp_init(4));                                                                                               \
        name_();                                                                                                       \
    }                                                                                                                  \
    static void name_(void)

static void
all_ended(void)
{
    gmp_stats st;

    OK(gmp_shutdown(20 * SEC));
    CHECK_EQ(gmp_num_goroutine(), 0);
    OK(gmp_get_stats(&st, sizeof st));
    CHECK_EQ(st.goroutines, 0);
    CHECK_EQ(st.queued, 0);
    CHECK_EQ(st.fd_waiters, 0);
}

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
}

/* ---- goroutines ---- */

TEST_PROCS(gmp_every_goroutine_runs_on_every_stack)
{
    long n = scaled(3000);

    for (long i = 0; i < n; i++)
        OK(gmp_go(count, NULL, (int)(1 + i % 3)));
    all_ended();
    CHECK_EQ(counter, n);
    CHECK_EQ(gmp_go(count, NULL, GMP_STACK_2K), GMP_ESHUTDOWN);
    OK(gmp_init(0));
    OK(gmp_go(count, NULL, GMP_STACK_2K));
    all_ended();
    CHECK_EQ(counter, n + 1);
}

static void
yielder(void *arg)
{
    for (int i = 0; i < *(int *)arg; i++)
        OK(gmp_yield());
    count(NULL);
}

TEST_PROCS(gmp_yield_and_sleep)
{
    int times = 200;

    for (int i = 0; i < 30; i++)
        OK(gmp_go(yielder, &times, 1 + i % 3));
    OK(gmp_yield());
    int64_t before = gmp_nanotime();
    OK(gmp_sleep(5 * MS));
    CHECK(gmp_nanotime() - before >= 5 * MS);
    all_ended();
    CHECK_EQ(counter, 30);
}

static void
spawner(void *arg)
{
    long depth = (long)(intptr_t)arg;

    if (depth == 0)
        return count(NULL);
    for (int i = 0; i < 10; i++)
        OK(gmp_go(spawner, (void *)(intptr_t)(depth - 1), GMP_STACK_2K));
}

/* Spawning from 2 KiB: new slots, overflowing queues and new threads, all with the caller's stack still intact. */
TEST_PROCS(gmp_spawn_from_small_stacks)
{
    int depth = test_slow() ? 2 : 4;
    long n = 1;

    OK(gmp_go(spawner, (void *)(intptr_t)depth, GMP_STACK_2K));
    for (int i = 0; i < depth; i++)
        n *= 10;
    all_ended();
    CHECK_EQ(counter, n);
}

static void
exits(void *arg)
{
    (void)arg;
    count(NULL);
    gmp_exit();
    CHECK(!"came back");
}

static void
locals(void *arg)
{
    CHECK(gmp_local_get() == NULL);
    OK(gmp_local_set(arg));
    OK(gmp_yield());
    CHECK(gmp_local_get() == arg);
    CHECK(gmp_goid() != 0);
    count(NULL);
}

TEST_PROCS(gmp_exit_and_local)
{
    CHECK_EQ(gmp_exit(), GMP_ESTATE);
    for (int i = 0; i < 100; i++) {
        OK(gmp_go(exits, NULL, 1 + i % 3));
        OK(gmp_go(locals, &counter, 1 + i % 3));
    }
    CHECK(gmp_local_get() == NULL);
    OK(gmp_local_set(&counter));
    OK(gmp_sleep(MS));
    CHECK(gmp_local_get() == &counter);
    all_ended();
    CHECK_EQ(counter, 200);
}

/* ---- park and ready ---- */

static gmp_g *parked; /* atomic */

static void
parks(void *arg)
{
    (void)arg;
    atomic_store(&parked, gmp_self());
    for (int i = 0; i < 100; i++) {
        OK(gmp_park(-1));
        count(NULL);
    }
    CHECK_EQ(gmp_park(0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_park(MS), GMP_ETIMEDOUT);
    OK(gmp_ready(gmp_self()));
    OK(gmp_park(-1));
}

TEST_PROCS(gmp_park_and_ready)
{
    OK(gmp_go(parks, NULL, GMP_STACK_2K));
    while (atomic_load(&parked) == NULL)
        OK(gmp_sleep(MS / 10));
    for (int i = 0; i < 100; i++) {
        OK(gmp_ready(parked));
        while (atomic_load(&counter) == i)
            OK(gmp_sleep(MS / 100));
    }
    all_ended();
    CHECK_EQ(gmp_ready(NULL), GMP_EINVAL);
}

/* ---- channels ---- */

typedef struct Stream {
    gmp_chan *ch;
    long n;
    int stack;
} Stream;

static void
sends(void *arg)
{
    Stream *s = arg;

    for (int64_t i = 0; i < s->n; i++)
        OK(gmp_chan_send(s->ch, &i, sizeof i, -1));
}

TEST_PROCS(gmp_chan_to_a_thread)
{
    for (size_t cap = 0; cap <= 8; cap += 4) {
        Stream s = {.n = scaled(2000)};
        OK(gmp_chan_new(&s.ch, sizeof(int64_t), cap));
        CHECK_EQ(gmp_chan_cap(s.ch), cap);
        OK(gmp_go(sends, &s, GMP_STACK_2K));
        for (int64_t i = 0, x = -1; i < s.n; i++) {
            OK(gmp_chan_recv(s.ch, &x, sizeof x, -1));
            CHECK_EQ(x, i);
        }
        CHECK_EQ(gmp_chan_len(s.ch), 0);
        OK(gmp_shutdown(-1));
        OK(gmp_init(0));
        OK(gmp_chan_free(s.ch));
    }
    all_ended();
}

typedef struct Ring {
    gmp_chan *in, *out;
    long rounds;
} Ring;

static void
passes_on(void *arg)
{
    Ring *r = arg;
    int64_t x;

    for (long i = 0; i < r->rounds; i++) {
        OK(gmp_chan_recv(r->in, &x, sizeof x, -1));
        x++;
        OK(gmp_chan_send(r->out, &x, sizeof x, -1));
    }
    count(NULL);
}

TEST_PROCS(gmp_chan_ring)
{
    enum { N = 50 };
    static Ring ring[N];
    gmp_chan *ch[N];
    long rounds = scaled(400);
    int64_t x = 0;

    for (int i = 0; i < N; i++)
        OK(gmp_chan_new(&ch[i], sizeof x, i == 0));
    for (int i = 0; i < N; i++) {
        ring[i] = (Ring){ch[i], ch[(i + 1) % N], rounds};
        OK(gmp_go(passes_on, &ring[i], 1 + i % 3));
    }
    OK(gmp_chan_send(ch[0], &x, sizeof x, -1));
    all_ended();
    OK(gmp_chan_recv(ch[0], &x, sizeof x, 0));
    CHECK_EQ(x, N * rounds);
    for (int i = 0; i < N; i++)
        OK(gmp_chan_free(ch[i]));
}

TEST(gmp_chan_elements)
{
    struct {
        char bytes[100];
    } big = {"hello"}, got;
    gmp_chan *ch;

    OK(gmp_chan_new(&ch, sizeof big, 2));
    OK(gmp_chan_send(ch, &big, sizeof big, 0));
    CHECK_EQ(gmp_chan_send(ch, &big, sizeof big - 1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_chan_send(ch, NULL, sizeof big, 0), GMP_EINVAL);
    CHECK_EQ(gmp_chan_recv(ch, &got, 8, 0), GMP_EINVAL);
    CHECK_EQ(gmp_chan_recv(ch, NULL, sizeof got, 0), GMP_EINVAL);
    CHECK_EQ(gmp_chan_len(ch), 1);
    OK(gmp_chan_recv(ch, &got, sizeof got, 0));
    CHECK(strcmp(got.bytes, "hello") == 0);
    CHECK_EQ(gmp_chan_recv(ch, &got, sizeof got, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_chan_recv(ch, &got, sizeof got, MS), GMP_ETIMEDOUT);
    OK(gmp_chan_send(ch, &big, sizeof big, -1));
    OK(gmp_chan_close(ch));
    CHECK_EQ(gmp_chan_close(ch), GMP_ECLOSED);
    CHECK_EQ(gmp_chan_send(ch, &big, sizeof big, -1), GMP_ECLOSED);
    OK(gmp_chan_recv(ch, &got, sizeof got, -1));
    CHECK_EQ(gmp_chan_recv(ch, &got, sizeof got, -1), GMP_ECLOSED);
    CHECK_EQ(got.bytes[0], 0);
    OK(gmp_chan_free(ch));

    OK(gmp_chan_new(&ch, 0, 3)); /* struct{} */
    OK(gmp_chan_send(ch, NULL, 0, 0));
    OK(gmp_chan_send(ch, NULL, 0, 0));
    CHECK_EQ(gmp_chan_len(ch), 2);
    OK(gmp_chan_recv(ch, NULL, 0, 0));
    CHECK_EQ(gmp_chan_send(ch, NULL, 1, 0), GMP_EINVAL);
    OK(gmp_chan_free(ch));
    all_ended();
}

/* ---- select ---- */

TEST_PROCS(gmp_select_takes_all)
{
    enum { N = 6 };
    Stream s[N];
    gmp_case cases[N];
    int64_t got[N], sum[N] = {0};
    long n = scaled(500);

    for (int i = 0; i < N; i++) {
        s[i] = (Stream){.n = n};
        OK(gmp_chan_new(&s[i].ch, sizeof(int64_t), (size_t)i % 2));
        OK(gmp_go(sends, &s[i], 1 + i % 3));
        cases[i] = (gmp_case){s[i].ch, &got[i], sizeof got[i], 0, -99};
    }
    for (long i = 0; i < N * n; i++) {
        int k = gmp_select(cases, N, -1);
        CHECK(k >= 0 && k < N);
        OK(cases[k].result);
        CHECK_EQ(got[k], sum[k]++);
    }
    CHECK_EQ(gmp_select(cases, N, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_select(cases, N, MS), GMP_ETIMEDOUT);
    all_ended();
    OK(gmp_chan_close(s[3].ch));
    CHECK_EQ(gmp_select(cases, N, -1), 3);
    CHECK_EQ(cases[3].result, GMP_ECLOSED);
    for (int i = 0; i < N; i++)
        OK(gmp_chan_free(s[i].ch));
}

static void
selects_both_ways(void *arg)
{
    Ring *r = arg;
    int64_t in, out = 0;
    long recvd = 0, sent = 0;

    while (recvd < r->rounds || sent < r->rounds) {
        gmp_case cases[3] = {
            {recvd < r->rounds ? r->in : NULL, &in, sizeof in, 0, 0},
            {sent < r->rounds ? r->out : NULL, &out, sizeof out, 1, 0},
            {NULL, NULL, 0, 0, 0},
        };
        int k = gmp_select(cases, 3, -1);
        CHECK(k == 0 || k == 1);
        if (k == 0)
            recvd++;
        else
            sent++;
    }
    count(NULL);
}

TEST_PROCS(gmp_select_both_ways_on_small_stacks)
{
    gmp_chan *a, *b;
    OK(gmp_chan_new(&a, sizeof(int64_t), 0));
    OK(gmp_chan_new(&b, sizeof(int64_t), 0));
    Ring there = {a, b, scaled(2000)}, back = {b, a, scaled(2000)};
    OK(gmp_go(selects_both_ways, &there, GMP_STACK_2K));
    OK(gmp_go(selects_both_ways, &back, GMP_STACK_2K));
    all_ended();
    CHECK_EQ(counter, 2);
    OK(gmp_chan_free(a));
    OK(gmp_chan_free(b));
}

/* ---- locks ---- */

typedef struct Locks {
    gmp_mutex *m;
    gmp_cond *c;
    gmp_waitgroup *wg;
    long n, value;
} Locks;

static void
adds(void *arg)
{
    Locks *l = arg;

    for (long i = 0; i < l->n; i++) {
        OK(gmp_mutex_lock(l->m, -1));
        long v = l->value;
        if (i % 16 == 0)
            OK(gmp_yield());
        l->value = v + 1;
        OK(gmp_mutex_unlock(l->m));
    }
}

TEST_PROCS(gmp_mutex_excludes)
{
    Locks l = {.n = scaled(1000)};

    OK(gmp_mutex_new(&l.m));
    OK(gmp_waitgroup_new(&l.wg));
    OK(gmp_mutex_lock(l.m, -1)); /* nobody ends yet */
    for (int i = 0; i < 20; i++)
        OK(gmp_waitgroup_go(l.wg, adds, &l, 1 + i % 3));
    CHECK_EQ(gmp_waitgroup_free(l.wg), GMP_ESTATE);
    OK(gmp_mutex_unlock(l.m));
    adds(&l); /* from a thread, too */
    OK(gmp_waitgroup_wait(l.wg, -1));
    CHECK_EQ(l.value, 21 * l.n);
    CHECK_EQ(gmp_mutex_unlock(l.m), GMP_ESTATE);
    OK(gmp_mutex_lock(l.m, 0));
    CHECK_EQ(gmp_mutex_lock(l.m, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_mutex_lock(l.m, MS), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_mutex_free(l.m), GMP_ESTATE);
    OK(gmp_mutex_unlock(l.m));
    CHECK_EQ(gmp_waitgroup_done(l.wg), GMP_ESTATE);
    CHECK_EQ(gmp_waitgroup_add(l.wg, -5), GMP_ESTATE);
    OK(gmp_waitgroup_add(l.wg, 1));
    CHECK_EQ(gmp_waitgroup_wait(l.wg, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_waitgroup_wait(l.wg, MS), GMP_ETIMEDOUT);
    OK(gmp_waitgroup_done(l.wg));
    OK(gmp_mutex_free(l.m));
    OK(gmp_waitgroup_free(l.wg));
    all_ended();
}

static void
consumes(void *arg)
{
    Locks *l = arg;

    for (long i = 0; i < l->n; i++) {
        OK(gmp_mutex_lock(l->m, -1));
        while (l->value == 0)
            OK(gmp_cond_wait(l->c, l->m, -1));
        l->value--;
        OK(gmp_mutex_unlock(l->m));
    }
}

TEST_PROCS(gmp_cond_signals)
{
    Locks l = {.n = scaled(400)};

    OK(gmp_mutex_new(&l.m));
    OK(gmp_cond_new(&l.c));
    OK(gmp_waitgroup_new(&l.wg));
    for (int i = 0; i < 5; i++)
        OK(gmp_waitgroup_go(l.wg, consumes, &l, 1 + i % 3));
    for (long i = 0; i < 5 * l.n; i++) {
        OK(gmp_mutex_lock(l.m, -1));
        l.value++;
        OK(i % 2 ? gmp_cond_signal(l.c) : gmp_cond_broadcast(l.c));
        OK(gmp_mutex_unlock(l.m));
    }
    OK(gmp_waitgroup_wait(l.wg, -1));
    CHECK_EQ(gmp_cond_wait(l.c, l.m, 0), GMP_ESTATE); /* not locked */
    OK(gmp_mutex_lock(l.m, 0));
    CHECK_EQ(gmp_cond_wait(l.c, l.m, MS), GMP_ETIMEDOUT);
    OK(gmp_mutex_unlock(l.m)); /* it was locked again */
    OK(gmp_mutex_free(l.m));
    OK(gmp_cond_free(l.c));
    OK(gmp_waitgroup_free(l.wg));
    all_ended();
}

/* ---- timers ---- */

TEST_PROCS(gmp_timers)
{
    gmp_chan *ch;
    gmp_timer *t;
    int64_t at = 0, before = gmp_nanotime();

    OK(gmp_chan_new(&ch, sizeof at, 1));
    OK(gmp_timer_new(&t, ch));
    OK(gmp_timer_start(t, 2 * MS, 0));
    OK(gmp_chan_recv(ch, &at, sizeof at, -1));
    CHECK(at - before >= 2 * MS);
    CHECK_EQ(gmp_timer_stop(t), 0);
    OK(gmp_timer_start(t, 3600 * SEC, 0));
    CHECK_EQ(gmp_timer_stop(t), 1);
    OK(gmp_timer_start(t, 3600 * SEC, 0));
    OK(gmp_timer_start(t, MS, MS)); /* earlier, and a ticker */
    for (int i = 0; i < 5; i++) {
        int64_t last = at;
        OK(gmp_chan_recv(ch, &at, sizeof at, -1));
        CHECK(at > last);
    }
    CHECK_EQ(gmp_timer_stop(t), 1);
    while (gmp_chan_recv(ch, &at, sizeof at, 0) == GMP_OK)
        ;
    CHECK_EQ(gmp_chan_recv(ch, &at, sizeof at, 5 * MS), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_timer_start(t, -1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_timer_start(t, 0, -1), GMP_EINVAL);
    OK(gmp_timer_free(t));
    OK(gmp_chan_free(ch));
    all_ended();
}

/* ---- descriptors ---- */

static void
echoes(void *arg)
{
    char buf[256];
    int64_t n;

    while ((n = gmp_fd_read(arg, buf, sizeof buf, -1)) > 0)
        CHECK_EQ(gmp_fd_write(arg, buf, (size_t)n, -1), n);
    CHECK_EQ(n, 0);
    OK(gmp_fd_close(arg));
    count(NULL);
}

TEST_PROCS(gmp_fd_echo)
{
    enum { N = 20 };
    gmp_fd *mine[N], *theirs;
    char buf[64];

    for (int i = 0; i < N; i++) {
        int fds[2];
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        OK(gmp_fd_open(&mine[i], fds[0]));
        OK(gmp_fd_open(&theirs, fds[1]));
        OK(gmp_go(echoes, theirs, GMP_STACK_64K));
        CHECK_EQ(gmp_fd_number(mine[i]), fds[0]);
    }
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++)
            CHECK_EQ(gmp_fd_write(mine[i], "hello", 5, -1), 5);
        for (int i = 0; i < N; i++) {
            if (round % 2)
                OK(gmp_fd_wait_read(mine[i], -1));
            CHECK_EQ(gmp_fd_read(mine[i], buf, sizeof buf, -1), 5);
        }
    }
    CHECK_EQ(gmp_fd_read(mine[0], buf, sizeof buf, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_fd_read(mine[0], buf, sizeof buf, MS), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_fd_wait_read(mine[0], 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_fd_wait_read(mine[0], MS), GMP_ETIMEDOUT);
    OK(gmp_fd_wait_write(mine[0], 0));
    OK(gmp_fd_wait_write(mine[0], -1));
    for (int i = 0; i < N; i++)
        OK(gmp_fd_close(mine[i]));
    all_ended();
    CHECK_EQ(counter, N);
}

static gmp_fd *shared;

static void
reads_until_closed(void *arg)
{
    char c;

    (void)arg;
    CHECK_EQ(gmp_fd_read(shared, &c, 1, -1), GMP_ECLOSED);
    count(NULL);
}

TEST_PROCS(gmp_fd_close_wakes)
{
    int fds[2];
    char c;
    gmp_stats st;

    CHECK_EQ(pipe(fds), 0);
    OK(gmp_fd_open(&shared, fds[0]));
    OK(gmp_go(reads_until_closed, NULL, GMP_STACK_2K));
    do {
        OK(gmp_sleep(MS / 10));
        OK(gmp_get_stats(&st, sizeof st));
    } while (st.fd_waiters == 0);
    CHECK_EQ(gmp_fd_read(shared, &c, 1, 0), GMP_ESTATE); /* one reader at a time */
    OK(gmp_fd_close(shared));
    all_ended();
    CHECK_EQ(counter, 1);
    CHECK_EQ(fcntl(fds[0], F_GETFD), -1); /* closed */
    CHECK_EQ(write(fds[1], "x", 0), 0);
    close(fds[1]);
}

/* ---- threads ---- */

static void
thread_waits(void *arg)
{
    Stream *s = arg;

    sends(s);
    OK(gmp_sleep(MS));
    CHECK(gmp_self() != NULL);
}

TEST_PROCS(gmp_threads_are_adopted)
{
    Stream s = {.n = scaled(500)};
    TestThread *t[4];
    int64_t x;

    OK(gmp_chan_new(&s.ch, sizeof x, 0));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++)
            t[i] = test_thread(thread_waits, &s);
        for (long i = 0; i < 4 * s.n; i++)
            OK(gmp_chan_recv(s.ch, &x, sizeof x, -1));
        for (int i = 0; i < 4; i++)
            test_join(t[i]);
    }
    all_ended();
    OK(gmp_chan_free(s.ch));
}

static void
blocks(void *arg)
{
    int *fds = arg;
    char c;

    OK(gmp_block_enter());
    OK(gmp_block_enter()); /* nests */
    CHECK_EQ(read(fds[0], &c, 1), 1);
    OK(gmp_block_exit());
    OK(gmp_block_exit());
    CHECK_EQ(gmp_block_exit(), GMP_ESTATE);
    count(NULL);
}

/* More goroutines block than there are Ps, on what only another goroutine does. */
static void
unblocks(void *arg)
{
    for (int i = 0; i < 8; i++)
        CHECK_EQ(write(((int *)arg)[1], "x", 1), 1);
    count(NULL);
}

TEST_PROCS(gmp_blocking_sections)
{
    int fds[2];

    CHECK_EQ(pipe(fds), 0);
    for (int i = 0; i < 8; i++)
        OK(gmp_go(blocks, fds, GMP_STACK_2K));
    for (int i = 0; i < 50; i++)
        OK(gmp_yield());
    OK(gmp_go(unblocks, fds, GMP_STACK_2K));
    all_ended();
    CHECK_EQ(counter, 9);
    close(fds[0]);
    close(fds[1]);
}

static void
spins(void *arg)
{
    while (atomic_load((long *)arg) == 0)
        ;
    count(NULL);
}

static void
sets(void *arg)
{
    atomic_store((long *)arg, 1);
}

/* Nobody is shut out by goroutines that never wait. */
TEST_PROCS(gmp_long_runners_lose_their_p)
{
    static long flag;

    for (int i = 0; i < 6; i++)
        OK(gmp_go(spins, &flag, GMP_STACK_2K));
    OK(gmp_go(sets, &flag, GMP_STACK_2K));
    all_ended();
    CHECK_EQ(counter, 6);
}

static void
locked(void *arg)
{
    (void)arg;
    CHECK_EQ(gmp_unlock_os_thread(), GMP_ESTATE);
    OK(gmp_lock_os_thread());
    pthread_t me = pthread_self();
    OK(gmp_lock_os_thread());
    OK(gmp_unlock_os_thread());
    for (int i = 0; i < 50; i++) {
        OK(i % 2 ? gmp_yield() : gmp_sleep(MS / 20));
        CHECK(pthread_equal(pthread_self(), me));
    }
    count(NULL);
    if (atomic_load(&counter) % 2) /* the others end locked */
        OK(gmp_unlock_os_thread());
}

TEST_PROCS(gmp_lock_os_thread_keeps_the_thread)
{
    int times = 500;

    for (int i = 0; i < 6; i++) {
        OK(gmp_go(locked, NULL, GMP_STACK_64K));
        OK(gmp_go(yielder, &times, GMP_STACK_2K));
    }
    all_ended();
    CHECK_EQ(counter, 12);
}

/* ---- the number of Ps ---- */

static void
sleeper(void *arg)
{
    int64_t before = gmp_nanotime();

    OK(gmp_sleep((int64_t)(intptr_t)arg));
    CHECK(gmp_nanotime() - before >= (int64_t)(intptr_t)arg);
    count(NULL);
}

static void
resizes(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++) {
        CHECK(gmp_gomaxprocs(1 + i * 7 % 5) > 0);
        OK(gmp_sleep(MS / 20));
    }
    count(NULL);
}

/* While goroutines yield, sleep, spawn, pass values and spin, by a thread and by goroutines at once: none is lost. */
TEST_PROCS(gmp_gomaxprocs_changes)
{
    enum { N = 10 };
    static Ring ring[N];
    gmp_chan *ch[N];
    int64_t x = 0;
    int times = (int)scaled(3000);
    long n = 0;
    static long flag;
    gmp_stats st;

    for (int i = 0; i < N; i++)
        OK(gmp_chan_new(&ch[i], sizeof x, i == 0));
    for (int i = 0; i < N; i++, n++) {
        ring[i] = (Ring){ch[i], ch[(i + 1) % N], scaled(2000)};
        OK(gmp_go(passes_on, &ring[i], 1 + i % 3));
    }
    OK(gmp_chan_send(ch[0], &x, sizeof x, -1));
    OK(gmp_go(spins, &flag, GMP_STACK_2K));
    for (int i = 0; i < 40; i++, n += 2) {
        OK(gmp_go(yielder, &times, 1 + i % 3));
        OK(gmp_go(sleeper, (void *)(intptr_t)(i * MS / 4), 1 + i % 3));
    }
    for (int i = 0; i < 3; i++, n++)
        OK(gmp_go(resizes, NULL, GMP_STACK_2K));
    for (int i = 0; i < 40; i++) {
        CHECK(gmp_gomaxprocs(1 + i * 5 % 9) >= 1);
        if (i % 3)
            OK(gmp_sleep(MS / 10));
        OK(gmp_go(count, NULL, GMP_STACK_2K));
        n++;
    }
    atomic_store(&flag, 1);
    CHECK_EQ(gmp_gomaxprocs(-1), GMP_EINVAL);
    CHECK_EQ(gmp_gomaxprocs(257), GMP_EINVAL);
    all_ended();
    CHECK_EQ(counter, n + 1);
    CHECK(gmp_gomaxprocs(256) >= 1);
    CHECK_EQ(gmp_gomaxprocs(3), 256);
    CHECK_EQ(gmp_gomaxprocs(0), 3);
    OK(gmp_init(0));
    for (int i = 0; i < 1000; i++)
        OK(gmp_go(count, NULL, GMP_STACK_2K));
    all_ended();
    CHECK_EQ(counter, n + 1001);
    OK(gmp_get_stats(&st, sizeof st));
    CHECK_EQ(st.procs, 3);
    CHECK(st.idle_procs <= 3);
    for (int i = 0; i < N; i++)
        if (i != 0)
            OK(gmp_chan_free(ch[i]));
}

/* A timer of a P that goes fires all the same. */
TEST(gmp_gomaxprocs_keeps_timers)
{
    OK(gmp_init(4));
    for (int i = 0; i < 200; i++)
        OK(gmp_go(sleeper, (void *)(intptr_t)((20 + i % 10) * MS), GMP_STACK_2K));
    OK(gmp_sleep(5 * MS));
    CHECK_EQ(gmp_gomaxprocs(1), 4);
    CHECK_EQ(gmp_gomaxprocs(3), 1);
    CHECK_EQ(gmp_gomaxprocs(2), 3);
    all_ended();
    CHECK_EQ(counter, 200);
}

static void
procs_by_environment(void *arg)
{
    setenv("GMPMAXPROCS", arg, 1);
    fprintf(stderr, "procs %d\n", gmp_gomaxprocs(0));
}

TEST(gmp_gomaxprocs_by_environment)
{
    char want[32];

    CHECK_PRINTS(procs_by_environment, "7", "procs 7\n");
    CHECK_PRINTS(procs_by_environment, "100000", "procs 256\n");
    snprintf(want, sizeof want, "procs %d\n", sys_procs());
    CHECK_PRINTS(procs_by_environment, "0", want);
    CHECK_PRINTS(procs_by_environment, "-1", want);
    CHECK_PRINTS(procs_by_environment, "2x", want);
    CHECK_PRINTS(procs_by_environment, "", want);
}

/* ---- bad arguments ---- */

TEST(gmp_bad_arguments)
{
    gmp_chan *ch;
    gmp_fd *f, *second;
    gmp_timer *t;
    gmp_stats st;
    gmp_case c = {0};
    int fds[2];
    FILE *file = tmpfile();

    CHECK_EQ(gmp_init(-1), GMP_EINVAL);
    CHECK_EQ(gmp_init(257), GMP_EINVAL);
    OK(gmp_init(2));
    OK(gmp_init(0));
    OK(gmp_init(2));
    CHECK_EQ(gmp_init(3), GMP_ESTATE);
    CHECK_EQ(gmp_go(NULL, NULL, GMP_STACK_2K), GMP_EINVAL);
    CHECK_EQ(gmp_go(count, NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_go(count, NULL, 4), GMP_EINVAL);
    CHECK_EQ(gmp_go(count, NULL, -1), GMP_EINVAL);
    CHECK_EQ(gmp_waitgroup_go(NULL, count, NULL, GMP_STACK_2K), GMP_EINVAL);
    CHECK_EQ(gmp_sleep(-1), GMP_EINVAL);
    CHECK_EQ(gmp_sleep(INT64_MIN), GMP_EINVAL);
    CHECK_EQ(gmp_park(0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_park(MS), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_exit(), GMP_ESTATE);
    CHECK_EQ(gmp_unlock_os_thread(), GMP_ESTATE);
    CHECK_EQ(gmp_block_exit(), GMP_ESTATE);
    OK(gmp_block_enter());
    CHECK_EQ(gmp_chan_new(&ch, 8, 1), GMP_OK); /* what waits for nothing may be called even so */
    OK(gmp_chan_free(ch));
    OK(gmp_block_exit());
    CHECK_EQ(gmp_chan_new(NULL, 8, 0), GMP_EINVAL);
    CHECK_EQ(gmp_chan_new(&ch, 65537, 0), GMP_EINVAL);
    CHECK_EQ(gmp_chan_new(&ch, 8, SIZE_MAX / 8), GMP_EINVAL);
    CHECK_EQ(gmp_chan_new(&ch, 1, SIZE_MAX / 2 - 64), GMP_ENOMEM);
    CHECK_EQ(gmp_chan_send(NULL, &fds, 8, -1), GMP_EINVAL);
    CHECK_EQ(gmp_chan_recv(NULL, &fds, 8, -1), GMP_EINVAL);
    CHECK_EQ(gmp_chan_close(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_chan_free(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_chan_len(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_chan_cap(NULL), GMP_EINVAL);
    OK(gmp_chan_new(&ch, 65536, 1));
    OK(gmp_chan_free(ch));
    OK(gmp_chan_new(&ch, 4, 1));
    CHECK_EQ(gmp_timer_new(&t, ch), GMP_EINVAL); /* the time has 8 bytes */
    CHECK_EQ(gmp_timer_new(&t, NULL), GMP_EINVAL);
    CHECK_EQ(gmp_timer_new(NULL, ch), GMP_EINVAL);
    CHECK_EQ(gmp_timer_start(NULL, 0, 0), GMP_EINVAL);
    CHECK_EQ(gmp_timer_stop(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_timer_free(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_select(NULL, 1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_select(&c, -1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_select(&c, 65536, 0), GMP_EINVAL);
    CHECK_EQ(gmp_select(NULL, 0, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_select(&c, 1, MS), GMP_ETIMEDOUT); /* no channel */
    c = (gmp_case){ch, &fds, 8, 0, 0};
    CHECK_EQ(gmp_select(&c, 1, 0), GMP_EINVAL);
    c = (gmp_case){ch, NULL, 4, 1, 0};
    CHECK_EQ(gmp_select(&c, 1, 0), GMP_EINVAL);
    OK(gmp_chan_free(ch));
    CHECK_EQ(gmp_mutex_new(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_mutex_lock(NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_mutex_unlock(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_mutex_free(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_cond_new(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_cond_wait(NULL, NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_cond_signal(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_cond_broadcast(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_cond_free(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_waitgroup_new(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_waitgroup_add(NULL, 1), GMP_EINVAL);
    CHECK_EQ(gmp_waitgroup_done(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_waitgroup_wait(NULL, 1), GMP_EINVAL);
    CHECK_EQ(gmp_waitgroup_free(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_fd_open(NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_open(&f, -1), GMP_EINVAL);
    CHECK_EQ(gmp_fd_open(&f, 9999), GMP_EIO);
    CHECK_EQ(errno, EBADF);
    CHECK(file != NULL);
    CHECK_EQ(gmp_fd_open(&f, fileno(file)), GMP_EIO); /* cannot be polled */
    CHECK_EQ(errno, EPERM);
    CHECK_EQ(pipe(fds), 0);
    OK(gmp_fd_open(&f, fds[0]));
    CHECK_EQ(gmp_fd_read(f, NULL, 1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_write(f, NULL, 1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_write(f, "x", 1, 0), GMP_EIO); /* the reading end */
    CHECK_EQ(errno, EBADF);
    CHECK_EQ(gmp_fd_write(f, NULL, 0, 0), 0);
    CHECK_EQ(gmp_fd_open(&second, fds[0]), GMP_ESTATE); /* it is open already */
    CHECK_EQ(gmp_fd_accept(f, NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_accept(f, &second, 0), GMP_EIO);
    CHECK_EQ(errno, ENOTSOCK);
    CHECK_EQ(gmp_fd_number(f), fds[0]);
    CHECK_EQ(gmp_fd_number(NULL), GMP_EINVAL);
    CHECK_EQ(gmp_fd_write(NULL, "x", 1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_wait_write(NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_wait_read(f, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_fd_read(f, fds, 1, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmp_fd_read(NULL, fds, 1, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_wait_read(NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_accept(NULL, &f, 0), GMP_EINVAL);
    CHECK_EQ(gmp_fd_close(NULL), GMP_EINVAL);
    OK(gmp_fd_close(f));
    CHECK_EQ(gmp_get_stats(NULL, sizeof st), GMP_EINVAL);
    CHECK_EQ(gmp_get_stats(&st, sizeof st - 8), GMP_EINVAL);
    for (int code = 1; code >= -20; code--)
        CHECK(gmp_strerror(code) != NULL && *gmp_strerror(code) != '\0');
    all_ended();
}

bool waits_on(gmp_chan *ch); /* in native.c: does anybody? */

/* What is in use is not freed, and what ends a wait from outside tells why. */
static gmp_mutex *used_mutex;
static gmp_cond *used_cond;
static gmp_waitgroup *used_group;

static void
waits_in_recv(void *ch)
{
    int64_t x = 1;

    CHECK_EQ(gmp_chan_recv(ch, &x, sizeof x, -7), GMP_ECLOSED); /* any negative timeout is none */
    CHECK_EQ(x, 0);
    count(NULL);
}

static void
waits_in_send(void *ch)
{
    int64_t x = 1;

    CHECK_EQ(gmp_chan_send(ch, &x, sizeof x, -1), GMP_ECLOSED);
    count(NULL);
}

static void
waits_in_select(void *ch)
{
    int64_t x = 1;
    gmp_case c[2] = {{NULL, NULL, 0, 0, 7}, {ch, &x, sizeof x, 1, 7}};

    CHECK_EQ(gmp_select(c, 2, INT64_MIN), 1);
    CHECK_EQ(c[0].result, 7);
    CHECK_EQ(c[1].result, GMP_ECLOSED);
    count(NULL);
}

static void
waits_in_cond(void *arg)
{
    (void)arg;
    OK(gmp_mutex_lock(used_mutex, -1));
    atomic_xadd(&counter, 1);
    OK(gmp_cond_wait(used_cond, used_mutex, -1));
    OK(gmp_mutex_unlock(used_mutex));
    atomic_xadd(&counter, 1);
}

static void
waits_in_group(void *arg)
{
    (void)arg;
    OK(gmp_waitgroup_wait(used_group, -1));
    count(NULL);
}

TEST_PROCS(gmp_in_use)
{
    static void (*const waits[])(void *) = {waits_in_recv, waits_in_send, waits_in_select};
    gmp_chan *ch;

    for (int i = 0; i < 3; i++) {
        OK(gmp_chan_new(&ch, sizeof(int64_t), 0));
        OK(gmp_go(waits[i], ch, 1 + i));
        while (!waits_on(ch))
            OK(gmp_sleep(MS / 10));
        CHECK_EQ(gmp_chan_free(ch), GMP_ESTATE);
        OK(gmp_chan_close(ch));
        all_ended();
        OK(gmp_chan_free(ch));
        OK(gmp_init(0));
    }
    CHECK_EQ(counter, 3);
    OK(gmp_mutex_new(&used_mutex));
    OK(gmp_cond_new(&used_cond));
    OK(gmp_waitgroup_new(&used_group));
    OK(gmp_waitgroup_add(used_group, INT64_MAX));
    CHECK_EQ(gmp_waitgroup_add(used_group, 1), GMP_ESTATE); /* too many */
    OK(gmp_waitgroup_add(used_group, 1 - INT64_MAX));
    CHECK_EQ(gmp_waitgroup_go(used_group, count, NULL, 9), GMP_EINVAL); /* does not count */
    CHECK_EQ(gmp_waitgroup_add(used_group, -2), GMP_ESTATE);
    OK(gmp_go(waits_in_cond, NULL, GMP_STACK_2K));
    OK(gmp_go(waits_in_group, NULL, GMP_STACK_2K));
    while (atomic_load(&counter) != 4)
        OK(gmp_sleep(MS / 10));
    OK(gmp_mutex_lock(used_mutex, -1)); /* so it waits */
    CHECK_EQ(gmp_cond_free(used_cond), GMP_ESTATE);
    CHECK_EQ(gmp_cond_wait(used_cond, NULL, 0), GMP_EINVAL);
    CHECK_EQ(gmp_mutex_free(used_mutex), GMP_ESTATE);
    OK(gmp_cond_signal(used_cond));
    OK(gmp_mutex_unlock(used_mutex));
    CHECK_EQ(gmp_waitgroup_free(used_group), GMP_ESTATE);
    OK(gmp_waitgroup_done(used_group));
    all_ended();
    CHECK_EQ(counter, 6);
    OK(gmp_cond_free(used_cond));
    OK(gmp_mutex_free(used_mutex));
    OK(gmp_waitgroup_free(used_group));
}

/* Nothing is started any more, what needs no goroutine works, and the next gmp_init begins anew. */
TEST_PROCS(gmp_after_shutdown)
{
    gmp_chan *ch;
    gmp_timer *t = NULL;
    gmp_fd *f = NULL;
    gmp_waitgroup *wg;
    int64_t x = 5;
    int fds[2];

    OK(gmp_chan_new(&ch, sizeof x, 1));
    OK(gmp_waitgroup_new(&wg));
    CHECK_EQ(pipe(fds), 0);
    OK(gmp_shutdown(-1));
    OK(gmp_shutdown(0));
    CHECK_EQ(gmp_go(count, NULL, GMP_STACK_2K), GMP_ESHUTDOWN);
    CHECK_EQ(gmp_waitgroup_go(wg, count, NULL, GMP_STACK_2K), GMP_ESHUTDOWN);
    OK(gmp_waitgroup_wait(wg, -1)); /* it was not counted in */
    CHECK_EQ(gmp_timer_new(&t, ch), GMP_ESHUTDOWN);
    CHECK_EQ(gmp_fd_open(&f, fds[0]), GMP_ESHUTDOWN);
    CHECK_EQ(fcntl(fds[0], F_GETFL) & O_NONBLOCK, 0);
    CHECK(t == NULL && f == NULL);
    OK(gmp_chan_send(ch, &x, sizeof x, 0));
    OK(gmp_chan_recv(ch, &x, sizeof x, -1));
    CHECK_EQ(gmp_chan_recv(ch, &x, sizeof x, MS), GMP_ETIMEDOUT);
    OK(gmp_sleep(MS));
    OK(gmp_yield());
    OK(gmp_init(0));
    OK(gmp_waitgroup_go(wg, count, NULL, GMP_STACK_2K));
    OK(gmp_waitgroup_wait(wg, -1));
    CHECK_EQ(counter, 1);
    OK(gmp_waitgroup_free(wg));
    OK(gmp_chan_free(ch));
    close(fds[0]);
    close(fds[1]);
    all_ended();
}

static int volatile deep_sink;

static int
deep(int n)
{
    volatile char frame[256];

    for (int i = 0; i < 256; i++)
        frame[i] = (char)n;
    deep_sink += frame[0];
    return n > 0 ? deep(n - 1) + frame[0] : 0;
}

static void
overruns(void *arg)
{
    (void)arg;
    deep(12); /* into the slots below, and not through them */
    gmp_yield();
}

static void
overruns_in_a_child(void *arg)
{
    (void)arg;
    OK(gmp_init(1));
    OK(gmp_go(count, NULL, GMP_STACK_2K)); /* not the lowest slot of its slab */
    OK(gmp_go(count, NULL, GMP_STACK_2K));
    OK(gmp_go(overruns, NULL, GMP_STACK_2K));
    OK(gmp_go(count, NULL, GMP_STACK_2K));
    gmp_shutdown(-1);
}

TEST(gmp_overflow_of_a_small_stack_names_the_function)
{
    char want[64];

#if defined(GMP_ASAN) || defined(GMP_TSAN)
    SKIP("small stacks are not small under a sanitizer");
#endif
    snprintf(want, sizeof want, "its function's address %p", (void *)(uintptr_t)overruns);
    CHECK_PRINTS(overruns_in_a_child, NULL, want);
    CHECK_DIES(SIGABRT, overruns_in_a_child, NULL);
}
