/* chan.h: channels, select and wait queues. */
#ifndef GMP_CHAN_H
#define GMP_CHAN_H

#include "runtime.h"

/* A goroutine in a wait queue.  Lies on the waiter's own stack: it is parked while it is queued. */
typedef struct Hchan Hchan;
struct Sudog {
    G *g;
    Sudog *next, *prev;
    void *elem; /* where to copy from or to; may be NULL (receive and drop) */
    Hchan *c;
    uint32_t seq; /* the park it stands for, when claimed */
    bool claimed; /* a waker must win park_claim(g, seq) first */
    bool queued;
    bool success;   /* woken by a communication, not by close */
    uint16_t index; /* select: which case */
};

typedef struct WaitQ {
    Sudog *first, *last;
} WaitQ;

void waitq_push(WaitQ *q, Sudog *sg);
void waitq_pushfront(WaitQ *q, Sudog *sg);
void waitq_remove(WaitQ *q, Sudog *sg); /* does nothing when not queued */
Sudog *waitq_pop(WaitQ *q);             /* the first whose claim is won; its G is then ours to make ready */

/* Parks the calling goroutine at the tail (or front) of q, which lock guards; the lock is released by the park and not
 * held on return.  NULL: the interpreter's lock guards q, which every switch holds until the goroutine is saved.  GMP_OK: woken by waitq_wake.  GMP_ETIMEDOUT, GMP_EINTR ...: not, and no longer queued. */
int waitq_park(WaitQ *q, Mutex *lock, bool front, WaitReason reason, int64_t timeout);
bool waitq_wake(WaitQ *q); /* under the lock */

struct Hchan {
    Spin lock;
    bool closed;
    uint32_t elemsize;
    size_t qcount, dataqsiz, sendx, recvx;
    char *buf;
    WaitQ recvq, sendq;
};

/* Go: runtime.makechan.  GMP_EINVAL: size too large; GMP_ENOMEM. */
int chan_init(Hchan *c, size_t elemsize, size_t size);
void chan_term(Hchan *c); /* nobody waits any more; the elements are the caller's business */
/* timeout: ns, negative for ever, 0 try (GMP_ETIMEDOUT at once).  c == NULL blocks until the timeout. */
int chansend(Hchan *c, const void *elem, int64_t timeout); /* GMP_ECLOSED */
int chanrecv(Hchan *c, void *elem, int64_t timeout);       /* GMP_ECLOSED: closed and drained; elem is zeroed */
int chanclose(Hchan *c);                                   /* GMP_ECLOSED: twice */
size_t chanlen(Hchan *c);

typedef struct Scase {
    Hchan *c;   /* NULL: never ready */
    void *elem; /* send: read from; receive: written to */
    bool send;
} Scase;
/* Go: runtime.selectgo.  Returns the index of the case that went ahead, or a negative code: GMP_ETIMEDOUT (timeout 0: no
 * case was ready).  *ok: for a receive, false when the channel was closed; for a send, false when it was closed (an error
 * for the caller to report). */
int selectgo(Scase *cases, int ncases, int64_t timeout, bool *ok);

#endif
