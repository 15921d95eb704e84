/* native.h: goroutines without Python, for the tests of the scheduler and of what stands on it.
 *
 *   TEST_P(name) { ... }     three tests, name_p1 name_p2 name_p4: with 1, 2 and 4 Ps; the test itself is a goroutine
 *   go(fn, arg)              starts fn(arg) as a goroutine; done() and wait_done(n) count those that are finished
 *   quiet()                  ends a test: waits until only the caller is left, and checks that nothing else is
 *
 * Randomised tests draw from an Rng, whose seed is GMP_SEED or new each time, and shown when the test fails.
 */
#ifndef GMP_TEST_NATIVE_H
#define GMP_TEST_NATIVE_H

#include "test.h"

#include "sync.h"

#define US INT64_C(1000)
#define MS INT64_C(1000000)
#define SEC INT64_C(1000000000)

typedef struct TestG {
    G g;
    void (*fn)(void *);
    void *arg;
    uint32_t detached; /* atomic: what Class.detached says */
} TestG;

#define NATIVE (&scheds[SET_NATIVE])
extern Class native_class;

void native_start(uint32_t nprocs); /* schedinit, and adopts the calling thread */
TestG *native_adopt(void);          /* adopts one more thread */
void native_disown(void);
uint64_t go(void (*fn)(void *), void *arg); /* any thread; fails the test when memory is refused */
void blocking(bool on);                     /* the caller is in a call that blocks its thread: sysmon may take its P */
void done(void);
void wait_done(long n); /* until done() was called n times more than the earlier waits have seen */
void quiet(void);
struct gmp_chan;
bool waits_on(struct gmp_chan *ch); /* does anybody? */

typedef uint64_t Rng;
uint64_t test_seed(void);
Rng rng_new(uint64_t seed, uint64_t stream);
uint32_t rng(Rng *r, uint32_t n); /* 0 .. n-1 */

#define TEST_P_LIMIT(name_, limit_)                                                                                    \
    static void name_(void);                                                                                           \
    TEST_LIMIT(name_##_p1, limit_)                                                                                     \
    {                                                                                                                  \
        native_start(1);                                                                                               \
        name_();                                                                                                       \
    }                                                                                                                  \
    TEST_LIMIT(name_##_p2, limit_)                                                                                     \
    {                                                                                                                  \
        native_start(2);                                                                                               \
        name_();                                                                                                       \
    }                                                                                                                  \
    TEST_LIMIT(name_##_p4, limit_)                                                                                     \
    {                                                                                                                  \
        native_start(4);                                                                                               \
        name_();                                                                                                       \
    }                                                                                                                  \
    static void name_(void)
#define TEST_P(name_) TEST_P_LIMIT(name_, 30)

#endif
