/* test_sync.c: Gmutex and Gwaitgroup; with 1, 2 and 4 Ps. */
#include "native.h"

static Gmutex mu;
static Gwaitgroup wg;
static long counter, got_lock, timed_out; /* got_lock, timed_out: atomic */

static void
unlocked(Gmutex *m)
{
    CHECK_EQ(m->key, 0);
    CHECK(m->waiters.first == NULL && m->waiters.last == NULL);
    CHECK_EQ(m->lock.key, 0);
}

TEST(gmutex_alone)
{
    native_start(1);
    CHECK(!gmutex_locked(&mu));
    CHECK_EQ(gmutex_unlock(&mu), GMP_ESTATE);
    CHECK_EQ(gmutex_lock(&mu, -1), 0);
    CHECK(gmutex_locked(&mu));
    CHECK_EQ(gmutex_lock(&mu, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gmutex_lock(&mu, 5 * MS), GMP_ETIMEDOUT); /* not recursive */
    CHECK_EQ(gmutex_unlock(&mu), 0);
    CHECK_EQ(gmutex_unlock(&mu), GMP_ESTATE);
    CHECK_EQ(gmutex_lock(&mu, 0), 0);
    CHECK_EQ(gmutex_unlock(&mu), 0);
    unlocked(&mu);
}

static void
count_up(void *arg)
{
    long n = (long)(intptr_t)arg;

    for (long i = 0; i < n; i++) {
        CHECK_EQ(gmutex_lock(&mu, cheaprand() % 4 ? -1 : 60 * SEC), 0);
        long x = counter;
        if (cheaprand() % 16 == 0)
            gosched();
        counter = x + 1; /* not atomic: that is the test */
        CHECK_EQ(gmutex_unlock(&mu), 0);
        if (cheaprand() % 64 == 0)
            gosched();
    }
    done();
}

TEST_P(gmutex_excludes)
{
    long n = test_slow() ? 200 : 5000;

    for (int i = 0; i < 10; i++)
        go(count_up, (void *)(intptr_t)n);
    wait_done(10);
    CHECK_EQ(counter, 10 * n);
    unlocked(&mu);
    quiet();
}

static void
thread_counts_up(void *arg)
{
    native_adopt();
    count_up(arg);
    native_disown();
}

TEST_P(gmutex_excludes_threads_too)
{
    long n = test_slow() ? 100 : 2000;
    TestThread *t[3];

    for (int i = 0; i < 3; i++) {
        t[i] = test_thread(thread_counts_up, (void *)(intptr_t)n);
        go(count_up, (void *)(intptr_t)n);
    }
    wait_done(6);
    for (int i = 0; i < 3; i++)
        test_join(t[i]);
    CHECK_EQ(counter, 6 * n);
    unlocked(&mu);
    quiet();
}

/* One goroutine takes the lock again as soon as it has given it back: the other one must get it all the same. */
static uint32_t stop; /* atomic */

static void
hog(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        CHECK_EQ(gmutex_lock(&mu, -1), 0);
        counter++;
        gosched();
        CHECK_EQ(gmutex_unlock(&mu), 0);
    }
    done();
}

TEST_P(gmutex_does_not_starve)
{
    go(hog, NULL);
    go(hog, NULL);
    gosleep(MS);
    for (int i = 0; i < 20; i++) {
        int64_t start = nanotime();
        CHECK_EQ(gmutex_lock(&mu, -1), 0);
        CHECK(nanotime() - start < 5 * SEC);
        CHECK_EQ(gmutex_unlock(&mu), 0);
    }
    atomic_store(&stop, 1u);
    wait_done(2);
    unlocked(&mu);
    quiet();
}

static int order[8], norder;

static void
lock_in_turn(void *arg)
{
    CHECK_EQ(gmutex_lock(&mu, -1), 0);
    order[norder++] = (int)(intptr_t)arg;
    gosleep(2 * MS);
    CHECK_EQ(gmutex_unlock(&mu), 0);
    done();
}

static int
waiting(void)
{
    int n = 0;

    mutex_lock(&mu.lock);
    for (Sudog *sg = mu.waiters.first; sg != NULL; sg = sg->next)
        n++;
    mutex_unlock(&mu.lock);
    return n;
}

/* Whoever waited for more than 1 ms is handed the lock, in the order of arrival. */
TEST_P(gmutex_is_handed_over_after_a_millisecond)
{
    CHECK_EQ(gmutex_lock(&mu, -1), 0);
    for (intptr_t i = 0; i < 8; i++) {
        go(lock_in_turn, (void *)i);
        while (waiting() < i + 1)
            gosleep(50 * US);
    }
    gosleep(2 * MS);
    CHECK_EQ(gmutex_unlock(&mu), 0);
    CHECK_EQ(gmutex_lock(&mu, 0), GMP_ETIMEDOUT); /* it was never free */
    wait_done(8);
    for (int i = 0; i < 8; i++)
        CHECK_EQ(order[i], i);
    unlocked(&mu);
    quiet();
}

static void
try_for_a_while(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(intptr_t)arg);

    for (int i = 0; i < (test_slow() ? 100 : 1000); i++) {
        int64_t ns = rng(&r, 5) == 0 ? 0 : rng(&r, 200000), start = nanotime();
        int code = gmutex_lock(&mu, ns);
        if (code == GMP_OK) {
            counter++;
            if (rng(&r, 3) == 0)
                gosleep(rng(&r, 50000));
            CHECK_EQ(gmutex_unlock(&mu), 0);
            atomic_xadd(&got_lock, 1);
        }
        else {
            CHECK_EQ(code, GMP_ETIMEDOUT);
            CHECK(nanotime() - start >= ns);
            atomic_xadd(&timed_out, 1);
        }
    }
    done();
}

TEST_P(gmutex_timeouts)
{
    for (intptr_t i = 0; i < 8; i++)
        go(try_for_a_while, (void *)i);
    wait_done(8);
    CHECK_EQ(counter, got_lock);
    CHECK(timed_out > 0 && got_lock > 0);
    unlocked(&mu);
    quiet();
}

/* A waiter that is woken and loses to newcomers again and again must not lose its time faster than the clock does. */
static void
waits_its_time(void *arg)
{
    int64_t start = nanotime();
    int code = gmutex_lock(&mu, 300 * MS);

    (void)arg;
    if (code == GMP_OK)
        CHECK_EQ(gmutex_unlock(&mu), 0);
    else
        CHECK(nanotime() - start >= 300 * MS);
    done();
}

TEST_P(gmutex_timeout_is_not_shortened)
{
    go(hog, NULL);
    go(hog, NULL);
    for (int i = 0; i < 10; i++)
        go(waits_its_time, NULL);
    wait_done(10);
    atomic_store(&stop, 1u);
    wait_done(2);
    unlocked(&mu);
    quiet();
}

/* ---- Gwaitgroup ---- */

TEST(gwaitgroup_alone)
{
    native_start(1);
    CHECK_EQ(gwaitgroup_wait(&wg, -1), 0);
    CHECK_EQ(gwaitgroup_add(&wg, -1), GMP_ESTATE);
    CHECK_EQ(gwaitgroup_add(&wg, 2), 0);
    CHECK_EQ(gwaitgroup_add(&wg, -3), GMP_ESTATE);
    CHECK_EQ(gwaitgroup_add(&wg, INT64_MAX), GMP_ESTATE);
    CHECK_EQ(gwaitgroup_wait(&wg, 0), GMP_ETIMEDOUT);
    CHECK_EQ(gwaitgroup_wait(&wg, MS), GMP_ETIMEDOUT);
    CHECK_EQ(gwaitgroup_add(&wg, -2), 0);
    CHECK_EQ(gwaitgroup_wait(&wg, 0), 0);
    CHECK(wg.waiters.first == NULL);
}

static void
work(void *arg)
{
    if (cheaprand() % 2)
        gosched();
    atomic_xadd(&counter, 1);
    CHECK_EQ(gwaitgroup_add(arg, -1), 0);
}

static void
waiter(void *arg)
{
    CHECK_EQ(gwaitgroup_wait(&wg, (intptr_t)arg % 2 ? -1 : 60 * SEC), 0);
    CHECK(atomic_load(&counter) % 100 == 0);
    done();
}

TEST_P(gwaitgroup_waits_for_all)
{
    for (int round = 1; round <= (test_slow() ? 10 : 100); round++) {
        CHECK_EQ(gwaitgroup_add(&wg, 100), 0);
        for (intptr_t i = 0; i < 5; i++)
            go(waiter, (void *)i);
        for (int i = 0; i < 100; i++)
            go(work, &wg);
        CHECK_EQ(gwaitgroup_wait(&wg, -1), 0);
        CHECK_EQ(atomic_load(&counter), round * 100);
        wait_done(5);
    }
    quiet();
}

/* It may lie on the stack of who waits: nobody touches it after the wait. */
static void
short_lived(void *arg)
{
    (void)arg;
    for (int i = 0; i < (test_slow() ? 50 : 500); i++) {
        Gwaitgroup mine = {0};
        gwaitgroup_add(&mine, 2);
        go(work, &mine);
        go(work, &mine);
        CHECK_EQ(gwaitgroup_wait(&mine, -1), 0);
        memset(&mine, 0xff, sizeof(mine));
    }
    done();
}

TEST_P(gwaitgroup_may_go_away)
{
    for (int i = 0; i < 4; i++)
        go(short_lived, NULL);
    wait_done(4);
    quiet();
}
