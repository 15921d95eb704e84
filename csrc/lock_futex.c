/* lock_futex.c: futexsleep and futexwakeup on Linux: the kernel's own. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sys.h"

#if defined(__linux__) && !defined(GMP_LOCK_SEMA)

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void
futexsleep(uint32_t *addr, uint32_t val, int64_t timeout_ns)
{
    struct timespec ts, *tp = NULL;

    if (timeout_ns >= 0) {
        ts.tv_sec = (time_t)(timeout_ns / 1000000000);
        ts.tv_nsec = (long)(timeout_ns % 1000000000);
        tp = &ts;
    }
    /* EAGAIN (the value has changed), EINTR, ETIMEDOUT: the caller looks again whatever it was. */
    (void)syscall(SYS_futex, addr, FUTEX_WAIT_PRIVATE, val, tp, NULL, 0);
}

void
futexsleep2(uint32_t *addr, uint32_t val, uint32_t *addr2, uint32_t val2, int64_t timeout_ns)
{
#ifdef SYS_futex_waitv
    static bool missing;
    struct {
        uint64_t val, uaddr;
        uint32_t flags, reserved;
    } w[2] = {{val, (uintptr_t)addr, 2 | FUTEX_PRIVATE_FLAG, 0}, {val2, (uintptr_t)addr2, 2 | FUTEX_PRIVATE_FLAG, 0}};
    struct timespec ts, *tp = NULL; /* the time when it ends */
    if (timeout_ns >= 0) {
        int64_t now = nanotime(), when = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
        ts.tv_sec = (time_t)(when / 1000000000);
        ts.tv_nsec = (long)(when % 1000000000);
        tp = &ts;
    }
    if (!missing && (syscall(SYS_futex_waitv, w, 2, 0, tp, CLOCK_MONOTONIC) >= 0 || errno != ENOSYS))
        return;
    missing = true;
#endif
    (void)addr2, (void)val2;
    futexsleep(addr, val, timeout_ns);
}

void
futexwakeup(uint32_t *addr)
{
    (void)syscall(SYS_futex, addr, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void
lock_after_fork(void)
{
}

#endif
