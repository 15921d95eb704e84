/* netpoll.h: waiting for file descriptors: the part above the back-ends.
 *
 * Each set of Ps has a poller of its own (a kernel object, its waiters), so that an event wakes a thread that can run the goroutine
 * which waits for it, and never one of the other set that could only pass it on.
 *
 * A back-end (netpoll_epoll.c, netpoll_kqueue.c ...) defines
 *   netpoll_backend_init    makes the kernel object; once, and again in the child of a fork; GMP_E...
 *   netpoll_backend_open    registers a descriptor for both directions, edge-triggered, once; 0 or an errno
 *   netpoll_backend_close   takes it out
 *   netpoll_backend_break   makes a poll that waits return; any thread
 *   netpoll_backend_poll    waits up to delay ns (negative for ever, 0 not) and calls netpoll_ready for what is there;
 *                           false when a signal disturbed the wait
 */
#ifndef GMP_NETPOLL_H
#define GMP_NETPOLL_H

#include "runtime.h"

typedef struct PollDesc PollDesc;
typedef enum PollMode { POLL_READ, POLL_WRITE } PollMode;

/* One direction of a descriptor.  state: nobody waits and nothing was seen (0), PD_READY, PD_WAIT, or the G that waits. */
#define PD_READY ((uintptr_t)1)
#define PD_WAIT ((uintptr_t)2)
typedef struct PollSide {
    uintptr_t state;   /* atomic */
    uint32_t parkseq;  /* atomic: of the G in state */
    uint32_t timerseq; /* PollDesc.lock; of the deadline's timer */
    int64_t deadline;  /* PollDesc.lock; nanotime, 0 none, -1 passed */
    Timer timer;
    bool timing; /* PollDesc.lock */
} PollSide;

/* Type-stable: never freed, so that a late event or timer finds a PollDesc, if another one's, and `tag` tells. */
struct PollDesc {
    Mutex lock;
    int fd;
    uint32_t tag; /* counts the lives of this PollDesc; events carry it */
    bool closing; /* PollDesc.lock */
    bool hup;     /* the other end has ended, or sent urgent data, where a read stops: always try to read; atomic */
    Sched *set;
    PollSide side[2];
    PollDesc *link; /* free list */
};

/* A registered PollDesc for fd, which must be non-blocking.  0, or an errno (EEXIST: already registered; EPERM: a file that
 * cannot be polled; ENOMEM ...).  Go: poll_runtime_pollOpen */
int netpoll_open(Sched *set, int fd, PollDesc **out);
/* Wakes who waits with GMP_ECLOSED and refuses new waits.  Before the descriptor is closed.  Go: pollUnblock */
void netpoll_evict(PollDesc *pd);
/* Unregisters: the descriptor is somebody else's from now on.  evict first. */
void netpoll_forget(PollDesc *pd);
/* Unregisters and frees; evict first, and let no one use pd any more.  Go: pollClose */
void netpoll_close(PollDesc *pd);
/* Parks until the direction is ready.  GMP_OK, GMP_ETIMEDOUT (deadline), GMP_ECLOSED, GMP_EINTR, GMP_ESTATE: another
 * goroutine waits there already.  The caller sees to it that no other one comes before the call has returned: a wake-up is
 * not the end of it.  Go: pollWait */
int netpoll_wait(PollDesc *pd, PollMode mode);
/* Ends a wait, or the next one, as an edge would: whoever waits looks for what else there is to do.  Any thread. */
void netpoll_kick(PollDesc *pd, PollMode mode);
/* An edge was seen that no wait has consumed yet. */
static inline bool
netpoll_seen(PollDesc *pd, PollMode mode)
{
    return atomic_load(&pd->side[mode].state) == PD_READY || atomic_load(&pd->hup);
}
/* Its deadline has passed: Go: the check in pollDesc.prepare */
static inline bool
netpoll_expired(PollDesc *pd, PollMode mode)
{
    return atomic_load(&pd->side[mode].deadline) < 0;
}
/* Deadline of a direction, nanotime; 0 none; in the past: at once.  Go: pollSetDeadline */
int netpoll_set_deadline(PollDesc *pd, PollMode mode, int64_t when);

/* ---- for threads.c and sysmon.c ---- */
uint32_t netpoll_waiters(Sched *set); /* its goroutines parked in netpoll_wait */
uint32_t netpoll_waiters_any(void);   /* those of all sets */
/* Looks what is ready, waiting up to delay ns for it (negative for ever, 0 not): one thread at a time may wait.  Returns the
 * goroutines, linked; the caller makes them runnable (injectglist).  Go: runtime.netpoll */
G *netpoll(Sched *set, int64_t delay, bool *disturbed);
void netpoll_break(Sched *set);       /* Go: runtime.netpollBreak */
int64_t netpoll_lastpoll(Sched *set); /* nanotime of the last look */
void netpoll_afterfork_child(void);
/* Changes in the child of a fork: PollDescs of an older one are not to be touched, their locks may be held for ever. */
extern uint32_t netpoll_generation;

/* ---- for back-ends ---- */
int netpoll_backend_init(int set);
void netpoll_backend_afterfork_child(int set);
int netpoll_backend_open(int set, int fd, uint64_t cookie);
void netpoll_backend_close(int set, int fd);
void netpoll_backend_break(int set);
bool netpoll_backend_poll(int set, int64_t delay);
void netpoll_ready(uint64_t cookie, bool readable, bool writable, bool hup);

#endif
