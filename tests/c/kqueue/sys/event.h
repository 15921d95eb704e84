/* sys/event.h: as much of kqueue's interface as csrc/netpoll_kqueue.c uses, for tests on Linux without libkqueue.  The values
 * are FreeBSD's.  Behind it stands tests/c/kqueue_on_epoll.c. */
#ifndef GMP_TEST_SYS_EVENT_H
#define GMP_TEST_SYS_EVENT_H

#include <stdint.h>
#include <time.h>

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned fflags;
    int64_t data;
    void *udata;
};

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EVFILT_USER (-11)
#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_ENABLE 0x0004
#define EV_CLEAR 0x0020
#define EV_EOF 0x8000
#define EV_ERROR 0x4000
#define NOTE_TRIGGER 0x01000000u
#define EV_SET(kev, a, b, c, d, e, f) (*(kev) = (struct kevent){(a), (b), (c), (d), (e), (f)})

int kqueue(void);
int kevent(int kq, const struct kevent *changes, int nchanges, struct kevent *events, int nevents,
           const struct timespec *timeout);

#endif
