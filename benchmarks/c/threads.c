/* threads.c: the shapes on POSIX threads: semaphores to take turns, a mutex and two conditions for a buffer. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "twin.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct Task {
    long n;
    uint64_t out;
    sem_t a, b;
    pthread_mutex_t m;
    pthread_cond_t readable, writable;
    long *ring, cap, head, tail;
    bool closed;
} Task;

static pthread_t
start(void *(*fn)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_t t;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    need(pthread_create(&t, &attr, fn, arg) == 0, "pthread_create");
    pthread_attr_destroy(&attr);
    return t;
}

static void *
yields(void *arg)
{
    for (long i = 0; i < ((Task *)arg)->n; i++)
        sched_yield();
    return NULL;
}

static void
yield(Round *r)
{
    Task t = {.n = r->ops / r->n};
    pthread_t *th = calloc((size_t)r->n, sizeof *th);
    r->ops = t.n * r->n;
    round_start(r);
    for (long i = 0; i < r->n; i++)
        th[i] = start(yields, &t);
    for (long i = 0; i < r->n; i++)
        pthread_join(th[i], NULL);
    round_stop(r);
    free(th);
}

static void *
ends(void *arg)
{
    return arg;
}

static void
spawn_join(Round *r)
{
    round_start(r);
    for (long i = 0; i < r->ops; i++)
        pthread_join(start(ends, NULL), NULL);
    round_stop(r);
}

static void
spawn_burst(Round *r)
{
    pthread_t *th = calloc((size_t)r->ops, sizeof *th);
    round_start(r);
    for (long i = 0; i < r->ops; i++)
        th[i] = start(ends, NULL);
    for (long i = 0; i < r->ops; i++)
        pthread_join(th[i], NULL);
    round_stop(r);
    free(th);
}

static void *
answers(void *arg)
{
    Task *t = arg;
    for (long i = 0; i < t->n; i++) {
        sem_wait(&t->a);
        sem_post(&t->b);
    }
    return NULL;
}

static void
round_trip(Round *r)
{
    Task t = {.n = r->ops};
    sem_init(&t.a, 0, 0);
    sem_init(&t.b, 0, 0);
    pthread_t th = start(answers, &t);
    round_start(r);
    for (long i = 0; i < r->ops; i++) {
        sem_post(&t.a);
        sem_wait(&t.b);
    }
    round_stop(r);
    pthread_join(th, NULL);
}

static void
put(Task *t, long x)
{
    pthread_mutex_lock(&t->m);
    while (t->tail - t->head == t->cap)
        pthread_cond_wait(&t->writable, &t->m);
    t->ring[t->tail++ % t->cap] = x;
    pthread_cond_signal(&t->readable);
    pthread_mutex_unlock(&t->m);
}

static bool
get(Task *t, long *x)
{
    pthread_mutex_lock(&t->m);
    while (t->tail == t->head && !t->closed)
        pthread_cond_wait(&t->readable, &t->m);
    bool some = t->tail != t->head;
    if (some)
        *x = t->ring[t->head++ % t->cap];
    pthread_cond_signal(&t->writable);
    pthread_mutex_unlock(&t->m);
    return some;
}

static void
finish(Task *t)
{
    pthread_mutex_lock(&t->m);
    t->closed = true;
    pthread_cond_broadcast(&t->readable);
    pthread_mutex_unlock(&t->m);
}

static void
queue_init(Task *t, long cap)
{
    *t = (Task){.cap = cap, .ring = calloc((size_t)cap, sizeof *t->ring)};
    pthread_mutex_init(&t->m, NULL);
    pthread_cond_init(&t->readable, NULL);
    pthread_cond_init(&t->writable, NULL);
}

static void *
puts_all(void *arg)
{
    Task *t = arg;
    for (long i = 0; i < t->n; i++)
        put(t, i);
    finish(t);
    return NULL;
}

static void
buffered(Round *r)
{
    Task t;
    long x;
    queue_init(&t, r->n);
    t.n = r->ops;
    pthread_t th = start(puts_all, &t);
    round_start(r);
    while (get(&t, &x))
        ;
    round_stop(r);
    pthread_join(th, NULL);
    free(t.ring);
}

static void
mutex(Round *r)
{
    pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    pthread_t second = start(ends, NULL); /* else glibc knows that there is one thread only */
    round_start(r);
    for (long i = 0; i < r->ops; i++) {
        pthread_mutex_lock(&m);
        pthread_mutex_unlock(&m);
    }
    round_stop(r);
    pthread_join(second, NULL);
}

static void *
locks(void *arg)
{
    Task *t = arg;
    for (long i = 0; i < t->n; i++) {
        pthread_mutex_lock(&t->m);
        sched_yield();
        pthread_mutex_unlock(&t->m);
    }
    return NULL;
}

static void
contended(Round *r)
{
    Task t = {.n = r->ops / r->n};
    pthread_t *th = calloc((size_t)r->n, sizeof *th);
    pthread_mutex_init(&t.m, NULL);
    r->ops = t.n * r->n;
    round_start(r);
    for (long i = 0; i < r->n; i++)
        th[i] = start(locks, &t);
    for (long i = 0; i < r->n; i++)
        pthread_join(th[i], NULL);
    round_stop(r);
    free(th);
}

static void *
burns(void *arg)
{
    Task *t = arg;
    t->out = burn((uint64_t)(uintptr_t)arg, t->n);
    return NULL;
}

static void
cpu(Round *r)
{
    Task t[16];
    pthread_t th[16];
    round_start(r);
    for (long i = 0; i < r->n; i++) {
        t[i] = (Task){.n = r->ops};
        th[i] = start(burns, &t[i]);
    }
    for (long i = 0; i < r->n; i++)
        pthread_join(th[i], NULL);
    round_stop(r);
}

typedef struct Pair {
    Task in, out;
} Pair;

static void *
sums(void *arg)
{
    Pair *p = arg;
    long x;
    while (get(&p->in, &x))
        put(&p->out, (long)burn((uint64_t)x, 1000));
    return NULL;
}

static void
sum(Round *r)
{
    Pair p;
    pthread_t th[16], dealer;
    uint64_t total = 0;
    long part;
    queue_init(&p.in, 64);
    queue_init(&p.out, 64);
    p.in.n = r->ops;
    round_start(r);
    dealer = start(puts_all, &p.in);
    for (long i = 0; i < r->n; i++)
        th[i] = start(sums, &p);
    for (long i = 0; i < r->ops; i++) {
        need(get(&p.out, &part), "sum");
        total += (uint64_t)part;
    }
    pthread_join(dealer, NULL);
    for (long i = 0; i < r->n; i++)
        pthread_join(th[i], NULL);
    round_stop(r);
    need(total != 0, "sum");
    free(p.in.ring);
    free(p.out.ring);
}

static void *
waits(void *arg)
{
    Task *t = arg;
    sem_post(&t->b);
    sem_wait(&t->a);
    return NULL;
}

/* Resident bytes of the process; the kernel's 16 KiB of stack per thread and its own structures come on top. */
static void
parked(Round *r)
{
    Task t = {0};
    pthread_t *th = calloc((size_t)r->ops, sizeof *th);
    sem_init(&t.a, 0, 0);
    sem_init(&t.b, 0, 0);
    double before = resident(), begin, released;
    round_start(r);
    begin = r->wall;
    for (long i = 0; i < r->ops; i++)
        th[i] = start(waits, &t);
    for (long i = 0; i < r->ops; i++)
        sem_wait(&t.b);
    round_figure(r, "create_s", seconds() - begin);
    round_figure(r, "rss", (resident() - before) / (double)r->ops);
    released = seconds();
    for (long i = 0; i < r->ops; i++)
        sem_post(&t.a);
    for (long i = 0; i < r->ops; i++)
        pthread_join(th[i], NULL);
    round_figure(r, "release_s", seconds() - released);
    round_stop(r);
    free(th);
}

const Shape thread_shapes[] = {
    {"native_yield_2", yield},
    {"native_yield_1000", yield},
    {"native_spawn_join", spawn_join},
    {"native_spawn_burst", spawn_burst},
    {"native_round_trip", round_trip},
    {"native_buffered", buffered},
    {"native_mutex", mutex},
    {"native_contended", contended},
    {"native_cpu_1", cpu},
    {"native_cpu_2", cpu},
    {"native_sum", sum},
    {"native_parked", parked},
    {0},
};
