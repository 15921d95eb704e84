/* netpoll_epoll.c: the net poller's back-end on Linux.
 *
 * Some facts about epoll: EPOLLET reports each change once, to one waiter; EPOLLRDHUP, EPOLLHUP and EPOLLERR make both reads and
 * writes worth a try; EPOLLPRI tells of urgent data, at which a read stops though more may follow; a closed descriptor leaves the
 * set by itself only with its last duplicate, so it is taken out first; regular files are refused with EPERM.
 */
#if defined(__linux__) && !defined(GMP_NETPOLL_KQUEUE)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "netpoll.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 128

static int epfds[SETS] = {-1, -1}, breakfds[SETS] = {-1, -1};

int
netpoll_backend_init(int set)
{
    int epfd = epfds[set] = epoll_create1(EPOLL_CLOEXEC);
    int breakfd = breakfds[set] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 0}; /* cookie 0: the break */
    if (epfd >= 0 && breakfd >= 0 && epoll_ctl(epfd, EPOLL_CTL_ADD, breakfd, &ev) == 0)
        return 0;
    int err = errno;
    netpoll_backend_afterfork_child(set);
    return err;
}

/* The parent's epoll set is shared: leave it alone and make another one. */
void
netpoll_backend_afterfork_child(int set)
{
    if (epfds[set] >= 0)
        close(epfds[set]);
    if (breakfds[set] >= 0)
        close(breakfds[set]);
    epfds[set] = breakfds[set] = -1;
}

int
netpoll_backend_open(PollDesc *pd, PollDesc *last)
{
    (void)last; /* the kernel knows: a closed descriptor has left the set */
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET, .data.u64 = pd->cookie};
    return epoll_ctl(epfds[pd->set->set], EPOLL_CTL_ADD, pd->fd, &ev) == 0 ? 0 : errno;
}

void
netpoll_backend_close(PollDesc *pd, bool ours)
{
    struct epoll_event ev = {0};
    if (ours)
        (void)epoll_ctl(epfds[pd->set->set], EPOLL_CTL_DEL, pd->fd, &ev);
}

void
netpoll_backend_arm(PollDesc *pd, PollMode mode)
{
    (void)pd, (void)mode;
}

void
netpoll_backend_break(int set)
{
    uint64_t one = 1;
    ssize_t n = write(breakfds[set], &one, sizeof one);
    (void)n; /* EAGAIN: it is set already */
}

static int
wait_for(int set, struct epoll_event *events, int64_t delay)
{
    int epfd = epfds[set];
    const sigset_t *mask = sys_signals_mask();
    if (delay <= 0)
        return epoll_pwait(epfd, events, EVENTS, delay < 0 ? -1 : 0, mask);
#ifdef SYS_epoll_pwait2
    static bool missing;
    if (!missing) { /* Linux 5.11: takes nanoseconds */
        struct timespec ts = {(time_t)(delay / 1000000000), (long)(delay % 1000000000)};
        int n = (int)syscall(SYS_epoll_pwait2, epfd, events, EVENTS, &ts, mask, (size_t)8); /* 8: the kernel's set */
        if (n >= 0 || errno != ENOSYS)
            return n;
        missing = true;
    }
#endif
    int64_t ms = (delay + 999999) / 1000000;
    return epoll_pwait(epfd, events, EVENTS, ms > 1000000000 ? 1000000000 : (int)ms, mask);
}

bool
netpoll_backend_poll(int set, int64_t delay)
{
    struct epoll_event events[EVENTS];
    int n = wait_for(set, events, delay);
    if (n < 0) {
        if (errno != EINTR)
            gmp_throw("epoll_wait: error %d: has the program closed a descriptor that is not its own?", errno);
        return false;
    }
    for (int i = 0; i < n; i++) {
        uint32_t ev = events[i].events;
        if (events[i].data.u64 == 0) {
            uint64_t count;
            if (delay != 0) { /* a poll that does not wait leaves it to the one that does */
                ssize_t r = read(breakfds[set], &count, sizeof count);
                (void)r;
            }
            continue;
        }
        netpoll_ready(events[i].data.u64, (ev & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0,
                      (ev & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0,
                      (ev & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
    }
    return true;
}

#endif
