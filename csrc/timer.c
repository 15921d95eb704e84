/* timer.c: a 4-ary heap of timers per P.
 *
 * Invariants, under Timers.lock:
 *   1. heap[i].t->index == i + 1 and heap[i].when == heap[i].t->when.
 *   2. heap[(i - 1) / 4].when <= heap[i].when.
 *   3. next == heap[0].when, or 0 when the heap is empty; it may be read without the lock as a hint.
 * A timer that fires leaves the heap first; its function runs without the lock.  So a timer_del that returns false may be
 * followed by the function's call: functions carry the seq they were armed with and recognise that they are late.
 * Deletion is immediate (each timer knows its place), not lazy as in Go: an abandoned timeout pins no goroutine, and a heap is no
 * reason to keep a timer's owner alive.  Timers in memory that may be freed (channel timers) are taken out by timer_stop, which
 * also waits for a call of the function that has begun; those of goroutines and descriptors are never freed.
 */
#include "runtime.h"

static void
set_entry(Timers *ts, uint32_t i, TimerEntry e)
{
    ts->heap[i] = e;
    e.t->index = (int32_t)i + 1;
}

static void
sift_up(Timers *ts, uint32_t i, TimerEntry e)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 4;
        if (ts->heap[parent].when <= e.when)
            break;
        set_entry(ts, i, ts->heap[parent]);
        i = parent;
    }
    set_entry(ts, i, e);
}

static void
sift_down(Timers *ts, uint32_t i, TimerEntry e)
{
    for (;;) {
        uint32_t first = i * 4 + 1;
        if (first >= ts->len)
            break;
        uint32_t end = first + 4 < ts->len ? first + 4 : ts->len;
        uint32_t least = first;
        for (uint32_t c = first + 1; c < end; c++)
            if (ts->heap[c].when < ts->heap[least].when)
                least = c;
        if (ts->heap[least].when >= e.when)
            break;
        set_entry(ts, i, ts->heap[least]);
        i = least;
    }
    set_entry(ts, i, e);
}

static void
update_next(Timers *ts)
{
    atomic_store(&ts->next, ts->len ? ts->heap[0].when : 0); /* pairs with the re-check of an M that goes idle */
}

static void
remove_at(Timers *ts, uint32_t i)
{
    ts->heap[i].t->index = 0;
    TimerEntry last = ts->heap[--ts->len];
    if (i == ts->len)
        return;
    if (i > 0 && ts->heap[(i - 1) / 4].when > last.when)
        sift_up(ts, i, last);
    else
        sift_down(ts, i, last);
}

/* The lock of the heap that has t. */
static Timers *
lock_heap_of(Timer *t)
{
    for (;;) {
        Timers *ts = atomic_load_relaxed(&t->heap);
        if (ts == NULL)
            return NULL;
        mutex_lock(&ts->lock);
        if (atomic_load_relaxed(&t->heap) == ts)
            return ts;
        mutex_unlock(&ts->lock); /* moved in between */
    }
}

/* Room for n more.  Lock held. */
static bool
grow(Timers *ts, uint32_t n)
{
    if (ts->cap - ts->len >= n)
        return true;
    uint32_t cap = ts->cap ? ts->cap : 64;
    while (cap - ts->len < n)
        cap *= 2;
    TimerEntry *heap = g_realloc(ts->heap, cap * sizeof *heap);
    if (heap == NULL)
        return false;
    ts->heap = heap;
    ts->cap = cap;
    return true;
}

/* Arms t, which must not be armed.  The caller then tells the sleeper if this one comes first. */
int
timer_add(Timers *ts, Timer *t, int64_t when, TimerFn fn, void *arg, uint32_t seq)
{
    if (when <= 0)
        when = 1; /* 0 means "none" in next */
    mutex_lock(&ts->lock);
    if (GMP_UNLIKELY(ts->heir != NULL)) {
        Timers *heir = ts->heir;
        mutex_unlock(&ts->lock);
        return timer_add(heir, t, when, fn, arg, seq);
    }
    if (GMP_UNLIKELY(t->life != ts->life)) {
        t->life = ts->life;
        t->index = 0;
        t->firing = 0;
        t->stopping = false;
    }
    if (GMP_UNLIKELY(t->stopping)) { /* fn, while timer_stop waits for it */
        mutex_unlock(&ts->lock);
        return GMP_ESTATE;
    }
    GMP_CHECK(t->index == 0);
    if (GMP_UNLIKELY(ts->len == ts->cap) && !grow(ts, 1)) {
        mutex_unlock(&ts->lock);
        return GMP_ENOMEM;
    }
    t->when = when;
    t->fn = fn;
    t->arg = arg;
    t->seq = seq;
    atomic_store_relaxed(&t->heap, ts);
    sift_up(ts, ts->len++, (TimerEntry){when, t});
    if (t->index == 1)
        update_next(ts);
    mutex_unlock(&ts->lock);
    return GMP_OK;
}

/* stop: keeps fn, if it runs, from arming t again.  *firing: it does. */
static bool
del(Timer *t, bool stop, bool *firing)
{
    Timers *ts = lock_heap_of(t);
    *firing = false;
    if (ts == NULL)
        return false;
    bool current = t->life == ts->life;
    bool armed = current && t->index != 0;
    if (armed) {
        bool first = t->index == 1;
        remove_at(ts, (uint32_t)t->index - 1);
        if (first)
            update_next(ts);
    }
    *firing = current && t->firing != 0;
    t->stopping = stop && *firing;
    mutex_unlock(&ts->lock);
    return armed;
}

bool
timer_del(Timer *t)
{
    bool firing;
    return del(t, false, &firing);
}

bool
timer_stop(Timer *t)
{
    bool firing, armed = del(t, true, &firing);
    while (firing) {
        sys_thread_yield();
        del(t, true, &firing);
    }
    return armed;
}

int64_t
timers_run(Timers *ts, int64_t now)
{
    int64_t next = atomic_load(&ts->next);
    if (next == 0 || next > now)
        return next;
    mutex_lock(&ts->lock);
    while (ts->len && ts->heap[0].when <= now) {
        Timer *t = ts->heap[0].t;
        TimerFn fn = t->fn;
        void *arg = t->arg;
        uint32_t seq = t->seq;
        remove_at(ts, 0);
        update_next(ts);
        bool stoppable = t->stoppable;
        t->firing += stoppable;
        mutex_unlock(&ts->lock);
        fn(arg, seq);
        mutex_lock(&ts->lock);
        if (stoppable)
            t->firing--;
    }
    next = ts->len ? ts->heap[0].when : 0;
    mutex_unlock(&ts->lock);
    return next;
}

/* Forgets all timers and frees the heap. */
void
timers_clear(Timers *ts)
{
    for (uint32_t i = 0; i < ts->len; i++)
        ts->heap[i].t->index = 0;
    g_free(ts->heap);
    *ts = (Timers){0};
}

int
timers_move(Timers *from, Timers *to)
{
    mutex_lock(&from->lock);
    mutex_lock(&to->lock);
    int code = grow(to, from->len) ? GMP_OK : GMP_ENOMEM;
    if (code == GMP_OK) {
        for (uint32_t i = 0; i < from->len; i++) {
            atomic_store_relaxed(&from->heap[i].t->heap, to);
            sift_up(to, to->len++, from->heap[i]);
        }
        update_next(to);
        from->len = 0;
        update_next(from);
        from->heir = to;
    }
    mutex_unlock(&to->lock);
    mutex_unlock(&from->lock);
    return code;
}

void
timers_reopen(Timers *ts)
{
    mutex_lock(&ts->lock);
    ts->heir = NULL;
    mutex_unlock(&ts->lock);
}

void
timers_afterfork_child(Timers *ts)
{
    *ts = (Timers){.life = ts->life + 1};
}
