/* mc.c: a model checker for the core: every interleaving of a few threads, within bounds.
 *
 *   model [-l] [-q] [-v] [-x] [-b bounds] [name ...]
 *     -l lists; -q the short bounds, -b these ("3/0 2/1"); -v prints a failing interleaving; -x stops at the first failure
 *
 * How it explores
 *   1. A model's threads are fibres.  At each scheduling point (an atomic operation, a lock, a sleep) the explorer may go on
 *      with another thread.  One execution is a list of choices; the next one repeats all but the last that has an
 *      alternative, and takes that: depth first, by replay, from the same initial memory.
 *   2. Bounded: at most `preempt` times in an execution is a thread interrupted that could have gone on.  A thread that
 *      sleeps, ends or yields is left for free.  The bound grows from 0, so the first failure found has the fewest.  Who waits
 *      in a loop is left YIELDS times for whomever, then for who has waited longest, so that loops end.
 *   3. Pruned: a state (variables, arena, live stacks, who runs, what is left of the bounds) that was seen before is not
 *      explored again.  States are known by a 64-bit hash, as SPIN's hash compaction does: some 10^7 states against 2^64.
 *   4. When no thread can go on, the model's end check decides whether that is a deadlock.
 *
 * Memory order: each atomic variable keeps its last KEEP values, each with what its writer knew (a view: the newest value of
 * every variable that it must see).  A load may return any value not older than the reader's view, an old one costs one of
 * `stale`; acquire takes over the writer's view, release hands on one's own, seq_cst accesses and fences go through a common
 * view.  So relaxed, acquire, release and seq_cst differ as C11 lets them, with two exceptions: a store takes effect at once
 * in the order of execution (no load sees a value from a later store of its own thread's future), and a compare-and-swap,
 * failed ones too, sees the newest value, as on every machine we know.  Plain variables are simply memory: that they are not
 * raced for is ThreadSanitizer's business.
 *
 * Rejected: GenMC and CBMC (neither takes code that switches stacks; not in Debian 12); dynamic partial-order reduction
 * (with a preemption bound it has to take back most of what it saves, and hashing states does the same and more).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "mc.h"

#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#undef gobuf_switch
#undef snprintf
#undef fwrite

#define THREADS 8
#define SLOTS 24
#define TLS_WORDS 4
#define LOCS 160
#define KEEP 4
#define YIELDS 8 /* so often in an execution it is tried to leave a thread that yields for each other one */
#define SPINS 3  /* so often a thread may go on that waits for others; then it gives way to who has waited longest */
#define MAX_STEPS 20000
#define MAX_DEPTH 4096
#define ARENA ((size_t)64 << 10)
#define BASE ((char *)0x100000000000) /* fixed, so that hashes are the same in every run */
#define CANARY UINT64_C(0x5ca1ab1e0ddba11)

typedef uint16_t View[LOCS]; /* of each location, the number of the oldest value that may still be seen */

typedef enum State { RUN, LOCK, FUTEX, NOTE, WAIT, NAP, DONE } State;

typedef struct Thread {
    void *sp;
    State state;
    bool woken, timed, timedout;
    uint32_t *addr;
    bool (*cond)(void *);
    void *condarg;
    int64_t deadline;
    void *tls[TLS_WORDS];
    void (*fn)(void *);
    void *arg;
    char name[12];
    const char *at; /* for the trace */
    int line;
    bool may_sleep; /* when all is over */
    bool relaxed;   /* has yielded, and looked at nothing since */
    int spun;       /* yields since it was switched to */
    long ran;       /* when it was left last */
} Thread;

typedef struct Slot {
    char *lo;
    void **spp; /* where the context that is suspended on it was saved */
} Slot;

typedef struct Message {
    uint64_t val;
    View view;
} Message;

typedef struct Loc {
    void *addr;
    unsigned size;
    uint16_t last; /* number of the newest value */
    uint16_t first;
    Message msg[KEEP];
} Loc;

typedef struct Choice {
    uint8_t n, taken;
} Choice;

typedef struct Option {
    Thread *t;
    bool timeout;
    int preempt, yields; /* what it costs of the bounds */
} Option;

typedef struct Seen {
    uint64_t key;
    uint8_t preempt, stale, yields;
} Seen;

typedef enum Request { AT_CHOICE, AT_END, AT_FAILURE } Request;

/* All of the checker's own state, outside of what is restored between executions. */
typedef struct Mc {
    void *main_sp;
    Thread *cur;
    Request request;
    /* this execution */
    int nthreads, nslots, nlocs_used;
    int preempt, stale, yields; /* what is left of the bounds */
    bool weak;
    long steps;
    int64_t clock;
    size_t used; /* of the arena */
    void (*at_end)(void);
    void *forbidden;
    void *tls[TLS_WORDS]; /* the variables */
    int ntls;
    Thread thread[THREADS];
    Slot slot[SLOTS];
    /* the search */
    Choice stack[MAX_DEPTH];
    int depth, len;
    bool tracing;
    uint64_t executions, states;
    Seen *seen;
    size_t nseen, seencap;
    char failure[512];
    /* memory order */
    Loc loc[LOCS];
    uint16_t index[2048]; /* by address */
    int nlocs;
    View cur_view[THREADS], acq[THREADS], rel[THREADS], sc;
    /* what an execution starts from */
    size_t ndata;
    char data[64 << 10];
} Mc;

extern char __data_start[], _end[];
static Mc *mc;
static Model *models, **models_end = &models;

void
mc_register(Model *m)
{
    *models_end = m;
    models_end = &m->next;
}

static void *
map(void *at, size_t bytes)
{
    void *p = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED || (at != NULL && p != at)) {
        perror("mmap");
        exit(2);
    }
    return p;
}

static void
trace(const char *fmt, ...)
{
    va_list ap;

    if (!mc->tracing)
        return;
    if (mc->cur != NULL)
        printf("    %-10s %s:%d  ", mc->cur->name, mc->cur->at != NULL ? mc->cur->at : "", mc->cur->line);
    else
        printf("    %-10s ", "-");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

void
mc_note(const char *fmt, ...)
{
    char text[128];
    va_list ap;

    if (!mc->tracing)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    trace("-- %s", text);
}

static void
failed(const char *fmt, va_list ap)
{
    vsnprintf(mc->failure, sizeof mc->failure, fmt, ap);
    if (mc->cur == NULL) {
        fprintf(stderr, "model failed outside of its threads: %s\n", mc->failure);
        exit(2);
    }
    mc->request = AT_FAILURE;
    gmp_switch(&mc->cur->sp, mc->main_sp);
    __builtin_unreachable();
}

static bool ending; /* mc_at_end's function runs */
static void *end_jump[5];

void
mc_fail(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (ending) {
        vsnprintf(mc->failure, sizeof mc->failure, fmt, ap);
        __builtin_longjmp(end_jump, 1);
    }
    failed(fmt, ap);
    __builtin_unreachable();
}

void
mc_throw(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (ending) {
        vsnprintf(mc->failure, sizeof mc->failure, fmt, ap);
        __builtin_longjmp(end_jump, 1);
    }
    failed(fmt, ap);
    __builtin_unreachable();
}

/* ---- memory order ---- */

static void
join(uint16_t *a, const uint16_t *b)
{
    for (int i = 0; i < mc->nlocs; i++)
        a[i] = a[i] > b[i] ? a[i] : b[i];
}

static uint64_t
peek(const void *p, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

static Message *
message(Loc *l, uint16_t number)
{
    return &l->msg[number % KEEP];
}

/* The location of p, its newest value brought up to what plain stores have made of it: everybody sees those. */
static int
locate(void *p, unsigned size)
{
    unsigned h = (unsigned)((uintptr_t)p * UINT64_C(0x9e3779b97f4a7c15) >> 53) % 2048;

    while (mc->index[h] != 0 && mc->loc[mc->index[h] - 1].addr != p)
        h = (h + 1) % 2048;
    if (mc->index[h] == 0) {
        if (mc->nlocs == LOCS) {
            fprintf(stderr, "model: more than %d atomic variables\n", LOCS);
            exit(2);
        }
        mc->loc[mc->nlocs].addr = p;
        mc->loc[mc->nlocs].size = size;
        mc->loc[mc->nlocs].last = 0;
        mc->index[h] = (uint16_t)++mc->nlocs;
    }
    int i = mc->index[h] - 1;
    Loc *l = &mc->loc[i];
    uint64_t v = peek(p, size);
    if (l->last == 0 || message(l, l->last)->val != v) {
        Message *m = message(l, ++l->last);
        m->val = v;
        memset(m->view, 0, sizeof m->view);
        l->first = l->last;
        for (int t = 0; t < THREADS; t++)
            mc->cur_view[t][i] = mc->acq[t][i] = mc->rel[t][i] = l->last;
        mc->sc[i] = l->last;
    }
    return i;
}

static uint32_t choose(uint32_t n);

/* The value that a load sees.  rmw: always the newest. */
static uint64_t
seen_value(int t, int i, McOrder o, bool rmw)
{
    Loc *l = &mc->loc[i];
    uint16_t low = l->first, number = l->last;

    if (low < mc->cur_view[t][i])
        low = mc->cur_view[t][i];
    if (o == MC_SEQ_CST && low < mc->sc[i])
        low = mc->sc[i];
    if (!rmw && mc->stale > 0 && low < l->last) {
        uint32_t n = (uint32_t)(l->last - low) + 1;
        uint32_t k = choose(n < (uint32_t)KEEP ? n : (uint32_t)KEEP);
        if (k > 0)
            mc->stale--;
        number = (uint16_t)(l->last - k);
    }
    Message *m = message(l, number);
    if (mc->cur_view[t][i] < number)
        mc->cur_view[t][i] = number;
    if (mc->acq[t][i] < number)
        mc->acq[t][i] = number;
    join(mc->acq[t], m->view);
    if (o == MC_ACQUIRE || o == MC_SEQ_CST)
        join(mc->cur_view[t], m->view);
    return m->val;
}

static void
new_value(int t, int i, uint64_t v, McOrder o, bool rmw)
{
    Loc *l = &mc->loc[i];
    View old;

    memset(old, 0, sizeof old);
    if (rmw)
        memcpy(old, message(l, l->last)->view, sizeof old);
    if (l->last == UINT16_MAX)
        mc_fail("a location was written too often");
    Message *m = message(l, ++l->last);
    if (l->last - l->first >= KEEP)
        l->first = (uint16_t)(l->last - KEEP + 1);
    mc->cur_view[t][i] = mc->acq[t][i] = l->last;
    m->val = v;
    memcpy(m->view, o == MC_RELEASE || o == MC_SEQ_CST ? mc->cur_view[t] : mc->rel[t], sizeof m->view);
    m->view[i] = l->last;
    join(m->view, old);
    if (o == MC_SEQ_CST)
        mc->sc[i] = l->last;
}

static uint64_t
masked(uint64_t v, unsigned size)
{
    return size == 8 ? v : v & ((UINT64_C(1) << size * 8) - 1);
}

static void point(const char *fn, int line, bool yield);
static void allowed(void *p);

static int
self(void)
{
    return (int)(mc->cur - mc->thread);
}

int
mc_self(void)
{
    return self();
}

uint64_t
mc_load(void *p, unsigned size, McOrder o, const char *fn, int line)
{
    point(fn, line, false);
    allowed(p);
    uint64_t v = peek(p, size);
    if (mc->weak && mc->cur != NULL)
        v = seen_value(self(), locate(p, size), o, false);
    trace("load  %p -> %llx%s", p, (unsigned long long)v, v != peek(p, size) ? "   (old)" : "");
    return v;
}

void
mc_store(void *p, unsigned size, uint64_t v, McOrder o, const char *fn, int line)
{
    point(fn, line, false);
    allowed(p);
    v = masked(v, size);
    trace("store %p <- %llx", p, (unsigned long long)v);
    if (mc->weak && mc->cur != NULL)
        new_value(self(), locate(p, size), v, o, false);
    memcpy(p, &v, size);
}

static uint64_t
rmw(void *p, unsigned size, uint64_t v, McOrder o)
{
    uint64_t old = peek(p, size);

    v = masked(v, size);
    if (mc->weak && mc->cur != NULL) {
        int i = locate(p, size);
        seen_value(self(), i, o, true);
        new_value(self(), i, v, o, true);
    }
    memcpy(p, &v, size);
    return old;
}

uint64_t
mc_rmw(void *p, unsigned size, McOp op, uint64_t v, McOrder o, const char *fn, int line)
{
    point(fn, line, false);
    allowed(p);
    uint64_t old = rmw(p, size, op == MC_XADD ? peek(p, size) + v : v, o);
    trace("%s  %p %llx -> %llx", op == MC_XADD ? "xadd" : "xchg", p, (unsigned long long)old,
          (unsigned long long)peek(p, size));
    return old;
}

bool
mc_cas(void *p, unsigned size, uint64_t was, uint64_t v, McOrder o, const char *fn, int line)
{
    point(fn, line, false);
    allowed(p);
    uint64_t old = peek(p, size);
    bool ok = old == masked(was, size);
    if (ok)
        rmw(p, size, v, o);
    else if (mc->weak && mc->cur != NULL)
        seen_value(self(), locate(p, size), o == MC_SEQ_CST ? o : MC_RELAXED, true);
    trace("cas   %p %llx: %llx -> %llx %s", p, (unsigned long long)old, (unsigned long long)masked(was, size),
          (unsigned long long)masked(v, size), ok ? "ok" : "no");
    return ok;
}

void
mc_fence(const char *fn, int line)
{
    point(fn, line, false);
    trace("fence");
    if (!mc->weak || mc->cur == NULL)
        return;
    int t = self();
    join(mc->cur_view[t], mc->acq[t]);
    join(mc->cur_view[t], mc->sc);
    memcpy(mc->sc, mc->cur_view[t], sizeof mc->sc);
    memcpy(mc->rel[t], mc->cur_view[t], sizeof mc->sc);
}

/* ---- scheduling ---- */

static bool
enabled(Thread *t)
{
    switch (t->state) {
    case RUN:
        return true;
    case LOCK:
        return *t->addr == 0;
    case FUTEX:
        return t->woken;
    case NOTE:
        return *t->addr == 1;
    case WAIT:
        return t->cond(t->condarg);
    case NAP: /* its time is up when all others sleep, or at the price of a preemption */
    case DONE:
        break;
    }
    return false;
}

void
mc_forbid(void *p)
{
    mc->forbidden = p;
}

static void
allowed(void *p)
{
    if (p == mc->forbidden && mc->cur != NULL)
        mc_fail("%s in %s:%d: %p is not to be touched any more", mc->cur->name, mc->cur->at, mc->cur->line, p);
}

static bool
times_out(Thread *t)
{
    return t->timed && t->state != RUN && t->state != DONE && !enabled(t);
}

/* Of the others, the one that has waited longest. */
static Thread *
longest_waiting(void)
{
    Thread *found = NULL;

    for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++)
        if (t != mc->cur && (enabled(t) || times_out(t)) && (found == NULL || t->ran < found->ran))
            found = t;
    return found;
}

/* Who may go on: the current thread first, so that the first path of a search has no preemption. */
static int
options(Option *opt, bool yield)
{
    Thread *cur = mc->cur, *next;
    bool on = cur != NULL && enabled(cur), costs = on && !yield;
    int n = 0;

    if (on && yield && (mc->yields == 0 || cur->spun > SPINS)) {
        next = cur->spun > SPINS ? longest_waiting() : NULL;
        opt[0] = (Option){next != NULL ? next : cur, next != NULL && !enabled(next), 0, 0};
        return 1;
    }
    if (on)
        opt[n++] = (Option){cur, false, 0, 0};
    if (!costs || mc->preempt > 0)
        for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++)
            if (t != cur && enabled(t))
                opt[n++] = (Option){t, false, costs, on && yield};
    costs = n > 0;
    if (!costs || mc->preempt > 0)
        for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++)
            if (times_out(t))
                opt[n++] = (Option){t, true, costs, 0};
    return n;
}

static void
enter(Option o, void **save)
{
    Thread *old = mc->cur;

    mc->preempt -= o.preempt;
    mc->yields -= o.yields;
    if (o.timeout) {
        o.t->timedout = true;
        if (mc->clock < o.t->deadline)
            mc->clock = o.t->deadline;
    }
    if (o.t != old) {
        if (old != NULL)
            old->ran = mc->steps;
        for (int i = 0; i < mc->ntls; i++) {
            if (old != NULL)
                memcpy(&old->tls[i], mc->tls[i], sizeof(void *));
            memcpy(mc->tls[i], &o.t->tls[i], sizeof(void *));
        }
        mc->cur = o.t;
        o.t->spun = 0;
    }
    if (save != &o.t->sp)
        gmp_switch(save, o.t->sp);
}

static bool at_yield; /* the choice that main is asked for is one at a yield */

static void
schedule(bool yield)
{
    Option opt[2 * THREADS];
    Thread *cur = mc->cur;
    int n = options(opt, yield), k = 0;

    if (n == 0) {
        mc->request = AT_END;
        gmp_switch(&cur->sp, mc->main_sp);
        return;
    }
    if (n > 1) {
        if (mc->depth == mc->len) {
            mc->request = AT_CHOICE;
            at_yield = yield;
            gmp_switch(&cur->sp, mc->main_sp);
            return;
        }
        if (mc->stack[mc->depth].n != n)
            mc_fail("the model itself is not deterministic");
        k = mc->stack[mc->depth++].taken;
    }
    enter(opt[k], &cur->sp);
}

static void
point(const char *fn, int line, bool yield)
{
    Thread *t = mc->cur;

    if (t == NULL)
        return;
    t->at = fn;
    t->line = line;
    t->relaxed = yield;
    t->spun += yield;
    if (++mc->steps > MAX_STEPS)
        mc_fail("%s in %s:%d: no end after %d steps", t->name, fn, line, MAX_STEPS);
    schedule(yield);
}

void
mc_yield(const char *fn, int line)
{
    if (mc->cur != NULL && !mc->cur->relaxed)
        point(fn, line, true);
}

/* A choice that is not between threads. */
static uint32_t
choose(uint32_t n)
{
    if (n < 2)
        return 0;
    if (mc->depth == mc->len) {
        if (mc->len == MAX_DEPTH)
            mc_fail("too many choices");
        mc->stack[mc->len++] = (Choice){(uint8_t)n, 0};
    }
    if (mc->stack[mc->depth].n != n)
        mc_fail("the model itself is not deterministic");
    return mc->stack[mc->depth++].taken;
}

uint32_t
mc_choose(uint32_t n)
{
    uint32_t k = choose(n);
    trace("-- chose %u of %u", k, n);
    return k;
}

/* ---- sleeping ---- */

/* Sleeps as t->state says until enabled; false when the time ran out first. */
static bool
sleep_until_enabled(State state, uint32_t *addr, int64_t timeout)
{
    Thread *t = mc->cur;

    t->state = state;
    t->addr = addr;
    t->timedout = false;
    t->timed = timeout > 0;
    t->deadline = timeout > 0 ? mc->clock + timeout : 0;
    if (++mc->steps > MAX_STEPS)
        mc_fail("%s: no end after %d steps", t->name, MAX_STEPS);
    schedule(false);
    t->state = RUN;
    t->timed = false;
    t->addr = NULL;
    t->relaxed = false;
    return !t->timedout;
}

void
mc_mutex_lock(Mutex *mu, const char *fn, int line)
{
    if (mc->cur != NULL) {
        mc->cur->at = fn;
        mc->cur->line = line;
        sleep_until_enabled(LOCK, &mu->key, -1);
    }
    if (mu->key != 0)
        mc_fail("%s:%d: the lock is held, by whom?", fn, line);
    rmw(&mu->key, sizeof mu->key, 1, MC_ACQUIRE);
    trace("lock  %p", (void *)mu);
}

/* No scheduling point: whoever waits for the lock has one when it takes it. */
void
mc_mutex_unlock(Mutex *mu, const char *fn, int line)
{
    if (mu->key != 1)
        mc_fail("%s:%d: unlock of an unlocked mutex", fn, line);
    rmw(&mu->key, sizeof mu->key, 0, MC_RELEASE);
    trace("unlock %p", (void *)mu);
}

void
mc_note_clear(Note *n)
{
    n->key = 0;
}

void
mc_note_wakeup(Note *n)
{
    point("note_wakeup", 0, false);
    if (rmw(&n->key, sizeof n->key, 1, MC_SEQ_CST) == 1)
        mc_fail("note %p woken twice", (void *)n);
    trace("note_wakeup %p", (void *)n);
}

bool
mc_note_sleep(Note *n, int64_t timeout)
{
    mc->cur->at = "note_sleep";
    mc->cur->line = 0;
    if (timeout == 0) {
        point("note_sleep", 0, true); /* who looks again and again waits for somebody's progress */
        if (n->key != 1)
            return false;
    }
    else if (!sleep_until_enabled(NOTE, &n->key, timeout)) {
        trace("note_sleep %p: time is up", (void *)n);
        return false;
    }
    rmw(&n->key, sizeof n->key, 1, MC_SEQ_CST);
    trace("note_sleep %p: woken", (void *)n);
    return true;
}

void
mc_futexsleep(uint32_t *addr, uint32_t val, int64_t timeout)
{
    point("futexsleep", 0, false);
    if (*addr != val || timeout == 0) { /* the kernel's own load: never an old value */
        trace("futexsleep %p: no", (void *)addr);
        return;
    }
    if (mc->preempt > 0 && choose(2) == 1) { /* a signal came: costs what an interruption costs */
        mc->preempt--;
        trace("futexsleep %p: returns early", (void *)addr);
        return;
    }
    mc->cur->woken = false;
    trace("futexsleep %p", (void *)addr);
    sleep_until_enabled(FUTEX, addr, timeout);
    trace("futexsleep %p: over", (void *)addr);
}

/* Which of several sleepers is woken is a choice. */
void
mc_futexwakeup(uint32_t *addr)
{
    Thread *asleep[THREADS];
    uint32_t n = 0;

    point("futexwakeup", 0, false);
    for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++)
        if (t->state == FUTEX && t->addr == addr && !t->woken)
            asleep[n++] = t;
    if (n > 0)
        asleep[choose(n)]->woken = true;
    trace("futexwakeup %p: of %u", (void *)addr, n);
}

bool
mc_timedwait(bool (*cond)(void *), void *arg, int64_t timeout)
{
    Thread *t = mc->cur;

    t->cond = cond;
    t->condarg = arg;
    bool ok = sleep_until_enabled(WAIT, NULL, timeout);
    if (mc->weak) /* whoever made it true did so under some lock: take all that is known */
        for (int i = 0; i < mc->nlocs; i++)
            mc->cur_view[self()][i] = mc->acq[self()][i] = mc->loc[i].last;
    return ok;
}

void
mc_wait(bool (*cond)(void *), void *arg)
{
    mc_timedwait(cond, arg, -1);
}

void
mc_nap(int64_t ns)
{
    mc->cur->at = "nap";
    mc->cur->line = 0;
    sleep_until_enabled(NAP, NULL, ns);
}

int64_t
mc_nanotime(void)
{
    return mc->clock;
}

/* ---- memory, stacks, threads ---- */

void *
mc_alloc(size_t size)
{
    size = (size + 63) & ~(size_t)63;
    if (mc->used + size > ARENA) {
        fprintf(stderr, "model: the arena is full\n");
        exit(2);
    }
    void *p = BASE + mc->used;
    mc->used += size;
    return p;
}

void *
mc_realloc(void *p, size_t size)
{
    void *q = mc_alloc(size);
    if (p != NULL)
        memcpy(q, p, size); /* more than there was: harmless in the arena */
    return q;
}

void *
mc_stack_alloc(void)
{
    if (mc->nslots == SLOTS) {
        fprintf(stderr, "model: too many stacks\n");
        exit(2);
    }
    Slot *s = &mc->slot[mc->nslots++];
    s->lo = BASE + ARENA + (size_t)(s - mc->slot) * MC_STACK;
    s->spp = NULL;
    memset(s->lo, 0, MC_STACK);
    *(uint64_t *)s->lo = CANARY;
    return s->lo;
}

static Slot *
slot_of(void *p)
{
    size_t i = (size_t)((char *)p - (BASE + ARENA)) / MC_STACK;
    return i < (size_t)mc->nslots ? &mc->slot[i] : NULL;
}

/* The core's own switch between contexts of one thread: notes where the old one was saved, for the hash. */
void
mc_switch(Gobuf *from, Gobuf *to)
{
    Slot *s = slot_of(__builtin_frame_address(0));
    if (s != NULL)
        s->spp = &from->sp;
    gmp_switch(&from->sp, to->sp);
}

static void
thread_main(void *arg)
{
    Thread *t = arg;

    t->fn(t->arg);
    t->state = DONE;
    schedule(false);
    __builtin_unreachable();
}

int
mc_thread(const char *name, void (*fn)(void *), void *arg)
{
    if (mc->nthreads == THREADS) {
        fprintf(stderr, "model: too many threads\n");
        exit(2);
    }
    int i = mc->nthreads++;
    Thread *t = &mc->thread[i];
    Gobuf buf = {0};

    memset(t, 0, sizeof *t);
    strncpy(t->name, name, sizeof t->name - 1);
    t->fn = fn;
    t->arg = arg;
    gobuf_init(&buf, (char *)mc_stack_alloc() + MC_STACK, thread_main, t);
    t->sp = buf.sp;
    if (mc->cur != NULL && mc->weak) {
        memcpy(mc->cur_view[i], mc->cur_view[self()], sizeof(View));
        memcpy(mc->acq[i], mc->cur_view[self()], sizeof(View));
        memset(mc->rel[i], 0, sizeof(View));
    }
    return i;
}

int
mc_thread_start(void (*fn)(void *), void *arg, const char *name, bool signals)
{
    char numbered[] = "M0";

    (void)name, (void)signals;
    numbered[1] = (char)('0' + mc->nthreads);
    mc_may_sleep(mc_thread(numbered, fn, arg));
    return GMP_OK;
}

void
mc_at_end(void (*fn)(void))
{
    mc->at_end = fn;
}

void
mc_tls(void *word)
{
    mc->tls[mc->ntls++] = word;
}

bool
mc_asleep(int thread)
{
    return mc->thread[thread].state != DONE;
}

void
mc_may_sleep(int thread)
{
    mc->thread[thread].may_sleep = true;
}

void
mc_check_ended(void)
{
    for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++)
        if (t->state != DONE && !t->may_sleep)
            mc_fail("deadlock: %s sleeps for ever (%s:%d)", t->name, t->at != NULL ? t->at : "?", t->line);
}

/* ---- states ---- */

static uint64_t lane[4];

static void
hash(const void *p, size_t n)
{
    const uint64_t *w = p;
    uint64_t a = lane[0], b = lane[1], c = lane[2], d = lane[3];

    for (n /= 8; n >= 4; n -= 4, w += 4) {
        a = (a ^ w[0]) * UINT64_C(0x9e3779b97f4a7c15);
        b = (b ^ w[1]) * UINT64_C(0xd1b54a32d192ed03);
        c = (c ^ w[2]) * UINT64_C(0xaef17502108ef2d9);
        d = (d ^ w[3]) * UINT64_C(0x94d049bb133111eb);
        a ^= a >> 29, b ^= b >> 29, c ^= c >> 29, d ^= d >> 29;
    }
    while (n-- > 0) {
        a = (a ^ *w++) * UINT64_C(0x9e3779b97f4a7c15);
        a ^= a >> 32;
    }
    lane[0] = b + 1, lane[1] = c, lane[2] = d, lane[3] = a; /* rotated: the order of the calls counts */
}

static void
hash_word(uint64_t w)
{
    hash(&w, sizeof w);
}

/* How far b lags behind the newest values: what of a view makes a difference. */
static void
hash_view(const uint16_t *v)
{
    uint64_t w = 0;

    for (int i = 0; i < mc->nlocs; i++) {
        uint64_t lag = (uint64_t)(mc->loc[i].last - v[i]);
        w |= (lag < KEEP - 1 ? lag : KEEP - 1) << (i % 32 * 2);
        if (i % 32 == 31) {
            hash_word(w);
            w = 0;
        }
    }
    if (w != 0)
        hash_word(w);
}

static uint64_t
state_hash(void)
{
    lane[0] = 1, lane[1] = 2, lane[2] = 3, lane[3] = 4;
    hash_word((uint64_t)(mc->cur != NULL ? self() : THREADS) << 32 | (uint64_t)mc->nthreads << 8 | at_yield);
    hash_word((uint64_t)mc->clock);
    hash(__data_start, mc->ndata);
    hash(BASE, mc->used);
    for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++) {
        if (t == mc->cur) /* its words are in the variables */
            for (int i = 0; i < mc->ntls; i++)
                memcpy(&t->tls[i], mc->tls[i], sizeof(void *));
        hash_word((uint64_t)t->state << 8 | t->woken << 4 | t->timed << 2 | t->relaxed << 1);
        hash_word((uint64_t)t->spun);
        hash_word((uint64_t)(uintptr_t)t->addr);
        hash_word((uint64_t)t->deadline);
        hash_word((uint64_t)(uintptr_t)t->sp);
        hash(t->tls, sizeof t->tls);
    }
    for (Slot *s = mc->slot; s < mc->slot + mc->nslots; s++) {
        char *hi = s->lo + MC_STACK, *from = hi - 1024; /* an unused one: only the G at its top */
        bool running = false;
        for (Thread *t = mc->thread; t < mc->thread + mc->nthreads; t++)
            if ((char *)t->sp >= s->lo && (char *)t->sp < hi && t->state != DONE) {
                from = t->sp;
                running = true;
            }
        if (!running && s->spp != NULL && (char *)*s->spp >= s->lo && (char *)*s->spp < hi)
            from = *s->spp;
        hash(from, (size_t)(hi - from));
    }
    if (mc->weak && mc->stale > 0) {
        for (int t = 0; t < mc->nthreads; t++) {
            hash_view(mc->cur_view[t]);
            hash_view(mc->acq[t]);
            hash_view(mc->rel[t]);
        }
        hash_view(mc->sc);
        for (int i = 0; i < mc->nlocs; i++) {
            Loc *l = &mc->loc[i];
            uint16_t low = l->last; /* the oldest value that somebody may yet see */
            for (int t = 0; t < mc->nthreads; t++)
                if (mc->cur_view[t][i] < low)
                    low = mc->cur_view[t][i];
            if (low < l->first)
                low = l->first;
            hash_word((uint64_t)(l->last - low));
            for (uint16_t k = low; l->last != 0 && k <= l->last; k++) {
                hash_word(message(l, k)->val);
                hash_view(message(l, k)->view);
            }
        }
    }
    uint64_t h = lane[0];
    for (int i = 1; i < 4; i++) {
        h = (h ^ lane[i]) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 31;
    }
    return h != 0 ? h : 1;
}

/* Was this state explored with no less left of the bounds?  Remembers it otherwise. */
static bool
seen_before(uint64_t key)
{
    if (mc->nseen * 2 >= mc->seencap) {
        Seen *old = mc->seen;
        size_t oldcap = mc->seencap;
        mc->seencap = oldcap != 0 ? oldcap * 4 : (size_t)1 << 16;
        mc->seen = map(NULL, mc->seencap * sizeof *old);
        for (size_t i = 0; i < oldcap; i++)
            if (old[i].key != 0) {
                size_t j = old[i].key % mc->seencap;
                while (mc->seen[j].key != 0)
                    j = (j + 1) % mc->seencap;
                mc->seen[j] = old[i];
            }
        if (old != NULL)
            munmap(old, oldcap * sizeof *old);
    }
    size_t j = key % mc->seencap;
    while (mc->seen[j].key != 0 && mc->seen[j].key != key)
        j = (j + 1) % mc->seencap;
    Seen *s = &mc->seen[j];
    if (s->key == 0) {
        *s = (Seen){key, (uint8_t)mc->preempt, (uint8_t)mc->stale, (uint8_t)mc->yields};
        mc->nseen++;
        return false;
    }
    if (s->preempt >= mc->preempt && s->stale >= mc->stale && s->yields >= mc->yields)
        return true;
    if (s->preempt <= mc->preempt && s->stale <= mc->stale && s->yields <= mc->yields) {
        s->preempt = (uint8_t)mc->preempt;
        s->stale = (uint8_t)mc->stale;
        s->yields = (uint8_t)mc->yields;
    }
    return false;
}

static void
forget_seen(void)
{
    if (mc->seen != NULL)
        munmap(mc->seen, mc->seencap * sizeof *mc->seen);
    mc->seen = NULL;
    mc->nseen = mc->seencap = 0;
}

/* ---- the search ---- */

static void
reset(int preempt, int stale)
{
    memcpy(__data_start, mc->data, mc->ndata);
    memset(BASE, 0, mc->used);
    mc->cur = NULL;
    mc->nthreads = mc->nslots = mc->ntls = 0;
    mc->used = 0;
    mc->preempt = preempt;
    mc->stale = stale;
    mc->yields = YIELDS;
    mc->weak = stale > 0;
    mc->steps = 0;
    mc->clock = 1000000;
    mc->at_end = NULL;
    mc->forbidden = NULL;
    mc->depth = 0;
    mc->failure[0] = '\0';
    if (mc->weak) {
        for (int i = 0; i < mc->nlocs; i++)
            mc->loc[i].last = mc->loc[i].first = 0;
        memset(mc->cur_view, 0, sizeof mc->cur_view);
        memset(mc->acq, 0, sizeof mc->acq);
        memset(mc->rel, 0, sizeof mc->rel);
        memset(mc->sc, 0, sizeof mc->sc);
    }
}

static bool
end_check(void)
{
    ending = true;
    mc->cur = NULL;
    if (__builtin_setjmp(end_jump) == 0) {
        mc_check_ended();
        if (mc->at_end != NULL)
            mc->at_end();
    }
    ending = false;
    return mc->failure[0] == '\0';
}

/* One execution.  False: it failed. */
static bool
execute(Model *m, int preempt, int stale)
{
    Option opt[2 * THREADS];

    reset(preempt, stale);
    m->prepare();
    mc->request = AT_CHOICE;
    at_yield = false;
    for (;;) {
        int n = options(opt, at_yield), k = 0;
        if (n == 0)
            break;
        if (n > 1 && mc->depth < mc->len) /* only the very first choice */
            k = mc->stack[mc->depth++].taken;
        else if (n > 1) {
            if (!mc->tracing && seen_before(state_hash()))
                return true;
            if (mc->len == MAX_DEPTH) {
                snprintf(mc->failure, sizeof mc->failure, "too many choices in one execution");
                return false;
            }
            mc->stack[mc->len++] = (Choice){(uint8_t)n, 0};
            mc->depth++;
            mc->states++;
        }
        enter(opt[k], &mc->main_sp);
        if (mc->request == AT_FAILURE)
            return false;
        if (mc->request == AT_END)
            break;
    }
    for (int i = 0; i < mc->nslots; i++)
        if (*(uint64_t *)mc->slot[i].lo != CANARY) {
            fprintf(stderr, "model: a stack of %zu bytes is not enough\n", MC_STACK);
            exit(2);
        }
    return end_check();
}

static bool
explore(Model *m, int preempt, int stale)
{
    forget_seen();
    mc->len = 0;
    for (;;) {
        mc->executions++;
        if (!execute(m, preempt, stale))
            return false;
        while (mc->len > 0 && mc->stack[mc->len - 1].taken + 1 == mc->stack[mc->len - 1].n)
            mc->len--;
        if (mc->len == 0)
            return true;
        mc->stack[mc->len - 1].taken++;
    }
}

static double
seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* the machine may be busy */
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static bool
run(Model *m, int preempt, int stale, bool verbose)
{
    double start = seconds();
    bool ok = true;
    int p = 0;

    mc->executions = mc->states = 0;
    mc->nlocs = 0;
    memset(mc->index, 0, sizeof mc->index);
    for (; ok && p <= preempt; p++)
        ok = explore(m, p, stale);
    printf("%-38s %s  %d preemptions, %d old values: %llu interleavings, %llu states, %.1f s\n", m->name, ok ? "ok" : "FAILED",
           p - 1, stale, (unsigned long long)mc->executions, (unsigned long long)mc->states, seconds() - start);
    if (!ok) {
        char failure[sizeof mc->failure];
        memcpy(failure, mc->failure, sizeof failure);
        if (verbose) {
            mc->tracing = true;
            execute(m, p - 1, stale);
            mc->tracing = false;
        }
        printf("    %s%s\n", failure, verbose ? "" : "   (-v shows the interleaving)");
    }
    fflush(stdout);
    return ok;
}

/* Within each pair of the bounds, "preemptions/old values ...". */
static bool
run_all(Model *m, const char *bounds, bool verbose)
{
    bool ok = true;
    int preempt, stale, n;

    for (; ok && sscanf(bounds, "%d/%d%n", &preempt, &stale, &n) == 2; bounds += n)
        ok = run(m, preempt, stale, verbose);
    return ok;
}

static bool
selected(Model *m, int n, char **names)
{
    for (int i = 0; i < n; i++)
        if (strstr(m->name, names[i]) != NULL)
            return true;
    return n == 0;
}

int
main(int argc, char **argv)
{
    bool quick = false, verbose = false, list = false, stop = false, ok = true;
    const char *bounds = NULL;
    int c;

    while ((c = getopt(argc, argv, "lqvxb:")) != -1) {
        if (c == 'l')
            list = true;
        else if (c == 'q')
            quick = true;
        else if (c == 'v')
            verbose = true;
        else if (c == 'x')
            stop = true;
        else if (c == 'b')
            bounds = optarg;
        else
            return 2;
    }
    mc = map(NULL, sizeof *mc);
    map(BASE, ARENA + SLOTS * MC_STACK);
    mc->ndata = ((size_t)(_end - __data_start)) & ~(size_t)7;
    if (mc->ndata > sizeof mc->data) {
        fprintf(stderr, "model: %zu bytes of variables\n", mc->ndata);
        return 2;
    }
    memcpy(mc->data, __data_start, mc->ndata);
    for (Model *m = models; m != NULL; m = m->next) {
        if (!selected(m, argc - optind, argv + optind))
            continue;
        if (list)
            printf("%s\n", m->name);
        else
            ok &= run_all(m, bounds != NULL ? bounds : quick ? m->quick : m->full, verbose);
        if (!ok && stop)
            break;
    }
    return !ok;
}
