/* test_runq.c: the queues alone: order, overflow, stealing, the global queue; nothing lost or doubled under contention.
 * The build with -DRUNQ_SIZE=4 makes each of them happen all the time. */
#include "native.h"

#include <stdio.h>

enum { N = 2000, HALF = RUNQ_SIZE / 2 };

static G gs[N];
static Sched *sched = NATIVE;

/* Ps that belong to the test; no scheduler runs. */
static P *
queues(uint32_t np)
{
    sched->np = np;
    for (uint32_t i = 0; i < np; i++) {
        P *pp = sys_aligned_alloc(GMP_CACHELINE, sizeof(P));
        CHECK(pp != NULL);
        memset(pp, 0, sizeof(*pp));
        pp->id = i;
        pp->set = sched;
        pp->runqhead = pp->runqtail = UINT32_MAX - 2; /* the indices wrap early on */
        sched->allp[i] = pp;
    }
    for (int i = 0; i < N; i++) {
        gs[i].goid = (uint64_t)i;
        gs[i].cls = &native_class;
    }
    CHECK_EQ(globrunqreserve(sched, 4), 0);
    return sched->allp[0];
}

#define EXPECT(got, i)                                                                                                 \
    do {                                                                                                               \
        G *got_ = (got);                                                                                               \
        CHECK(got_ != NULL);                                                                                           \
        CHECK_EQ(got_->goid, i);                                                                                       \
    } while (0)

static void
first_in_first_out(uint32_t np)
{
    P *pp = queues(np);

    CHECK(runqempty(pp) && runqget(pp) == NULL && runqlen(pp) == 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < RUNQ_SIZE; i++) {
            runqput(pp, &gs[i], false);
            CHECK(!runqempty(pp));
            CHECK_EQ(runqlen(pp), i + 1);
        }
        for (int i = 0; i < RUNQ_SIZE; i++)
            EXPECT(runqget(pp), i);
        CHECK(runqempty(pp) && runqget(pp) == NULL);
    }
    CHECK_EQ(sched->runq.n, 0);
}

TEST(runq_first_in_first_out_alone)
{
    first_in_first_out(1);
}

TEST(runq_first_in_first_out_shared)
{
    first_in_first_out(2);
}

static void
runnext_goes_first(uint32_t np)
{
    P *pp = queues(np);

    runqput(pp, &gs[1], false);
    runqput(pp, &gs[2], true);
    CHECK_EQ(runqlen(pp), 2);
    runqput(pp, &gs[3], true); /* kicks 2 to the tail */
    CHECK_EQ(runqlen(pp), 3);
    EXPECT(runqget(pp), 3);
    EXPECT(runqget(pp), 1);
    EXPECT(runqget(pp), 2);
    CHECK(runqempty(pp));
    runqput(pp, &gs[4], true);
    CHECK(!runqempty(pp)); /* runnext alone counts, too */
    CHECK_EQ(runqlen(pp), 1);
    EXPECT(runqget(pp), 4);
    CHECK(runqget(pp) == NULL);
}

TEST(runq_runnext_goes_first_alone)
{
    runnext_goes_first(1);
}

TEST(runq_runnext_goes_first_shared)
{
    runnext_goes_first(2);
}

static void
overflow(uint32_t np, bool kick)
{
    P *pp = queues(np);
    int n = RUNQ_SIZE;

    for (int i = 0; i < n; i++)
        runqput(pp, &gs[i], false);
    if (kick) {
        runqput(pp, &gs[n], true);
        CHECK_EQ(sched->runq.n, 0);
        runqput(pp, &gs[n + 1], true); /* what it kicks finds the ring full */
        EXPECT(runqget(pp), n + 1);
    }
    else
        runqput(pp, &gs[n], false);
    CHECK_EQ(sched->runq.n, HALF + 1);
    CHECK_EQ(runqlen(pp), HALF);
    for (int i = HALF; i < n; i++)
        EXPECT(runqget(pp), i);
    for (int i = 0; i < HALF; i++)
        EXPECT(globrunqget(sched, pp, 1), i);
    EXPECT(globrunqget(sched, pp, 1), n);
    CHECK(globrunqget(sched, pp, 1) == NULL);
}

TEST(runq_overflow_moves_half_alone)
{
    overflow(1, false);
}

TEST(runq_overflow_moves_half_shared)
{
    overflow(2, false);
}

TEST(runq_overflow_by_a_kick)
{
    overflow(2, true);
}

TEST(runq_steal_takes_half_rounded_up)
{
    P *mine = queues(2), *victim = sched->allp[1];

    for (int n = 1; n <= RUNQ_SIZE; n++) {
        int stolen = n - n / 2;
        for (int i = 0; i < n; i++)
            runqput(victim, &gs[i], false);
        runqput(victim, &gs[n], true);
        EXPECT(runqsteal(mine, victim, false), stolen - 1); /* the newest of the batch runs, the others queue */
        CHECK_EQ(runqlen(mine), stolen - 1);
        CHECK_EQ(runqlen(victim), n - stolen + 1);
        for (int i = 0; i < stolen - 1; i++)
            EXPECT(runqget(mine), i);
        EXPECT(runqget(victim), n); /* runnext was left alone */
        for (int i = stolen; i < n; i++)
            EXPECT(runqget(victim), i);
        CHECK(runqempty(mine) && runqempty(victim));
    }
}

TEST(runq_steal_takes_runnext_last)
{
    P *mine = queues(2), *victim = sched->allp[1];

    CHECK(runqsteal(mine, victim, true) == NULL);
    runqput(victim, &gs[0], true);
    CHECK(runqsteal(mine, victim, false) == NULL);
    runqput(victim, &gs[1], false);
    EXPECT(runqsteal(mine, victim, true), 1);
    EXPECT(runqsteal(mine, victim, true), 0);
    CHECK(runqempty(victim) && runqempty(mine));
    CHECK(runqsteal(mine, victim, true) == NULL);
}

TEST(runq_global_gives_a_fair_share)
{
    P *pp = queues(4);
    G *batch[N];
    int next = 0;

    for (int i = 0; i < N; i++)
        batch[i] = &gs[i];
    globrunqputbatch(sched, batch, N); /* more than was reserved: the ring grows */
    CHECK_EQ(sched->runq.n, N);
    EXPECT(globrunqget(sched, pp, 1), next++);
    CHECK(runqempty(pp));
    while (sched->runq.n != 0) {
        uint32_t n = sched->runq.n / 4 + 1;
        if (n > HALF)
            n = HALF;
        CHECK(n <= sched->runq.n);
        EXPECT(globrunqget(sched, pp, 0), next++);
        CHECK_EQ(runqlen(pp), n - 1);
        for (uint32_t i = 1; i < n; i++)
            EXPECT(runqget(pp), next++);
    }
    CHECK_EQ(next, N);
}

TEST(runq_global_grows_in_the_middle)
{
    P *pp = queues(1);
    int in = 0, out = 0;

    while (in < N) {
        for (int i = 0; i < 5 && in < N; i++, in++) {
            CHECK_EQ(globrunqreserve(sched, (uint32_t)in + 1), 0);
            globrunqput(sched, &gs[in]);
        }
        for (int i = 0; i < 3; i++)
            EXPECT(globrunqget(sched, pp, 1), out++);
    }
    while (out < N)
        EXPECT(globrunqget(sched, pp, 1), out++);
}

/* ---- one owner, several thieves ---- */

static uint32_t taken[N], stop; /* atomic */
static long rounds;

static void
take(G *gp)
{
    if (atomic_xadd(&taken[gp->goid], 1u) != 0)
        test_fail(__FILE__, __LINE__, "%llu was taken twice", (unsigned long long)gp->goid);
}

static void
thief(void *arg)
{
    P *pp = arg;

    while (!atomic_load(&stop)) {
        P *victim = sched->allp[(pp->id + 1 + cheaprand() % (sched->np - 1)) % sched->np];
        G *gp = runqsteal(pp, victim, cheaprand() % 2);
        if (gp == NULL && atomic_load(&sched->runq.n) != 0) {
            mutex_lock(&sched->lock);
            gp = globrunqget(sched, pp, 0);
            mutex_unlock(&sched->lock);
        }
        if (gp == NULL) {
            sys_thread_yield();
            continue;
        }
        take(gp);
        while ((gp = runqget(pp)) != NULL)
            take(gp);
        CHECK_EQ(runqlen(pp), 0);
    }
}

TEST(runq_owner_and_thieves_lose_nothing)
{
    P *pp = queues(4);
    TestThread *t[3];
    Rng r = rng_new(test_seed(), 0);

    CHECK_EQ(globrunqreserve(sched, N), 0);
    rounds = test_slow() ? 10 : 100;
    for (long round = 0; round < rounds; round++) {
        memset(taken, 0, sizeof(taken));
        atomic_store(&stop, 0u);
        for (int i = 0; i < 3; i++)
            t[i] = test_thread(thief, sched->allp[i + 1]);
        for (int i = 0; i < N;) {
            for (uint32_t k = rng(&r, RUNQ_SIZE + RUNQ_SIZE / 2); k > 0 && i < N; k--)
                runqput(pp, &gs[i++], rng(&r, 3) == 0);
            for (uint32_t k = rng(&r, RUNQ_SIZE); k > 0; k--) {
                G *gp = runqget(pp);
                if (gp == NULL)
                    break;
                take(gp);
            }
        }
        for (G *gp; (gp = runqget(pp)) != NULL;)
            take(gp);
        while (atomic_load(&sched->runq.n) != 0)
            sys_thread_yield();
        atomic_store(&stop, 1u);
        for (int i = 0; i < 3; i++)
            test_join(t[i]);
        for (int i = 0; i < N; i++)
            CHECK_EQ(taken[i], 1);
        CHECK(runqempty(pp));
    }
}
