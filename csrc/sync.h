/* sync.h: locks for goroutines.  All wait by parking; each call takes a timeout in ns (negative for ever, 0 try). */
#ifndef GMP_SYNC_H
#define GMP_SYNC_H

#include "chan.h"

/* A mutual exclusion lock that belongs to whoever locked it, on any thread.  Zero-initialised = unlocked.
 * Normal mode: an unlocked mutex goes to whoever comes first, which may be a newcomer that runs already.  Starvation mode:
 * when the first waiter has waited over 1 ms the mutex is handed to it.  Go: sync.Mutex */
typedef struct Gmutex {
    uint32_t key; /* atomic: GMUTEX_LOCKED | GMUTEX_WAITERS */
    Mutex lock;   /* guards what follows, and changes of GMUTEX_WAITERS */
    WaitQ waiters;
} Gmutex;
int gmutex_lock(Gmutex *m, int64_t timeout);
/* The first thing that the two try; false says nothing. */
static inline bool
gmutex_lock_fast(Gmutex *m)
{
    return atomic_cas_acquire(&m->key, 0u, 1u); /* pairs with the release in unlock */
}
static inline bool
gmutex_unlock_fast(Gmutex *m)
{
    return atomic_cas_release(&m->key, 1u, 0u); /* pairs with the acquire in lock */
}
int gmutex_unlock(Gmutex *m); /* GMP_ESTATE: not locked */
static inline bool
gmutex_locked(Gmutex *m)
{
    return (atomic_load_relaxed(&m->key) & 1) != 0;
}

/* Go: sync.WaitGroup */
typedef struct Gwaitgroup {
    Mutex lock;
    int64_t n;
    WaitQ waiters;
} Gwaitgroup;
int gwaitgroup_add(Gwaitgroup *wg, int64_t delta); /* GMP_ESTATE: the counter would be negative; nothing changed */
int gwaitgroup_wait(Gwaitgroup *wg, int64_t timeout);

#endif
