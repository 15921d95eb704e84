/* sys.h: what the core asks of the operating system.  sys_posix.c, lock_futex.c (Linux) and lock_sema.c (the portable
 * fallback: pthread mutex and condition) stand behind it; nothing above this line includes a system header.
 *
 * Times are nanoseconds of the monotonic clock (nanotime).  A timeout is a duration: negative waits for ever, 0 tries.
 */
#ifndef GMP_SYS_H
#define GMP_SYS_H

#include "atomic.h"

/* ---- clock ---- */
int64_t nanotime(void); /* monotonic, ns */
uint32_t cheaprand(void); /* a fast per-thread pseudo-random number; GMP_SEED in the environment fixes the sequence */

/* ---- pages ---- */
size_t sys_page_size(void);
/* Reserve without committing (MAP_NORESERVE): touched pages only are resident.  NULL when refused. */
void *sys_reserve(size_t bytes);
void sys_release(void *addr, size_t bytes);
/* Give the contents of whole pages back to the system; the range stays usable and reads as zero. */
void sys_discard(void *addr, size_t bytes);
/* How stacks are guarded on this system.  GUARD_MADVISE: MADV_GUARD_INSTALL, no VMA per guard (probed by touching one). */
typedef enum { GUARD_NONE, GUARD_MPROTECT, GUARD_MADVISE } GuardKind;
GuardKind sys_guard_kind(void);
/* Make one page fault when touched.  Returns the kind that was installed: GUARD_NONE when the map count is exhausted. */
GuardKind sys_guard_page(void *addr);

/* ---- threads ---- */
/* Starts a detached thread with all signals blocked.  name shows in /proc and debuggers.  0 or GMP_EAGAIN / GMP_ENOMEM. */
int sys_thread_start(void (*fn)(void *), void *arg, const char *name);
uint64_t sys_thread_id(void); /* the kernel's id of the calling thread */
void sys_thread_yield(void);
void sys_usleep(int64_t us);
int sys_ncpu(void); /* CPUs in the affinity mask */
/* Installs an alternate signal stack for the calling thread, unless it has one; freed by sys_sigstack_free. */
void *sys_sigstack_install(void);
void sys_sigstack_free(void *sigstack);
/* Calls fn(arg) when the calling thread ends.  One registration per thread. */
void sys_at_thread_exit(void (*fn)(void *), void *arg);
/* Number of OS threads of this process, or -1 where the system does not tell. */
int sys_thread_count(void);

/* ---- Mutex: not recursive, may sleep in the kernel; spins a little first.  Zero-initialised = unlocked. ---- */
typedef struct Mutex {
    uint32_t key; /* futex: 0 unlocked, 1 locked, 2 locked with sleepers */
#ifdef GMP_LOCK_SEMA
    void *impl; /* lazily created pthread objects */
#endif
} Mutex;
void mutex_lock_slow(Mutex *mu);
void mutex_unlock_slow(Mutex *mu);

static inline void
mutex_lock(Mutex *mu)
{
    if (GMP_UNLIKELY(!atomic_cas_acquire(&mu->key, 0u, 1u))) /* pairs with the release in mutex_unlock */
        mutex_lock_slow(mu);
}

static inline bool
mutex_trylock(Mutex *mu)
{
    return atomic_cas_acquire(&mu->key, 0u, 1u);
}

static inline void
mutex_unlock(Mutex *mu)
{
    if (GMP_UNLIKELY(!atomic_cas_release(&mu->key, 1u, 0u))) /* pairs with the acquire in mutex_lock */
        mutex_unlock_slow(mu);
}

/* ---- Note: a one-shot event.  One thread sleeps, one wakes it, note_clear before reuse.  Go: runtime.note ---- */
typedef struct Note {
    uint32_t key;
#ifdef GMP_LOCK_SEMA
    void *impl;
#endif
} Note;
void note_clear(Note *n);
void note_wakeup(Note *n);
/* Returns true when woken, false when timeout_ns passed first.  Negative timeout: for ever. */
bool note_sleep(Note *n, int64_t timeout_ns);
void note_free(Note *n); /* frees what the fallback allocated */

#endif
