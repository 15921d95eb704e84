/* sys.h: what the core asks of the operating system.  sys_posix.c or sys_windows.c stands behind the clock, pages and
 * threads, lock.c behind Mutex and Note; lock.c sleeps and wakes through lock_futex.c (Linux), lock_windows.c or
 * lock_sema.c (the portable fallback, chosen with -DGMP_LOCK_SEMA or where there is no futex).  The files above this one
 * include no system header.
 *
 * Times are nanoseconds of the monotonic clock (nanotime).  A timeout is a duration: negative waits for ever, 0 tries.
 */
#ifndef GMP_SYS_H
#define GMP_SYS_H

#include "atomic.h"

#if !defined(__linux__) && !defined(_WIN32) && !defined(GMP_LOCK_SEMA)
#define GMP_LOCK_SEMA 1
#endif

/* ---- clock ---- */
int64_t nanotime(void); /* monotonic, ns */
int64_t walltime(void); /* the time of day: ns since 1970, UTC */
/* A fast pseudo-random number from the calling thread's own sequence.  GMP_SEED in the environment fixes the sequences:
 * the n-th thread that asks gets the n-th one. */
uint32_t cheaprand(void);

/* ---- pages ---- */
size_t sys_page_size(void);
/* Reserve readable, writable, zero memory without committing it (MAP_NORESERVE): only touched pages are resident, and
 * one at a time (no huge pages).  NULL when refused. */
void *sys_reserve(size_t bytes);
void sys_release(void *addr, size_t bytes);
/* Makes whole pages fault when touched, for ever.  False when refused. */
bool sys_protect(void *addr, size_t bytes);
/* Give the contents of whole pages back to the system; the range stays usable and reads as zero. */
void sys_discard(void *addr, size_t bytes);
/* How stacks are guarded on this system.  GUARD_MADVISE: MADV_GUARD_INSTALL, no VMA per guard (probed by touching one).
 * GMP_GUARD=none|mprotect|madvise in the environment asks for a kind; madvise only where the probe agrees. */
typedef enum { GUARD_NONE, GUARD_MPROTECT, GUARD_MADVISE } GuardKind;
GuardKind sys_guard_kind(void);
/* Make one page fault when touched.  Returns the kind that was installed.  GUARD_NONE when mprotect guards have used
 * their share, three quarters of vm.max_map_count: the rest is left to malloc, libraries and threads. */
GuardKind sys_guard_page(void *addr);

/* ---- heap: every allocation of the core, so that tests can refuse each in turn (-DGMP_FAULTS) ---- */
#ifdef GMP_FAULTS
extern int64_t
    sys_faults; /* atomic: this many more requests for memory, maps and threads succeed, then one fails; negative: all succeed */
bool sys_fault(void);
#else
#define sys_fault() false
#endif
static inline void *
sys_malloc(size_t n)
{
    return sys_fault() ? NULL : malloc(n);
}
static inline void *
sys_calloc(size_t n, size_t size)
{
    return sys_fault() ? NULL : calloc(n, size);
}
static inline void *
sys_realloc(void *p, size_t n)
{
    return sys_fault() ? NULL : realloc(p, n);
}
static inline void *
sys_aligned_alloc(size_t align, size_t n) /* n: a multiple of align; never freed */
{
#if defined(_WIN32)
    return sys_fault() ? NULL : _aligned_malloc(n, align);
#else
    return sys_fault() ? NULL : aligned_alloc(align, n);
#endif
}
#define sys_free(p) free(p)

/* ---- threads ---- */
/* Starts a detached thread.  signals: with the signal mask of the thread that loaded the core, for a thread that may start
 * other processes, which inherit it; else with all blocked, but those that a fault of its own raises (SIGSEGV, SIGBUS,
 * SIGFPE, SIGILL, SIGTRAP, SIGSYS).  name (15 characters count) shows in /proc and debuggers.  0, GMP_EAGAIN or GMP_ENOMEM. */
int sys_thread_start(void (*fn)(void *), void *arg, const char *name, bool signals);
/* Stops another thread of this process for good, wherever it is, as the process is about to end; uses SIGURG. */
bool sys_thread_freeze(uint64_t tid);
/* Interrupts the system call that another thread is in, if any; uses SIGURG, unless somebody else handles that. */
void sys_thread_interrupt(uint64_t tid);
/* From hold to release the calling thread's signals wait, but for sleeps that let sys_signals_mask() in.  What was looked at
 * in between is not made stale by a handler before the sleep.  mask: a sigset_t, NULL: not held. */
void sys_signals_hold(void);
void sys_signals_release(void);
const void *sys_signals_mask(void);
uint64_t sys_thread_id(void); /* the kernel's id of the calling thread */
void sys_thread_yield(void);
void sys_usleep(int64_t us);
void sys_exact_sleeps(void); /* from now on the calling thread's sleeps end when they should, not some 50 us later */
int sys_ncpu(void);          /* CPUs in the affinity mask */
int sys_procs(void);         /* the same, or the CPUs' worth of time that the process may use, if that is less */
double sys_cpu_quota(const char *root); /* that limit, 0 for none; /proc and /sys are looked for below root (tests) */
int sys_procs_within(int ncpu, double quota);
/* Installs an alternate signal stack for the calling thread.  NULL when it has one already, or none could be had.  The
 * same thread hands what it got to sys_sigstack_free before it ends (NULL is allowed). */
void *sys_sigstack_install(void);
void sys_sigstack_free(void *sigstack);
/* Calls fn(arg) when the calling thread ends, on that thread.  One registration per thread: a later one replaces it, fn
 * NULL takes it back. */
int sys_at_thread_exit(void (*fn)(void *), void *arg); /* GMP_ENOMEM */
/* Calls fn for each block of thread-local storage that the calling thread has, until it returns true; object says whose it
 * is, the same on all threads.  False when it was stopped, or the system does not tell. */
bool sys_tls_blocks(bool (*fn)(void *arg, const void *object, void *block, size_t size), void *arg);
/* Number of OS threads of this process, or -1 where the system does not tell. */
int sys_thread_count(void);

/* ---- Mutex: not recursive, may sleep in the kernel; spins a little first.  Zero-initialised = unlocked; owns nothing,
 * so its memory may simply be freed once unlocked. ---- */
typedef struct Mutex {
    uint32_t key; /* 0 unlocked, 1 locked, 2 locked and somebody may sleep on it */
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

/* ---- Spin: a lock for a few ns, held by threads that do not sleep meanwhile.  To unlock is a store and wakes nobody, so it
 * costs half of a Mutex; who waits spins, then gives way, then sleeps for ever longer moments.  Zero = unlocked. ---- */
typedef struct Spin {
    uint32_t key; /* 0 unlocked, 1 locked */
} Spin;
void spin_lock_slow(Spin *s);

static inline void
spin_lock(Spin *s)
{
    if (GMP_UNLIKELY(!atomic_cas_acquire(&s->key, 0u, 1u))) /* pairs with the release in spin_unlock */
        spin_lock_slow(s);
}

static inline void
spin_unlock(Spin *s)
{
    atomic_store_release(&s->key, 0u); /* pairs with the acquire in spin_lock */
}

/* ---- Note: a one-shot event.  One thread sleeps, one wakes it (once: a second wakeup throws), note_clear before
 * reuse.
 * Zero-initialised = cleared.  Go: runtime.note ---- */
typedef struct Note {
    uint32_t key; /* 0 cleared, 1 woken, 2 cleared and a thread sleeps on it */
} Note;
void note_clear(Note *n);
void note_wakeup(Note *n);
/* Returns true when woken, false when timeout_ns passed first.  Negative timeout: for ever. */
bool note_sleep(Note *n, int64_t timeout_ns);
/* The same, but calls look(arg), which may wake n, before it sleeps, and again each time a signal handler has run on this
 * thread or *word has changed: what a handler writes there is not slept through, however short before the sleep it comes. */
bool note_sleep_intr(Note *n, int64_t timeout_ns, uint32_t *word, void (*look)(void *), void *arg);
void note_free(Note *n); /* nothing to free today; the end of its life, for what may come */

/* ---- what lock.c stands on.  Go: runtime.futexsleep, futexwakeup ---- */
/* Sleeps while *addr == val, until woken or timeout_ns (negative: for ever) has passed.  May also return early. */
void futexsleep(uint32_t *addr, uint32_t val, int64_t timeout_ns);
/* The same, but for *addr2 == val2 as well.  A change of that alone ends the sleep only if it comes before it; where the
 * system cannot do this (Linux before 5.16), not even then. */
void futexsleep2(uint32_t *addr, uint32_t val, uint32_t *addr2, uint32_t val2, int64_t timeout_ns);
/* Wakes one thread that sleeps on addr.  Looks at the address only: the memory may be gone already. */
void futexwakeup(uint32_t *addr);
/* In the child of a fork, first of all: forgets the sleepers that exist no more. */
void lock_after_fork(void);

#endif
