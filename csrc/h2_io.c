/* h2_io.c: bytes to and from a connection's descriptor, buffers for them, names of peers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "h2.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/un.h>
#include <unistd.h>

static ssize_t
plain_read(H2Conn *c, char *buf, size_t n)
{
    for (;;) {
        ssize_t r = recv(c->fd, buf, n, 0);
        /* A short read has emptied the socket, and what comes later is an edge; but the end may have come with the data's edge. */
        c->again = r > 0 && (r == (ssize_t)n || atomic_load(&c->pd->hup));
        if (r >= 0)
            return r;
        if (errno != EINTR)
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    }
}

static ssize_t
plain_write(H2Conn *c, const char *buf, size_t n)
{
    for (;;) {
        ssize_t r = send(c->fd, buf, n, MSG_NOSIGNAL);
        if (r >= 0)
            return r;
        if (errno != EINTR)
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    }
}

#define LINGER_NS ((int64_t)1000 * 1000 * 1000)
#define LINGER_STEP ((int64_t)2 * 1000 * 1000) /* at first; up to 32 times that while nothing comes */

/* A socket that is closed with bytes unread resets the connection, and what was sent last may be lost with it. */
void
h2_linger(H2Conn *c)
{
    char *buf = malloc(H2_IN);
    int64_t end = nanotime() + LINGER_NS, step = LINGER_STEP;
    if (buf == NULL || shutdown(c->fd, SHUT_WR) != 0)
        end = 0;
    while (nanotime() < end && !atomic_load(&c->server->killed)) {
        ssize_t n = recv(c->fd, buf, H2_IN, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            break;
        step = n > 0 ? LINGER_STEP : step >= 32 * LINGER_STEP ? step : step * 2;
        gosleep(step);
    }
    free(buf);
}

const H2Io h2_plain = {.read = plain_read, .write = plain_write};

/* ---- buffers: one per thread that is at work on a connection, not one per connection ---- */

#define KEEP 8

static Mutex buf_lock;
static H2Buf *buf_free;
static uint32_t nbuf_free;

H2Buf *
h2_buf_get(void)
{
    mutex_lock(&buf_lock);
    H2Buf *b = buf_free;
    if (b != NULL) {
        buf_free = b->next;
        nbuf_free--;
    }
    mutex_unlock(&buf_lock);
    if (b == NULL)
        b = malloc(sizeof *b);
    if (b != NULL)
        b->len = 0;
    return b;
}

void
h2_buf_put(H2Buf *b)
{
    mutex_lock(&buf_lock);
    if (nbuf_free < KEEP) {
        b->next = buf_free;
        buf_free = b;
        nbuf_free++;
        b = NULL;
    }
    mutex_unlock(&buf_lock);
    free(b);
}

/* ---- large messages ---- */

#define LARGE ((uint32_t)128 * 1024)
#define SHOWN_MOST ((uint32_t)32 * 1024 * 1024 - 64 * 1024) /* more teaches glibc nothing */

/* A message of n bytes is there, or to be sent.  Large ones are copied several times on their way (here, by Python, by protobuf), and glibc
 * would give that memory back to the system after each call, to take it anew, page fault by page fault.  It learns what is worth
 * keeping from the largest block that was ever freed (mallopt(3), M_MMAP_THRESHOLD): it is shown one, for a few calls at once. */
void
h2_large_message(uint32_t n)
{
    static uint32_t shown; /* atomic */
    uint32_t size = 8 * LARGE;
    if (GMP_LIKELY(n < LARGE) || GMP_LIKELY(atomic_load_relaxed(&shown) >= SHOWN_MOST))
        return;
    while (size / 8 < n && size < SHOWN_MOST)
        size *= 2;
    size = size < SHOWN_MOST ? size : SHOWN_MOST;
    if (atomic_load_relaxed(&shown) >= size)
        return;
    atomic_store_relaxed(&shown, size);
    void *volatile block = malloc(size); /* volatile: else the compiler leaves it out */
    free(block);
}

void
h2_io_afterfork_child(void)
{
    buf_lock = (Mutex){0};
    buf_free = NULL;
    nbuf_free = 0;
}

/* A socket's file may have any name: what is not for a URI is percent-encoded. */
static void
unix_name(char *out, size_t size, const char *path, size_t n)
{
    bool abstract = n > 0 && path[0] == 0;
    size_t at = (size_t)snprintf(out, size, abstract ? "unix-abstract:" : "unix:");
    for (size_t i = abstract; i < n && at + 4 <= size && (abstract || path[i] != 0); i++) {
        bool plain = path[i] > ' ' && path[i] < 0x7f && strchr("\"#%<>?[\\]^`{|}", path[i]) == NULL;
        at += (size_t)snprintf(out + at, size - at, plain ? "%c" : "%%%02X", (uint8_t)path[i]);
    }
}

/* As grpcio's ServicerContext.peer() says it. */
void
h2_peer_name(char *out, size_t size, const struct sockaddr_storage *peer, socklen_t len)
{
    char host[INET6_ADDRSTRLEN] = "";
    if (peer->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)peer;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(out, size, "ipv4:%s:%d", host, ntohs(in->sin_port));
    }
    else if (peer->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)peer;
        if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
            inet_ntop(AF_INET, in6->sin6_addr.s6_addr + 12, host, sizeof host);
            snprintf(out, size, "ipv4:%s:%d", host, ntohs(in6->sin6_port));
        }
        else {
            inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
            snprintf(out, size, "ipv6:%%5B%s%%5D:%d", host, ntohs(in6->sin6_port));
        }
    }
    else if (peer->ss_family == AF_UNIX) {
        const struct sockaddr_un *un = (const struct sockaddr_un *)peer;
        size_t n = len > offsetof(struct sockaddr_un, sun_path) ? len - offsetof(struct sockaddr_un, sun_path) : 0;
        unix_name(out, size, un->sun_path, n);
    }
    else {
        snprintf(out, size, "unknown:");
    }
}
