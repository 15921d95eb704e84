/* netpoll.h: waiting for file descriptors: the part above the back-ends.
 *
 * Each set of Ps has a poller of its own (a kernel object, its waiters), so that an event wakes a thread that can run the goroutine
 * which waits for it, and never one of the other set that could only pass it on.
 *
 * A back-end (netpoll_epoll.c, netpoll_kqueue.c, netpoll_iocp.c; one is compiled in) defines
 *   netpoll_backend_init    makes the kernel object; once, and again in the child of a fork; 0 or an errno
 *   netpoll_backend_open    registers pd->fd for both directions, edge-triggered, once, under pd->cookie; 0 or an errno.
 *                           `last` (may be NULL) was registered for the same number and not closed: EEXIST if it still
 *                           stands; if not, its descriptor was closed behind our back
 *   netpoll_backend_close   takes it out; not ours: the number is another PollDesc's by now
 *   netpoll_backend_arm     a goroutine is about to wait; for systems that report a change only if asked to each time
 *   netpoll_backend_break   makes a poll that waits return; any thread
 *   netpoll_backend_poll    waits up to delay ns (negative for ever, 0 not) and calls netpoll_ready for what is there;
 *                           false when a signal disturbed the wait
 * What callers may rely on with every back-end: a change that comes after a try has failed (EAGAIN) ends the next wait, whether
 * it comes before or during that wait.  A wait may end for nothing; it is never repeated without another try.
 */
#ifndef GMP_NETPOLL_H
#define GMP_NETPOLL_H

#include "runtime.h"

typedef struct PollDesc PollDesc;
typedef enum PollMode { POLL_READ, POLL_WRITE } PollMode;

/* One direction of a descriptor.  state: nobody waits and nothing was seen (0), PD_READY, PD_WAIT, or the G that waits, with
 * 16 bits of its parkseq above the address. */
#define PD_READY ((uintptr_t)1)
#define PD_WAIT ((uintptr_t)2)
typedef struct PollSide {
    uintptr_t state;   /* atomic */
    uint32_t timerseq; /* PollDesc.lock; of the deadline's timer */
    int64_t deadline;  /* PollDesc.lock; nanotime, 0 none, -1 passed */
    Timer timer;
    bool timing; /* PollDesc.lock */
} PollSide;

/* Type-stable: never freed, so that a late event or timer finds a PollDesc, if another one's, and `cookie` tells. */
struct PollDesc {
    Mutex lock;
    int fd;          /* on Windows a SOCKET: handles have 32 significant bits */
    uint64_t cookie; /* atomic: the address and a count of its lives; what events carry */
    bool closing;    /* atomic; written under PollDesc.lock */
    bool hup;        /* atomic: the other end has ended, or sent urgent data, where a read stops: always try to read */
    Sched *set;
    PollSide side[2];
    void *backend;  /* the back-end's own; while registered */
    PollDesc *link; /* free list */
} GMP_ALIGNED(GMP_CACHELINE);

/* A registered PollDesc for fd, which must be non-blocking.  0, or an errno (EEXIST: already registered; EPERM: a file that
 * cannot be polled; ENOMEM ...).  Go: poll_runtime_pollOpen */
int netpoll_open(Sched *set, int fd, PollDesc **out);
/* Wakes who waits with GMP_ECLOSED and refuses new waits.  Before the descriptor is closed: if it was closed first, and its number
 * is opened again, this is done to the old PollDesc at that moment.  Go: pollUnblock */
void netpoll_evict(PollDesc *pd);
/* Unregisters: the descriptor is somebody else's from now on.  evict first. */
void netpoll_forget(PollDesc *pd);
/* Unregisters and frees; evict first, and let no one use pd any more.  False when the descriptor was closed before this, and its
 * number is another PollDesc's by now: then it is not the caller's to close.  Go: pollClose */
bool netpoll_close(PollDesc *pd);
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
uint32_t netpoll_waiters(Sched *set); /* its goroutines that wait in netpoll_wait, until they run again */
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
int netpoll_backend_open(PollDesc *pd, PollDesc *last);
void netpoll_backend_close(PollDesc *pd, bool ours);
void netpoll_backend_arm(PollDesc *pd, PollMode mode);
void netpoll_backend_break(int set);
bool netpoll_backend_poll(int set, int64_t delay);
void netpoll_ready(uint64_t cookie, bool readable, bool writable, bool hup);

#endif
