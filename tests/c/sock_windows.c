/* sock_windows.c: see sock.h. */
#ifdef _WIN32
#include "sock.h"

#include <winsock2.h>
#include <ws2tcpip.h>

#define S(fd) ((SOCKET)(fd))

const char *
sock_kind_name(SockKind kind)
{
    static const char *const names[] = {"local", "tcp", "pipe"};

    return names[kind];
}

__attribute__((constructor)) static void
winsock_start(void)
{
    WSADATA data;

    if (WSAStartup(MAKEWORD(2, 2), &data) != 0)
        abort();
}

static void
nonblocking(int fd)
{
    u_long on = 1;

    CHECK_EQ(ioctlsocket(S(fd), FIONBIO, &on), 0);
}

static int
loopback(struct sockaddr_in *sa, int port)
{
    SOCKET s = WSASocketW(AF_INET, SOCK_STREAM, 0, NULL, 0, WSA_FLAG_OVERLAPPED);

    CHECK(s != INVALID_SOCKET && (SOCKET)(int)s == s);
    memset(sa, 0, sizeof(*sa));
    sa->sin_family = AF_INET;
    sa->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sa->sin_port = htons((uint16_t)port);
    return (int)s;
}

int
sock_listen(int *port)
{
    struct sockaddr_in sa;
    int len = sizeof(sa), fd = loopback(&sa, *port);

    CHECK(bind(S(fd), (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(S(fd), 64) == 0);
    CHECK(getsockname(S(fd), (struct sockaddr *)&sa, &len) == 0);
    *port = ntohs(sa.sin_port);
    nonblocking(fd);
    return fd;
}

int
sock_connect(int port)
{
    struct sockaddr_in sa;
    int fd = loopback(&sa, port);

    nonblocking(fd);
    if (connect(S(fd), (struct sockaddr *)&sa, sizeof(sa)) != 0)
        CHECK(WSAGetLastError() == WSAEWOULDBLOCK || WSAGetLastError() == WSAECONNREFUSED);
    return fd;
}

int
sock_accept(int listener)
{
    SOCKET s = accept(S(listener), NULL, NULL);

    if (s == INVALID_SOCKET) {
        CHECK_EQ(WSAGetLastError(), WSAEWOULDBLOCK);
        return SOCK_AGAIN;
    }
    nonblocking((int)s);
    return (int)s;
}

int
sock_error(int fd)
{
    int err = 0, len = sizeof(err);

    CHECK(getsockopt(S(fd), SOL_SOCKET, SO_ERROR, (char *)&err, &len) == 0);
    return err == 0 ? 0 : SOCK_BROKEN;
}

bool
sock_pair(SockKind kind, int fd[2])
{
    static int port, listener;
    static Mutex one; /* at a time, or they would accept each other's */

    if (kind != SOCK_TCP)
        return false;
    mutex_lock(&one);
    if (listener == 0)
        listener = sock_listen(&port);
    fd[0] = sock_connect(port);
    while ((fd[1] = sock_accept(listener)) == SOCK_AGAIN)
        sys_usleep(50);
    mutex_unlock(&one);
    while (send(S(fd[0]), "", 0, 0) != 0) /* until it knows that it is connected */
        sys_usleep(50);
    return true;
}

static int
result(int n)
{
    if (n >= 0)
        return n;
    if (WSAGetLastError() == WSAEWOULDBLOCK)
        return SOCK_AGAIN;
    switch (WSAGetLastError()) {
    case WSAECONNRESET:
    case WSAECONNABORTED:
    case WSAESHUTDOWN:
    case WSAENOTSOCK:
    case WSAENOTCONN:
    case WSAECONNREFUSED:
        return SOCK_BROKEN;
    default:
        test_fail(__FILE__, __LINE__, "socket error %d", WSAGetLastError());
    }
}

int
sock_read(int fd, void *buf, size_t n)
{
    return result(recv(S(fd), buf, (int)n, 0));
}

int
sock_write(int fd, const void *buf, size_t n)
{
    return result(send(S(fd), buf, (int)n, 0));
}

void
sock_close(int fd)
{
    CHECK_EQ(closesocket(S(fd)), 0);
}

void
sock_reset(int fd)
{
    struct linger now = {1, 0};

    CHECK(setsockopt(S(fd), SOL_SOCKET, SO_LINGER, (const char *)&now, sizeof(now)) == 0);
    sock_close(fd);
}

void
sock_shutdown_write(int fd)
{
    CHECK_EQ(shutdown(S(fd), SD_SEND), 0);
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
    (void)fd, (void)other;
    return false;
}

bool
sock_exhaust(void)
{
    return false;
}

void
sock_enough(void)
{
}

int
sock_open_count(void)
{
    return -1;
}

/* A handle, but of no socket. */
int
sock_plain_file(void)
{
    HANDLE h = CreateEventW(NULL, FALSE, FALSE, NULL);

    CHECK(h != NULL);
    return (int)(intptr_t)h;
}

#endif
