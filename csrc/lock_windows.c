/* lock_windows.c: futexsleep and futexwakeup on Windows: WaitOnAddress, which is the same thing.  Times are rounded up to
 * milliseconds, and end with a tick of the system's clock. */
#if defined(_WIN32)
#include "sys.h"

#ifndef GMP_LOCK_SEMA

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

void
futexsleep(uint32_t *addr, uint32_t val, int64_t timeout_ns)
{
    DWORD ms = INFINITE;

    if (timeout_ns >= 0) {
        int64_t up = (timeout_ns + 999999) / 1000000;
        ms = up < 1000000000 ? (DWORD)up : 1000000000;
    }
    (void)WaitOnAddress(addr, &val, sizeof(val), ms); /* the caller looks again whatever ended it */
}

void
futexwakeup(uint32_t *addr)
{
    WakeByAddressSingle(addr);
}

void
lock_after_fork(void)
{
}

#endif
#endif
