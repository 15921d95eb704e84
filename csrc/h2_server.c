/* h2_server.c: a server's listeners and connections, the queue of calls for the application, and its end.
 *
 * The end, step by step
 *   1. h2_drain: listeners are closed; every connection announces that it will go and then refuses new calls (h2_conn.c), and closes
 *      when its last call is over.
 *   2. h2_kill: the calls that are left end now, and the connections with them.
 *   3. The last connection or listener that goes finds nothing left and sets done, which ends h2_take.
 * References: the application's, one per connection, one per accepting goroutine.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "h2.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define FLUSH_NS (100 * 1000)

static Mutex servers_lock;
static H2Server *servers; /* that were started and not freed yet; atomic head */

H2Server *
h2_server_new(const H2Options *options)
{
    H2Server *srv = calloc(1, sizeof *srv);
    if (srv == NULL)
        return NULL;
    srv->refs = 1;
    srv->options = *options;
    return srv;
}

/* The application's reference goes.  Only while it is there the server is in the list: so whoever walks the list cannot drop the last
 * reference to one of them. */
void
h2_server_free(H2Server *srv)
{
    mutex_lock(&servers_lock);
    H2Server **link = &servers;
    while (*link != NULL && *link != srv)
        link = &(*link)->next;
    if (*link != NULL)
        atomic_store_relaxed(link, srv->next);
    mutex_unlock(&servers_lock);
    h2_server_unref(srv);
}

void
h2_server_unref(H2Server *srv)
{
    if (atomic_xadd(&srv->refs, (uint32_t)-1) != 1)
        return;
    while (srv->listeners != NULL) {
        H2Listener *l = srv->listeners;
        srv->listeners = l->next;
        if (l->fd >= 0)
            close(l->fd);
        if (l->tls != NULL)
            l->io->forget(l->tls);
        free(l);
    }
    for (int i = 0; i < H2_BUCKETS; i++)
        while (srv->methods[i] != NULL) {
            H2Method *m = srv->methods[i];
            srv->methods[i] = m->next;
            free(m);
        }
    free(srv);
}

/* ---- methods ---- */

static uint32_t
hash_path(const char *path, uint32_t len)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (uint32_t i = 0; i < len; i++)
        h = (h ^ (uint8_t)path[i]) * 16777619u;
    return h;
}

static H2Method *
lookup(H2Method *m, uint32_t hash, const char *path, uint32_t len)
{
    while (m != NULL && (m->hash != hash || m->len != len || memcmp(m->path, path, len) != 0))
        m = m->next;
    return m;
}

H2Method *
h2_find(H2Server *srv, const char *path, uint32_t len)
{
    uint32_t hash = hash_path(path, len);
    return lookup(atomic_load_acquire(&srv->methods[hash % H2_BUCKETS]), hash, path, len); /* pairs with h2_learn */
}

H2Method *
h2_learn(H2Server *srv, const char *path, uint32_t len, bool unary, void *app)
{
    uint32_t hash = hash_path(path, len);
    H2Method **bucket = &srv->methods[hash % H2_BUCKETS];
    mutex_lock(&srv->lock);
    H2Method *m = lookup(*bucket, hash, path, len);
    if (m == NULL && (m = malloc(sizeof *m + len)) != NULL) {
        m->hash = hash;
        m->len = len;
        m->unary = unary;
        m->app = app;
        memcpy(m->path, path, len);
        m->next = *bucket;
        atomic_store_release(bucket, m); /* pairs with h2_find */
    }
    mutex_unlock(&srv->lock);
    return m;
}

/* ---- the queue of calls ---- */

/* Any thread.  Calls come from one connection. */
void
h2_ready(H2Server *srv, H2Stream *first, H2Stream *last, uint32_t n, int why)
{
    for (H2Stream *st = first; st != NULL; st = st->ready_next)
        st->ready |= (uint8_t)why;
    mutex_lock(&srv->ready_lock);
    if (why == READY_CALL)
        atomic_store_relaxed(&first->conn->unstarted, first->conn->unstarted + n);
    if (srv->ready_first == NULL)
        srv->ready_first = first;
    else
        srv->ready_last->ready_next = first;
    srv->ready_last = last;
    atomic_store_relaxed(&srv->nready, srv->nready + n);
    Sudog *taker = waitq_pop(&srv->takers);
    mutex_unlock(&srv->ready_lock);
    if (taker != NULL)
        goready(taker->g); /* not under the lock, which it takes first of all */
}

int
h2_take(H2Server *srv, H2Stream **st, int *why)
{
    for (;;) {
        mutex_lock(&srv->ready_lock);
        H2Stream *first = srv->ready_first;
        if (first != NULL) {
            srv->ready_first = first->ready_next;
            first->ready_next = NULL;
            atomic_store_relaxed(&srv->nready, srv->nready - 1);
            *why = first->ready;
            first->ready = 0;
            if (*why & READY_CALL)
                atomic_store_relaxed(&first->conn->unstarted, first->conn->unstarted - 1);
            mutex_unlock(&srv->ready_lock);
            *st = first;
            return GMP_OK;
        }
        if (srv->notice) {
            srv->notice = false;
            mutex_unlock(&srv->ready_lock);
            *st = NULL;
            *why = READY_NOTICE;
            return GMP_OK;
        }
        if (srv->done) {
            mutex_unlock(&srv->ready_lock);
            return GMP_ECLOSED;
        }
        int code = waitq_park(&srv->takers, &srv->ready_lock, false, WAIT_IO_READ, -1);
        if (code != GMP_OK)
            return code;
    }
}

void
h2_notice(H2Server *srv)
{
    mutex_lock(&srv->ready_lock);
    srv->notice = true;
    waitq_wake(&srv->takers);
    mutex_unlock(&srv->ready_lock);
}

bool
h2_news(H2Server *srv, char text[H2_NEWS_SIZE])
{
    mutex_lock(&srv->ready_lock);
    bool any = srv->nnews != 0;
    if (any) {
        memcpy(text, srv->news[srv->news_first], H2_NEWS_SIZE);
        srv->news_first = (srv->news_first + 1) % H2_NEWS;
        srv->nnews--;
    }
    mutex_unlock(&srv->ready_lock);
    return any;
}

/* ---- flushing what was posted ---- */

void
h2_mark_dirty(H2Conn *c)
{
    H2Server *srv = c->server;
    mutex_lock(&srv->dirty_lock);
    if (!c->dirty) {
        atomic_store_relaxed(&c->dirty, true);
        atomic_xadd(&c->refs, 1u);
        c->dirty_next = srv->dirty;
        if (srv->dirty == NULL)
            atomic_store_relaxed(&srv->dirty_since, nanotime());
        atomic_store_relaxed(&srv->dirty, c);
    }
    mutex_unlock(&srv->dirty_lock);
}

/* The next connection that has something to flush, with a reference. */
static H2Conn *
take_dirty(H2Server *srv)
{
    if (atomic_load_relaxed(&srv->dirty) == NULL)
        return NULL;
    mutex_lock(&srv->dirty_lock);
    H2Conn *c = srv->dirty;
    if (c != NULL) {
        atomic_store_relaxed(&srv->dirty, c->dirty_next);
        atomic_store_relaxed(&c->dirty, false);
    }
    mutex_unlock(&srv->dirty_lock);
    return c;
}

bool
h2_flush_dirty(H2Server *srv)
{
    H2Conn *c;
    bool did = false;
    while ((c = take_dirty(srv)) != NULL) {
        h2_conn_flush(c);
        h2_conn_unref(c);
        did = true;
    }
    return did;
}

bool
h2_flush_all(void)
{
    bool did = false;
    if (atomic_load_relaxed(&servers) == NULL)
        return false;
    mutex_lock(&servers_lock);
    for (H2Server *srv = servers; srv != NULL; srv = srv->next)
        did |= h2_flush_dirty(srv);
    mutex_unlock(&servers_lock);
    return did;
}

void
h2_flush_overdue(H2Server *srv)
{
    H2Conn *c;
    if (atomic_load_relaxed(&srv->dirty) == NULL || nanotime() - atomic_load_relaxed(&srv->dirty_since) < FLUSH_NS)
        return;
    while ((c = take_dirty(srv)) != NULL) {
        h2_conn_kick(c);
        h2_conn_unref(c);
    }
}

void
h2_flush_all_overdue(void)
{
    if (atomic_load_relaxed(&servers) == NULL || !mutex_trylock(&servers_lock))
        return;
    for (H2Server *srv = servers; srv != NULL; srv = srv->next)
        h2_flush_overdue(srv);
    mutex_unlock(&servers_lock);
}

void
h2_afterfork_child(void)
{
    for (H2Server *srv = servers; srv != NULL; srv = srv->next) {
        for (H2Listener *l = srv->listeners; l != NULL; l = l->next)
            if (l->fd >= 0)
                close(l->fd);
        for (H2Conn *c = srv->conns; c != NULL; c = c->next)
            close(c->fd);
    }
    servers_lock = (Mutex){0};
    servers = NULL;
    h2_io_afterfork_child();
    h2_tls_afterfork_child();
}

/* ---- listeners ---- */

/* srv->lock.  Everything has gone: tell the application. */
static void
look_if_done(H2Server *srv)
{
    if (!srv->draining || srv->nconns != 0 || srv->naccepting != 0)
        return;
    mutex_lock(&srv->ready_lock);
    srv->done = true;
    while (waitq_wake(&srv->takers))
        ;
    mutex_unlock(&srv->ready_lock);
}

#define ACCEPT_WAIT ((int64_t)10 * 1000 * 1000)
#define ACCEPT_WAIT_MOST ((int64_t)200 * 1000 * 1000)

static void
accept_all(H2Listener *l)
{
    int64_t wait = ACCEPT_WAIT;
    for (;;) {
        struct sockaddr_storage peer;
        socklen_t len = sizeof peer;
        int fd = accept4(l->fd, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                if (wait == ACCEPT_WAIT)
                    h2_tell(l->server, WHY_ACCEPT, "no connection can be accepted for now: %s", strerror(errno));
                gosleep(wait); /* those who wait stay in the backlog */
                wait = wait * 2 < ACCEPT_WAIT_MOST ? wait * 2 : ACCEPT_WAIT_MOST;
                if (atomic_load(&l->pd->closing))
                    return;
                continue;
            }
            return;
        }
        wait = ACCEPT_WAIT;
        if (h2_conn_start(l->server, fd, l->io, l->tls, &peer, len) != GMP_OK)
            close(fd);
        if (atomic_load(&l->pd->closing))
            return;
        gosched();
    }
}

static void
accept_main(void *arg)
{
    H2Listener *l = arg;
    H2Server *srv = l->server;
    for (;;) {
        accept_all(l);
        int code = netpoll_wait(l->pd, POLL_READ);
        if (code == GMP_ECLOSED)
            break;
    }
    mutex_lock(&srv->lock);
    netpoll_close(l->pd);
    close(l->fd);
    l->fd = -1;
    l->running = false;
    srv->naccepting--;
    look_if_done(srv);
    mutex_unlock(&srv->lock);
    h2_server_unref(srv);
}

/* srv->lock.  0 or an errno. */
static int
listener_run(H2Server *srv, H2Listener *l)
{
    int err = netpoll_open(H2_SET, l->fd, &l->pd);
    if (err != 0)
        return err;
    atomic_xadd(&srv->refs, 1u);
    l->running = true;
    srv->naccepting++;
    if (h2_go(accept_main, l) == GMP_OK)
        return 0;
    netpoll_evict(l->pd);
    netpoll_close(l->pd);
    l->running = false;
    srv->naccepting--;
    atomic_xadd(&srv->refs, (uint32_t)-1);
    return ENOMEM;
}

int
h2_listen(H2Server *srv, int fd, const H2Io *io, void *tls)
{
    H2Listener *l = calloc(1, sizeof *l);
    if (l == NULL)
        return ENOMEM;
    *l = (H2Listener){.server = srv, .fd = fd, .io = io, .tls = tls};
    mutex_lock(&srv->lock);
    int err = srv->started && !srv->draining ? listener_run(srv, l) : 0;
    if (err == 0) {
        l->next = srv->listeners;
        srv->listeners = l;
    }
    mutex_unlock(&srv->lock);
    if (err != 0)
        free(l);
    return err;
}

int
h2_start(H2Server *srv)
{
    int err = 0;
    mutex_lock(&servers_lock);
    srv->next = servers;
    atomic_store_relaxed(&servers, srv);
    mutex_unlock(&servers_lock);
    mutex_lock(&srv->lock);
    srv->started = true;
    for (H2Listener *l = srv->listeners; l != NULL && err == 0; l = l->next)
        if (!l->running)
            err = listener_run(srv, l);
    mutex_unlock(&srv->lock);
    return err;
}

/* ---- the end ---- */

void
h2_drain(H2Server *srv)
{
    mutex_lock(&srv->lock);
    if (!srv->draining) {
        srv->draining = true;
        for (H2Listener *l = srv->listeners; l != NULL; l = l->next) {
            if (l->running) {
                netpoll_evict(l->pd);
            }
            else if (l->fd >= 0) {
                close(l->fd);
                l->fd = -1;
            }
        }
        for (H2Conn *c = srv->conns; c != NULL; c = c->next)
            h2_conn_chore(c, CHORE_DRAIN);
        look_if_done(srv);
    }
    mutex_unlock(&srv->lock);
}

void
h2_kill(H2Server *srv)
{
    h2_drain(srv);
    mutex_lock(&srv->lock);
    atomic_store(&srv->killed, true);
    for (H2Conn *c = srv->conns; c != NULL; c = c->next)
        h2_conn_chore(c, CHORE_KILL);
    mutex_unlock(&srv->lock);
}

void
h2_conn_gone(H2Conn *c)
{
    H2Server *srv = c->server;
    mutex_lock(&srv->lock);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        srv->conns = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    srv->nconns--;
    look_if_done(srv);
    mutex_unlock(&srv->lock);
}
