/* chan.c: channels.
 *
 * Invariants, under Hchan.lock:
 *   1. At least one of sendq and recvq is empty, except for a goroutine that selects on both directions of one channel.
 *   2. qcount > 0 implies that recvq is empty; qcount < dataqsiz implies that sendq is empty.
 *   3. A closed channel has no waiters.
 * A Sudog lies on its goroutine's stack.  Whoever dequeues one owns the wake-up: it must not touch the Sudog after goready.
 * A waiter that may also be woken by a timeout, an interrupt or another case of its select is `claimed`: wakers race by
 * park_claim, losers skip it, and it takes itself off the queues it is still on.
 * Wakers copy straight from or to the waiter's memory, as in Go.
 */
#include "chan.h"

#include <limits.h>

/* ---- wait queues ---- */

void
waitq_push(WaitQ *q, Sudog *sg)
{
    sg->next = NULL;
    sg->prev = q->last;
    if (q->last != NULL)
        q->last->next = sg;
    else
        q->first = sg;
    q->last = sg;
    sg->queued = true;
}

void
waitq_pushfront(WaitQ *q, Sudog *sg)
{
    sg->prev = NULL;
    sg->next = q->first;
    if (q->first != NULL)
        q->first->prev = sg;
    else
        q->last = sg;
    q->first = sg;
    sg->queued = true;
}

void
waitq_remove(WaitQ *q, Sudog *sg)
{
    if (!sg->queued)
        return;
    sg->queued = false;
    if (sg->prev != NULL)
        sg->prev->next = sg->next;
    else
        q->first = sg->next;
    if (sg->next != NULL)
        sg->next->prev = sg->prev;
    else
        q->last = sg->prev;
}

/* Go: waitq.dequeue */
Sudog *
waitq_pop(WaitQ *q)
{
    for (;;) {
        Sudog *sg = q->first;
        if (sg == NULL)
            return NULL;
        waitq_remove(q, sg);
        if (!sg->claimed || park_claim(sg->g, sg->seq)) {
            sg->g->wakecode = GMP_OK;
            return sg;
        }
    }
}

static bool
unlock_commit(G *gp, void *lock)
{
    (void)gp;
    mutex_unlock(lock);
    return true;
}

static bool
spin_unlock_commit(G *gp, void *lock)
{
    (void)gp;
    spin_unlock(lock);
    return true;
}

static bool
must_claim(G *gp, int64_t timeout)
{
    return timeout >= 0 || gp->interruptible;
}

int
waitq_park(WaitQ *q, Mutex *lock, bool front, WaitReason reason, int64_t timeout)
{
    G *gp = getg();
    Sudog sg = {.g = gp, .claimed = must_claim(gp, timeout)};
    gp->wakecode = GMP_OK;
    if (sg.claimed)
        sg.seq = park_begin(gp);
    if (front)
        waitq_pushfront(q, &sg);
    else
        waitq_push(q, &sg);
    int code = gopark_timeout(lock != NULL ? unlock_commit : NULL, lock, reason, sg.seq, timeout);
    if (code != GMP_OK) {
        if (lock != NULL)
            mutex_lock(lock);
        waitq_remove(q, &sg);
        if (lock != NULL)
            mutex_unlock(lock);
    }
    return code;
}

bool
waitq_wake(WaitQ *q)
{
    Sudog *sg = waitq_pop(q);
    if (sg == NULL)
        return false;
    goready(sg->g);
    return true;
}

/* ---- channels ---- */

static inline void
copy_elem(Hchan *c, void *to, const void *from)
{
    if (GMP_LIKELY(c->elemsize == sizeof(void *)))
        memcpy(to, from, sizeof(void *));
    else if (c->elemsize != 0) /* then from may be NULL */
        memcpy(to, from, c->elemsize);
}

static inline char *
slot(Hchan *c, size_t i)
{
    return c->buf + i * c->elemsize;
}

int
chan_init(Hchan *c, size_t elemsize, size_t size)
{
    *c = (Hchan){.elemsize = (uint32_t)elemsize, .dataqsiz = size};
    if (elemsize > 1 << 16 || (elemsize != 0 && size > (size_t)PTRDIFF_MAX / elemsize))
        return GMP_EINVAL;
    if (size != 0) {
        c->buf = g_malloc(elemsize != 0 ? size * elemsize : 1);
        if (c->buf == NULL)
            return GMP_ENOMEM;
    }
    return GMP_OK;
}

void
chan_term(Hchan *c)
{
    GMP_CHECK(c->recvq.first == NULL && c->sendq.first == NULL);
    g_free(c->buf);
    c->buf = NULL;
}

/* A nil channel: nothing ever comes. */
static int
park_forever(WaitReason reason, int64_t timeout)
{
    if (timeout == 0)
        return GMP_ETIMEDOUT;
    G *gp = getg();
    gp->wakecode = GMP_OK;
    uint32_t seq = park_begin(gp);
    return gopark_timeout(NULL, NULL, reason, seq, timeout);
}

static void
buffer_put(Hchan *c, const void *elem)
{
    copy_elem(c, slot(c, c->sendx), elem);
    if (++c->sendx == c->dataqsiz)
        c->sendx = 0;
    c->qcount++;
}

/* Takes one element out of a channel that has one: from the buffer, whose free slot goes to the first sender, or from a
 * sender directly.  Returns the sender to make ready after unlocking, if any.  sg is already dequeued. */
static void
recv_from(Hchan *c, Sudog *sg, void *elem)
{
    if (c->dataqsiz == 0) {
        if (elem != NULL)
            copy_elem(c, elem, sg->elem);
    }
    else {
        char *head = slot(c, c->recvx);
        if (elem != NULL)
            copy_elem(c, elem, head);
        copy_elem(c, head, sg->elem);
        if (++c->recvx == c->dataqsiz)
            c->recvx = 0;
        c->sendx = c->recvx;
    }
    sg->success = true;
    sg->g->param = sg;
}

static void
buffer_get(Hchan *c, void *elem)
{
    if (elem != NULL)
        copy_elem(c, elem, slot(c, c->recvx));
    if (++c->recvx == c->dataqsiz)
        c->recvx = 0;
    c->qcount--;
}

static void
send_to(Hchan *c, Sudog *sg, const void *elem)
{
    if (sg->elem != NULL)
        copy_elem(c, sg->elem, elem);
    sg->success = true;
    sg->g->param = sg;
}

/* Waits in q of the locked channel; unlocks.  On failure the Sudog is off the queue again. */
static int
chanpark(Hchan *c, WaitQ *q, Sudog *sg, WaitReason reason, int64_t timeout)
{
    G *gp = sg->g;
    sg->claimed = must_claim(gp, timeout);
    gp->wakecode = GMP_OK;
    if (sg->claimed)
        sg->seq = park_begin(gp);
    waitq_push(q, sg);
    int code = gopark_timeout(spin_unlock_commit, &c->lock, reason, sg->seq, timeout);
    if (GMP_UNLIKELY(code != GMP_OK)) {
        spin_lock(&c->lock);
        waitq_remove(q, sg);
        spin_unlock(&c->lock);
    }
    return code;
}

/* Go: runtime.chansend */
int
chansend(Hchan *c, const void *elem, int64_t timeout)
{
    if (c == NULL)
        return park_forever(WAIT_CHAN_SEND_NIL, timeout);
    spin_lock(&c->lock);
    if (c->closed) {
        spin_unlock(&c->lock);
        return GMP_ECLOSED;
    }
    Sudog *rg = waitq_pop(&c->recvq);
    if (rg != NULL) {
        G *gp = rg->g;
        send_to(c, rg, elem);
        spin_unlock(&c->lock);
        goready(gp);
        return GMP_OK;
    }
    if (c->qcount < c->dataqsiz) {
        buffer_put(c, elem);
        spin_unlock(&c->lock);
        return GMP_OK;
    }
    if (timeout == 0) {
        spin_unlock(&c->lock);
        return GMP_ETIMEDOUT;
    }
    Sudog sg = {.g = getg(), .elem = (void *)elem, .c = c};
    int code = chanpark(c, &c->sendq, &sg, WAIT_CHAN_SEND, timeout);
    if (code != GMP_OK)
        return code;
    return sg.success ? GMP_OK : GMP_ECLOSED;
}

/* Go: runtime.chanrecv */
int
chanrecv(Hchan *c, void *elem, int64_t timeout)
{
    if (c == NULL)
        return park_forever(WAIT_CHAN_RECEIVE_NIL, timeout);
    spin_lock(&c->lock);
    if (c->closed && c->qcount == 0) {
        spin_unlock(&c->lock);
        if (elem != NULL)
            memset(elem, 0, c->elemsize);
        return GMP_ECLOSED;
    }
    Sudog *sender = waitq_pop(&c->sendq);
    if (sender != NULL) {
        G *gp = sender->g;
        recv_from(c, sender, elem);
        spin_unlock(&c->lock);
        goready(gp);
        return GMP_OK;
    }
    if (c->qcount > 0) {
        buffer_get(c, elem);
        spin_unlock(&c->lock);
        return GMP_OK;
    }
    if (timeout == 0) {
        spin_unlock(&c->lock);
        return GMP_ETIMEDOUT;
    }
    Sudog sg = {.g = getg(), .elem = elem, .c = c};
    int code = chanpark(c, &c->recvq, &sg, WAIT_CHAN_RECEIVE, timeout);
    if (code != GMP_OK)
        return code;
    return sg.success ? GMP_OK : GMP_ECLOSED;
}

/* Go: runtime.closechan */
int
chanclose(Hchan *c)
{
    spin_lock(&c->lock);
    if (c->closed) {
        spin_unlock(&c->lock);
        return GMP_ECLOSED;
    }
    c->closed = true;
    /* Collect them all before waking any, so that none runs while the lock is held. */
    G *head = NULL, **tail = &head;
    Sudog *sg;
    while ((sg = waitq_pop(&c->recvq)) != NULL) {
        if (sg->elem != NULL)
            memset(sg->elem, 0, c->elemsize);
        sg->success = false;
        sg->g->param = sg;
        *tail = sg->g;
        tail = &sg->g->link;
    }
    while ((sg = waitq_pop(&c->sendq)) != NULL) {
        sg->success = false;
        sg->g->param = sg;
        *tail = sg->g;
        tail = &sg->g->link;
    }
    *tail = NULL;
    spin_unlock(&c->lock);
    while (head != NULL) {
        G *gp = head;
        head = gp->link;
        goready(gp);
    }
    return GMP_OK;
}

size_t
chanlen(Hchan *c)
{
    spin_lock(&c->lock);
    size_t n = c->qcount;
    spin_unlock(&c->lock);
    return n;
}

/* ---- select ---- */

#define SELECT_INLINE 4

typedef struct SelectState {
    Scase *cases;
    Sudog *sudogs;
    uint16_t *lockorder;
    int n; /* cases with a channel */
} SelectState;

static void
sellock(SelectState *st)
{
    Hchan *last = NULL;
    for (int i = 0; i < st->n; i++) {
        Hchan *c = st->cases[st->lockorder[i]].c;
        if (c != last)
            spin_lock(&c->lock);
        last = c;
    }
}

static void
selunlock(SelectState *st)
{
    for (int i = st->n - 1; i >= 0; i--) {
        Hchan *c = st->cases[st->lockorder[i]].c;
        if (i > 0 && c == st->cases[st->lockorder[i - 1]].c)
            continue; /* the first of a run unlocks */
        spin_unlock(&c->lock);
    }
}

/* Unlocks the last channel last: until then the goroutine cannot go on, because it takes all locks again, in order,
 * before it returns; so st stays valid. */
static bool
select_commit(G *gp, void *arg)
{
    (void)gp;
    SelectState st = *(SelectState *)arg;
    Hchan *last = NULL;
    for (int i = st.n - 1; i >= 0; i--) {
        Hchan *c = st.cases[st.lockorder[i]].c;
        if (last != NULL && c != last)
            spin_unlock(&last->lock);
        last = c;
    }
    spin_unlock(&last->lock);
    return true;
}

/* Tries the cases in the order given; all channels locked.  Returns the case, or -1.  *wake: a goroutine to make ready. */
static int
select_try(SelectState *st, const uint16_t *pollorder, bool *ok, G **wake)
{
    *wake = NULL;
    for (int i = 0; i < st->n; i++) {
        int ci = pollorder[i];
        Scase *cas = &st->cases[ci];
        Hchan *c = cas->c;
        *ok = true;
        if (cas->send) {
            if (c->closed) {
                *ok = false;
                return ci;
            }
            Sudog *sg = waitq_pop(&c->recvq);
            if (sg != NULL) {
                send_to(c, sg, cas->elem);
                *wake = sg->g;
                return ci;
            }
            if (c->qcount < c->dataqsiz) {
                buffer_put(c, cas->elem);
                return ci;
            }
        }
        else {
            Sudog *sg = waitq_pop(&c->sendq);
            if (sg != NULL) {
                recv_from(c, sg, cas->elem);
                *wake = sg->g;
                return ci;
            }
            if (c->qcount > 0) {
                buffer_get(c, cas->elem);
                return ci;
            }
            if (c->closed) {
                if (cas->elem != NULL)
                    memset(cas->elem, 0, c->elemsize);
                *ok = false;
                return ci;
            }
        }
    }
    return -1;
}

static int
select_locked(SelectState *st, const uint16_t *pollorder, int64_t timeout, bool *ok)
{
    sellock(st);
    G *wake;
    int ci = select_try(st, pollorder, ok, &wake);
    if (ci >= 0 || timeout == 0) {
        selunlock(st);
        if (wake != NULL)
            goready(wake);
        return ci >= 0 ? ci : GMP_ETIMEDOUT;
    }
    G *gp = getg();
    gp->param = NULL;
    gp->wakecode = GMP_OK;
    uint32_t seq = park_begin(gp);
    for (int i = 0; i < st->n; i++) {
        int k = st->lockorder[i];
        Scase *cas = &st->cases[k];
        st->sudogs[i] =
            (Sudog){.g = gp, .elem = cas->elem, .c = cas->c, .seq = seq, .claimed = true, .index = (uint16_t)k};
        waitq_push(cas->send ? &cas->c->sendq : &cas->c->recvq, &st->sudogs[i]);
    }
    int code = gopark_timeout(select_commit, st, WAIT_SELECT, seq, timeout);
    sellock(st);
    for (int i = 0; i < st->n; i++) {
        Scase *cas = &st->cases[st->lockorder[i]];
        waitq_remove(cas->send ? &cas->c->sendq : &cas->c->recvq, &st->sudogs[i]);
    }
    Sudog *done = gp->param;
    gp->param = NULL;
    selunlock(st);
    if (code != GMP_OK)
        return code;
    if (done == NULL)
        gmp_throw("select: woken by nobody");
    *ok = done->success;
    return done->index;
}

int
selectgo(Scase *cases, int ncases, int64_t timeout, bool *ok)
{
    Sudog inline_sudogs[SELECT_INLINE];
    uint16_t inline_orders[2 * SELECT_INLINE];
    SelectState st = {.cases = cases, .sudogs = inline_sudogs, .lockorder = inline_orders};
    if (ncases < 0 || ncases > UINT16_MAX)
        return GMP_EINVAL;
    if (ncases > SELECT_INLINE) {
        st.sudogs = g_malloc((size_t)ncases * sizeof(Sudog));
        st.lockorder = g_malloc((size_t)ncases * 2 * sizeof(uint16_t));
        if (st.sudogs == NULL || st.lockorder == NULL) {
            g_free(st.sudogs);
            g_free(st.lockorder);
            return GMP_ENOMEM;
        }
    }
    uint16_t *pollorder = st.lockorder + (ncases > SELECT_INLINE ? ncases : SELECT_INLINE);
    /* A random permutation to poll in, which makes the choice uniform; by address to lock in. */
    for (int i = 0; i < ncases; i++) {
        if (cases[i].c == NULL)
            continue;
        int j = (int)(cheaprand() % (uint32_t)(st.n + 1));
        pollorder[st.n] = pollorder[j];
        pollorder[j] = (uint16_t)i;
        int k = st.n++;
        for (; k > 0 && (uintptr_t)cases[st.lockorder[k - 1]].c > (uintptr_t)cases[i].c; k--)
            st.lockorder[k] = st.lockorder[k - 1];
        st.lockorder[k] = (uint16_t)i;
    }
    int r;
    if (st.n == 0)
        r = park_forever(ncases == 0 ? WAIT_SELECT_NONE : WAIT_SELECT, timeout);
    else
        r = select_locked(&st, pollorder, timeout, ok);
    if (ncases > SELECT_INLINE) {
        g_free(st.sudogs);
        g_free(st.lockorder);
    }
    return r;
}
