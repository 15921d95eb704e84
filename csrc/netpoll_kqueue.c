/* netpoll_kqueue.c: the net poller's back-end on macOS and the BSDs.  On Linux against libkqueue, with -DGMP_NETPOLL_KQUEUE.
 *
 * Some facts about kqueue: a descriptor has one knote per filter, so two registrations make one of ours; EV_CLEAR reports each change
 * once, to one waiter; EV_ADD of what is there already replaces its udata without a word, so whoever is there is asked for first;
 * closing a descriptor takes its knotes out; a regular file always counts as readable, until its end, and so is refused here; a
 * kqueue is not inherited by the child of a fork.  Some systems tell the write end of a pipe that its reader is gone by the
 * read filter: EV_EOF there makes writes worth a try, too.
 */
#if defined(GMP_NETPOLL_KQUEUE) || defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) ||                \
    defined(__OpenBSD__) || defined(__DragonFly__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "netpoll.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/types.h>

#include <sys/event.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 128
#define LONGEST_NS (INT64_C(1000000) * 1000000000) /* macOS refuses much longer waits; the caller waits again */

static int kqs[SETS] = {-1, -1};

/* 0, or -1 with errno. */
static int
change(int set, int fd, short filter, unsigned short flags, unsigned fflags, uint64_t cookie)
{
    struct kevent ev;
    EV_SET(&ev, (uintptr_t)fd, filter, flags, fflags, 0, (__typeof__(ev.udata))(uintptr_t)cookie);
    int n;
    do
        n = kevent(kqs[set], &ev, 1, NULL, 0, NULL);
    while (n < 0 && errno == EINTR);
    return n;
}

/* ---- the break: cookie 0 ---- */

#if defined(EVFILT_USER) && !defined(GMP_KQUEUE_PIPE)

static int
break_open(int set)
{
    return change(set, 0, EVFILT_USER, EV_ADD | EV_CLEAR, 0, 0);
}

static void
break_close(int set)
{
    (void)set;
}

void
netpoll_backend_break(int set)
{
    change(set, 0, EVFILT_USER, 0, NOTE_TRIGGER, 0);
}

/* A poll has taken it; if it is one that does not wait, it leaves it to the one that does. */
static void
break_taken(int set, bool waited)
{
    if (!waited)
        netpoll_backend_break(set);
}

#else /* OpenBSD, NetBSD before 10 */

static int breakfds[SETS][2] = {{-1, -1}, {-1, -1}};

static int
break_open(int set)
{
    int *fds = breakfds[set];
    if (pipe(fds) < 0)
        return -1;
    for (int i = 0; i < 2; i++)
        if (fcntl(fds[i], F_SETFD, FD_CLOEXEC) < 0 || fcntl(fds[i], F_SETFL, O_NONBLOCK) < 0)
            return -1;
    return change(set, fds[0], EVFILT_READ, EV_ADD, 0, 0);
}

static void
break_close(int set)
{
    for (int i = 0; i < 2; i++) {
        if (breakfds[set][i] >= 0)
            close(breakfds[set][i]);
        breakfds[set][i] = -1;
    }
}

void
netpoll_backend_break(int set)
{
    ssize_t n = write(breakfds[set][1], "", 1);
    (void)n; /* EAGAIN: it is full of them */
}

static void
break_taken(int set, bool waited)
{
    char buf[64];
    while (waited && read(breakfds[set][0], buf, sizeof buf) == sizeof buf)
        ;
}

#endif

/* ---- the poller ---- */

int
netpoll_backend_init(int set)
{
    kqs[set] = kqueue();
    if (kqs[set] < 0)
        return errno;
    if (fcntl(kqs[set], F_SETFD, FD_CLOEXEC) == 0 && break_open(set) == 0)
        return 0;
    int err = errno;
    break_close(set);
    close(kqs[set]);
    kqs[set] = -1;
    return err;
}

/* The kqueue stayed with the parent, and its number may be another's already. */
void
netpoll_backend_afterfork_child(int set)
{
    break_close(set);
    kqs[set] = -1;
}

int
netpoll_backend_open(PollDesc *pd, PollDesc *last)
{
    int set = pd->set->set;
    struct stat st;
    if (fstat(pd->fd, &st) < 0)
        return errno;
    if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))
        return EPERM;
    /* Changes nothing but the udata, hence the old one. */
    if (last != NULL && change(set, pd->fd, EVFILT_READ, EV_ENABLE, 0, last->cookie) == 0)
        return EEXIST;
    if (change(set, pd->fd, EVFILT_READ, EV_ADD | EV_CLEAR, 0, pd->cookie) < 0)
        return errno;
    if (change(set, pd->fd, EVFILT_WRITE, EV_ADD | EV_CLEAR, 0, pd->cookie) == 0)
        return 0;
    int err = errno;
    if (err == EPIPE) { /* the reader of a pipe is gone: no write will ever have to wait */
        netpoll_ready(pd->cookie, true, true, true);
        return 0;
    }
    (void)change(pd->set->set, pd->fd, EVFILT_READ, EV_DELETE, 0, 0);
    return err;
}

void
netpoll_backend_close(PollDesc *pd, bool ours)
{
    if (!ours)
        return;
    (void)change(pd->set->set, pd->fd, EVFILT_READ, EV_DELETE, 0, 0);
    (void)change(pd->set->set, pd->fd, EVFILT_WRITE, EV_DELETE, 0, 0);
}

void
netpoll_backend_arm(PollDesc *pd, PollMode mode)
{
    (void)pd, (void)mode;
}

bool
netpoll_backend_poll(int set, int64_t delay)
{
    struct kevent events[EVENTS];
    struct timespec ts, *tp = NULL;
    if (delay >= 0) {
        int64_t ns = delay < LONGEST_NS ? delay : LONGEST_NS;
        ts.tv_sec = (time_t)(ns / 1000000000);
        ts.tv_nsec = (long)(ns % 1000000000);
        tp = &ts;
    }
    int n = kevent(kqs[set], NULL, 0, events, EVENTS, tp);
    if (n < 0) {
        if (errno != EINTR)
            gmp_throw("kevent: error %d: has the program closed a descriptor that is not its own?", errno);
        return false;
    }
    for (int i = 0; i < n; i++) {
        const struct kevent *ev = &events[i];
        uint64_t cookie = (uint64_t)(uintptr_t)ev->udata;
        bool eof = (ev->flags & (EV_EOF | EV_ERROR)) != 0;
        if (cookie == 0)
            break_taken(set, delay != 0);
        else if (ev->filter == EVFILT_READ)
            netpoll_ready(cookie, true, eof, eof);
        else
            netpoll_ready(cookie, eof, true, eof);
    }
    return true;
}

#endif
