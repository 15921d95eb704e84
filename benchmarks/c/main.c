/* main.c: twin goroutines|threads serve: reads "SHAPE OPS N" lines and answers each with a line of JSON.
 *         twin goroutines|threads SHAPE OPS [N]: one round */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "twin.h"

#include <gmp.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

double
seconds(void)
{
    return (double)gmp_nanotime() / 1e9;
}

static double
cpu_seconds(void)
{
    struct rusage ru;
    getrusage(RUSAGE_SELF, &ru);
    return (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) + (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

double
resident(void)
{
    unsigned long total, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    need(f != NULL && fscanf(f, "%lu %lu", &total, &pages) == 2, "statm");
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

void
round_start(Round *r)
{
    r->cpu = cpu_seconds();
    r->wall = seconds();
}

void
round_stop(Round *r)
{
    r->wall = seconds() - r->wall;
    r->cpu = cpu_seconds() - r->cpu;
}

void
round_figure(Round *r, const char *key, double value)
{
    size_t used = strlen(r->figures);
    snprintf(r->figures + used, sizeof r->figures - used, ", \"%s\": %.9g", key, value);
}

void
need(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "twin: %s\n", what);
        exit(1);
    }
}

uint64_t
burn(uint64_t seed, long n)
{
    uint64_t x = seed | 1;
    for (long i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    return x;
}

static void
answer(const Shape *shapes, const char *name, long ops, long n)
{
    Round r = {.ops = ops, .n = n};
    while (shapes->name != NULL && strcmp(shapes->name, name) != 0)
        shapes++;
    need(shapes->name != NULL, name);
    shapes->run(&r);
    printf("{\"ops\": %ld, \"ns\": %.6g, \"cpu_ns\": %.6g%s}\n", r.ops, r.wall * 1e9 / (double)r.ops,
           r.cpu * 1e9 / (double)r.ops, r.figures);
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    char line[256], name[64];
    need(argc >= 3, "usage: twin goroutines|threads serve | SHAPE OPS [N]");
    const Shape *shapes = strcmp(argv[1], "threads") == 0 ? thread_shapes : goroutine_shapes;
    if (strcmp(argv[2], "serve") != 0) {
        need(argc >= 4, "usage: twin goroutines|threads SHAPE OPS [N]");
        answer(shapes, argv[2], atol(argv[3]), argc > 4 ? atol(argv[4]) : 0);
        return 0;
    }
    printf("{\"version\": \"%s\"}\n", gmp_version());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        long ops, n = 0;
        need(sscanf(line, "%63s %ld %ld", name, &ops, &n) >= 2, "a line that is no round");
        answer(shapes, name, ops, n);
    }
    return 0;
}
