/* h2_stream.c: a call as the application sees it: receiving, posting what is to be sent, its end.
 *
 * Any thread, but no goroutine of two at once receives or sends on one call.  Nothing here touches the session: what it is to do is
 * posted (h2_conn.c has the protocol).  A call ends for the application once, by h2_end_stream or h2_finish, whichever is first.
 */
#include "h2_conn.h"

/* ---- pairs ---- */

const char *
h2_pair(const char *at, H2Pair *pair)
{
    memcpy(&pair->nlen, at, sizeof(uint32_t));
    memcpy(&pair->vlen, at + sizeof(uint32_t), sizeof(uint32_t));
    pair->name = at + H2_PAIR_HEAD;
    pair->value = pair->name + pair->nlen;
    return pair->value + pair->vlen;
}

char *
h2_put_pair(char *at, const char *n, uint32_t nl, const char *v, uint32_t vl)
{
    memcpy(at, &nl, sizeof nl);
    memcpy(at + sizeof nl, &vl, sizeof vl);
    memcpy(at + H2_PAIR_HEAD, n, nl);
    memcpy(at + H2_PAIR_HEAD + nl, v, vl);
    return at + H2_PAIR_HEAD + nl + vl;
}

/* ---- streams ---- */

void
h2_stream_ref(H2Stream *st)
{
    atomic_xadd(&st->refs, 1u);
}

void
h2_stream_unref(H2Stream *st)
{
    if (atomic_xadd(&st->refs, (uint32_t)-1) != 1)
        return;
    uint64_t kept = st->partial != NULL ? st->cap : 0;
    while (st->first != NULL) {
        H2Msg *m = st->first;
        st->first = m->next;
        kept += m->len;
        free(m);
    }
    free(st->partial);
    if (st->head != st->inlined) {
        kept += st->head_cap;
        free(st->head);
    }
    if (kept != 0)
        atomic_xadd_relaxed(&st->conn->taken, kept);
    if (st->orphan)
        atomic_xadd_relaxed(&st->conn->orphans, (uint32_t)-1);
    h2_conn_unref(st->conn);
    free(st);
}

/* The call has ended for the application, unless it has already. */
void
h2_end_stream(H2Stream *st, H2End why)
{
    bool notify = false;
    mutex_lock(&st->lock);
    if (st->ended == END_NOT) {
        atomic_store_release(&st->ended, (uint8_t)why); /* pairs with h2_ended */
        st->orphan = true;
        atomic_xadd_relaxed(&st->conn->orphans, 1u);
        notify = st->notify;
        while (waitq_wake(&st->readers))
            ;
        while (waitq_wake(&st->writers))
            ;
    }
    mutex_unlock(&st->lock);
    if (notify) {
        h2_stream_ref(st);
        st->ready_next = NULL;
        h2_ready(st->conn->server, st, st, 1, READY_END);
    }
}

bool
h2_notify_end(H2Stream *st)
{
    mutex_lock(&st->lock);
    bool alive = st->ended == END_NOT;
    st->notify |= alive;
    mutex_unlock(&st->lock);
    return alive;
}

bool
h2_finish(H2Stream *st)
{
    mutex_lock(&st->lock);
    bool alive = st->ended == END_NOT;
    if (alive)
        atomic_store_release(&st->ended, (uint8_t)END_STATUS); /* pairs with h2_ended */
    mutex_unlock(&st->lock);
    return alive;
}

static void
wake_writers(H2Stream *st)
{
    mutex_lock(&st->lock);
    atomic_store(&st->want_room, 0u);
    while (waitq_wake(&st->writers))
        ;
    mutex_unlock(&st->lock);
}

/* n bytes that were posted are on their way, or dropped. */
void
h2_out_gone(H2Stream *st, uint32_t n)
{
    uint32_t left = atomic_xadd(&st->out_queued, (uint32_t)-n) - n;
    if (left <= h2_room(st) / 2 && atomic_load(&st->want_room)) /* pairs with h2_wait_room */
        wake_writers(st);
}

int
h2_wait_room(H2Stream *st, int64_t timeout)
{
    int code = GMP_OK;
    mutex_lock(&st->lock);
    for (;;) {
        if (st->ended != END_NOT) {
            code = GMP_ECLOSED;
            break;
        }
        atomic_store(&st->want_room, 1u); /* before the look at out_queued: pairs with h2_out_gone */
        if (atomic_load(&st->out_queued) <= h2_room(st))
            break;
        code = waitq_park(&st->writers, &st->lock, false, WAIT_IO_WRITE, timeout);
        if (code != GMP_OK)
            return code;
        mutex_lock(&st->lock);
    }
    mutex_unlock(&st->lock);
    return code;
}

bool
h2_recv_ready(H2Stream *st)
{
    mutex_lock(&st->lock);
    bool ready = st->first != NULL || st->half_closed || st->ended != END_NOT;
    mutex_unlock(&st->lock);
    return ready;
}

int
h2_recv(H2Stream *st, H2Msg **msg, int64_t timeout)
{
    *msg = NULL;
    for (;;) {
        mutex_lock(&st->lock);
        if (st->ended != END_NOT) {
            mutex_unlock(&st->lock);
            return GMP_ECLOSED;
        }
        H2Msg *m = st->first;
        if (m != NULL) {
            st->first = m->next;
            if (st->first == NULL)
                st->last = NULL;
            st->queued -= m->len + 5;
            bool ask = st->held != 0 &&
                       (st->first == NULL || st->take + m->len + 5 >= st->conn->server->options.stream_window / 4);
            st->take += m->len + 5;
            mutex_unlock(&st->lock);
            atomic_xadd_relaxed(&st->conn->taken, (uint64_t)m->len);
            if (ask)
                h2_ask(st, ASK_CONSUME, true);
            *msg = m;
            return GMP_OK;
        }
        if (st->half_closed) {
            mutex_unlock(&st->lock);
            return GMP_OK;
        }
        if (timeout == 0) {
            mutex_unlock(&st->lock);
            return GMP_ETIMEDOUT;
        }
        int code = waitq_park(&st->readers, &st->lock, false, WAIT_IO_READ, timeout);
        if (code != GMP_OK)
            return code;
    }
}

/* ---- posting ---- */

H2Op *
h2_op_new(H2Stream *st, int kind, size_t data)
{
    H2Op *op = malloc(sizeof *op + data);
    if (op == NULL)
        return NULL;
    memset(op, 0, sizeof *op);
    op->kind = (uint8_t)kind;
    op->st = st;
    h2_stream_ref(st);
    return op;
}

void
h2_op_free(H2Op *op)
{
    H2Stream *st = op->st;
    free(op);
    h2_stream_unref(st);
}

void
h2_outbox_push(H2Conn *c, H2Op *op)
{
    H2Op *head;
    do {
        head = atomic_load_relaxed(&c->outbox);
        op->next = head;
    } while (!atomic_cas(&c->outbox, head, op));
    atomic_fence(); /* pairs with the one in h2_conn_flush */
}

void
h2_post(H2Op *op)
{
    H2Conn *c = op->st->conn;
    h2_large_message(op->message);
    if (op->message != 0)
        atomic_xadd(&op->st->out_queued, op->message);
    atomic_xadd(&c->refs, 1u); /* once it is pushed, op and its stream may be gone */
    h2_outbox_push(c, op);
    if (!atomic_load_relaxed(&c->dirty))
        h2_mark_dirty(c);
    uint32_t n = atomic_xadd(&c->unflushed, 1u) + 1;
    if (n % FLUSH_EVERY == 0)
        h2_conn_kick(c);
    h2_conn_unref(c);
}

void
h2_ask(H2Stream *st, uint32_t what, bool flush)
{
    H2Conn *c = st->conn;
    uint32_t old;
    do {
        old = atomic_load_relaxed(&st->asked);
    } while (!atomic_cas(&st->asked, old, old | what));
    if (old == 0) {
        h2_stream_ref(st);
        h2_outbox_push(c, &st->ask);
    }
    if (flush)
        h2_conn_flush(c);
    else
        h2_conn_kick(c);
}

void
h2_cancel(H2Stream *st, uint32_t status)
{
    atomic_store_relaxed(&st->cancel, status);
    h2_end_stream(st, END_CANCEL);
    h2_ask(st, ASK_CANCEL, true);
}

void
h2_deadline_due(void *arg, uint32_t seq)
{
    H2Stream *st = arg; /* with the timer's reference */
    (void)seq;
    h2_ask(st, ASK_DEADLINE, false);
    h2_stream_unref(st);
}
