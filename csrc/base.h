/* base.h: types, the three kinds of failure, assertions, compiler hints.
 *
 * Failures come in three kinds, and each has one way out:
 *   1. the user's error           a negative GMP_E... code, turned into an exception by the glue
 *   2. a lost resource            GMP_ENOMEM and friends, the same way; nothing is leaked on the way out
 *   3. our own bug                gmp_throw(): message, abort.  Compiled in everywhere, also in release.
 */
#ifndef GMP_BASE_H
#define GMP_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gmp.h"

#define GMP_LIKELY(x) __builtin_expect(!!(x), 1)
#define GMP_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define GMP_NOINLINE __attribute__((noinline))
#define GMP_NORETURN __attribute__((noreturn))
#if defined(_WIN32)
#define GMP_PRINTF(fmt, args) __attribute__((format(gnu_printf, fmt, args)))
#define GMP_HIDDEN
#else
#define GMP_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define GMP_HIDDEN __attribute__((visibility("hidden")))
#endif
#define GMP_COLD __attribute__((cold, noinline))
#define GMP_UNUSED __attribute__((unused))
#define GMP_CACHELINE 64
#define GMP_ALIGNED(n) __attribute__((aligned(n)))

#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GMP_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define GMP_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GMP_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define GMP_TSAN 1
#endif

/* Reads words that other threads write, on purpose and without order: ThreadSanitizer should not look. */
#if defined(GMP_TSAN) && defined(__clang__)
#define GMP_RACY __attribute__((disable_sanitizer_instrumentation, noinline))
#elif defined(GMP_TSAN)
#define GMP_RACY __attribute__((no_sanitize("thread"), noinline))
#else
#define GMP_RACY
#endif

/* Prints "fatal error: gmp: ..." to stderr and aborts.  For our own bugs only.  Async-signal-safe enough for a crash. */
GMP_NORETURN GMP_COLD void gmp_throw(const char *fmt, ...) GMP_PRINTF(1, 2);

/* Always compiled in. */
#define GMP_CHECK(cond)                                                                                                \
    do {                                                                                                               \
        if (GMP_UNLIKELY(!(cond)))                                                                                     \
            gmp_throw("%s:%d: %s", __FILE__, __LINE__, #cond);                                                         \
    } while (0)

/* Compiled in when GMP_DEBUG is set: for checks that cost something on a hot path. */
#ifdef GMP_DEBUG
#define GMP_ASSERT(cond) GMP_CHECK(cond)
#else
#define GMP_ASSERT(cond) ((void)0)
#endif

#endif
