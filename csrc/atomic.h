/* atomic.h: every atomic operation of the core goes through this file.
 *
 * It is the seam for model checking: a checker replaces these macros and runs the same queues with four slots.
 * The default order is the strongest that the operation's name allows; relaxed variants say so in their name.
 * A use that is neither relaxed nor sequentially consistent names its partner in a comment.
 */
#ifndef GMP_ATOMIC_H
#define GMP_ATOMIC_H

#include "base.h"

/* CPython's internal headers bring <stdatomic.h> along in py_tstate.c. */
#undef atomic_load
#undef atomic_store

#define atomic_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define atomic_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define atomic_load(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define atomic_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define atomic_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define atomic_store(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define atomic_xchg(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define atomic_xadd(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define atomic_xadd_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define atomic_or(p, bits) __atomic_fetch_or((p), (bits), __ATOMIC_SEQ_CST)
#define atomic_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* Add by the only writer, for readers that want a consistent word and no order. */
#define stat_add(p, v) atomic_store_relaxed((p), *(p) + (v))

/* Compare and swap: true when *p was old and is now new. */
#define atomic_cas(p, old, new)                                                                                        \
    __extension__({                                                                                                    \
        __typeof__(*(p)) cas_old_ = (old);                                                                             \
        __atomic_compare_exchange_n((p), &cas_old_, (new), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
    })
/* The same with acquire on success only: for taking a lock. */
#define atomic_cas_acquire(p, old, new)                                                                                \
    __extension__({                                                                                                    \
        __typeof__(*(p)) cas_old_ = (old);                                                                             \
        __atomic_compare_exchange_n((p), &cas_old_, (new), false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);                 \
    })
/* The same with release on success only: for publishing. */
#define atomic_cas_release(p, old, new)                                                                                \
    __extension__({                                                                                                    \
        __typeof__(*(p)) cas_old_ = (old);                                                                             \
        __atomic_compare_exchange_n((p), &cas_old_, (new), false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);                 \
    })

static inline void
cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

#endif
