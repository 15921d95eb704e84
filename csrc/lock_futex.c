/* lock_futex.c: futexsleep and futexwakeup on Linux: the kernel's own. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sys.h"

#if defined(__linux__) && !defined(GMP_LOCK_SEMA)

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
futexwakeup(uint32_t *addr)
{
    (void)syscall(SYS_futex, addr, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void
lock_after_fork(void)
{
}

#endif
