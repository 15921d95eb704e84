/* native.c: see native.h. */
#include "native.h"

static long finished, seen; /* atomic */

static bool
is_detached(G *gp)
{
    return atomic_load(&((TestG *)gp)->detached) != 0;
}

static void
entry(G *gp)
{
    ((TestG *)gp)->fn(((TestG *)gp)->arg);
    goexit();
}

Class native_class = {
    .name = "test",
    .g_size = sizeof(TestG),
    .stack = STACK_64K,
    .detached = is_detached,
    .start_entry = entry,
};

static void
fill(G *gp, void *arg)
{
    TestG *from = arg, *to = (TestG *)gp;

    to->fn = from->fn;
    to->arg = from->arg;
    atomic_store(&to->detached, 0u); /* sysmon may be looking at the last one's */
}

uint64_t
go(void (*fn)(void *), void *arg)
{
    TestG tg = {.fn = fn, .arg = arg};
    uint64_t id = newproc(NATIVE, entry, fill, &tg);

    CHECK(id != 0);
    return id;
}

TestG *
native_adopt(void)
{
    TestG *tg = calloc(1, sizeof(*tg)); /* never freed: sysmon may be looking at it when the thread ends */

    CHECK(tg != NULL && getm() == NULL);
    tg->g.cls = &native_class;
    CHECK(adopt_thread(NATIVE, &tg->g) != NULL);
    CHECK(getg() == &tg->g);
    return tg;
}

void
native_disown(void)
{
    disown_thread(getm());
    CHECK(getm() == NULL);
}

void
native_start(uint32_t nprocs)
{
    CHECK_EQ(schedinit(SET_NATIVE, &native_class, nprocs), GMP_OK);
    native_adopt();
}

void
blocking(bool on)
{
    atomic_store(&((TestG *)getg())->detached, on);
}

void
done(void)
{
    atomic_xadd(&finished, 1);
}

void
wait_done(long n)
{
    while (atomic_load(&finished) < seen + n)
        gosleep(100 * US);
    CHECK_EQ(atomic_load(&finished), seen + n);
    seen += n;
}

void
quiet(void)
{
    int64_t deadline = nanotime() + 10 * SEC;
    Sched *s = NATIVE;

    for (;;) {
        bool still;
        mutex_lock(&s->lock);
        still = s->runq.n == 0 && atomic_load(&s->nmspinning) == 0 && s->npidle + 1 >= s->np && s->nmidle + 1 >= s->nm;
        mutex_unlock(&s->lock);
        for (uint32_t i = 0; i < s->np; i++)
            still &= runqempty(s->allp[i]) && atomic_load(&s->allp[i]->timers.next) == 0;
        if (still && num_goroutine(s) == 0)
            return;
        if (nanotime() > deadline)
            test_fail(__FILE__, __LINE__, "not quiet: %lld goroutines, %u queued, %u spinning, %u of %u Ps and %u of %u Ms idle",
                      (long long)num_goroutine(s), s->runq.n, s->nmspinning, s->npidle, s->np, s->nmidle, s->nm);
        sys_usleep(100); /* not a scheduling point: the others must get there without this thread */
    }
}

uint64_t
test_seed(void)
{
    static uint64_t seed; /* atomic */
    uint64_t now = atomic_load(&seed);

    if (now == 0) {
        const char *env = getenv("GMP_SEED");
        now = env != NULL ? strtoull(env, NULL, 0) : (uint64_t)nanotime() % 1000000007;
        if (atomic_cas(&seed, (uint64_t)0, now))
            LOG("GMP_SEED=%llu\n", (unsigned long long)now);
        now = atomic_load(&seed);
    }
    return now;
}

Rng
rng_new(uint64_t seed, uint64_t stream)
{
    Rng r = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (stream + 1) * UINT64_C(0xd1b54a32d192ed03);

    for (int i = 0; i < 4; i++)
        rng(&r, 1);
    return r;
}

uint32_t
rng(Rng *r, uint32_t n)
{
    uint64_t x = *r != 0 ? *r : 1;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *r = x;
    return (uint32_t)((x >> 32) * n >> 32);
}

bool
waits_on(struct gmp_chan *ch)
{
    Hchan *c = (Hchan *)ch;
    spin_lock(&c->lock);
    bool some = c->recvq.first != NULL || c->sendq.first != NULL;
    spin_unlock(&c->lock);
    return some;
}
