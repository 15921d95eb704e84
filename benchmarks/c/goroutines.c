/* goroutines.c: the shapes on gmp.h.  All work is done by goroutines; the main thread waits for the first of them. */
#include "twin.h"

#include <gmp.h>

#include <stdlib.h>

#define OK(call) need((call) == GMP_OK, #call)
#define WORD(x) &(x), sizeof(x)

static gmp_chan *
chan(size_t size, size_t cap)
{
    gmp_chan *ch;
    OK(gmp_chan_new(&ch, size, cap));
    return ch;
}

typedef struct Task {
    Round *r;
    gmp_chan *a, *b;
    gmp_mutex *m;
    gmp_waitgroup *wg;
    long n;
    uint64_t out;
} Task;

static void
in_goroutine(Round *r, gmp_func fn)
{
    gmp_waitgroup *wg;
    Task t = {.r = r};
    OK(gmp_waitgroup_new(&wg));
    OK(gmp_waitgroup_go(wg, fn, &t, GMP_STACK_64K));
    OK(gmp_waitgroup_wait(wg, -1));
    OK(gmp_waitgroup_free(wg));
}

#define SHAPE(name)                                                                                                    \
    static void name##_in(void *arg);                                                                                  \
    static void name(Round *r)                                                                                         \
    {                                                                                                                  \
        in_goroutine(r, name##_in);                                                                                    \
    }                                                                                                                  \
    static void name##_in(void *arg)

/* ---- yield ---- */

static void
yields(void *arg)
{
    Task *t = arg;
    for (long i = 0; i < t->n; i++)
        gmp_yield();
}

SHAPE(yield)
{
    Round *r = ((Task *)arg)->r;
    Task t = {.n = r->ops / r->n};
    gmp_waitgroup *wg;
    r->ops = t.n * r->n;
    OK(gmp_waitgroup_new(&wg));
    round_start(r);
    for (long i = 0; i < r->n; i++)
        OK(gmp_waitgroup_go(wg, yields, &t, GMP_STACK_2K));
    OK(gmp_waitgroup_wait(wg, -1));
    round_stop(r);
    OK(gmp_waitgroup_free(wg));
}

/* ---- spawn ---- */

static void
tells(void *arg)
{
    OK(gmp_chan_send(arg, NULL, 0, -1));
}

SHAPE(spawn_join)
{
    Round *r = ((Task *)arg)->r;
    gmp_chan *done = chan(0, 0);
    round_start(r);
    for (long i = 0; i < r->ops; i++) {
        OK(gmp_go(tells, done, GMP_STACK_2K));
        OK(gmp_chan_recv(done, NULL, 0, -1));
    }
    round_stop(r);
    OK(gmp_yield());
    OK(gmp_chan_free(done));
}

static void
ends(void *arg)
{
    gmp_waitgroup_done(arg);
}

static void
burst(Round *r, int stack)
{
    gmp_waitgroup *wg;
    OK(gmp_waitgroup_new(&wg));
    round_start(r);
    OK(gmp_waitgroup_add(wg, r->ops));
    for (long i = 0; i < r->ops; i++)
        OK(gmp_go(ends, wg, stack));
    OK(gmp_waitgroup_wait(wg, -1));
    round_stop(r);
    OK(gmp_waitgroup_free(wg));
}

SHAPE(spawn_burst)
{
    burst(((Task *)arg)->r, GMP_STACK_2K);
}

SHAPE(spawn_burst_64k)
{
    burst(((Task *)arg)->r, GMP_STACK_64K);
}

/* ---- channels ---- */

static void
sends_back(void *arg)
{
    Task *t = arg;
    int64_t x;
    while (gmp_chan_recv(t->a, WORD(x), -1) == GMP_OK)
        OK(gmp_chan_send(t->b, WORD(x), -1));
    OK(gmp_waitgroup_done(t->wg));
}

SHAPE(round_trip)
{
    Round *r = ((Task *)arg)->r;
    Task t = {.a = chan(8, 0), .b = chan(8, 0)};
    OK(gmp_waitgroup_new(&t.wg));
    OK(gmp_waitgroup_add(t.wg, 1));
    OK(gmp_go(sends_back, &t, GMP_STACK_2K));
    round_start(r);
    for (int64_t i = 0, x; i < r->ops; i++) {
        OK(gmp_chan_send(t.a, WORD(i), -1));
        OK(gmp_chan_recv(t.b, WORD(x), -1));
    }
    round_stop(r);
    OK(gmp_chan_close(t.a));
    OK(gmp_waitgroup_wait(t.wg, -1));
    OK(gmp_chan_free(t.a));
    OK(gmp_chan_free(t.b));
    OK(gmp_waitgroup_free(t.wg));
}

static void
sends_all(void *arg)
{
    Task *t = arg;
    for (int64_t i = 0; i < t->n; i++)
        OK(gmp_chan_send(t->a, WORD(i), -1));
    OK(gmp_chan_close(t->a));
}

SHAPE(buffered)
{
    Round *r = ((Task *)arg)->r;
    Task t = {.a = chan(8, (size_t)r->n), .n = r->ops};
    int64_t x;
    OK(gmp_go(sends_all, &t, GMP_STACK_2K));
    round_start(r);
    while (gmp_chan_recv(t.a, WORD(x), -1) == GMP_OK)
        ;
    round_stop(r);
    OK(gmp_chan_free(t.a));
}

/* ---- mutex ---- */

SHAPE(mutex)
{
    Round *r = ((Task *)arg)->r;
    gmp_mutex *m;
    OK(gmp_mutex_new(&m));
    round_start(r);
    for (long i = 0; i < r->ops; i++) {
        gmp_mutex_lock(m, -1);
        gmp_mutex_unlock(m);
    }
    round_stop(r);
    OK(gmp_mutex_free(m));
}

static void
locks(void *arg)
{
    Task *t = arg;
    for (long i = 0; i < t->n; i++) {
        gmp_mutex_lock(t->m, -1);
        gmp_yield();
        gmp_mutex_unlock(t->m);
    }
}

SHAPE(contended)
{
    Round *r = ((Task *)arg)->r;
    Task t = {.n = r->ops / r->n};
    r->ops = t.n * r->n;
    OK(gmp_mutex_new(&t.m));
    OK(gmp_waitgroup_new(&t.wg));
    round_start(r);
    for (long i = 0; i < r->n; i++)
        OK(gmp_waitgroup_go(t.wg, locks, &t, GMP_STACK_2K));
    OK(gmp_waitgroup_wait(t.wg, -1));
    round_stop(r);
    OK(gmp_waitgroup_free(t.wg));
    OK(gmp_mutex_free(t.m));
}

/* ---- skynet: a tree of goroutines, ten children each, whose leaves add up their numbers ---- */

typedef struct Sky {
    gmp_chan *out;
    int64_t num, size;
} Sky;

static void
skynet_node(void *arg)
{
    Sky s = *(Sky *)arg; /* the parent's stack holds it until it has heard from all */
    int64_t sum = 0, x;
    if (s.size == 1) {
        OK(gmp_chan_send(s.out, WORD(s.num), -1));
        return;
    }
    Sky child[10];
    gmp_chan *in = chan(8, 0);
    for (int i = 0; i < 10; i++) {
        child[i] = (Sky){in, s.num + i * (s.size / 10), s.size / 10};
        OK(gmp_go(skynet_node, &child[i], GMP_STACK_2K));
    }
    for (int i = 0; i < 10; i++) {
        OK(gmp_chan_recv(in, WORD(x), -1));
        sum += x;
    }
    OK(gmp_chan_free(in));
    OK(gmp_chan_send(s.out, WORD(sum), -1));
}

SHAPE(skynet)
{
    Round *r = ((Task *)arg)->r;
    gmp_chan *out = chan(8, 0);
    Sky root = {out, 0, r->ops};
    int64_t sum;
    round_start(r);
    OK(gmp_go(skynet_node, &root, GMP_STACK_2K));
    OK(gmp_chan_recv(out, WORD(sum), -1));
    round_stop(r);
    need(sum == r->ops / 2 * (r->ops - 1), "skynet: wrong sum");
    OK(gmp_chan_free(out));
}

/* ---- sieve: ops primes ---- */

typedef struct Filter {
    gmp_chan *in, *out;
    int64_t prime;
    gmp_waitgroup *wg;
} Filter;

static void
generates(void *arg)
{
    Filter *f = arg;
    for (int64_t i = 2; gmp_chan_send(f->out, WORD(i), -1) == GMP_OK; i++)
        ;
}

static void
filters(void *arg)
{
    Filter *f = arg;
    int64_t i;
    while (gmp_chan_recv(f->in, WORD(i), -1) == GMP_OK)
        if (i % f->prime != 0 && gmp_chan_send(f->out, WORD(i), -1) != GMP_OK)
            break;
    gmp_chan_close(f->in);
}

SHAPE(sieve)
{
    Round *r = ((Task *)arg)->r;
    Filter *f = calloc((size_t)r->ops + 1, sizeof *f);
    gmp_waitgroup *wg;
    int64_t prime = 0;
    need(f != NULL, "memory");
    OK(gmp_waitgroup_new(&wg));
    round_start(r);
    f[0].out = chan(8, 0);
    OK(gmp_waitgroup_go(wg, generates, &f[0], GMP_STACK_2K));
    for (long i = 1; i <= r->ops; i++) {
        OK(gmp_chan_recv(f[i - 1].out, WORD(prime), -1));
        f[i] = (Filter){f[i - 1].out, chan(8, 0), prime, wg};
        OK(gmp_waitgroup_go(wg, filters, &f[i], GMP_STACK_2K));
    }
    round_stop(r);
    OK(gmp_chan_close(f[r->ops].out));
    OK(gmp_waitgroup_wait(wg, -1));
    for (long i = 0; i <= r->ops; i++)
        OK(gmp_chan_free(f[i].out));
    OK(gmp_waitgroup_free(wg));
    free(f);
}

/* ---- in parallel ---- */

static void
burns(void *arg)
{
    Task *t = arg;
    t->out = burn((uint64_t)(uintptr_t)arg, t->n);
}

/* n goroutines, ops steps each. */
SHAPE(cpu)
{
    Round *r = ((Task *)arg)->r;
    Task t[16];
    gmp_waitgroup *wg;
    OK(gmp_waitgroup_new(&wg));
    round_start(r);
    for (long i = 0; i < r->n; i++) {
        t[i] = (Task){.n = r->ops};
        OK(gmp_waitgroup_go(wg, burns, &t[i], GMP_STACK_2K));
    }
    OK(gmp_waitgroup_wait(wg, -1));
    round_stop(r);
    OK(gmp_waitgroup_free(wg));
}

static void
sums(void *arg)
{
    Task *t = arg;
    int64_t chunk;
    while (gmp_chan_recv(t->a, WORD(chunk), -1) == GMP_OK) {
        uint64_t part = burn((uint64_t)chunk, 1000);
        OK(gmp_chan_send(t->b, WORD(part), -1));
    }
}

static void
deals(void *arg)
{
    sends_all(arg);
}

/* Parallel sum: ops chunks of work go to n workers by one channel, the results come back by another. */
SHAPE(sum)
{
    Round *r = ((Task *)arg)->r;
    Task t = {.a = chan(8, 64), .b = chan(8, 64), .n = r->ops};
    uint64_t total = 0, part;
    OK(gmp_waitgroup_new(&t.wg));
    round_start(r);
    OK(gmp_waitgroup_go(t.wg, deals, &t, GMP_STACK_2K));
    for (long i = 0; i < r->n; i++)
        OK(gmp_waitgroup_go(t.wg, sums, &t, GMP_STACK_2K));
    for (long i = 0; i < r->ops; i++) {
        OK(gmp_chan_recv(t.b, WORD(part), -1));
        total += part;
    }
    OK(gmp_waitgroup_wait(t.wg, -1));
    round_stop(r);
    need(total != 0, "sum");
    OK(gmp_chan_free(t.a));
    OK(gmp_chan_free(t.b));
    OK(gmp_waitgroup_free(t.wg));
}

/* ---- memory: ops goroutines wait on one channel ---- */

static void
waits(void *arg)
{
    Task *t = arg;
    gmp_waitgroup_done(t->wg);
    gmp_chan_recv(t->a, NULL, 0, -1);
}

static void
parked_on(Round *r, int stack)
{
    Task t = {.a = chan(0, 0)};
    gmp_waitgroup *gone;
    OK(gmp_waitgroup_new(&t.wg));
    OK(gmp_waitgroup_new(&gone));
    OK(gmp_waitgroup_add(t.wg, r->ops));
    double before = resident(), begin, released;
    round_start(r);
    begin = r->wall;
    for (long i = 0; i < r->ops; i++)
        OK(gmp_waitgroup_go(gone, waits, &t, stack));
    OK(gmp_waitgroup_wait(t.wg, -1));
    gmp_yield();
    round_figure(r, "create_s", seconds() - begin);
    round_figure(r, "rss", (resident() - before) / (double)r->ops);
    released = seconds();
    OK(gmp_chan_close(t.a));
    OK(gmp_waitgroup_wait(gone, -1));
    round_figure(r, "release_s", seconds() - released);
    round_stop(r);
    OK(gmp_chan_free(t.a));
    OK(gmp_waitgroup_free(t.wg));
    OK(gmp_waitgroup_free(gone));
}

SHAPE(parked)
{
    parked_on(((Task *)arg)->r, GMP_STACK_2K);
}

SHAPE(parked_64k)
{
    parked_on(((Task *)arg)->r, GMP_STACK_64K);
}

const Shape goroutine_shapes[] = {
    {"native_yield_2", yield},
    {"native_yield_1000", yield},
    {"native_spawn_join", spawn_join},
    {"native_spawn_burst", spawn_burst},
    {"native_spawn_cold", spawn_burst},
    {"native_spawn_burst_64k", spawn_burst_64k},
    {"native_round_trip", round_trip},
    {"native_buffered", buffered},
    {"native_mutex", mutex},
    {"native_contended", contended},
    {"native_skynet", skynet},
    {"native_sieve", sieve},
    {"native_cpu_1", cpu},
    {"native_cpu_2", cpu},
    {"native_sum", sum},
    {"native_parked", parked},
    {"native_parked_64k", parked_64k},
    {0},
};
