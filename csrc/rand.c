/* rand.c: cheaprand: xorshift64*, a word per thread. */
#include "sys.h"

#include <unistd.h>

#if defined(__ELF__)
#define TLS_FAST _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define TLS_FAST _Thread_local
#endif

static uint64_t
mix64(uint64_t z) /* splitmix64's finaliser: neighbouring seeds give unrelated states */
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static GMP_COLD uint64_t
rand_seed(const void *where)
{
    static uint64_t threads; /* how many threads have asked */
    uint64_t ordinal = atomic_xadd_relaxed(&threads, 1);
    const char *env = getenv("GMP_SEED");
    uint64_t seed;

    if (env != NULL && *env != '\0')
        seed = strtoull(env, NULL, 0);
    else
        seed = (uint64_t)nanotime() ^ mix64((uint64_t)getpid()) ^ (uint64_t)(uintptr_t)where << 20;
    seed = mix64(seed + (ordinal + 1) * UINT64_C(0x9e3779b97f4a7c15));
    return seed != 0 ? seed : 1; /* zero is xorshift's fixed point */
}

/* Not inlined: the address of a TLS word must not be kept across a switch. */
GMP_NOINLINE uint32_t
cheaprand(void)
{
    static TLS_FAST uint64_t state;
    uint64_t x = state;

    if (GMP_UNLIKELY(x == 0))
        x = rand_seed(&state);
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    state = x;
    return (uint32_t)((x * UINT64_C(0x2545f4914f6cdd1d)) >> 32);
}
