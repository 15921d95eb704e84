/* twin.h: the shapes of ../bench_native.py as C programs: the same words, the same answers as ../go/main.go. */
#ifndef TWIN_H
#define TWIN_H

#include <stdint.h>

/* One run of one shape: ops operations on n tasks, channels or whatever the shape counts. */
typedef struct Round {
    long ops, n;
    double wall, cpu; /* seconds, between round_start and round_stop */
    char figures[512]; /* further ones, as JSON: ,"key":value */
} Round;

typedef struct Shape {
    const char *name;
    void (*run)(Round *r);
} Shape;

void round_start(Round *r);
void round_stop(Round *r);
void round_figure(Round *r, const char *key, double value);
double seconds(void);
double resident(void); /* bytes */
void need(int ok, const char *what); /* ends the program when not ok */

extern const Shape goroutine_shapes[], thread_shapes[]; /* end with a NULL name */

/* Work that no compiler shortens: n steps. */
uint64_t burn(uint64_t seed, long n);

#endif
