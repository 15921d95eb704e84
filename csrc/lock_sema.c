/* lock_sema.c: futexsleep and futexwakeup where the system has no futex: a parking lot.
 *
 * Sleepers stand in a fixed table of queues, hashed by address, each with a pthread mutex; a sleeper is a struct on its
 * own stack with its own condition variable.  So a Mutex or Note is one word on every system, there is nothing to
 * create lazily and nothing to free, and a wake-up wakes one thread that sleeps on that very address.
 *   1. The sleeper compares *addr with val under the queue's lock, and queues itself under the same lock.
 *   2. The waker has changed *addr before it takes that lock: either the sleeper saw the change, or the waker
 *      sees the sleeper.
 *
 * Rejected: pthread objects inside each Mutex (Go's lock_sema keeps one semaphore an M): an allocation inside a lock
 * can fail, and a channel that is freed would have to destroy its mutex.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sys.h"

#ifdef GMP_LOCK_SEMA

#include <pthread.h>
#include <time.h>

typedef struct Sleeper {
    struct Sleeper *next;
    const uint32_t *addr;
    bool queued; /* guarded by the queue's lock; cleared by whoever takes it out */
    pthread_cond_t cond;
} Sleeper;

typedef struct SleepQueue {
    pthread_mutex_t lock;
    Sleeper *head; /* first in, first out */
} GMP_ALIGNED(GMP_CACHELINE) SleepQueue;

#define QUEUE_BITS 6
#define QUEUES (1 << QUEUE_BITS)
/* clang-format off */
#define INIT1 {PTHREAD_MUTEX_INITIALIZER, NULL}
/* clang-format on */
#define INIT4 INIT1, INIT1, INIT1, INIT1
#define INIT16 INIT4, INIT4, INIT4, INIT4
static SleepQueue queues[QUEUES] = {INIT16, INIT16, INIT16, INIT16};

static SleepQueue *
queue_of(const uint32_t *addr)
{
    return &queues[((uint64_t)(uintptr_t)addr * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - QUEUE_BITS)];
}

static void
cond_init(pthread_cond_t *cond)
{
#if defined(__APPLE__)
    GMP_CHECK(pthread_cond_init(cond, NULL) == 0);
#else
    pthread_condattr_t attr;

    GMP_CHECK(pthread_condattr_init(&attr) == 0);
    GMP_CHECK(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0);
    GMP_CHECK(pthread_cond_init(cond, &attr) == 0);
    pthread_condattr_destroy(&attr);
#endif
}

static void
cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t deadline)
{
    struct timespec ts;

    if (deadline < 0) {
        pthread_cond_wait(cond, lock);
        return;
    }
#if defined(__APPLE__)
    int64_t left = deadline - nanotime();
    left = left < 0 ? 0 : left;
    ts.tv_sec = (time_t)(left / 1000000000);
    ts.tv_nsec = (long)(left % 1000000000);
    pthread_cond_timedwait_relative_np(cond, lock, &ts);
#else
    ts.tv_sec = (time_t)(deadline / 1000000000);
    ts.tv_nsec = (long)(deadline % 1000000000);
    pthread_cond_timedwait(cond, lock, &ts);
#endif
}

/* Lock held.  Takes the sleeper *at out of q. */
static void
take_out(Sleeper **at)
{
    Sleeper *s = *at;

    *at = s->next;
    s->queued = false;
}

void
futexsleep(uint32_t *addr, uint32_t val, int64_t timeout_ns)
{
    SleepQueue *q = queue_of(addr);
    int64_t deadline = -1;
    Sleeper self, **at;

    if (timeout_ns >= 0) {
        int64_t now = nanotime();
        deadline = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
    }
    GMP_CHECK(pthread_mutex_lock(&q->lock) == 0);
    if (atomic_load(addr) == val) {
        self.next = NULL;
        self.addr = addr;
        self.queued = true;
        cond_init(&self.cond);
        for (at = &q->head; *at != NULL; at = &(*at)->next)
            ;
        *at = &self;
        while (self.queued) {
            cond_wait(&self.cond, &q->lock, deadline);
            if (self.queued && deadline >= 0 && nanotime() >= deadline) {
                for (at = &q->head; *at != &self; at = &(*at)->next)
                    ;
                take_out(at);
            }
        }
        pthread_cond_destroy(&self.cond);
    }
    pthread_mutex_unlock(&q->lock);
}

void
futexsleep2(uint32_t *addr, uint32_t val, uint32_t *addr2, uint32_t val2, int64_t timeout_ns)
{
    if (*(volatile uint32_t *)addr2 == val2)
        futexsleep(addr, val, timeout_ns);
}

void
futexwakeup(uint32_t *addr)
{
    SleepQueue *q = queue_of(addr);
    Sleeper **at;

    GMP_CHECK(pthread_mutex_lock(&q->lock) == 0);
    for (at = &q->head; *at != NULL; at = &(*at)->next) {
        if ((*at)->addr == addr) {
            Sleeper *s = *at;
            take_out(at);
            pthread_cond_signal(&s->cond); /* with the lock held: s is gone as soon as it runs */
            break;
        }
    }
    pthread_mutex_unlock(&q->lock);
}

void
lock_after_fork(void)
{
    static const SleepQueue fresh = INIT1;

    for (int i = 0; i < QUEUES; i++)
        queues[i] = fresh;
}

#endif
