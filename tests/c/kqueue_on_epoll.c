/* kqueue_on_epoll.c: kqueue(2) made of epoll, as far as csrc/netpoll_kqueue.c needs it, for systems that have neither a kqueue nor
 * libkqueue.  It shows that the back-end does what the manual pages ask for, not that they are true.
 *
 * A kqueue is an epoll set of three: one set for each filter, so that a change in one direction is not reported for the
 * other, and an eventfd for EVFILT_USER.  EV_CLEAR is EPOLLET.  As there: EV_ADD of what is registered changes it, EV_ENABLE
 * and EV_DELETE of what is not gives ENOENT, EVFILT_USER with EV_CLEAR is taken by one waiter.  The descriptors of a kqueue's sets are looked up by its own.
 */
#ifdef GMP_KQUEUE_EMULATED
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/event.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sys.h"

enum { READS, WRITES, USER, SETS };
#define FDS 65536

static struct Queue {
    int inner[SETS];
    void *udata[SETS][FDS]; /* atomic */
} *queues[FDS]; /* atomic */

int
kqueue(void)
{
    int fds[SETS + 1] = {epoll_create1(EPOLL_CLOEXEC), epoll_create1(EPOLL_CLOEXEC), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                         epoll_create1(EPOLL_CLOEXEC)};

    for (int i = 0; i <= SETS; i++) {
        if (fds[i] >= 0)
            continue;
        int err = errno;
        for (int k = 0; k <= SETS; k++)
            if (fds[k] >= 0)
                close(fds[k]);
        errno = err;
        return -1;
    }
    int outer = fds[SETS];
    struct Queue *q = calloc(1, sizeof(*q));
    GMP_CHECK(q != NULL && outer < FDS);
    atomic_store(&queues[outer], q);
    for (uint32_t i = 0; i < SETS; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.u32 = i};
        q->inner[i] = fds[i];
        GMP_CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, fds[i], &ev) == 0);
    }
    return outer;
}

static int
apply(struct Queue *q, const struct kevent *c)
{
    if (c->filter == EVFILT_USER) {
        uint64_t one = 1;
        if (c->flags & EV_ADD)
            atomic_store(&q->udata[USER][0], c->udata);
        if (c->fflags & NOTE_TRIGGER)
            GMP_CHECK(write(q->inner[USER], &one, sizeof(one)) == sizeof(one));
        return 0;
    }
    int set = c->filter == EVFILT_READ ? READS : WRITES, fd = (int)c->ident;
    unsigned once = c->flags & EV_CLEAR || !(c->flags & EV_ADD) ? EPOLLET : 0;
    struct epoll_event ev = {.events = (set == READS ? EPOLLIN | EPOLLRDHUP : EPOLLOUT) | once, .data.fd = fd};

    GMP_CHECK(c->filter == EVFILT_READ || c->filter == EVFILT_WRITE);
    GMP_CHECK(fd < FDS);
    if (c->flags & EV_DELETE)
        return epoll_ctl(q->inner[set], EPOLL_CTL_DEL, fd, &ev);
    if (!(c->flags & EV_ADD)) {
        if (epoll_ctl(q->inner[set], EPOLL_CTL_MOD, fd, &ev) != 0)
            return -1;
        atomic_store(&q->udata[set][fd], c->udata);
        return 0;
    }
    void *before = atomic_xchg(&q->udata[set][fd], c->udata); /* an event may come at once */
    if (epoll_ctl(q->inner[set], EPOLL_CTL_ADD, fd, &ev) == 0)
        return 0;
    if (errno == EEXIST)
        return epoll_ctl(q->inner[set], EPOLL_CTL_MOD, fd, &ev);
    atomic_store(&q->udata[set][fd], before);
    return -1;
}

static int
collect(struct Queue *q, int set, struct kevent *out, int room)
{
    struct epoll_event evs[64];
    int n;

    if (room <= 0)
        return 0;
    if (set == USER) {
        uint64_t count;
        if (read(q->inner[USER], &count, sizeof(count)) != sizeof(count))
            return 0;
        EV_SET(out, 0, EVFILT_USER, EV_CLEAR, 0, 0, atomic_load(&q->udata[USER][0]));
        return 1;
    }
    n = epoll_wait(q->inner[set], evs, room < 64 ? room : 64, 0);
    for (int i = 0; i < n; i++) {
        unsigned eof = set == READS ? EPOLLRDHUP | EPOLLHUP | EPOLLERR : EPOLLHUP | EPOLLERR;
        int fd = evs[i].data.fd;
        EV_SET(&out[i], (uintptr_t)fd, set == READS ? EVFILT_READ : EVFILT_WRITE,
               (unsigned short)(EV_CLEAR | (evs[i].events & eof ? EV_EOF : 0)), 0, 1, atomic_load(&q->udata[set][fd]));
    }
    return n < 0 ? 0 : n;
}

int
kevent(int kq, const struct kevent *changes, int nchanges, struct kevent *events, int nevents, const struct timespec *timeout)
{
    int64_t deadline = timeout != NULL ? nanotime() + (int64_t)timeout->tv_sec * 1000000000 + timeout->tv_nsec : 0;

    struct Queue *q = kq >= 0 && kq < FDS ? atomic_load(&queues[kq]) : NULL;

    GMP_CHECK(q != NULL);
    for (int i = 0; i < nchanges; i++)
        if (apply(q, &changes[i]) != 0)
            return -1;
    for (;;) {
        struct epoll_event ready[SETS];
        int64_t left = timeout == NULL ? -1 : deadline - nanotime();
        int ms = timeout == NULL ? -1 : left <= 0 ? 0 : left > 1000000000000 ? 1000000 : (int)((left + 999999) / 1000000);
        int n, got = 0;
        if (nevents == 0)
            return 0;
        n = epoll_wait(kq, ready, SETS, ms);
        if (n < 0)
            return -1;
        for (int i = 0; i < n; i++)
            got += collect(q, (int)ready[i].data.u32, events + got, nevents - got);
        if (got != 0 || (timeout != NULL && nanotime() >= deadline))
            return got;
    }
}

#endif
