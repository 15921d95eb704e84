/* sieve.c: the prime sieve: a goroutine for each prime takes its multiples out of the stream.
 *
 *   cc -pthread -Wl,-z,now -I csrc csrc/examples/sieve.c csrc/build/gcc/libgmp.a -o sieve && ./sieve 100
 */
#include <gmp.h>

#include <stdio.h>
#include <stdlib.h>

typedef struct Filter {
    gmp_chan *in, *out;
    int64_t prime;
} Filter;

static void
check(int code, const char *what)
{
    if (code < 0) {
        fprintf(stderr, "sieve: %s: %s\n", what, gmp_strerror(code));
        exit(1);
    }
}

/* 2, 3, 4 ... until nobody takes them. */
static void
generate(void *arg)
{
    for (int64_t i = 2; gmp_chan_send(arg, &i, sizeof i, -1) == GMP_OK; i++)
        ;
}

static void
filter(void *arg)
{
    Filter *f = arg;
    int64_t i;

    while (gmp_chan_recv(f->in, &i, sizeof i, -1) == GMP_OK)
        if (i % f->prime != 0 && gmp_chan_send(f->out, &i, sizeof i, -1) != GMP_OK)
            break;
    gmp_chan_close(f->in); /* so the one before ends, too; the generator's channel has no other closer */
}

int
main(int argc, char **argv)
{
    int n = argc > 1 ? atoi(argv[1]) : 100;
    gmp_chan **chans = calloc((size_t)n + 1, sizeof *chans);
    Filter *filters = calloc((size_t)n, sizeof *filters);
    int64_t prime = 0;

    if (n < 1 || chans == NULL || filters == NULL)
        return 1;
    check(gmp_chan_new(&chans[0], sizeof prime, 0), "channel");
    check(gmp_go(generate, chans[0], GMP_STACK_2K), "go");
    for (int i = 0; i < n; i++) {
        check(gmp_chan_recv(chans[i], &prime, sizeof prime, -1), "receive");
        check(gmp_chan_new(&chans[i + 1], sizeof prime, 0), "channel");
        filters[i] = (Filter){chans[i], chans[i + 1], prime};
        check(gmp_go(filter, &filters[i], GMP_STACK_2K), "go");
    }
    printf("prime %d is %lld\n", n, (long long)prime);
    check(gmp_chan_close(chans[n]), "close"); /* the last filter ends, and so does each before it */
    check(gmp_shutdown(-1), "shutdown");
    for (int i = 0; i <= n; i++)
        check(gmp_chan_free(chans[i]), "free");
    free(chans);
    free(filters);
    return 0;
}
