/* test_stress.c: everything at once, by the dice: channels, select, timeouts, mutexes, sleeps, blocking calls, spawning,
 * threads that come and go, strangers; yields are forced everywhere, so goroutines move from thread to thread all the time.
 * What must hold: sums sent and received agree, counters under a mutex are exact, nothing is left over.
 * GMP_SEED=n repeats the dice (not the interleaving); GMP_STRESS=s runs each test for s seconds. */
#include "native.h"

#include <stdlib.h>

enum { CHANS = 6, MUTEXES = 3 };

typedef struct Ledger {
    long sent, received, nsent, nreceived; /* atomic */
} Ledger;

static struct {
    Hchan c[CHANS];
    Ledger ledger[CHANS];
    Gmutex mu[MUTEXES];
    long under[MUTEXES], locked[MUTEXES]; /* locked: atomic */
    int64_t until;
    uint32_t stop; /* atomic */
    long ops, spawned, ended;
} st;

static int64_t
seconds(void)
{
    const char *env = getenv("GMP_STRESS");

    return env != NULL ? atol(env) * SEC : 1200 * MS;
}

static bool
over(void)
{
    return atomic_load(&st.stop) || nanotime() > st.until;
}

static void
start(void)
{
    test_seed();
    for (int i = 0; i < CHANS; i++)
        CHECK_EQ(chan_init(&st.c[i], sizeof(uint64_t), i < 2 ? 0 : 1u << (i - 2)), 0);
    st.until = nanotime() + seconds();
}

static void
finish(void)
{
    for (int i = 0; i < CHANS; i++) {
        Hchan *c = &st.c[i];
        Ledger *l = &st.ledger[i];
        uint64_t x;
        CHECK(c->recvq.first == NULL && c->sendq.first == NULL);
        while (chanrecv(c, &x, 0) == GMP_OK) {
            l->received += (long)x;
            l->nreceived++;
        }
        LOG("channel %d: %ld sent, %ld received\n", i, l->nsent, l->nreceived);
        CHECK_EQ(l->nsent, l->nreceived);
        CHECK_EQ(l->sent, l->received);
    }
    for (int i = 0; i < MUTEXES; i++) {
        CHECK_EQ(st.mu[i].key, 0);
        CHECK_EQ(st.under[i], st.locked[i]);
    }
    LOG("%ld operations, %ld goroutines, %llu hand-offs\n", st.ops, st.spawned, (unsigned long long)NATIVE->nhandoff);
    quiet();
}

static void
book(int i, bool send, uint64_t x)
{
    Ledger *l = &st.ledger[i];

    atomic_xadd(send ? &l->sent : &l->received, (long)x);
    atomic_xadd(send ? &l->nsent : &l->nreceived, 1);
}

static int64_t
some_timeout(Rng *r, bool may_wait)
{
    if (!may_wait || rng(r, 4) == 0)
        return 0;
    return rng(r, 8) == 0 ? rng(r, 2000000) : rng(r, 50000);
}

static void
one_send(Rng *r, bool may_wait)
{
    int i = (int)rng(r, CHANS);
    uint64_t x = rng(r, 1000);
    int code = chansend(&st.c[i], &x, some_timeout(r, may_wait));

    if (code == GMP_OK)
        book(i, true, x);
    else
        CHECK_EQ(code, GMP_ETIMEDOUT);
}

static void
one_recv(Rng *r, bool may_wait)
{
    int i = (int)rng(r, CHANS);
    uint64_t x = 1u << 20;
    int code = chanrecv(&st.c[i], &x, some_timeout(r, may_wait));

    if (code == GMP_OK) {
        CHECK(x < 1000);
        book(i, false, x);
    }
    else
        CHECK_EQ(code, GMP_ETIMEDOUT);
}

static void
one_select(Rng *r, bool may_wait)
{
    Scase cases[8];
    uint64_t x[8];
    int chan[8], n = 1 + (int)rng(r, 8);
    bool ok = false;

    for (int k = 0; k < n; k++) {
        chan[k] = (int)rng(r, CHANS);
        x[k] = rng(r, 1000);
        cases[k] = (Scase){.c = rng(r, 10) ? &st.c[chan[k]] : NULL, .elem = &x[k], .send = rng(r, 2)};
    }
    int k = selectgo(cases, n, some_timeout(r, may_wait), &ok);
    if (k >= 0) {
        CHECK(k < n && cases[k].c != NULL && ok && x[k] < 1000);
        book(chan[k], cases[k].send, x[k]);
    }
    else
        CHECK_EQ(k, GMP_ETIMEDOUT);
}

static void
one_lock(Rng *r)
{
    int i = (int)rng(r, MUTEXES);
    int code = gmutex_lock(&st.mu[i], rng(r, 3) ? -1 : some_timeout(r, true));

    if (code != GMP_OK) {
        CHECK_EQ(code, GMP_ETIMEDOUT);
        return;
    }
    long x = st.under[i];
    if (rng(r, 8) == 0)
        gosched();
    if (rng(r, 64) == 0)
        gosleep(rng(r, 100000));
    st.under[i] = x + 1;
    atomic_xadd(&st.locked[i], 1);
    CHECK_EQ(gmutex_unlock(&st.mu[i]), 0);
}

static void
short_life(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(uintptr_t)arg);

    gosched();
    one_send(&r, true);
    gosched();
    one_recv(&r, true);
    atomic_xadd(&st.ended, 1);
}

static void
spawn_one(Rng *r)
{
    atomic_xadd(&st.spawned, 1);
    go(short_life, (void *)(uintptr_t)rng(r, 1u << 30));
}

static void
anything(Rng *r)
{
    switch (rng(r, 12)) {
    case 0:
    case 1:
        one_send(r, true);
        break;
    case 2:
    case 3:
        one_recv(r, true);
        break;
    case 4:
    case 5:
    case 6:
        one_select(r, true);
        break;
    case 7:
    case 8:
        one_lock(r);
        break;
    case 9:
        gosleep(rng(r, 4) ? 0 : rng(r, 300000));
        break;
    case 10:
        if (rng(r, 8) == 0) {
            blocking(true);
            sys_usleep(rng(r, 300));
            blocking(false);
        }
        break;
    case 11:
        spawn_one(r);
        break;
    }
    gosched();
    atomic_xadd(&st.ops, 1);
}

static void
worker(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(uintptr_t)arg);

    while (!over())
        anything(&r);
    done();
}

/* A thread with a goroutine of its own, for some operations only; then it leaves and comes again. */
static void
visitor(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(uintptr_t)arg);

    while (!over()) {
        native_adopt();
        for (uint32_t n = rng(&r, 50); n > 0 && !over(); n--)
            anything(&r);
        native_disown();
        if (rng(&r, 2))
            sys_usleep(rng(&r, 500));
    }
    done();
}

/* A thread that the core does not know. */
static void
stranger(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(uintptr_t)arg);

    while (!over()) {
        switch (rng(&r, 4)) {
        case 0:
            one_send(&r, false);
            break;
        case 1:
            one_recv(&r, false);
            break;
        case 2:
            one_select(&r, false);
            break;
        case 3:
            spawn_one(&r);
            break;
        }
        if (rng(&r, 4) == 0)
            sys_usleep(rng(&r, 200)); /* the others may all go to sleep meanwhile */
    }
    done();
}

static void
everything(int workers, int visitors, int strangers)
{
    TestThread *t[8];
    int n = 0;

    start();
    for (int i = 0; i < workers; i++)
        go(worker, (void *)(uintptr_t)(1 + i));
    for (int i = 0; i < visitors; i++)
        t[n++] = test_thread(visitor, (void *)(uintptr_t)(1000 + i));
    for (int i = 0; i < strangers; i++)
        t[n++] = test_thread(stranger, (void *)(uintptr_t)(2000 + i));
    wait_done(workers + n);
    while (n > 0)
        test_join(t[--n]);
    while (atomic_load(&st.ended) != atomic_load(&st.spawned))
        gosleep(MS);
    finish();
}

TEST_P_LIMIT(stress_few, 120)
{
    everything(3, 0, 1); /* all go idle again and again: lost wake-ups hang */
}

TEST_P_LIMIT(stress_many, 120)
{
    everything(test_slow() ? 40 : 300, 2, 2);
}

TEST_P_LIMIT(stress_threads, 120)
{
    everything(4, 4, 2);
}

/* Threads that take no lodgers: what they find is handed to other threads. */
TEST_P_LIMIT(stress_own_threads, 120)
{
    native_class.own_threads = true; /* not of the test's thread, which is adopted */
    everything(4, 4, 2);
}

/* ---- waits for ever only: a lost wake-up is a hang ---- */

enum { STAGES = 20 };
static Hchan pipe_c[STAGES + 1];

static void
stage(void *arg)
{
    Hchan *in = arg, *out = in + 1;
    uint64_t x;

    for (;;) {
        bool ok = true;
        int code;
        if (cheaprand() % 2)
            code = chanrecv(in, &x, -1);
        else {
            Scase cases[2] = {{.c = in, .elem = &x}, {.c = NULL}};
            code = selectgo(cases, 2, -1, &ok);
            CHECK(code == 0);
            code = ok ? GMP_OK : GMP_ECLOSED;
        }
        if (code == GMP_ECLOSED)
            break;
        if (cheaprand() % 4 == 0)
            gosched();
        x++;
        CHECK_EQ(chansend(out, &x, -1), 0);
    }
    chanclose(out);
    done();
}

static void
feed(void *arg)
{
    for (uint64_t i = 0; !over(); i++) {
        CHECK_EQ(chansend(arg, &i, -1), 0);
        atomic_store(&st.spawned, (long)i + 1);
        if (cheaprand() % 256 == 0)
            gosleep(cheaprand() % 500000); /* the pipe runs dry */
    }
    chanclose(arg);
    done();
}

TEST_P_LIMIT(stress_pipeline, 120)
{
    uint64_t x, i = 0;

    test_seed();
    st.until = nanotime() + seconds();
    for (int k = 0; k <= STAGES; k++)
        CHECK_EQ(chan_init(&pipe_c[k], sizeof(x), (size_t)k % 3), 0);
    for (int k = 0; k < STAGES; k++)
        go(stage, &pipe_c[k]);
    go(feed, &pipe_c[0]);
    while (chanrecv(&pipe_c[STAGES], &x, -1) == 0)
        CHECK_EQ(x, STAGES + i++);
    CHECK_EQ(i, st.spawned);
    LOG("%llu values through %d stages\n", (unsigned long long)i, STAGES);
    wait_done(STAGES + 1);
    quiet();
}

/* Goroutines and threads pass a few tokens round; nothing else keeps the process awake. */
enum { RING = 7 };
static Hchan ring_c[RING];

static void
pass_on(void *arg)
{
    intptr_t i = (intptr_t)arg;
    uint64_t x;

    while (chanrecv(&ring_c[i], &x, -1) == 0) {
        atomic_xadd(&st.ops, 1);
        if (cheaprand() % 16 == 0) {
            blocking(true);
            sys_usleep(cheaprand() % 60);
            blocking(false);
        }
        if (over())
            x = 0;
        CHECK_EQ(chansend(&ring_c[(i + 1) % RING], &x, -1), 0);
        if (x == 0)
            break; /* the end goes round, too */
    }
    done();
}

static void
thread_passes_on(void *arg)
{
    native_adopt();
    pass_on(arg);
    native_disown();
}

TEST_P_LIMIT(stress_ring, 120)
{
    uint64_t one = 1;
    TestThread *t[RING];

    test_seed();
    st.until = nanotime() + seconds();
    for (int i = 0; i < RING; i++)
        CHECK_EQ(chan_init(&ring_c[i], sizeof(one), 4), 0);
    for (intptr_t i = 0; i < RING; i++) {
        if (i % 3 == 2)
            t[i] = test_thread(thread_passes_on, (void *)i);
        else
            go(pass_on, (void *)i);
    }
    for (int i = 0; i < 3; i++)
        CHECK_EQ(chansend(&ring_c[i * 2], &one, -1), 0);
    wait_done(RING);
    for (int i = 2; i < RING; i += 3)
        test_join(t[i]);
    LOG("%ld hops\n", st.ops);
    quiet();
}
