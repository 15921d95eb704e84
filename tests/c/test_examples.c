/* test_examples.c: the programs in csrc/examples, which link against libgmp.a alone, do what they say. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *
example(const char *words)
{
    const char *run = getenv("GMP_TEST_RUN"); /* an emulator, say */
    char command[1024];

    snprintf(command, sizeof(command), "exec %s %s/examples/%s", run != NULL ? run : "", BUILD, words);
    FILE *f = popen(command, "r");
    CHECK(f != NULL);
    return f;
}

TEST_LIMIT(example_sieve, 120)
{
    char line[100] = "";
    FILE *f = example("sieve 100");

    CHECK(fgets(line, sizeof(line), f) != NULL);
    CHECK(strcmp(line, "prime 100 is 541\n") == 0);
    CHECK_EQ(pclose(f), 0);
}

TEST_LIMIT(example_echo, 120)
{
    enum { N = 5 };
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int port, s[N];
    FILE *f = example("echo 0 5");

    CHECK_EQ(fscanf(f, "%d", &port), 1);
    at.sin_port = htons((uint16_t)port);
    for (int i = 0; i < N; i++) {
        s[i] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(s[i] >= 0);
        CHECK_EQ(connect(s[i], (struct sockaddr *)&at, sizeof(at)), 0);
    }
    for (int round = 0; round < 20; round++) {
        char out[16], in[16] = "";
        for (int i = 0; i < N; i++) {
            int n = snprintf(out, sizeof(out), "%d:%d", i, round);
            CHECK_EQ(write(s[i], out, (size_t)n), n);
        }
        for (int i = 0; i < N; i++) {
            int n = snprintf(out, sizeof(out), "%d:%d", i, round);
            CHECK_EQ(recv(s[i], in, (size_t)n, MSG_WAITALL), n);
            CHECK(memcmp(in, out, (size_t)n) == 0);
        }
    }
    for (int i = 0; i < N; i++)
        close(s[i]);
    CHECK_EQ(pclose(f), 0);
}
