/* echo.c: a TCP server that sends back what it gets: a goroutine for each connection.
 *
 *   cc -pthread -Wl,-z,now -I csrc csrc/examples/echo.c csrc/build/gcc/libgmp.a -o echo && ./echo 7777
 *
 * echo PORT [N]: port 0 takes a free one and prints it; ends after N connections, or never.
 */
#include <gmp.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void
serve(void *arg)
{
    gmp_fd *conn = arg;
    char buf[4096];
    int64_t n;

    while ((n = gmp_fd_read(conn, buf, sizeof buf, -1)) > 0)
        if (gmp_fd_write(conn, buf, (size_t)n, -1) < 0)
            break;
    gmp_fd_close(conn);
}

int
main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    long left = argc > 2 ? atol(argv[2]) : -1;
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1, code;
    gmp_fd *listener, *conn;

    at.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 128) != 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) != 0) {
        perror("echo");
        return 1;
    }
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    code = gmp_fd_open(&listener, fd);
    while (code == GMP_OK && left-- != 0) {
        code = gmp_fd_accept(listener, &conn, -1);
        if (code == GMP_OK && (code = gmp_go(serve, conn, GMP_STACK_64K)) != GMP_OK)
            gmp_fd_close(conn);
    }
    if (code != GMP_OK)
        fprintf(stderr, "echo: %s\n", gmp_strerror(code));
    gmp_shutdown(-1);
    gmp_fd_close(listener);
    return code != GMP_OK;
}
