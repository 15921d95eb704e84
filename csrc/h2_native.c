/* h2_native.c: native goroutines for the gRPC server: the set's start and a go statement for C functions.
 *
 * Their own file so that it can give way to a general one: nothing else here knows how native goroutines come about.
 */
#include "h2.h"

typedef struct NativeG {
    G g; /* first */
    void (*fn)(void *arg);
    void *arg;
} NativeG;

static const Class native_class = {
    .name = "native",
    .g_size = (sizeof(NativeG) + GMP_CACHELINE - 1) / GMP_CACHELINE * GMP_CACHELINE,
    .stack = STACK_64K,
};

static void
entry(G *gp)
{
    ((NativeG *)gp)->fn(((NativeG *)gp)->arg);
    goexit();
}

static void
fill(G *gp, void *arg)
{
    const NativeG *from = arg;
    ((NativeG *)gp)->fn = from->fn;
    ((NativeG *)gp)->arg = from->arg;
}

int
h2_native_start(void)
{
    /* Half the CPUs: Python keeps one busy, and on few CPUs the kernel's switches between our own threads cost more than their
     * running at once brings. */
    int n = sys_ncpu() / 2;
    return schedinit(SET_NATIVE, &native_class, n < 1 ? 1 : (uint32_t)n);
}

int
h2_go(void (*fn)(void *arg), void *arg)
{
    NativeG ng = {.fn = fn, .arg = arg};
    return newproc(H2_SET, entry, fill, &ng) != 0 ? GMP_OK : GMP_ENOMEM;
}
