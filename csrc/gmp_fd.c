/* gmp_fd.c: the public C interface: descriptors.
 *
 * refs counts the calls that are inside, and the owner (gmp_fd_open's caller) as one.  gmp_fd_close wakes who waits and gives the
 * owner's up; whoever gives the last one up closes the descriptor: so its number is not reused while somebody still reads from it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "native.h"
#include "netpoll.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

struct gmp_fd {
    PollDesc *pd;
    int fd;
    uint32_t refs;    /* atomic */
    uint32_t busy[2]; /* atomic, by PollMode: a call is inside */
    bool timed[2];    /* its last wait had a deadline; for the one inside */
    uint32_t closing; /* atomic */
};

/* The address of errno may not be kept across a switch, and a compiler thinks that it may. */
static GMP_NOINLINE int
get_errno(void)
{
    __asm__ volatile("" ::: "memory");
    return errno;
}

static GMP_NOINLINE void
set_errno(int err)
{
    errno = err;
    __asm__ volatile("" ::: "memory");
}

static int
errno_code(int err)
{
    switch (err) {
    case ENOMEM:
        return GMP_ENOMEM;
    case EMFILE:
    case ENFILE:
    case ENOSPC:
        return GMP_EAGAIN;
    case EEXIST:
        return GMP_ESTATE;
    default:
        set_errno(err);
        return GMP_EIO;
    }
}

typedef struct PollOpen {
    int fd, err;
    PollDesc *pd;
} PollOpen;

static void
poll_open(void *arg)
{
    PollOpen *po = arg;
    po->err = netpoll_open(NATIVE_SET, po->fd, &po->pd);
}

int
gmp_fd_open(gmp_fd **out, int fd)
{
    if (out == NULL || fd < 0)
        return GMP_EINVAL;
    int code = native_init();
    if (code != GMP_OK)
        return code;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || ((flags & O_NONBLOCK) == 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
        return GMP_EIO;
    gmp_fd *f = g_calloc(sizeof *f);
    if (f == NULL)
        return GMP_ENOMEM;
    PollOpen po = {fd, 0, NULL};
    systemstack(poll_open, &po);
    f->pd = po.pd;
    int err = po.err;
    if (err != 0) {
        g_free(f);
        if ((flags & O_NONBLOCK) == 0)
            (void)fcntl(fd, F_SETFL, flags);
        return errno_code(err);
    }
    f->fd = fd;
    f->refs = 1;
    *out = f;
    return GMP_OK;
}

static void
unref(gmp_fd *f)
{
    if (atomic_xadd(&f->refs, (uint32_t)-1) != 1)
        return;
    if (netpoll_close(f->pd))
        close(f->fd);
    g_free(f);
}

int
gmp_fd_close(gmp_fd *f)
{
    if (f == NULL)
        return GMP_EINVAL;
    if (!atomic_cas(&f->closing, 0u, 1u)) /* while calls are inside; later it is gone */
        return GMP_ECLOSED;
    netpoll_evict(f->pd);
    unref(f);
    return GMP_OK;
}

int
gmp_fd_number(gmp_fd *f)
{
    return f != NULL ? f->fd : GMP_EINVAL;
}

static int
enter(gmp_fd *f, PollMode mode)
{
    if (f == NULL)
        return GMP_EINVAL;
    atomic_xadd(&f->refs, 1u);
    int code = atomic_load(&f->closing) ? GMP_ECLOSED : GMP_OK;
    if (code == GMP_OK && !atomic_cas(&f->busy[mode], 0u, 1u))
        code = GMP_ESTATE;
    if (code != GMP_OK)
        unref(f);
    return code;
}

static void
leave(gmp_fd *f, PollMode mode)
{
    int err = get_errno();
    atomic_store(&f->busy[mode], 0u);
    unref(f);
    set_errno(err);
}

/* deadline: nanotime, 0 none. */
static int
wait_visiting(gmp_fd *f, PollMode mode, int64_t deadline)
{
    int code = GMP_OK;
    if (deadline != 0 || f->timed[mode]) {
        code = netpoll_set_deadline(f->pd, mode, deadline);
        f->timed[mode] = deadline != 0;
    }
    if (code == GMP_OK)
        VISITING(code, netpoll_wait(f->pd, mode));
    return code;
}

static int64_t
deadline_of(int64_t timeout)
{
    int64_t now = nanotime();
    return timeout < 0 ? 0 : timeout > INT64_MAX - now ? INT64_MAX : now + timeout;
}

/* The poller tells of changes only: whether a descriptor is ready now, the system has to be asked. */
static int
fd_wait(gmp_fd *f, PollMode mode, int64_t timeout)
{
    struct pollfd pfd = {f->fd, mode == POLL_READ ? POLLIN : POLLOUT, 0};
    int64_t deadline = timeout > 0 ? deadline_of(timeout) : 0;
    int code = enter(f, mode);
    if (code != GMP_OK)
        return code;
    while (poll(&pfd, 1, 0) != 1 && code == GMP_OK)
        code = timeout == 0 ? GMP_ETIMEDOUT : wait_visiting(f, mode, deadline);
    leave(f, mode);
    return code;
}

int
gmp_fd_wait_read(gmp_fd *f, int64_t timeout)
{
    return f == NULL ? GMP_EINVAL : fd_wait(f, POLL_READ, timeout);
}

int
gmp_fd_wait_write(gmp_fd *f, int64_t timeout)
{
    return f == NULL ? GMP_EINVAL : fd_wait(f, POLL_WRITE, timeout);
}

/* A system call has failed: waits if that helps.  GMP_OK: try again. */
static int
again(gmp_fd *f, PollMode mode, int64_t timeout, int64_t *deadline)
{
    int err = get_errno();
    if (err == EINTR || err == ECONNABORTED)
        return GMP_OK;
    if (err != EAGAIN && err != EWOULDBLOCK)
        return GMP_EIO;
    if (timeout == 0)
        return GMP_ETIMEDOUT;
    if (*deadline < 0)
        *deadline = deadline_of(timeout);
    return wait_visiting(f, mode, *deadline);
}

int64_t
gmp_fd_read(gmp_fd *f, void *buf, size_t n, int64_t timeout)
{
    int64_t deadline = -1;
    if (buf == NULL && n != 0)
        return GMP_EINVAL;
    int code = enter(f, POLL_READ);
    if (code != GMP_OK)
        return code;
    ssize_t got;
    while ((got = read(f->fd, buf, n)) < 0 && (code = again(f, POLL_READ, timeout, &deadline)) == GMP_OK)
        ;
    leave(f, POLL_READ);
    return got >= 0 ? got : code;
}

/* MSG_NOSIGNAL: no SIGPIPE for sockets; what is no socket takes write. */
static ssize_t
write_some(int fd, const char *p, size_t n)
{
    ssize_t put = send(fd, p, n, MSG_NOSIGNAL);
    return put < 0 && get_errno() == ENOTSOCK ? write(fd, p, n) : put;
}

int64_t
gmp_fd_write(gmp_fd *f, const void *buf, size_t n, int64_t timeout)
{
    int64_t deadline = -1;
    if (buf == NULL && n != 0)
        return GMP_EINVAL;
    int code = enter(f, POLL_WRITE);
    if (code != GMP_OK)
        return code;
    size_t done = 0;
    while (done < n && code == GMP_OK) {
        ssize_t put = write_some(f->fd, (const char *)buf + done, n - done);
        if (put >= 0)
            done += (size_t)put;
        else
            code = again(f, POLL_WRITE, timeout, &deadline);
    }
    leave(f, POLL_WRITE);
    return done == n ? (int64_t)n : code;
}

int
gmp_fd_accept(gmp_fd *f, gmp_fd **out, int64_t timeout)
{
    int64_t deadline = -1;
    if (out == NULL)
        return GMP_EINVAL;
    int code = enter(f, POLL_READ);
    if (code != GMP_OK)
        return code;
    int fd;
    while ((fd = accept(f->fd, NULL, NULL)) < 0 && (code = again(f, POLL_READ, timeout, &deadline)) == GMP_OK)
        ;
    if (fd < 0 && code == GMP_EIO)
        code = errno_code(get_errno());
    leave(f, POLL_READ);
    if (fd < 0)
        return code;
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    code = gmp_fd_open(out, fd);
    if (code != GMP_OK)
        close(fd);
    return code;
}
