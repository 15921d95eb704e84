/* sock_posix.c: see sock.h. */
#ifndef _WIN32
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

const char *
sock_kind_name(SockKind kind)
{
    static const char *const names[] = {"local", "tcp", "pipe"};

    return names[kind];
}

static void
nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    CHECK(flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
}

static int
loopback(struct sockaddr_in *sa, int port)
{
    memset(sa, 0, sizeof(*sa));
    sa->sin_family = AF_INET;
    sa->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sa->sin_port = htons((uint16_t)port);
    return socket(AF_INET, SOCK_STREAM, 0);
}

int
sock_listen(int *port)
{
    struct sockaddr_in sa;
    socklen_t len = sizeof(sa);
    int fd = loopback(&sa, *port);

    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(fd, 64) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
    *port = ntohs(sa.sin_port);
    nonblocking(fd);
    return fd;
}

int
sock_connect(int port)
{
    struct sockaddr_in sa;
    int fd = loopback(&sa, port);

    CHECK(fd >= 0);
    nonblocking(fd);
    if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0)
        CHECK(errno == EINPROGRESS || errno == ECONNREFUSED);
    return fd;
}

int
sock_accept(int listener)
{
    int fd = accept(listener, NULL, NULL);

    if (fd < 0) {
        CHECK(errno == EAGAIN || errno == EWOULDBLOCK);
        return SOCK_AGAIN;
    }
    nonblocking(fd);
    return fd;
}

int
sock_error(int fd)
{
    int err = 0;
    socklen_t len = sizeof(err);

    CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0);
    CHECK(err == 0 || err == ECONNREFUSED);
    return err == 0 ? 0 : SOCK_BROKEN;
}

bool
sock_pair(SockKind kind, int fd[2])
{
    static int port, listener;
    static Mutex one; /* at a time, or they would accept each other's */

    signal(SIGPIPE, SIG_IGN);
    switch (kind) {
    case SOCK_LOCAL:
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
        break;
    case SOCK_PIPE:
        CHECK(pipe(fd) == 0);
        break;
    default:
        mutex_lock(&one);
        if (listener == 0)
            listener = sock_listen(&port);
        fd[0] = sock_connect(port);
        while ((fd[1] = sock_accept(listener)) == SOCK_AGAIN)
            sys_usleep(50);
        mutex_unlock(&one);
        break;
    }
    nonblocking(fd[0]);
    nonblocking(fd[1]);
    return true;
}

static int
result(ssize_t n)
{
    if (n >= 0)
        return (int)n;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return SOCK_AGAIN;
    CHECK(errno == ECONNRESET || errno == EPIPE || errno == ECONNREFUSED || errno == EBADF);
    return SOCK_BROKEN;
}

int
sock_read(int fd, void *buf, size_t n)
{
    return result(read(fd, buf, n));
}

int
sock_write(int fd, const void *buf, size_t n)
{
    return result(write(fd, buf, n));
}

void
sock_close(int fd)
{
    CHECK(close(fd) == 0);
}

void
sock_reset(int fd)
{
    struct linger now = {1, 0};

    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)) == 0);
    sock_close(fd);
}

void
sock_shutdown_write(int fd)
{
    CHECK(shutdown(fd, SHUT_WR) == 0);
}

size_t
sock_fill(int fd)
{
    static const char zeroes[65536];
    size_t total = 0, size = sizeof(zeroes);

    while (size != 0) {
        int n = sock_write(fd, zeroes, size);
        if (n > 0)
            total += (size_t)n;
        else
            size /= 2;
    }
    return total;
}

size_t
sock_drain(int fd)
{
    char buf[16384];
    size_t total = 0;
    int n;

    while ((n = sock_read(fd, buf, sizeof(buf))) > 0)
        total += (size_t)n;
    return total;
}

bool
sock_replace(int fd, int other)
{
    CHECK(dup2(other, fd) == fd);
    sock_close(other);
    return true;
}

static struct rlimit files;

bool
sock_exhaust(void)
{
    struct rlimit none;
    int next = dup(0);

    CHECK(next >= 0 && getrlimit(RLIMIT_NOFILE, &files) == 0);
    sock_close(next);
    none = files;
    none.rlim_cur = (rlim_t)next;
    return setrlimit(RLIMIT_NOFILE, &none) == 0;
}

void
sock_enough(void)
{
    CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
}

int
sock_open_count(void)
{
    int n = 0;

    for (int fd = 0; fd < 1000; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

int
sock_plain_file(void)
{
    FILE *f = tmpfile();

    CHECK(f != NULL);
    return fileno(f);
}

#endif
