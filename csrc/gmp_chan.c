/* gmp_chan.c: the public C interface: channels, select, locks, timers.
 *
 * On a thread without a G each call first does what it can without waiting, which needs none; only then the thread visits the
 * native set.
 */
#include "native.h"
#include "sync.h"

/* ---- channels ---- */

int
gmp_chan_new(gmp_chan **out, size_t size, size_t capacity)
{
    if (out == NULL)
        return GMP_EINVAL;
    gmp_chan *ch = g_malloc(sizeof *ch);
    if (ch == NULL)
        return GMP_ENOMEM;
    int code = chan_init(&ch->c, size, capacity);
    if (code != GMP_OK) {
        g_free(ch);
        return code;
    }
    *out = ch;
    return GMP_OK;
}

int
gmp_chan_free(gmp_chan *ch)
{
    if (ch == NULL)
        return GMP_EINVAL;
    spin_lock(&ch->c.lock);
    bool used = ch->c.recvq.first != NULL || ch->c.sendq.first != NULL;
    spin_unlock(&ch->c.lock);
    if (used)
        return GMP_ESTATE;
    chan_term(&ch->c);
    g_free(ch);
    return GMP_OK;
}

static inline bool
fits(gmp_chan *ch, const void *elem, size_t size)
{
    return ch != NULL && size == ch->c.elemsize && (elem != NULL || size == 0);
}

/* What did not work at once has to wait, and the thread needs a G for that. */
static GMP_NOINLINE int
chan_visit(Hchan *c, void *elem, int64_t timeout, bool send)
{
    Visit v;
    int code = send ? chansend(c, elem, 0) : chanrecv(c, elem, 0);
    if (code != GMP_ETIMEDOUT || timeout == 0)
        return code;
    code = visit_begin(&v);
    if (code != GMP_OK)
        return code;
    code = send ? chansend(c, elem, timeout) : chanrecv(c, elem, timeout);
    visit_end(&v);
    return code;
}

int
gmp_chan_send(gmp_chan *ch, const void *elem, size_t size, int64_t timeout)
{
    if (GMP_UNLIKELY(!fits(ch, elem, size)))
        return GMP_EINVAL;
    if (GMP_LIKELY(native_self() != NULL))
        return chansend(&ch->c, elem, timeout);
    return chan_visit(&ch->c, (void *)elem, timeout, true);
}

int
gmp_chan_recv(gmp_chan *ch, void *elem, size_t size, int64_t timeout)
{
    if (GMP_UNLIKELY(!fits(ch, elem, size)))
        return GMP_EINVAL;
    if (GMP_LIKELY(native_self() != NULL))
        return chanrecv(&ch->c, elem, timeout);
    return chan_visit(&ch->c, elem, timeout, false);
}

int
gmp_chan_close(gmp_chan *ch)
{
    return ch != NULL ? chanclose(&ch->c) : GMP_EINVAL;
}

int64_t
gmp_chan_len(gmp_chan *ch)
{
    return ch != NULL ? (int64_t)chanlen(&ch->c) : GMP_EINVAL;
}

int64_t
gmp_chan_cap(gmp_chan *ch)
{
    return ch != NULL ? (int64_t)ch->c.dataqsiz : GMP_EINVAL;
}

/* ---- select ---- */

#define SELECT_INLINE 4

static int
select_visit(Scase *sc, int n, int64_t timeout, bool *ok)
{
    if (native_self() != NULL)
        return selectgo(sc, n, timeout, ok);
    Visit v;
    int r = selectgo(sc, n, 0, ok);
    if (r != GMP_ETIMEDOUT || timeout == 0)
        return r;
    int code = visit_begin(&v);
    if (code != GMP_OK)
        return code;
    r = selectgo(sc, n, timeout, ok);
    visit_end(&v);
    return r;
}

int
gmp_select(gmp_case *cases, int n, int64_t timeout)
{
    Scase few[SELECT_INLINE], *sc = few;
    bool ok = false;

    if (n < 0 || n > UINT16_MAX || (cases == NULL && n != 0))
        return GMP_EINVAL;
    for (int i = 0; i < n; i++)
        if (cases[i].ch != NULL && !fits(cases[i].ch, cases[i].elem, cases[i].size))
            return GMP_EINVAL;
    if (n > SELECT_INLINE && (sc = g_malloc((size_t)n * sizeof *sc)) == NULL)
        return GMP_ENOMEM;
    for (int i = 0; i < n; i++)
        sc[i] = (Scase){cases[i].ch != NULL ? &cases[i].ch->c : NULL, cases[i].elem, cases[i].send != 0};
    int r = select_visit(sc, n, timeout, &ok);
    if (sc != few)
        g_free(sc);
    if (r >= 0)
        cases[r].result = ok ? GMP_OK : GMP_ECLOSED;
    return r;
}

/* ---- locks ---- */

struct gmp_mutex {
    Gmutex m;
};

struct gmp_cond {
    Mutex lock;
    WaitQ waiters;
};

static int new(void **out, size_t size)
{
    if (out == NULL)
        return GMP_EINVAL;
    void *p = g_calloc(size);
    if (p == NULL)
        return GMP_ENOMEM;
    *out = p;
    return GMP_OK;
}

static bool
anybody(Mutex *lock, WaitQ *q)
{
    mutex_lock(lock);
    bool some = q->first != NULL;
    mutex_unlock(lock);
    return some;
}

int
gmp_mutex_new(gmp_mutex **out)
{
    return new ((void **)out, sizeof **out);
}

int
gmp_mutex_free(gmp_mutex *m)
{
    if (m == NULL)
        return GMP_EINVAL;
    if (gmutex_locked(&m->m) || anybody(&m->m.lock, &m->m.waiters))
        return GMP_ESTATE;
    g_free(m);
    return GMP_OK;
}

int
gmp_mutex_lock(gmp_mutex *m, int64_t timeout)
{
    if (m == NULL)
        return GMP_EINVAL;
    if (GMP_LIKELY(gmutex_lock_fast(&m->m)))
        return GMP_OK;
    int code = gmutex_lock(&m->m, 0);
    if (code != GMP_ETIMEDOUT || timeout == 0)
        return code;
    VISITING(code, gmutex_lock(&m->m, timeout));
    return code;
}

int
gmp_mutex_unlock(gmp_mutex *m)
{
    if (m == NULL)
        return GMP_EINVAL;
    return GMP_LIKELY(gmutex_unlock_fast(&m->m)) ? GMP_OK : gmutex_unlock(&m->m);
}

int
gmp_cond_new(gmp_cond **out)
{
    return new ((void **)out, sizeof **out);
}

int
gmp_cond_free(gmp_cond *c)
{
    if (c == NULL)
        return GMP_EINVAL;
    if (anybody(&c->lock, &c->waiters))
        return GMP_ESTATE;
    g_free(c);
    return GMP_OK;
}

/* Queued before m is unlocked, so no signal is missed.  Go: sync.Cond.Wait; differs: a timeout. */
static int
cond_wait(gmp_cond *c, Gmutex *m, int64_t timeout)
{
    mutex_lock(&c->lock);
    int code = gmutex_unlock(m);
    if (code != GMP_OK) {
        mutex_unlock(&c->lock);
        return code;
    }
    code = waitq_park(&c->waiters, &c->lock, false, WAIT_COND, timeout);
    while (gmutex_lock(m, -1) != GMP_OK)
        ;
    return code;
}

int
gmp_cond_wait(gmp_cond *c, gmp_mutex *m, int64_t timeout)
{
    int code;

    if (c == NULL || m == NULL)
        return GMP_EINVAL;
    VISITING(code, cond_wait(c, &m->m, timeout));
    return code;
}

int
gmp_cond_signal(gmp_cond *c)
{
    if (c == NULL)
        return GMP_EINVAL;
    mutex_lock(&c->lock);
    Sudog *sg = waitq_pop(&c->waiters);
    G *gp = sg != NULL ? sg->g : NULL;
    mutex_unlock(&c->lock);
    if (gp != NULL)
        goready(gp);
    return GMP_OK;
}

int
gmp_cond_broadcast(gmp_cond *c)
{
    if (c == NULL)
        return GMP_EINVAL;
    G *head = NULL, **tail = &head;
    Sudog *sg;
    mutex_lock(&c->lock);
    while ((sg = waitq_pop(&c->waiters)) != NULL) {
        *tail = sg->g;
        tail = &sg->g->link;
    }
    *tail = NULL;
    mutex_unlock(&c->lock);
    injectglist(head);
    return GMP_OK;
}

int
gmp_waitgroup_new(gmp_waitgroup **out)
{
    return new ((void **)out, sizeof **out);
}

int
gmp_waitgroup_free(gmp_waitgroup *wg)
{
    if (wg == NULL)
        return GMP_EINVAL;
    mutex_lock(&wg->wg.lock);
    bool used = wg->wg.n != 0 || wg->wg.waiters.first != NULL;
    mutex_unlock(&wg->wg.lock);
    if (used)
        return GMP_ESTATE;
    g_free(wg);
    return GMP_OK;
}

int
gmp_waitgroup_add(gmp_waitgroup *wg, int64_t delta)
{
    return wg != NULL ? gwaitgroup_add(&wg->wg, delta) : GMP_EINVAL;
}

int
gmp_waitgroup_done(gmp_waitgroup *wg)
{
    return gmp_waitgroup_add(wg, -1);
}

int
gmp_waitgroup_wait(gmp_waitgroup *wg, int64_t timeout)
{
    if (wg == NULL)
        return GMP_EINVAL;
    int code = gwaitgroup_wait(&wg->wg, 0);
    if (code != GMP_ETIMEDOUT || timeout == 0)
        return code;
    VISITING(code, gwaitgroup_wait(&wg->wg, timeout));
    return code;
}

int
gmp_waitgroup_go(gmp_waitgroup *wg, gmp_func fn, void *arg, int stack)
{
    int code = gmp_waitgroup_add(wg, 1);
    if (code != GMP_OK)
        return code;
    code = native_go(fn, arg, stack, wg);
    if (code != GMP_OK)
        (void)gwaitgroup_add(&wg->wg, -1);
    return code;
}

/* ---- timers ---- */

/* Type-stable: never freed, so that a firing that comes late finds a timer, if another one's, and seq tells. */
struct gmp_timer {
    Mutex lock; /* taken before channel locks */
    Timer t;
    gmp_chan *ch;
    int64_t when, period;
    uint32_t seq; /* of the last start or stop */
    bool running;
    gmp_timer *next; /* free list */
};

static Mutex timers_lock;
static gmp_timer *free_timers;

int
gmp_timer_new(gmp_timer **out, gmp_chan *ch)
{
    if (out == NULL || ch == NULL || ch->c.elemsize != sizeof(int64_t))
        return GMP_EINVAL;
    int code = native_init();
    if (code != GMP_OK)
        return code;
    mutex_lock(&timers_lock);
    gmp_timer *t = free_timers;
    if (t != NULL)
        free_timers = t->next;
    mutex_unlock(&timers_lock);
    if (t == NULL && (t = g_calloc(sizeof *t)) == NULL)
        return GMP_ENOMEM;
    t->ch = ch;
    *out = t;
    return GMP_OK;
}

/* By whoever runs the timers; the lock may be held by a start or stop that has not seen this firing. */
static void
fire(void *arg, uint32_t seq)
{
    gmp_timer *t = arg;
    mutex_lock(&t->lock);
    if (t->seq == seq) {
        int64_t now = nanotime();
        (void)chansend(&t->ch->c, &now, 0); /* full or closed: nobody wants it */
        t->running = false;
        if (t->period != 0) {
            t->when += ((now - t->when) / t->period + 1) * t->period;
            t->running = timer_arm(NATIVE_SET, &t->t, t->when, fire, t, seq) == GMP_OK;
        }
    }
    mutex_unlock(&t->lock);
}

/* Lock held. */
static bool
timer_halt(gmp_timer *t)
{
    bool was = t->running;
    t->seq++;
    timer_del(&t->t);
    t->running = false;
    return was;
}

int
gmp_timer_start(gmp_timer *t, int64_t delay, int64_t period)
{
    if (t == NULL || delay < 0 || period < 0)
        return GMP_EINVAL;
    int64_t now = nanotime();
    mutex_lock(&t->lock);
    timer_halt(t);
    t->when = delay > INT64_MAX - now ? INT64_MAX : now + delay;
    t->period = period;
    int code = timer_arm(NATIVE_SET, &t->t, t->when, fire, t, t->seq);
    t->running = code == GMP_OK;
    mutex_unlock(&t->lock);
    return code;
}

int
gmp_timer_stop(gmp_timer *t)
{
    if (t == NULL)
        return GMP_EINVAL;
    mutex_lock(&t->lock);
    bool was = timer_halt(t);
    mutex_unlock(&t->lock);
    return was;
}

int
gmp_timer_free(gmp_timer *t)
{
    int code = gmp_timer_stop(t);
    if (code < 0)
        return code;
    mutex_lock(&timers_lock);
    t->next = free_timers;
    free_timers = t;
    mutex_unlock(&timers_lock);
    return GMP_OK;
}
