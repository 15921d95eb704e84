/* base.c: the end of the road (gmp_throw) and the names of the result codes. */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "atomic.h"

static void
write_all(const char *s, size_t n)
{
    while (n > 0) {
        ssize_t w = write(STDERR_FILENO, s, n);
        if (w <= 0)
            return;
        s += w;
        n -= (size_t)w;
    }
}

/* Any stack, any locks, any thread.  The buffer is static because the stack may be 2 KiB; a second thread (or a throw
 * inside a throw) gets its format string printed as it stands. */
void
gmp_throw(const char *fmt, ...)
{
    static char text[1024];
    static uint32_t taken;
    static const char head[] = "fatal error: gmp: ";

    if (atomic_xchg(&taken, 1u) == 0) {
        va_list ap;
        int n;

        memcpy(text, head, sizeof(head) - 1);
        va_start(ap, fmt);
        n = vsnprintf(text + sizeof(head) - 1, sizeof(text) - sizeof(head), fmt, ap);
        va_end(ap);
        n = n < 0 ? 0 : n;
        n += (int)sizeof(head) - 1;
        if ((size_t)n > sizeof(text) - 2)
            n = (int)sizeof(text) - 2;
        text[n++] = '\n';
        write_all(text, (size_t)n);
    }
    else {
        write_all(head, sizeof(head) - 1);
        write_all(fmt, strlen(fmt));
        write_all("\n", 1);
    }
    abort();
}

const char *
gmp_strerror(int code)
{
    switch (code) {
    case GMP_OK:
        return "ok";
    case GMP_EINVAL:
        return "argument out of range";
    case GMP_ENOMEM:
        return "out of memory";
    case GMP_EAGAIN:
        return "the system has no thread, memory map or descriptor left";
    case GMP_ETIMEDOUT:
        return "timed out";
    case GMP_ECLOSED:
        return "channel is closed";
    case GMP_ESHUTDOWN:
        return "the runtime has stopped";
    case GMP_EDEADLK:
        return "all goroutines are asleep - deadlock!";
    case GMP_EINTR:
        return "interrupted by a signal";
    case GMP_ESTATE:
        return "wrong state for this operation";
    case GMP_EIO:
        return "a system call failed";
    default:
        return "unknown error";
    }
}
