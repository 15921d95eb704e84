/* h2_conn.c: a connection: its goroutine, who may touch it, when it is flushed, when it ends.
 *
 * Ownership.  The session belongs to whoever holds H2Conn.lock.  Others never wait for it: they push an H2Op on the outbox (a
 * lock-free stack) and then try the lock.  If they fail, the owner sees the op: it looks at the outbox again after it has let go of the
 * lock (h2_conn_flush).  So a response is sent by the thread that made it, without a hop to another thread, and an application
 * thread never waits while a batch of requests is parsed.
 *
 * A turn of conn_main: read what there is, feed nghttp2, hand the calls that came to the application in one go, do what was posted,
 * send.  Then park until the socket is readable or somebody kicks.
 *
 * Flushing.  h2_post leaves the op in the outbox: the scheduler flushes (Sched.before_idle) when a P of the application's set finds
 * nothing else to run, which makes batches under load and costs no time without.  What has waited for FLUSH_NS is noticed by the next
 * call that starts, or by sysmon when one goroutine runs on and on, and left to a native goroutine, as is every FLUSH_EVERY-th op.
 * Rejected: a timer for that.  Arming it wakes a native thread for each batch, to sleep until then, and in vain.
 *
 * An output that the socket does not take is kept (pending), and a goroutine waits for the socket (write_main); meanwhile nothing is
 * taken out of the session, and those who send park when they have H2_ROOM bytes under way.
 *
 * Rejected: a goroutine for reading and one for writing per connection: twice the memory, and a hop for each response.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "h2_conn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#define FLUSH_MOST (256 * 1024)
#define DRAIN_NS ((int64_t)1000 * 1000 * 1000)

static void service(H2Conn *c, H2Buf *b);
static bool finished(H2Conn *c);
static void due_by(H2Conn *c, int64_t when);

/* ---- flushing (owner) ---- */

static void
write_main(void *arg)
{
    H2Conn *c = arg;
    int code = netpoll_wait(c->pd, POLL_WRITE);
    H2Buf *b = h2_buf_get();
    mutex_lock(&c->lock);
    atomic_store(&c->write_waiting, false);
    if (code != GMP_OK || b == NULL)
        c->broken = true;
    else
        service(c, b); /* which may start another of us */
    bool kick = !c->dead && (c->more || c->choked || finished(c));
    mutex_unlock(&c->lock);
    if (b != NULL)
        h2_buf_put(b);
    if (kick)
        h2_conn_kick(c);
    else
        h2_conn_flush(c); /* what was posted while we had the lock */
    h2_conn_unref(c);
}

/* The socket takes no more: a goroutine waits until it does. */
static void
wait_writable(H2Conn *c)
{
    if (c->write_waiting)
        return;
    atomic_store(&c->write_waiting, true);
    atomic_xadd(&c->refs, 1u);
    if (h2_go(write_main, c) != GMP_OK) {
        c->write_waiting = false;
        c->broken = true;
        h2_conn_unref(c);
        return;
    }
    c->stalled_since = nanotime(); /* it has just taken some, or we would wait already */
    if (c->server->options.write_timeout != 0)
        due_by(c, c->stalled_since + c->server->options.write_timeout);
}

static ssize_t
put(H2Conn *c, const char *data, size_t len)
{
    ssize_t n = c->io->write(c, data, len);
    if (n > 0)
        h2_count(&c->counts.bytes_sent, (uint64_t)n);
    return n;
}

/* Writes out b->out, or keeps the rest of it.  False: no more for now. */
static bool
write_out(H2Conn *c, const char *data, size_t len)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = put(c, data + done, len - done);
        if (n == -EAGAIN)
            break;
        if (n < 0) {
            c->broken = true;
            return false;
        }
        done += (size_t)n;
    }
    if (done == len)
        return true;
    char *rest = malloc(len - done);
    if (rest == NULL) {
        c->broken = true;
        return false;
    }
    memcpy(rest, data + done, len - done);
    free(c->pending);
    c->pending = rest;
    c->pending_off = 0;
    c->pending_len = len - done;
    return false;
}

static bool
write_pending(H2Conn *c)
{
    if (c->held) {
        ssize_t n = c->io->write(c, NULL, 0);
        if (n == -EAGAIN)
            return false;
        if (n < 0) {
            c->broken = true;
            return false;
        }
    }
    if (c->pending == NULL)
        return true;
    while (c->pending_off < c->pending_len) {
        ssize_t n = put(c, c->pending + c->pending_off, c->pending_len - c->pending_off);
        if (n == -EAGAIN)
            return false;
        if (n < 0) {
            c->broken = true;
            return false;
        }
        c->pending_off += (size_t)n;
    }
    free(c->pending);
    c->pending = NULL;
    return true;
}

/* Sends what the session has, but FLUSH_MOST at a time: the caller holds a P.  The rest is the connection's goroutine's. */
static void
flush(H2Conn *c, H2Buf *b)
{
    size_t sent = 0;
    if (c->broken || ((c->pending != NULL || c->held) && !write_pending(c)))
        goto blocked;
    if (c->muted || (!c->spoken && !c->draining)) /* who speaks HTTP/1 gets an answer that it can read */
        return;
    while (!c->shaking) {
        if (sent >= FLUSH_MOST) {
            c->more = true;
            return;
        }
        b->len = 0;
        c->out = b;
        while (H2_OUT - b->len >= OUT_RESERVE) {
            const uint8_t *data;
            ssize_t n = nghttp2_session_mem_send(c->session, &data);
            if (n < 0) {
                c->broken = true;
                return;
            }
            if (n == 0)
                break;
            memcpy(b->out + b->len, data, (size_t)n);
            b->len += (size_t)n;
        }
        c->out = NULL;
        if (b->len == 0)
            break;
        sent += b->len;
        if (!write_out(c, b->out, b->len))
            break;
    }
blocked:
    if (!c->broken && (c->pending != NULL || c->held))
        wait_writable(c);
}

static int64_t
soonest(int64_t a, int64_t b)
{
    return b != 0 && (a == 0 || b < a) ? b : a;
}

static void
chore_due(void *arg, uint32_t seq)
{
    H2Conn *c = arg;
    (void)seq;
    h2_conn_chore(c, CHORE_TIMER);
    h2_conn_unref(c);
}

/* The connection is to end, but no call that the client makes before it knows is to fail: so it is told first, also when there is
 * no call, and its answer to the ping (or DRAIN_NS) is what the last GOAWAY waits for. */
static void
drain(H2Conn *c)
{
    if (c->draining)
        return;
    c->draining = true;
    nghttp2_submit_shutdown_notice(c->session);
    nghttp2_submit_ping(c->session, NGHTTP2_FLAG_NONE, h2_drain_ping);
    c->drain_by = nanotime() + DRAIN_NS;
}

static void
kill_all(H2Conn *c)
{
    for (H2Stream *st = c->streams, *next; st != NULL; st = next) {
        next = st->next;
        h2_end_stream(st, END_CANCEL);
        if (!st->status_sent)
            nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_CANCEL);
    }
    nghttp2_session_terminate_session(c->session, NGHTTP2_NO_ERROR);
}

/* Does what is due and arms the timer for what is due next. */
static void
keep_house(H2Conn *c)
{
    const H2Options *o = &c->server->options;
    int64_t now = nanotime(), due = 0, when;
    if (!c->greeted && o->handshake_timeout != 0) {
        when = c->opened + o->handshake_timeout;
        if (now >= when) {
            if (!c->shaking) /* else io has something to say */
                h2_blame(c, WHY_HANDSHAKE, "no HTTP/2 settings within %.1f s", (double)o->handshake_timeout / 1e9);
            c->broken = true;
            return;
        }
        due = soonest(due, when);
    }
    if (o->keepalive_time != 0 && c->greeted) {
        if (c->ping_sent != 0) {
            when = c->ping_sent + o->keepalive_timeout;
            if (now >= when) {
                h2_blame(c, WHY_KEEPALIVE, "a ping was not answered within %.1f s", (double)o->keepalive_timeout / 1e9);
                c->broken = true;
                return;
            }
        }
        else {
            when = c->last_read + o->keepalive_time;
            if (now >= when) {
                if (c->nstreams != 0 || o->keepalive_without_calls) {
                    nghttp2_submit_ping(c->session, NGHTTP2_FLAG_NONE, NULL);
                    h2_count(&c->counts.keep_alives_sent, 1);
                    c->ping_sent = now;
                    when = now + o->keepalive_timeout;
                }
                else {
                    when = now + o->keepalive_time;
                }
            }
        }
        due = soonest(due, when);
    }
    if (o->header_timeout != 0 && c->in_block) {
        when = c->block_since + o->header_timeout;
        if (now >= when) {
            h2_condemn(c, WHY_HEADER_TIMEOUT, NGHTTP2_ENHANCE_YOUR_CALM, "headers not complete within %.1f s",
                       (double)o->header_timeout / 1e9);
            return;
        }
        due = soonest(due, when);
    }
    if (o->write_timeout != 0 && c->write_waiting) {
        when = c->stalled_since + o->write_timeout;
        if (now >= when) {
            h2_blame(c, WHY_WRITE, "nothing could be written for %.1f s", (double)o->write_timeout / 1e9);
            c->broken = true;
            return;
        }
        due = soonest(due, when);
    }
    if (o->max_idle != 0 && !c->draining) {
        when = (c->nstreams == 0 ? c->idle_since : now) + o->max_idle;
        if (now >= when)
            drain(c);
        else
            due = soonest(due, when);
    }
    if (o->max_age != 0 && !c->draining) {
        when = c->opened + o->max_age;
        if (now >= when)
            drain(c);
        else
            due = soonest(due, when);
    }
    if (c->draining && o->max_age != 0 && o->max_age_grace != 0) {
        when = c->opened + o->max_age + o->max_age_grace;
        if (now >= when)
            kill_all(c);
        else
            due = soonest(due, when);
    }
    if (c->draining && c->drain_by != 0) {
        if (now >= c->drain_by) {
            c->drain_by = 0;
            h2_goaway(c);
        }
        else {
            due = soonest(due, c->drain_by);
        }
    }
    if (due == 0)
        return;
    if (c->timer_on && timer_del(&c->timer))
        h2_conn_unref(c); /* the connection's own goroutine has another one */
    c->timer_on = true;
    c->due = due;
    atomic_xadd(&c->refs, 1u);
    if (timer_arm(H2_SET, &c->timer, due, chore_due, c, 0) != GMP_OK) {
        c->timer_on = false;
        c->due = 0;
        h2_conn_unref(c);
    }
}

/* There will be something to do for keep_house.  A timer that fires earlier finds it. */
static void
due_by(H2Conn *c, int64_t when)
{
    if (c->due == 0 || when < c->due)
        keep_house(c);
}

static void
do_chores(H2Conn *c)
{
    uint32_t chores = atomic_xchg(&c->chores, 0u);
    if (chores & CHORE_TIMER)
        c->due = 0;
    if (chores & CHORE_DRAIN)
        drain(c);
    if (chores & CHORE_KILL) {
        kill_all(c);
        c->killed = true;
    }
    keep_house(c);
}

/* Does what was posted and sends what there is to send.  Owner. */
static void
service(H2Conn *c, H2Buf *b)
{
    atomic_store_relaxed(&c->unflushed, 0u);
    c->more = false;
    h2_drain_outbox(c);
    if (c->dead)
        return;
    if (GMP_UNLIKELY(atomic_load(&c->chores) != 0))
        do_chores(c);
    flush(c, b);
    if (GMP_UNLIKELY(h2_cancel_asked(c)))
        flush(c, b);
}

static bool
finished(H2Conn *c)
{
    if (c->broken || c->condemned || (c->killed && (c->pending != NULL || c->held)) || (c->draining && c->shaking))
        return true;
    return c->pending == NULL && !c->held && (c->parting || !nghttp2_session_want_read(c->session)) &&
           !nghttp2_session_want_write(c->session);
}

/* ---- for others ---- */

void
h2_conn_kick(H2Conn *c)
{
    if (!atomic_load(&c->dead))
        netpoll_kick(c->pd,
                     POLL_READ); /* one that is closed meanwhile and used again costs its new user a look for nothing */
}

void
h2_conn_flush(H2Conn *c)
{
    while (mutex_trylock(&c->lock)) {
        bool kick = true;
        H2Buf *b = h2_buf_get();
        if (b != NULL) {
            service(c, b);
            kick = !c->dead && (c->more || finished(c));
        }
        mutex_unlock(&c->lock);
        if (kick) {
            h2_conn_kick(c);
            if (b == NULL)
                return;
        }
        h2_buf_put(b);
        atomic_fence(); /* pairs with the one in h2_outbox_push */
        if (atomic_load(&c->outbox) == NULL)
            return;
    }
}

void
h2_conn_chore(H2Conn *c, uint32_t what)
{
    uint32_t old;
    do {
        old = atomic_load_relaxed(&c->chores);
    } while (!atomic_cas(&c->chores, old, old | what));
    h2_conn_kick(c);
}

void
h2_conn_unref(H2Conn *c)
{
    if (atomic_xadd(&c->refs, (uint32_t)-1) != 1)
        return;
    if (c->io->free != NULL)
        c->io->free(c);
    h2_server_unref(c->server);
    free(c);
}

/* ---- the connection's goroutine ---- */

/* Reads once and does what follows.  Returns false when the connection has ended; *more: there may be more to read. */
static bool
turn(H2Conn *c, bool *more)
{
    H2Buf *b = h2_buf_get();
    if (b == NULL)
        return false;
    mutex_lock(&c->lock);
    H2Reading reading = h2_may_read(c);
    c->choked = reading != READ_ON;
    ssize_t n = c->choked ? -EAGAIN : c->io->read(c, b->in, sizeof b->in);
    if (n > 0) {
        uint32_t block = c->block_seq;
        bool within = c->in_block;
        c->spoken = true;
        h2_count(&c->counts.bytes_received, (uint64_t)n);
        atomic_store_relaxed(&c->last_read, nanotime());
        ssize_t r = nghttp2_session_mem_recv(c->session, (const uint8_t *)b->in, (size_t)n);
        if (r >= 0 && within && c->in_block && c->block_seq == block)
            (void)h2_spend_header(c, (size_t)n);
        else if (r < 0 && !c->condemned)
            h2_unreadable(c, b->in, (size_t)n, (int)r);
        if (c->condemned || r < 0) {
            h2_hand_over(c);
            flush(c, b); /* its parting words */
            c->broken = true;
        }
        else if (c->in_block && c->server->options.header_timeout != 0) {
            due_by(c, c->block_since + c->server->options.header_timeout);
        }
    }
    else if (n != -EAGAIN) {
        c->broken = true;
    }
    h2_hand_over(c);
    if (!c->broken)
        service(c, b);
    if (c->condemned && !c->broken)
        flush(c, b);
    bool end = finished(c);
    *more = c->more || reading == READ_SOON || (reading == READ_ON && c->again);
    mutex_unlock(&c->lock);
    h2_buf_put(b);
    return !end;
}

static void
conn_close(H2Conn *c)
{
    mutex_lock(&c->lock);
    atomic_store(&c->dead, true);
    while (c->streams != NULL) {
        H2Stream *st = c->streams;
        nghttp2_session_set_stream_user_data(c->session, st->id, NULL);
        h2_stream_gone(c, st, END_LOST);
    }
    h2_drain_outbox(c);
    nghttp2_session_del(c->session);
    c->session = NULL;
    if (c->timer_on && timer_del(&c->timer))
        h2_conn_unref(c);
    c->timer_on = false;
    free(c->pending);
    c->pending = NULL;
    mutex_unlock(&c->lock);
    h2_conn_flush(c); /* what was posted meanwhile is dropped */
    netpoll_evict(c->pd);
    while (atomic_load(&c->write_waiting))
        gosleep(1000 * 1000);
    if (c->io->close != NULL)
        c->io->close(c); /* before the server is told: the process may end then */
    if ((!c->broken || c->blamed) && !c->killed)
        h2_linger(c);
    h2_conn_gone(c);
    netpoll_close(c->pd);
    close(c->fd);
}

static void
conn_main(void *arg)
{
    H2Conn *c = arg;
    bool more;
    while (turn(c, &more)) {
        atomic_fence(); /* pairs with the one in h2_outbox_push */
        if (atomic_load(&c->outbox) != NULL)
            h2_conn_flush(c);
        if (more) {
            if (c->choked)
                gosleep(1000 * 1000); /* the application is behind */
            else
                gosched();
            continue;
        }
        if (netpoll_wait(c->pd, POLL_READ) == GMP_ECLOSED)
            break;
    }
    conn_close(c);
    h2_conn_unref(c);
}

/* ---- start ---- */

int
h2_conn_start(H2Server *srv, int fd, const H2Io *io, void *tls, const struct sockaddr_storage *peer, socklen_t len)
{
    H2Conn *c = calloc(1, sizeof *c);
    if (c == NULL)
        return GMP_ENOMEM;
    int one = 1;
    if (peer->ss_family != AF_UNIX)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->refs = 1; /* the goroutine's */
    c->server = srv;
    c->fd = fd;
    c->io = io;
    c->opened = c->last_read = c->idle_since = nanotime();
    h2_peer_name(c->peer, sizeof c->peer, peer, len);
    atomic_xadd(&srv->refs, 1u);
    c->session = h2_session_new(c);
    if (c->session == NULL || netpoll_open(H2_SET, fd, &c->pd) != 0)
        goto no_poll;
    if (io->open != NULL && io->open(c, tls) != GMP_OK)
        goto no_io;
    atomic_store(&c->chores, (uint32_t)CHORE_TIMER);
    mutex_lock(&srv->lock);
    c->next = srv->conns;
    if (srv->conns != NULL)
        srv->conns->prev = c;
    srv->conns = c;
    srv->nconns++;
    if (srv->draining)
        c->chores |= CHORE_DRAIN;
    if (srv->killed)
        c->chores |= CHORE_KILL;
    mutex_unlock(&srv->lock);
    atomic_xadd_relaxed(&srv->accepted, (uint64_t)1);
    if (h2_go(conn_main, c) == GMP_OK)
        return GMP_OK;
    atomic_store(&c->dead, true);
    h2_conn_gone(c);
    if (io->close != NULL)
        io->close(c);
no_io:
    netpoll_evict(c->pd);
    netpoll_close(c->pd);
no_poll:
    nghttp2_session_del(c->session);
    h2_conn_unref(c);
    return GMP_ENOMEM;
}
